"""Right gradients that look wrong, and wrong ones that look right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import verify

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X, Y, W = normal(16, 5), normal(16, 3), normal(5, 3)


def squares(p, x, y):
    return ((x @ p["w"] - y) ** 2).mean()


def test_a_bend_is_no_kink():
    """Smooth, but over less than the longest steps: a wrong sign is not a subgradient."""

    def bent(p):
        return jnp.sqrt(p**2 + 1e-16).sum() + (p * jnp.arange(1.0, 4.0, dtype=p.dtype)).sum()

    def by_hand(sign):
        return lambda p: p / jnp.sqrt(p**2 + 1e-16) + sign * jnp.arange(1.0, 4.0, dtype=p.dtype)

    at = jnp.array([0.0, 1e-9, -1e-9])
    assert verify.gradient(bent, by_hand(1), at).status == "pass"
    assert verify.gradient(bent, by_hand(-1), at).status == "fail"

    def half(p):
        return jnp.where(p == 0, 0.5, jnp.sign(p))

    assert verify.gradient(lambda p: jnp.abs(p).sum(), half, jnp.zeros(3)).status == "pass"


def test_one_narrow_argument_does_not_loosen_the_others():
    def loss(p, x, y):
        return squares(p, x.astype(p["w"].dtype), y)

    def rounded(p, x, y):
        x = x.astype(p["w"].dtype)
        narrow = p["w"].dtype == jnp.float32
        w = p["w"].astype(jnp.bfloat16).astype(jnp.float32) if narrow else p["w"]
        return {"w": 2 * x.T @ (x @ w - y) / y.size}

    report = verify.gradient(loss, rounded, {"w": W}, X.astype(jnp.bfloat16), Y)
    assert report.status == "fail"
    assert report.leaves[0].diagnosis.cause == "rounding"


def test_what_changes_in_the_working_dtype_only_is_seen_again():
    helper = {"f": lambda g: g}

    def by_hand(p, x, y):
        g = 2 * x.T @ (x @ p["w"] - y) / y.size
        return {"w": helper["f"](g) if g.dtype == jnp.float32 else g}

    assert verify.gradient(squares, by_hand, {"w": W}, X, Y)
    helper["f"] = lambda g: 3 * g
    assert verify.gradient(squares, by_hand, {"w": W}, X, Y).status == "fail"


def test_a_right_gradient_with_casts_to_its_own_dtype_does_not_fail():
    def cast(p, x, y):
        return {"w": (2 * x.T @ (x @ p["w"] - y) / y.size).astype(jnp.float32)}

    report = verify.gradient(squares, cast, {"w": W}, X, Y)
    assert report.status == "pass"
    assert "float32" in report.coverage[0]

    def narrow(p, x, y):
        return (((x @ p["w"]).astype(jnp.float32) - y) ** 2).mean()

    def by_hand(p, x, y):
        d = 2 * ((x @ p["w"]).astype(jnp.float32) - y) / y.size
        return {"w": x.T @ d.astype(x.dtype)}

    # Where the true gradient is zero, all of it is rounding.
    best = np.linalg.lstsq(np.asarray(X, float), np.asarray(Y, float), rcond=None)[0]
    at = {"w": jnp.asarray(best, jnp.float32)}
    assert verify.gradient(narrow, by_hand, at, X, Y).status != "fail"
    assert verify.gradient(narrow, by_hand, {"w": W}, X, Y).status != "fail"
    twice = verify.gradient(
        narrow, lambda p, x, y: {"w": 2 * by_hand(p, x, y)["w"]}, {"w": W}, X, Y
    )
    assert twice.status == "fail"


def test_masks_and_one_hots_in_float32_do_not_defeat_the_lift():
    def loss(p, x, keep):
        return ((x @ p["w"]) * keep.astype(jnp.float32)[:, None]).sum()

    keep = jnp.arange(16) % 3 > 0
    report = verify.gradient(
        loss, lambda p, x, k: {"w": x.T @ jnp.ones((16, 3)) * 0 + (x * k[:, None]).sum(0)[:, None]},
        {"w": W}, X, keep,
    )  # fmt: skip
    assert report.status == "pass"
    assert not any("float32" in line for line in report.coverage)


def test_what_cannot_be_replayed_keeps_its_verdict(monkeypatch):
    from jaxnn.verify.causes import diagnose

    def breaks(point, manual):
        raise ValueError("an equation nobody knows")

    monkeypatch.setattr(diagnose, "replay", breaks)
    report = verify.gradient(squares, lambda p, x, y: {"w": jnp.cos(p["w"])}, {"w": W}, X, Y)
    assert report.status == "fail"
    assert "ValueError: an equation nobody knows" in report.coverage[0]


def test_casts_in_a_wrong_gradient_are_replayed():
    def loss(p, x, y):
        return (((x @ p["w"]).astype(jnp.float32) - p["b"].astype(jnp.float32)) ** 2).mean()

    def bad(p, x, y):
        return jax.tree.map(lambda g: g + jnp.cos(jnp.arange(g.shape[0])[:, None]).astype(g.dtype)
                            if g.ndim == 2 else g, jax.grad(loss)(p, x, y))  # fmt: skip

    report = verify.gradient(loss, bad, {"w": W, "b": normal(3)}, X, Y)
    assert report.status == "fail"
    assert not any("could not be replayed" in line for line in report.coverage)


def test_a_forgotten_penalty_is_no_sign_and_a_right_leaf_not_swapped():
    def penalised(p, x, y):
        h = jnp.tanh(x @ p["w"])
        return ((h - y) ** 2).mean() + 0.1 * (h * h).mean()

    def plain(p, x, y):
        return ((jnp.tanh(x @ p["w"]) - y) ** 2).mean()

    report = verify.gradient(penalised, jax.grad(plain), {"w": W}, X, Y)
    assert report.leaves[0].diagnosis.cause == "missing term"

    def shared(p):
        return jnp.tanh(p["a"] + 3 * p["b"])

    def same(p):
        g = jax.grad(shared)(p)
        return {"a": g["a"], "b": g["a"]}

    report = verify.gradient(shared, same, {"a": jnp.float32(0.1), "b": jnp.float32(0.2)})
    assert all(leaf.diagnosis is None for leaf in report.leaves)
    # A constant parameter cannot be told from a constant.
    report = verify.gradient(
        lambda p, x: (jnp.tanh(x) * p).sum() + 3 * p.sum(),
        lambda p, x: jnp.tanh(x).sum(0),
        jnp.ones(5),
        X,
    )
    assert "regulariser" not in str(report)


@pytest.mark.parametrize(
    ("f", "g", "error", "message"),
    [
        (lambda p: "abc", lambda p: p, ValueError, "the loss returns 'abc'; it must"),
        (lambda p: None, lambda p: p, ValueError, "the loss returns None; it must"),
        (jnp.sum, lambda p: "abc", TypeError, "manual_grad returns 'abc' at a"),
        (jnp.sum, lambda p: {"w": p, "b": object}, TypeError, r"class 'object'> at \['b'\]"),
    ],
)
def test_what_is_no_number_is_named(f, g, error, message):
    with pytest.raises(error, match=message):
        verify.gradient(f, g, jnp.ones(3))


def test_a_cast_in_the_gradient_alone_does_not_loosen_its_own_judgement(undiagnosed):
    """The loss is in float64 when given it: its gradient may be float32, as given, no less."""

    def f(p):
        return jnp.tanh(p).sum()

    def rounded_to(dtype):
        return lambda p: (1 - jnp.tanh(p) ** 2).astype(dtype).astype(p.dtype)

    at = jnp.array([0.3, -1.2, 0.7])
    assert verify.gradient(f, rounded_to(jnp.float32), at).status == "pass"
    assert verify.gradient(f, rounded_to(jnp.bfloat16), at).status == "fail"
    with jax.enable_x64(True):
        assert verify.gradient(f, rounded_to(jnp.float32), at.astype(float)).status == "fail"
