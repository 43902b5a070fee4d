"""A wrong gradient that is the right one of other inputs, and those that only nearly are."""

import jax
import jax.numpy as jnp
import pytest

from jaxnn import verify

KEYS = jax.random.split(jax.random.key(2), 8)


def normal(i, *shape):
    return jax.random.normal(KEYS[i], shape)


def causes(report):
    assert report.status == "fail"
    return {leaf.diagnosis for leaf in report.leaves if leaf.diagnosis}


def turned(x, positions):
    angle = positions[:, None] * jnp.array([1.0, 0.1])
    a, b = x[:, :2], x[:, 2:]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], 1)


def rotary(dy_and_positions, nudge=0.0):
    """A rotation by position, whose backward rotates another dy by other positions."""
    f = jax.custom_vjp(turned)

    def bwd(positions, dy):
        return turned(*dy_and_positions(dy, positions)).at[0, 0].add(nudge), None

    f.defvjp(lambda x, positions: (turned(x, positions), positions), bwd)
    return f


ROTATIONS = {
    "on": (lambda dy, t: (dy, t), "sign", "positions has the other sign"),
    "from 1": (lambda dy, t: (dy, -t - 1), "shifted", "positions is larger by 1"),
    "halves": (lambda dy, t: (jnp.roll(dy, 2, 1), -t), "permuted", "halves of cotangents[0]"),
    "reversed": (lambda dy, t: (dy[:, ::-1], -t), "flip", "cotangents[0] is reversed along axis 1"),
}


@pytest.mark.parametrize("fault", ROTATIONS)
def test_positions_and_cotangents(fault):
    taken, cause, words = ROTATIONS[fault]
    (found,) = causes(verify.rule(rotary(taken), normal(0, 5, 4), jnp.arange(5)))
    assert found.cause == cause
    assert words in found.text


def test_a_right_rotation_and_one_that_is_off_in_one_entry():
    x, positions = normal(0, 5, 4), jnp.arange(5)
    assert verify.rule(rotary(lambda dy, t: (dy, -t)), x, positions).status == "pass"
    near = verify.rule(rotary(lambda dy, t: (dy, t), nudge=1e-4), x, positions)
    assert {found.cause for found in causes(near)} <= {"location"}


def linear(bwd):
    f = jax.custom_vjp(lambda x, w: x @ w)
    f.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, dy: bwd(*kept, dy))
    return f


@pytest.mark.parametrize(
    ("dw", "cause", "words"),
    [
        (lambda x, dy: x.sum(0)[:, None] * dy.sum(0), "summed apart", "summed over axis 0 by it"),
        (lambda x, dy: x.T @ dy[::-1], "flip", "reversed along axis 0"),
        (lambda x, dy: x.T @ jnp.roll(dy, 1, 0), "shifted", "shifted by"),
        (lambda x, dy: jnp.ones_like(x).T @ dy, "derivative left out", "x is left out (1)"),
    ],
)
def test_other_arrays_in_a_product(dw, cause, words):
    f = linear(lambda x, w, dy: (dy @ w.T, dw(x, dy)))
    (found,) = causes(verify.rule(f, normal(0, 5, 3), normal(1, 3, 4)))
    assert found.cause == cause
    assert words in found.text


def test_a_matrix_taken_for_its_transpose():
    f = jax.custom_vjp(jnp.linalg.inv)
    f.defvjp(lambda a: (f(a), jnp.linalg.inv(a)), lambda y, dy: (-y @ dy @ y,))
    (found,) = causes(verify.rule(f, normal(0, 3, 3) + 3 * jnp.eye(3)))
    assert (found.cause, "a is transposed" in found.text) == ("transpose", True)


def test_cotangents_of_some_outputs_are_ignored():
    def plain(x):
        mean = x.mean(0)
        return jnp.sin(x), mean, (x * x).sum(0)

    f = jax.custom_vjp(plain)
    f.defvjp(lambda x: (plain(x), x), lambda x, douts: (douts[0] * jnp.cos(x),))
    (found,) = causes(verify.rule(f, normal(0, 5, 3)))
    assert found.cause == "missing term"
    assert "cotangents[1] and cotangents[2] are left out" in found.text


@pytest.mark.parametrize(
    "other", [lambda k: jax.random.fold_in(k, 1), lambda k: jax.random.split(k)[0]]
)
def test_a_mask_of_another_draw(other):
    def loss(w, x, key):
        kept = jax.random.bernoulli(key, 0.5, (5, 4))
        return (jnp.where(kept, x @ w, 0) ** 2).sum()

    def by_hand(w, x, key):
        return 2 * x.T @ jnp.where(jax.random.bernoulli(other(key), 0.5, (5, 4)), x @ w, 0)

    (found,) = causes(verify.gradient(loss, by_hand, normal(0, 3, 4), normal(1, 5, 3), KEYS[7]))
    assert found.cause == "mask"
    assert "another key is drawn with" in found.text


def test_an_equal_weight_of_all_is_no_factor_left_out():
    # The gradient of log sum exp where x is one everywhere.
    f = jax.custom_vjp(lambda x: jax.nn.logsumexp(x, 1))
    f.defvjp(lambda x: (f(x), x), lambda x, dy: (dy[:, None] * jnp.full_like(x, 0.25),))
    report = verify.rule(f, normal(0, 5, 4))
    assert not any(d.cause == "derivative left out" for d in causes(report))
