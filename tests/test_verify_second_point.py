"""The second point and the settings: mistakes that the values given hide."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import verify
from jaxnn.verify.second_point import moved_off
from jaxnn.verify.slots import slots_in

# Whether a gradient is wrong, not why, is asked here.
pytestmark = pytest.mark.usefixtures("undiagnosed")

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X, W, V = normal(5, 3), normal(3, 4), normal(4)


def waves(w, x, temperature=1.0):
    return jnp.sin(x @ w / temperature).mean()


def untempered(w, x, temperature=1.0):
    return x.T @ jnp.cos(x @ w / temperature) / (len(x) * w.shape[1])


def tempered(w, x, temperature=1.0):
    return untempered(w, x, temperature) / temperature


@dataclass(frozen=True)
class Inner:
    temperature: Any = 1.0


@dataclass(frozen=True)
class Outer:
    inner: Any = Inner()
    name: str = "outer"


class Pair(NamedTuple):
    temperature: float = 1.0
    steps: int = 3


class Plain:
    def __init__(self, temperature):
        self.temperature = temperature


class Slotted:
    __slots__ = ("temperature",)

    def __init__(self, temperature):
        self.temperature = temperature


@jax.tree_util.register_dataclass
@dataclass
class Registered:
    x: Any
    temperature: float = field(default=1.0, metadata={"static": True})


CONFIGURATIONS = {
    "nested": (Outer(), lambda c: c.inner.temperature),
    "of NumPy": (Inner(np.float32(1.0)), lambda c: c.temperature),
    "of an array": (Inner(jnp.ones(())), lambda c: c.temperature),
    "whole": (SimpleNamespace(a=SimpleNamespace(temperature=1)), lambda c: c.a.temperature),
    "named tuple": (Pair(), lambda c: c.temperature),
    "mapping of a dataclass": ({"temperature": Inner()}, lambda c: c["temperature"].temperature),
    "dataclass of a mapping": (Outer({"temperature": 1.0}), lambda c: c.inner["temperature"]),
    "dataclass of a tuple": (Inner((0.5, 1.0)), lambda c: c.temperature[1]),
    "object": (Plain(1.0), lambda c: c.temperature),
    "object with slots": (Slotted(1.0), lambda c: c.temperature),
    "static field": (Registered(X), lambda c: c.temperature),
}


def named(report, *words):
    return [line for line in report.coverage if all(word in line for word in words)]


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_a_number_is_moved_wherever_it_is_held(kind):
    config, of = CONFIGURATIONS[kind]

    def loss(w, x, config):
        return waves(w, x, of(config))

    wrong = verify.gradient(loss, lambda w, x, c: untempered(w, x, of(c)), W, X, config)
    right = verify.gradient(loss, lambda w, x, c: tempered(w, x, of(c)), W, X, config)
    assert wrong
    assert named(wrong, "temperature", "left out")
    assert right
    assert not named(right, "temperature")
    assert of(config) == 1.0  # the caller's own is as it was


@pytest.mark.parametrize("default", [1.0, 1, Pair(), {"temperature": 1.0}, Inner(), jnp.ones(())])
def test_a_default_is_moved(default):
    def of(c):
        if isinstance(c, dict):
            return c["temperature"]
        return getattr(c, "temperature", c)

    def loss(w, x, *, temperature=default):
        return waves(w, x, of(temperature))

    def by_hand(w, x, *, temperature=default):
        return untempered(w, x, of(temperature))

    assert named(verify.gradient(loss, by_hand, W, X), "temperature", "left out")
    if not isinstance(default, jax.Array | dict | tuple | Inner):
        unasked = verify.gradient(loss, lambda w, x: untempered(w, x), W, X)
        assert named(unasked, "temperature", "does not take it")


def test_a_weight_of_zero_and_an_array_that_is_moved_once():
    def loss(w, x, scale, weight=0.0):
        return (scale * jnp.sin(x @ w)).mean() + weight * (w**2).sum()

    def by_hand(w, x, scale, weight=0.0):
        return tempered(w, x)

    report = verify.gradient(loss, by_hand, W, X, jnp.ones(()))
    assert len(named(report, "weight is 0", "at 0.3")) == 1
    assert len(named(report, "scale is 1")) == 1


def test_numbers_that_hide_each_other():
    def loss(w, x, weight=0.0, ratio=0.0):
        return waves(w, x) + weight * (ratio * jnp.exp(w).sum() + (1 - ratio) * (w**2).sum())

    def by_hand(w, x, weight=0.0, ratio=0.0):
        return tempered(w, x) + 2 * weight * (1 - ratio) * w

    assert named(verify.gradient(loss, by_hand, W, X), "weight", "ratio", "together")

    def both(w, x, first, second):
        return waves(w, x, first) + second * (w**2).sum()

    def exchanged(w, x, first, second):
        return tempered(w, x, second) + 2 * first * w

    report = verify.gradient(both, exchanged, W, X, 0.5, 0.5)
    assert named(report, "first is 0.5")
    assert named(report, "second is 0.5")
    assert not named(verify.gradient(both, lambda *a: jax.grad(both)(*a), W, X, 0.5, 0.5), "0.5")


def test_a_number_that_only_some_values_are_allowed_for():
    def loss(w, x, share=1.0):
        if share > 1:
            raise ValueError("share must be at most 1")
        return share * waves(w, x)

    def by_hand(w, x, share=1.0):
        return tempered(w, x)

    assert named(verify.gradient(loss, by_hand, W, X), "share is 1", "at 0.7")

    def one_only(w, x, share=1.0):
        if share != 1:
            raise ValueError("share must be 1")
        return waves(w, x)

    assert named(verify.gradient(one_only, by_hand, W, X), "share is 1", "cannot be moved")

    def repeated(w, x, layers=1):
        y = x @ w
        for _ in range(layers):
            y = jnp.sin(y)
        return y.mean()

    assert named(verify.gradient(repeated, lambda w, x, layers=1: tempered(w, x), W, X), "at 2")
    right = verify.gradient(repeated, lambda *a, **k: jax.grad(repeated)(*a, **k), W, X)
    assert right
    assert not named(right, "layers")


def test_whole_arrays_and_equal_ones():
    def counted(w, x, counts):
        return (counts * jnp.sin(x @ w).sum(1)).sum()

    forgotten = verify.gradient(
        counted, lambda w, x, _: x.T @ jnp.cos(x @ w), W, X, np.ones(5, int)
    )
    assert forgotten
    assert named(forgotten, "counts is 1 everywhere", "moved")

    def product(w, a, b):
        return ((a * b) @ w).sum()

    def of_one(w, a, b):
        return jnp.broadcast_to((b * b).sum(0)[:, None], w.shape)

    assert named(verify.gradient(product, of_one, W, X, X), "a and b (equal)")


def test_parameters_are_moved_off_what_hides_a_mistake():
    def loss(p, x):
        return (jnp.tanh(x @ p["w"] + p["b"]) * p["gain"]).sum()

    def by_hand(p, x, gain=True, bias=True):
        y = jnp.tanh(x @ p["w"] + (p["b"] if bias else 0))
        d = (1 - y**2) * (p["gain"] if gain else 1)
        return {"w": x.T @ d, "b": d.sum(0), "gain": y.sum(0)}

    params = {"w": W, "b": jnp.zeros(4), "gain": jnp.ones(4)}
    assert verify.gradient(loss, by_hand, params, X)
    for slip in ({"gain": False}, {"bias": False}):
        report = verify.gradient(loss, lambda p, x, s=slip: by_hand(p, x, **s), params, X)
        assert report.status == "fail"
        assert "second point" in report.problems[0]


PROBABILITIES = jax.nn.softmax(normal(5, 4))
UNIT = X / jnp.linalg.norm(X, axis=1, keepdims=True)


def cross_entropy(w, x, y):
    return -(y * jax.nn.log_softmax(x @ w)).sum()


def of_cross_entropy(w, x, y):
    return x.T @ (jax.nn.softmax(x @ w) - y)


def left_over(v, u):
    return ((v - (u * v).sum(1, keepdims=True) * u) ** 2).sum()


def of_left_over(v, u):
    return 2 * (v - (u * v).sum(1, keepdims=True) * u)


@pytest.mark.parametrize("y", [PROBABILITIES, jax.nn.one_hot(jnp.arange(5) % 4, 4) * 0.9 + 0.025])
def test_rows_that_sum_to_1_may_be_relied_on(y):
    """In float32 they do so to its last place, which in float64 is an error of 1e-8."""
    report = verify.gradient(cross_entropy, of_cross_entropy, W, X, y)
    assert report
    assert "last place" in report.leaves[0].messages[0]
    assert report.leaves[0].sees < 1e-5
    for factor in (1 + 1e-5, 1 + 3e-8):
        slip = verify.gradient(
            cross_entropy, lambda *a, f=factor: f * of_cross_entropy(*a), W, X, y
        )
        assert slip.status == ("fail" if factor > 1 + 1e-6 else "pass")


def test_unit_vectors_may_be_relied_on_and_small_errors_not():
    assert verify.gradient(left_over, of_left_over, normal(5, 3), UNIT)
    # An error of the same size that is none of the arguments' rounding.
    slip = verify.gradient(lambda w, x: waves(w, x), lambda w, x: (1 + 3e-8) * tempered(w, x), W, X)
    assert slip.status == "fail"


def test_what_stays_where_an_array_is_moved():
    rng = np.random.default_rng(0)

    def move(x):
        return np.asarray(moved_off(jnp.asarray(x, jnp.float32), 0.3, rng))

    mask = np.array([1.0, 0.0, 1.0])
    assert (move(mask) == mask).all()
    rows = move(PROBABILITIES)
    assert np.allclose(rows.sum(-1), 1, atol=1e-6)
    assert (rows > 0).all()
    assert np.abs(rows - PROBABILITIES).max() > 0.01
    square = np.asarray(normal(4, 4))
    even = move(square + square.T)
    assert (even == even.T).all()
    grid = move(np.linspace(-1, 1, 9))
    assert (np.diff(grid) > 0).all()
    assert (move(np.ones(3)) != 1).all()
    assert (move(np.zeros(3)) != 0).all()
    assert len(np.unique(move(np.ones(3)))) == 3
    assert (move(np.array([0.0, 0.4, 0.9])) <= 1).all()
    assert moved_off(jnp.arange(3), 0.3, rng).tolist() == [0, 1, 2]
    infinite = move([-np.inf, 0.0])
    assert infinite.tolist() == [-np.inf, 0.0]


def test_held_looks_into_configurations_and_not_into_libraries():
    found = {h.name: h for h in slots_in("c", Outer({"a": (1.0, [2])}))}
    assert list(found) == ["c.inner['a'][0]", "c.inner['a'][1][0]"]
    changed = found["c.inner['a'][1][0]"].put(Outer({"a": (1.0, [2])}), 7)
    assert changed == Outer({"a": (1.0, [7])})
    ring = SimpleNamespace(a=1.0)
    ring.me = ring
    assert len(list(slots_in("c", ring))) < 10
    nothing = (True, "1", None, jnp.float32, jnp.ones(2, int), jax.random.key(0), jnp.sin, Plain)
    assert not [h for value in nothing for h in slots_in("c", value)]
