"""Why a gradient is wrong: honest mistakes inside backward passes, and what is said of each."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import verify
from jaxnn.op import Op
from jaxnn.verify.causes.jaxprs import words_of

KEYS = jax.random.split(jax.random.key(0), 8)
N, D, H, K = 7, 5, 6, 4
NET = {
    "w1": jax.random.normal(KEYS[0], (D, H)),
    "b1": jax.random.normal(KEYS[1], (H,)),
    "w2": jax.random.normal(KEYS[2], (H, H)),
    "w3": jax.random.normal(KEYS[3], (H, K)),
}
X, Y = jax.random.normal(KEYS[4], (N, D)), jnp.arange(N) % K


def net_loss(p, x, y):
    h = jnp.tanh(x @ p["w1"] + p["b1"])
    a = jax.nn.relu(h @ p["w2"]) + h
    log_p = jax.nn.log_softmax(a @ p["w3"])
    return -log_p[jnp.arange(len(y)), y].mean() + 0.005 * (p["w1"] ** 2).sum()


def net_grad(fault=None):
    """By hand, with one mistake."""

    def grad(p, x, y):
        n = len(y)
        z1 = x @ p["w1"] + p["b1"]
        h = jnp.tanh(z1)
        z2 = h @ p["w2"]
        a = jax.nn.relu(z2) + h
        q = jax.nn.softmax(a @ p["w3"])
        hot = jax.nn.one_hot(y, K, dtype=q.dtype)
        hot = {"label": 0 * hot, "class": hot.at[:, 2].set(0)}.get(fault, hot)
        dz3 = (q - hot) / (1 if fault == "sum" else n)
        dz3 = -dz3 if fault == "sign" else dz3
        dw3 = (h if fault == "saved" else a).T @ dz3
        da = dz3 @ p["w3"].T
        on = {"mask": z2 <= 0, "no mask": z2 == z2, "shift": jnp.roll(z2, 1, 0) > 0}
        dz2 = jnp.where(on.get(fault, z2 > 0), da, 0)
        dw2 = h.T @ dz2
        dh = dz2 @ (p["w2"] if fault == "transpose" else p["w2"].T)
        dh = dh if fault == "skip" else dh + (2 if fault == "twice" else 1) * da
        slope = {
            "slope": 1 + 0 * h,
            "input": 1 - z1**2,
            "output": 1 - jnp.tanh(h) ** 2,
            "no square": 1 - h,
        }
        dz1 = dh * slope.get(fault, 1 - h**2)
        db1 = {"mean": dz1.mean(0), "first": dz1[0]}.get(fault, dz1.sum(0))
        dw1 = x.T @ dz1 + (0 if fault == "penalty" else 0.01) * p["w1"]
        return {"w1": dw1, "b1": db1, "w2": dw2, "w3": dw3}

    return grad


CAUSES = {
    "sum": ("factor", f"{N} is the batch size"),
    "sign": ("sign", "sign"),
    "label": ("missing term", "flows back through operand 1 of sub in log_softmax"),
    "class": ("index", "index 2 of the last axis"),
    "saved": ("wrong saved value", "the output of tanh"),
    "mask": ("mask", "inverted"),
    "no mask": ("derivative left out", "in relu"),
    "shift": ("shifted", "by 1 along axis 0"),
    "transpose": ("transpose", "operand 2 of dot_general"),
    "skip": ("missing term", "of add"),
    "twice": ("doubled term", "of add"),
    "slope": ("derivative left out", "in tanh"),
    "input": ("wrong saved value", "given the input of tanh"),
    "output": ("wrong saved value", "taken at the output"),
    "no square": ("wrong derivative", "1 - y is taken for 1 - y^2, the derivative of tanh"),
    "mean": ("factor", f"1/{N}, and {N} is the batch size"),
    "first": ("not summed", "only the first slice along axis 0"),
    "penalty": ("parameter term", "0.01 times the parameter itself is missing"),
}


def causes(report):
    return {leaf.diagnosis for leaf in report.leaves if leaf.status == "fail"}


@pytest.mark.parametrize("fault", CAUSES)
def test_the_mistake_is_named(fault):
    report = verify.gradient(net_loss, net_grad(fault), NET, X, Y)
    assert report.status == "fail"
    (found,) = causes(report)
    cause, words = CAUSES[fault]
    assert found.cause == cause, found
    assert words in found.text
    assert found.text in " ".join(str(report).split())


@pytest.mark.parametrize(
    ("function", "slope", "words"),
    [
        (jnp.tanh, lambda x, y: 1 + y**2, "1 + y^2 is taken for 1 - y^2, the derivative of tanh"),
        (jax.nn.sigmoid, lambda x, y: 1 - y, "1 - y is taken for y (1 - y)"),
        (jax.nn.sigmoid, lambda x, y: y, "y is taken for y (1 - y)"),
        (jax.nn.sigmoid, lambda x, y: y * (1 + y), "y (1 + y) is taken for y (1 - y)"),
        (jnp.square, lambda x, y: 2 + 0 * x, "2 x^0 is taken for 2 x^1"),
        (lambda x: x**3, lambda x, y: 3 * x, "3 x^1 is taken for 3 x^2"),
        (lambda x: x**3, lambda x, y: 3 * x**3, "3 x^3 is taken for 3 x^2"),
    ],
)
def test_a_derivative_written_wrongly_is_named(function, slope, words):
    w = jax.random.normal(KEYS[6], (3, 4))
    x = jax.random.normal(KEYS[7], (5, 3))

    def loss(w, x):
        return jnp.sin(function(x @ w)).sum()

    def by_hand(w, x):
        z = x @ w
        y = function(z)
        return x.T @ (jnp.cos(y) * slope(z, y))

    (found,) = causes(verify.gradient(loss, by_hand, w, x))
    assert found.cause == "wrong derivative", found
    assert words in found.text


@pytest.mark.parametrize(
    ("term", "derivative", "at"),
    [
        (jax.nn.sigmoid, lambda p: jax.nn.sigmoid(p) * (1 - jax.nn.sigmoid(p)), 0.0),
        (jnp.square, lambda p: 2 * p, 0.5),
    ],
)
def test_a_term_twice_is_no_wrong_derivative_where_its_input_is_one_number(term, derivative, at):
    x = jax.random.normal(KEYS[7], (5, 4))
    report = verify.gradient(
        lambda p, x: jnp.sin(x * p).sum() + term(p).sum(),
        lambda p, x: (x * jnp.cos(x * p)).sum(0) + 2 * derivative(p),
        jnp.full(4, at),
        x,
    )
    assert [found.cause for found in causes(report)] == ["doubled term"]


def test_a_factor_may_be_a_setting_and_is_told_from_the_size_that_it_equals():
    def cube_fwd(x, *, k):
        return k * x**3, x

    def cube_bwd(x, dy, *, k):
        return (3 * x * x * dy,)

    cube = Op(cube_fwd, cube_bwd, example=lambda key: (jax.random.normal(key, (3, 4)),))
    (found,) = causes(verify.op(cube, k=3.0))
    assert "1/3, and 3 is the setting k; or 1/3, and 3 is the batch size" in found.text
    (found,) = causes(verify.op(cube, jnp.ones((2, 5)) / 4, k=-0.3))
    assert "beside the sign, 1/0.3, and 0.3 is the setting k" in found.text

    def loss(p, config):
        return config.scale * jnp.sin(p).sum()

    (found,) = causes(
        verify.gradient(loss, lambda p, _: jnp.cos(p), X[0], SimpleNamespace(scale=0.7, a="b"))
    )
    assert "0.7 is the setting scale" in found.text
    many = SimpleNamespace(scale=0.7, **{f"also_{i}": 0.7 for i in range(9)})
    (found,) = causes(verify.gradient(loss, lambda p, _: jnp.cos(p), X[0], many))
    assert found.text.count("; or ") == 3

    class Odd:
        def __getattr__(self, name):
            raise KeyError(name)

    for args, kwargs, what in (
        ((0.7,), {}, "argument 2"),
        (([10**400, {"a": 0.7}],), {}, "argument 2[1]['a']"),
        ((Odd(),), {"scale": 0.7}, "scale"),
    ):
        (found,) = causes(
            verify.gradient(
                lambda p, *_, **__: 0.7 * jnp.sin(p).sum(),
                lambda p, *_, **__: jnp.cos(p),
                X[0],
                *args,
                **kwargs,
            )
        )
        assert found.text.endswith(f": 1/0.7, and 0.7 is {what}")
    two = verify.gradient(lambda p: jnp.sin(p).sum(), lambda p: 2 * jnp.cos(p), X[:2, 0])
    assert [found.cause for found in causes(two)] == ["factor"]


def test_a_right_gradient_has_no_cause_and_an_unusual_mistake_a_place():
    right = verify.gradient(net_loss, net_grad(), NET, X, Y)
    assert right.status == "pass"
    assert not any(leaf.diagnosis for leaf in right.leaves)
    noise = jax.random.normal(KEYS[5], (D, H))
    odd = verify.gradient(
        net_loss,
        lambda p, x, y: net_grad()(p, x, y) | {"w1": noise.astype(p["w1"].dtype)},
        NET,
        X,
        Y,
    )
    (found,) = causes(odd)
    assert found.cause == "location"
    assert "the right gradient of ['w1'] is computed, and another one returned" in found.text


def test_mistakes_inside_a_scan():
    p = {"w": jax.random.normal(KEYS[6], (3, 3)), "u": jax.random.normal(KEYS[7], (2, 3))}
    xs = jax.random.normal(KEYS[5], (5, 4, 2))

    def loss(p, xs):
        def step(h, x):
            return jnp.tanh(h @ p["w"] + x @ p["u"]), None

        h, _ = jax.lax.scan(step, jnp.zeros((4, 3), xs.dtype), xs)
        return (h**2).mean()

    def by_hand(fault):
        def grad(p, xs):
            hs = [jnp.zeros((4, 3), xs.dtype)]
            for x in xs:
                hs.append(jnp.tanh(hs[-1] @ p["w"] + x @ p["u"]))
            dh = 2 * hs[-1] / hs[-1].size
            dw, du = jnp.zeros_like(p["w"]), jnp.zeros_like(p["u"])
            for t in reversed(range(len(xs))):
                dz = dh * (1 - hs[t + 1] ** 2)
                dw += hs[t + 1 if fault == "step" else t].T @ dz
                du += xs[t].T @ dz if (fault, t) != ("last", len(xs) - 1) else 0
                dh = 0 * dh if fault == "detached" else dz @ p["w"].T
            return {"w": dw, "u": du}

        return grad

    assert verify.gradient(loss, by_hand(None), p, xs)
    for fault, cause, words in (
        ("detached", "detached", "from step to step through carry 1 of scan"),
        ("step", "wrong saved value", "the output of tanh"),
        ("last", "missing term", "the last step's cotangent"),
    ):
        (found,) = causes(verify.gradient(loss, by_hand(fault), p, xs))
        assert found.cause == cause, found
        assert words in found.text


@pytest.mark.parametrize(
    ("change", "cause", "words"),
    [
        (lambda g: g | {"a": g["a"].T}, "transpose", "axes permuted"),
        (lambda g: g | {"a": g["a"][::-1]}, "flip", "reversed along axis 0"),
        (lambda g: g | {"a": jnp.roll(g["a"], 1, 1)}, "shifted", "by 1 along axis 1"),
        (lambda g: g | {"a": g["a"][jnp.array([0, 2, 1, 3])]}, "permuted", "[0, 2, 1, 3]"),
        (lambda g: g | {"a": g["b"], "b": g["a"]}, "swapped leaves", "leaves swapped"),
        (lambda g: g | {"a": 0 * g["a"]}, "zeroed slice", "every entry"),
        (lambda g: g | {"a": g["a"].at[1].set(0)}, "zeroed slice", "row 1"),
        (lambda g: g | {"a": g["a"].at[:, 2].multiply(-1)}, "sign", "column 2"),
        (lambda g: g | {"a": g["a"] * 4 / 3}, "n against n-1", ": 4/3, which is n / (n"),
        (lambda g: g | {"a": g["a"] / 2}, "factor", "; or 1 / the square root of 4, a dim"),
        (lambda g: g | {"a": g["a"] * -2}, "factor", ": beside the sign, counted twice, or"),
        (lambda g: g | {"a": g["a"].at[1, 1].set(jnp.nan)}, "not finite", "[1, 1]"),
        (lambda g: g | {"a": g["a"].at[2].add(jnp.array([1.0, 3, 0, 1]))}, "index", "index 2"),
        (
            lambda g: g | {"a": g["a"].astype(jnp.bfloat16).astype(g["a"].dtype)},
            "rounding",
            "bfloat16",
        ),
        (
            lambda g: g | {"a": jax.lax.reduce_precision(g["a"], 5, 10)},
            "rounding",
            "float16",
        ),
    ],
)
def test_what_was_done_to_one_leaf_is_named(change, cause, words):
    p = {"a": jax.random.normal(KEYS[0], (4, 4)), "b": jax.random.normal(KEYS[1], (4, 4))}

    def loss(p):
        return jnp.sin(p["a"] @ p["b"] ** 2).sum() + (p["a"] ** 4).sum()

    report = verify.gradient(loss, lambda p: change(jax.grad(loss)(p)), p)
    (leaf, *_) = [leaf for leaf in report.leaves if leaf.status == "fail"]
    assert leaf.diagnosis.cause == cause, leaf.diagnosis
    assert words in leaf.diagnosis.text


def test_where_names_the_slice():
    p = jax.random.normal(KEYS[0], (4, 4))

    def where(change):
        report = verify.gradient(lambda p: jnp.exp(p).sum(), lambda p: change(jnp.exp(p)), p)
        return report.leaves[0].where

    assert where(lambda g: g.at[1].add(1)) == "[1, :] (row 1)"
    assert where(lambda g: g.at[:, 3].add(1)) == "[:, 3] (column 3)"
    assert where(lambda g: g.at[1:3, ::2].add(1)) == "[1:3, 0:3:2]"
    assert where(lambda g: g + 1) == "every entry"
    assert where(lambda g: g + jnp.eye(4, dtype=g.dtype)) == "the diagonal"
    assert where(lambda g: g + jnp.triu(g, 1)) == "the strict upper triangle"
    assert where(lambda g: g.at[2, 2].add(1)) == ""


def test_an_unstable_formula_is_told_from_a_wrong_one():
    """Right in float64; in float32 it loses what autodiff of the loss keeps."""
    p = jnp.array([1e-3, 2e-3, 3e-3])

    def loss(p):
        return (p**3).sum() / 3

    def cancels(p):
        return (1 + p) ** 2 - 1 - 2 * p

    report = verify.gradient(loss, cancels, p)
    assert report.status == "fail"
    (leaf,) = report.leaves
    assert leaf.wrong == 0
    assert leaf.diagnosis.cause == "rounding"
    assert leaf.precision.manual > leaf.precision.allowed > leaf.precision.autodiff
    assert "right in float64, but in float32" in leaf.messages[0]

    def narrow(p):
        return p**2 if p.dtype == np.float64 else (p.astype(jnp.bfloat16) ** 2).astype(p.dtype)

    report = verify.gradient(loss, narrow, p)
    assert report.status == "fail"
    assert "bfloat16" in report.leaves[0].diagnosis.text
    with jax.enable_x64(True):
        assert verify.gradient(loss, lambda p: p**2, np.asarray(p, np.float64))


def test_the_place_is_a_line_of_the_user_s():
    """Not of what JAX, the library or Python put around it."""
    x, w = jnp.ones((5, 4, 3)), jnp.ones((5, 3, 2))
    (product,) = jax.make_jaxpr(lambda x, w: jnp.einsum("bij,bjk->bik", x, w))(x, w).eqns
    assert Path(__file__).name in words_of(product, "")
