"""Causes in masks, running sums, linear maps and loops, each beside a right twin or a near miss."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxnn import verify

KEYS = jax.random.split(jax.random.key(3), 8)


def normal(i, *shape):
    return jax.random.normal(KEYS[i], shape)


def ruled(plain, bwd):
    """A function whose rule keeps its inputs."""
    f = jax.custom_vjp(plain)
    f.defvjp(lambda *xs: (plain(*xs), xs), bwd)
    return f


def cause(f, *inputs, **options):
    report = verify.rule(f, *inputs, **options)
    assert report.status == "fail"
    (found,) = {leaf.diagnosis for leaf in report.leaves if leaf.diagnosis}
    return found


def attention(q, k, shift=0):
    seen = jnp.tri(5, 5, shift, dtype=bool)
    return jax.nn.softmax(jnp.where(seen, q @ k.T, -jnp.inf))


def attended(shift, nudge=0.0):
    def bwd(kept, dp):
        q, k = kept
        p = attention(q, k, shift)
        ds = p * (dp - (p * dp).sum(1, keepdims=True))
        return (ds @ k).at[0].mul(1 + nudge), ds.T @ q

    return ruled(lambda q, k: attention(q, k), bwd)


@pytest.mark.parametrize(("shift", "words"), [(1, "mask shifted"), (5, "mask ignored")])
def test_masks_of_scores(shift, words):
    found = cause(attended(shift), normal(0, 5, 3), normal(1, 5, 3))
    assert found.cause == "mask"
    assert words in found.text


def test_a_right_mask_and_one_that_is_not_all():
    q, k = normal(0, 5, 3), normal(1, 5, 3)
    assert verify.rule(attended(0), q, k).status == "pass"
    near = verify.rule(attended(1, nudge=1e-4), q, k)
    assert not any(leaf.diagnosis and leaf.diagnosis.cause == "mask" for leaf in near.leaves)


def summed(x):
    return jnp.cumsum(x[::-1], 0)[::-1]


RUNNING = {
    "direction": (lambda x, y, dy: jnp.cumsum(dy * y, 0) / x, "flip"),
    "own step": (lambda x, y, dy: dy * y / x, "not summed"),
    "not its own": (lambda x, y, dy: (summed(dy * y) - dy * y) / x, "shifted"),
    "input": (lambda x, y, dy: summed(dy * y), "derivative left out"),
    "output": (lambda x, y, dy: summed(dy) / x, "derivative left out"),
    "right": (lambda x, y, dy: summed(dy * y) / x, ""),
}


@pytest.mark.parametrize("fault", RUNNING)
def test_running_products(fault):
    backward, name = RUNNING[fault]
    f = ruled(
        lambda x: jnp.cumprod(x, 0), lambda kept, dy: (backward(*kept, jnp.cumprod(*kept, 0), dy),)
    )
    x = 1 + normal(0, 5, 3) ** 2
    if fault == "right":
        assert verify.rule(f, x).status == "pass"
    else:
        assert cause(f, x).cause == name


def test_running_sums_off_in_one_entry_are_not_of_the_other_direction():
    f = ruled(lambda x: jnp.cumsum(x, 0), lambda _, dy: (jnp.cumsum(dy, 0).at[0, 0].add(1e-4),))
    report = verify.rule(f, normal(0, 5, 3))
    assert not any(leaf.diagnosis and leaf.diagnosis.cause == "flip" for leaf in report.leaves)


@pytest.mark.parametrize("transposed", [True, False])
def test_a_system_that_is_not_transposed(transposed):
    def bwd(kept, dx):
        a, b = kept
        db = jnp.linalg.solve(a.T if transposed else a, dx)
        return -db @ jnp.linalg.solve(a, b).T, db

    f = ruled(jnp.linalg.solve, bwd)
    a, b = normal(0, 4, 4) + 4 * jnp.eye(4), normal(1, 4, 3)
    if transposed:
        assert verify.rule(f, a, b).status == "pass"
    else:
        found = cause(f, a, b)
        assert found.cause == "transpose"
        assert "not its transpose, at custom_linear_solve" in found.text


@pytest.mark.parametrize("half", [0.5, 0.0, 0.7])
def test_the_diagonal_in_the_derivative_of_a_cholesky_factor(half):
    def bwd(kept, dlow):
        low = jnp.linalg.cholesky(*kept)
        s = jnp.tril(low.T @ dlow)
        s -= half * jnp.diag(jnp.diag(s))
        back = jnp.linalg.inv(low)
        return (back.T @ (s + s.T) @ back / 2,)

    x = normal(0, 4, 4)
    report = verify.rule(ruled(jnp.linalg.cholesky, bwd), x @ x.T + jnp.eye(4))
    if half == 0.5:
        assert report.status == "pass"
        return
    found = report.leaves[0].diagnosis
    # The halves are what a division takes, which is there or not.
    assert bool(found and "left out for operand 1 of div" in found.text) == (half == 0)


def returns(x, gamma=0.5, reverse=True):
    def step(total, now):
        total = now + gamma * total
        return total, total

    return lax.scan(step, jnp.zeros_like(x[0]), x, reverse=reverse)[1]


RETURNS = {
    "direction": (lambda dy: returns(dy), "flip", "time not reversed"),
    "discount": (lambda dy: jnp.cumsum(dy, 0), "derivative left out", "the other factor"),
    "sign": (lambda dy: returns(dy, -0.5, reverse=False), "sign", "the sign is wrong of"),
    "right": (lambda dy: returns(dy, reverse=False), "", ""),
    "near": (lambda dy: returns(dy).at[0, 0].add(1e-4), "", ""),
}


@pytest.mark.parametrize("fault", RETURNS)
def test_discounted_returns(fault):
    backward, name, words = RETURNS[fault]
    f = ruled(lambda x: returns(x), lambda _, dy: (backward(dy),))
    x = normal(0, 5, 3)
    if fault == "right":
        assert verify.rule(f, x).status == "pass"
    elif fault == "near":
        assert {d.cause for leaf in verify.rule(f, x).leaves if (d := leaf.diagnosis)} <= {
            "location"
        }
    else:
        found = cause(f, x)
        assert found.cause == name
        assert words in found.text


def settled(w, x):
    def unfinished(state):
        return (jnp.abs(state[0] - state[1]).max() > 1e-6) & (state[2] < 40)

    def step(state):
        return jnp.tanh(state[0] @ w + x), state[0], state[2] + 1

    return lax.while_loop(unfinished, step, (jnp.tanh(x), jnp.zeros_like(x), 0))[0]


def implicit(w, x, z, dz, fault):
    slope = 1 - z * z
    back = w if fault == "transpose" else w.T
    sign = -1 if fault == "sign" else 1
    g = dz
    for _ in range(0 if fault == "detached" else 40):
        g = dz + sign * (g * slope) @ back
    dx = g * slope * (1.05 if fault == "small" else 1)
    return z.T @ dx, dx


@pytest.mark.parametrize("fault", ["transpose", "detached", "sign", "right", "small"])
def test_a_fixed_point_by_a_while_loop(fault):
    f = ruled(settled, lambda kept, dz: implicit(*kept, settled(*kept), dz, fault))
    w, x = 0.2 * normal(0, 3, 3), normal(1, 4, 3)
    declared = dict.fromkeys("wx", (1e-3 if fault == "small" else 1e-4, "stops short"))
    ask = functools.partial(verify.rule, f, w, x, tolerance=declared)
    if fault == "right":
        assert ask().status == "pass"
    elif fault == "small":  # of an error so near to what is allowed nothing is told but its factor
        assert {d.cause for leaf in ask().leaves if (d := leaf.diagnosis)} <= {"factor"}
    else:
        assert cause(f, w, x, tolerance=declared).cause == fault


def test_a_line_that_runs_twice():
    def twice(x, w):
        def layer(z):
            return jnp.tanh(z @ w)

        return layer(layer(x))

    def bwd(kept, dy):
        x, w = kept
        h = jnp.tanh(x @ w)
        y = jnp.tanh(h @ w)
        dz = dy * (1 + y * y)
        du = (dz @ w.T) * (1 + h * h)
        return du @ w.T, x.T @ du + h.T @ dz

    found = cause(ruled(twice, bwd), normal(0, 5, 3), normal(1, 3, 3))
    assert found.cause == "wrong derivative"
    assert "1 + y^2 is taken for 1 - y^2" in found.text


def test_a_quotient_that_is_not_divided():
    f = ruled(
        lambda x: jnp.sin(x) / x, lambda x, dy: (dy * (jnp.cos(x[0]) - jnp.sin(x[0]) / x[0]),)
    )
    found = cause(f, 1 + normal(0, 5, 3) ** 2)
    assert (found.cause, "neither term is divided" in found.text) == ("derivative left out", True)


def test_a_loop_of_three_steps_is_replayed_in_as_many():
    def three(x, w):
        return lax.while_loop(lambda s: s[1] < 3, lambda s: (jnp.tanh(s[0] @ w), s[1] + 1), (x, 0))[
            0
        ]

    def bwd(kept, dy):
        x, w = kept
        z = [x]
        for _ in range(3):
            z.append(jnp.tanh(z[-1] @ w))
        dw = jnp.zeros_like(w)
        for before in z[2::-1]:
            dw, dy = dw + before.T @ dy, dy @ w.T
        return dy, dw

    found = cause(ruled(three, bwd), normal(0, 4, 3), normal(1, 3, 3))
    assert found.cause == "derivative left out"
    assert "the derivative is taken as 1 in tanh" in found.text


@pytest.mark.parametrize("sign", [1, -1])
def test_the_sign_of_a_carry_that_is_used_twice(sign):
    def states(x, u):
        def step(h, now):
            return (h := 0.5 * h + jnp.tanh(h @ u + now)), h

        return lax.scan(step, jnp.zeros_like(x[0]), x)[1]

    def bwd(kept, dout):
        x, u = kept
        h = states(x, u)
        carried, du, dx = jnp.zeros_like(x[0]), jnp.zeros_like(u), []
        for t in range(len(x))[::-1]:
            before = h[t - 1] if t else jnp.zeros_like(x[0])
            dh = dout[t] + sign * carried
            dz = dh * (1 - jnp.tanh(before @ u + x[t]) ** 2)
            carried, du = 0.5 * dh + dz @ u.T, du + jnp.outer(before, dz)
            dx.append(dz)
        return jnp.stack(dx[::-1]), du

    f, x, u = ruled(states, bwd), normal(0, 4, 3), normal(1, 3, 3)
    if sign == 1:
        assert verify.rule(f, x, u).status == "pass"
    else:
        found = cause(f, x, u)
        assert (found.cause, "from step to step through carry 1" in found.text) == ("sign", True)
