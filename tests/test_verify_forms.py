"""What gradients and losses are made of: lists, NumPy of either width, a library's variables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import verify

X = jax.random.normal(jax.random.key(0), (4, 3))
W = jnp.array([0.5, -1.5, 2.0])


def loss(w, x):
    return ((x @ w) ** 2).mean()


def in_numpy(w, x, factor=2.0, dtype=np.float64):
    w, x = np.asarray(w, dtype), np.asarray(x, dtype)
    return x.T @ (dtype(factor) * (x @ w)) / dtype(len(x))


@pytest.mark.parametrize("integers", [False, True])
def test_numpy_data_that_a_function_holds_has_the_width_of_each_trace(integers, undiagnosed):
    """JAX remembers what it made of an array, whatever the width was."""
    data = np.array([2, 0, 1]) if integers else np.linspace(0.0, 1.0, 3)

    def held(w):
        return (w[data] * data).sum() if integers else jnp.sin(w * data).sum()

    def by_hand(w):
        return jnp.zeros_like(w).at[data].add(data) if integers else jnp.cos(w * data) * data

    jitted = jax.jit(held)  # its trace, and the constant in it, lives as long
    before = jax.grad(jitted)(W)
    for f in (held, jitted):
        assert verify.gradient(f, by_hand, W).status == "pass"
    assert verify.gradient(held, lambda w: 2 * by_hand(w), W).status == "fail"
    after = jax.grad(held)(W)
    assert after.dtype == jnp.float32
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("factor", [2.0, 2.002])
def test_numpy_in_float32_is_held_to_that(factor, undiagnosed):
    def gradient(w, x):
        return in_numpy(w, x, factor, np.float32)

    report = verify.gradient(loss, gradient, W, X)
    assert report.status == ("pass" if factor == 2.0 else "fail")
    assert any("computes in float32" in line for line in report.coverage)
    assert report.leaves[0].sees > 1e-8


@pytest.mark.parametrize(
    "listed",
    [
        lambda g, w, x: g.tolist(),
        lambda g, w, x: list(g),
        lambda g, w, x: (float(loss(w, x)), g.tolist()),
    ],
)
def test_a_list_of_numbers_is_an_array(listed, undiagnosed):
    assert verify.gradient(loss, lambda w, x: listed(in_numpy(w, x), w, x), W, X).status == "pass"
    wrong = verify.gradient(loss, lambda w, x: listed(in_numpy(w, x, 3.0), w, x), W, X)
    assert wrong.status == "fail"


def test_lists_of_what_is_traced_and_lists_in_rows(undiagnosed):
    def rows(w, x):
        return {"w": [[x[:, i].sum() for _ in range(2)] for i in range(3)]}

    params = {"w": jnp.ones((3, 2))}
    assert verify.gradient(lambda p, x: (x @ p["w"]).sum(), rows, params, X).status == "pass"
    ragged = verify.gradient(loss, lambda w, x: [1.0, [2.0, 3.0]], W, X)
    assert "that the parameters lack" in ragged.problems[0]
    scalars = [jnp.float32(1.0), jnp.float32(2.0)]  # these are leaves, and stay two
    assert verify.gradient(lambda p: p[0] * p[1], lambda p: [p[1], p[0]], scalars).status == "pass"


def test_what_is_not_finite_is_evidence_under_debug_nans():
    def sinc(x):
        return jnp.where(x == 0, 1.0, jnp.sin(x) / x).sum()

    def by_hand(x):
        safe = jnp.where(x == 0, 1.0, x)
        return jnp.where(x == 0, 0.0, (safe * jnp.cos(safe) - jnp.sin(safe)) / safe**2)

    with jax.debug_nans(True):
        assert verify.gradient(sinc, by_hand, jnp.array([0.0, 1.0, -2.0])).status == "pass"


def variable(name):
    """A class that wraps one array, as Flax's do."""

    @jax.tree_util.register_pytree_with_keys_class
    class Variable:
        def __init__(self, value):
            self.value = value

        def tree_flatten_with_keys(self):
            return [(jax.tree_util.GetAttrKey("value"), self.value)], None

        @classmethod
        def tree_unflatten(cls, _, leaves):
            return cls(*leaves)

    Variable.__name__ = name
    return Variable


Param, Statistic = variable("Param"), variable("Statistic")


def normalised(p, x):
    return (((x - p["mean"].value) @ p["w"].value + p["b"].value) ** 2).mean()


@pytest.mark.parametrize(
    ("kept", "factor", "status"),
    [("w b", 1.0, "pass"), ("w b", 1.5, "fail"), ("w", 1.0, "fail"), ("w b mean", 1.0, "pass")],
)
def test_variables_of_a_kind_that_no_gradient_holds_are_not_judged(
    kept, factor, status, undiagnosed
):
    params = {"w": Param(W), "b": Param(jnp.float32(0.3)), "mean": Statistic(0.1 * W)}

    def gradient(p, x):
        found = jax.tree.map(lambda g: factor * g, jax.grad(normalised)(p, x))
        return {name: found[name] for name in kept.split()}

    report = verify.gradient(normalised, gradient, params, X)
    assert report.status == status
    mean = next(leaf for leaf in report.leaves if "mean" in leaf.path)
    assert (mean.status == "skipped") == ("mean" not in kept)
    if mean.status == "skipped":
        assert "of the kind Statistic, of which the gradient holds none" in mean.messages[0]


def test_what_stop_gradient_holds_still_the_hand_written_gradient_must_too(undiagnosed):
    """A target that is not to move: finite differences, which move it, are no defence."""

    def loss(w, x, y):
        return ((x @ w - jax.lax.stop_gradient(y @ w)) ** 2).mean()

    def by_hand(w, x, y, moved):
        return (x - moved * y).T @ (2 * (x @ w - y @ w)) / len(x)

    y = jax.random.normal(jax.random.key(1), X.shape)
    assert verify.gradient(loss, lambda *a: by_hand(*a, 0.0), W, X, y).status == "pass"
    report = verify.gradient(loss, lambda *a: by_hand(*a, 1.0), W, X, y)
    assert report.status == "fail"
    assert "holds still by stop_gradient" in report.leaves[0].worst.verdict
