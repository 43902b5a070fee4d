"""Where a gradient begins to be wrong, if no usual mistake explains it."""

import jax
import jax.numpy as jnp
import pytest

from jaxnn import verify

KEYS = jax.random.split(jax.random.key(2), 8)
P = {
    "w1": jax.random.normal(KEYS[0], (3, 4)),
    "b1": jax.random.normal(KEYS[1], (4,)),
    "w2": jax.random.normal(KEYS[2], (4, 2)),
}
X, Y = jax.random.normal(KEYS[3], (5, 3)), jax.random.normal(KEYS[4], (5, 2))


def loss(p, x, y):
    h = jnp.tanh(x @ p["w1"] + p["b1"])
    out = h @ p["w2"]
    return ((out - y) ** 2).mean()


def by_hand(fault):
    """One mistake that no usual one explains."""

    def odd(name, x):
        return jnp.arctan(x) + 0.1 * x**2 if fault == name else x

    def grad(p, x, y):
        h = jnp.tanh(x @ p["w1"] + p["b1"])
        dout = odd("loss", (h @ p["w2"] - y) / 5)
        dh = dout @ odd("product", p["w2"].T)
        dz = odd("step", dh * odd("tanh", 1 - h**2))
        return {
            "w1": odd("w1", odd("sum", x.T) @ dz),
            "b1": odd("b1", dz.sum(0)),
            "w2": h.T @ dout,
        }

    return grad


def diagnoses(fault):
    report = verify.gradient(loss, by_hand(fault), P, X, Y)
    assert report.status == "fail"
    return {leaf.diagnosis for leaf in report.leaves if leaf.status == "fail"}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("tanh", "from tanh (test_verify_place.py:19) on"),
        ("step", "from add (test_verify_place.py:19) on"),
        ("product", "from dot_general (test_verify_place.py:20) on"),
        ("sum", "from dot_general (test_verify_place.py:19) on"),
        ("w1", "the right gradient of ['w1'] is computed, and another one returned"),
        ("b1", "the right gradient of ['b1'] is computed, and another one returned"),
    ],
)
def test_the_first_operation_whose_cotangents_differ(fault, words):
    (found,) = diagnoses(fault)
    assert found.cause == "location"
    assert words in found.text


def test_no_place_where_it_is_not_sure():
    """Noise in every leaf begins nowhere; nor does what is wrong in two places."""

    def noise(p, x, y):
        right = jax.grad(loss)(p, x, y)
        return {name: g + jnp.sin(9 * p[name]) for name, g in right.items()}

    report = verify.gradient(loss, noise, P, X, Y)
    assert {leaf.diagnosis for leaf in report.leaves} == {None}


def test_a_value_of_the_forward_is_named():
    p, x = jax.random.normal(KEYS[5], (4,)), jax.random.normal(KEYS[6], (4,))
    report = verify.gradient(
        lambda p, x: (jnp.tanh(p) * x + jnp.sin(p)).sum(), lambda p, x: jnp.tanh(p), p, x
    )
    (leaf,) = report.leaves
    assert leaf.diagnosis.cause == "forward value"
    assert "the output of tanh" in leaf.diagnosis.text


def test_a_step_of_a_loop_is_named_as_the_loop():
    w, xs = jax.random.normal(KEYS[7], (3, 3)), jax.random.normal(KEYS[3], (4, 2, 3))

    def loop(w, xs):
        h, _ = jax.lax.scan(lambda h, x: (jnp.sin(h @ w + x), None), 0 * xs[0], xs)
        return (jnp.tanh(h) ** 2).sum()

    def by_hand(w, xs):
        hs, dw = [0 * xs[0]], 0
        for x in xs:
            hs.append(jnp.sin(hs[-1] @ w + x))
        y = jnp.tanh(hs[-1])
        dh = 2 * y * (1 - y**2)
        for t in reversed(range(len(xs))):
            dz = dh * jnp.cos(hs[t] @ w + xs[t] + 0.1)
            dw, dh = dw + hs[t].T @ dz, dz @ w.T
        return dw

    (leaf,) = verify.gradient(loop, by_hand, w, xs).leaves
    assert leaf.diagnosis.cause == "location"
    assert "from scan (test_verify_place.py:" in leaf.diagnosis.text
