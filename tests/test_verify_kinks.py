"""Kinks: which gradients may be given where entries tie, and who testifies to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import verify
from jaxnn.verify.findings import LeafReport
from jaxnn.verify.finite_differences import Slope
from jaxnn.verify.nearby import Slopes, SlopesCloseBy
from jaxnn.verify.witness import Witnesses, ask_witnesses

# Whether a gradient is wrong, not why, is asked here.
pytestmark = pytest.mark.usefixtures("undiagnosed")

ROWS = jnp.array([[1.0, 2.0, 2.0], [3.0, 3.0, 3.0], [0.0, 1.0, 0.5]])
WEIGHTS = jnp.array([2.0, -3.0, 1.0])


def hits(x):
    return (x == x.max(1, keepdims=True)).astype(x.dtype)


SHARES = {
    "everything to each": (lambda h: h, "fail"),
    "equally": (lambda h: h / h.sum(1, keepdims=True), "pass"),
    "first": (lambda h: h * (h.cumsum(1) == 1), "pass"),
    "last": (lambda h: h * (h.cumsum(1) == h.sum(1, keepdims=True)), "pass"),
    "half to each": (lambda h: h / 2, "fail"),
    "none": (lambda h: 0 * h, "fail"),
    "along the wrong axis": (lambda h: h / h.sum(0), "fail"),
}


@pytest.mark.parametrize("how", SHARES)
def test_a_maximum_is_shared_out_once(how):
    share, expected = SHARES[how]
    report = verify.gradient(
        lambda x: (x.max(1) * WEIGHTS).sum(), lambda x: share(hits(x)) * WEIGHTS[:, None], ROWS
    )
    assert report.status == expected


def test_leaves_that_tie_are_looked_at_together():
    a, b = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 2.0, 4.0])

    def of(larger, smaller):
        return lambda p: {
            "a": jnp.where(p["a"] == p["b"], larger, p["a"] > p["b"]),
            "b": jnp.where(p["a"] == p["b"], smaller, p["a"] < p["b"]),
        }

    def loss(p):
        return jnp.maximum(p["a"], p["b"]).sum()

    for shares, expected in {
        (1, 0): "pass",
        (0.3, 0.7): "pass",
        (1, 1): "fail",
        (0, 0): "fail",
    }.items():
        report = verify.gradient(loss, of(*map(jnp.float32, shares)), {"a": a, "b": b})
        assert report.status == expected, shares
    assert "move together" in verify.gradient(loss, of(1.0, 1.0), {"a": a, "b": b}).problems[0]


@pytest.mark.parametrize("inside", [jnp.float32, None])
@pytest.mark.parametrize("slope", [-0.1, 0.2, 0.6, 1.0, 1.1])
def test_a_kink_is_no_rounding_where_something_computes_in_float32(inside, slope):
    """The jump there is as large as it is however narrow the function computes."""
    weights = np.array([1.0, -2.0, 0.5, 3.0], np.float32)

    def leaky(x):
        return (jnp.where(x > 0, x, 0.2 * x).astype(inside or x.dtype) * weights).sum()

    def by_hand(x):
        slopes = jnp.where(x == 0, slope, jnp.where(x > 0, 1, 0.2)).astype(x.dtype)
        return (slopes * weights).astype(x.dtype)

    report = verify.gradient(leaky, by_hand, jnp.array([0.5, 0.0, 0.0, -3.0]))
    assert report.status == ("pass" if 0.2 <= slope <= 1 else "fail")


def test_several_pools_of_several_windows():
    x = jnp.round(jax.random.normal(jax.random.key(0), (16,)))
    weights = jax.random.normal(jax.random.key(1), (15,))

    def windows(x):
        return jnp.stack([x[:-1], x[1:]])

    def pooled(x):
        return (windows(x).max(0) * weights).sum()

    def by_hand(share):
        def gradient(x):
            h = (windows(x) == windows(x).max(0)).astype(x.dtype)
            g = share(h) * weights
            return jnp.zeros_like(x).at[:-1].add(g[0]).at[1:].add(g[1])

        return gradient

    assert verify.gradient(pooled, by_hand(lambda h: h * (h.cumsum(0) == 1)), x)
    assert verify.gradient(pooled, by_hand(lambda h: h / h.sum(0)), x)
    assert verify.gradient(pooled, by_hand(lambda h: h), x).status == "fail"


def test_where_autodiff_is_nan_finite_differences_decide():
    def loss(w):
        return (jnp.sqrt((w**2).sum(-1)) * jnp.array([1.0, 2.0])).sum()

    def by_hand(factor, at_zero):
        def gradient(w):
            norm = jnp.sqrt((w**2).sum(-1, keepdims=True))
            unit = jnp.where(norm > 0, w / jnp.where(norm > 0, norm, 1), at_zero)
            return factor * jnp.array([[1.0], [2.0]]) * unit

        return gradient

    at = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    assert verify.gradient(loss, by_hand(1, 0.0), at)
    assert verify.gradient(loss, by_hand(1.1, 0.0), at).status == "fail"
    assert verify.gradient(loss, by_hand(1, 1.5), at).status == "fail"


def nearby(gradient_at, *floats):
    """Gradients close by of a function given by `gradient_at(floats)`."""

    class Values:
        def __init__(self, floats):
            self.autodiff = gradient_at(floats)

    return SlopesCloseBy([np.asarray(x) for x in floats], Values)


def test_slopes_close_by():
    found = nearby(lambda f: [np.sign(f[0])], [0.0, 1.0])
    (slopes,) = found.slopes
    assert slopes.low.tolist() == [-1, 1]
    assert slopes.high.tolist() == [1, 1]
    assert slopes.kinks(1.0).tolist() == [True, False]
    assert slopes.admit(np.array([0.3, 1.0]), 1.0).tolist() == [True, True]
    assert slopes.admit(np.array([1.3, 0.9]), 1.0).tolist() == [False, False]
    slack = Slopes(np.zeros(1), np.ones(1))
    assert slack.admit(np.array([1 + 5e-5]), 1.0)
    assert not slack.admit(np.array([1 + 5e-4]), 1.0)
    assert not Slopes(np.zeros(1), np.full(1, 5e-5)).kinks(1.0)


def test_conflict_names_the_entries_and_the_slope():
    def of_largest(floats):
        g = np.zeros(3)
        g[np.argmax(floats[0])] = 2.0
        return [g]

    found = nearby(of_largest, [1.0, 1.0, 1.0])
    at = of_largest([np.ones(3)])
    said = found.conflict({"x": np.full(3, 2.0)}, at, ["x"])
    assert "x[0]" in said
    assert "one slope, 2," in said
    assert said.endswith("6")
    for fine in ([2.0, 0, 0], [0, 0, 2.0], [0.5, 0.5, 1.0], [2 / 3] * 3):
        assert not found.conflict({"x": np.array(fine)}, at, ["x"])
    assert not nearby(lambda f: [2 * f[0]], [1.0, 1.0]).conflict(
        {"x": np.full(2, 2.0)}, [np.full(2, 2.0)], ["x"]
    )


def slope(centred=1.0, error=1e-9, left=1.0, right=1.0, kink=False):
    return Slope(centred, error, left, right, kink, ())


def heard(leaf, manual, autodiff, slopes, *, stopped=False, loops=False):
    """The leaf after witnesses that give these slopes, entry by entry."""

    def along(direction):
        return slopes[int(np.flatnonzero(direction)[0])]

    witnesses = Witnesses(along, lambda _: None, lambda: close_by, stopped, loops)
    close_by = Slopes(np.minimum(manual, autodiff), np.maximum(manual, autodiff))
    return ask_witnesses(leaf, manual, autodiff, witnesses, 0)


def leaf(status, wrong=0, messages=()):
    return LeafReport(
        "x", (2,), "float32", status, scale=1.0, difference=0.0, tolerance=1e-10,
        wrong=wrong, messages=messages,
    )  # fmt: skip


def test_witnesses_of_two_gradients_that_agree():
    both = np.array([1.0, 2.0])
    agreed = [slope(1.0), slope(2.0)]
    assert heard(leaf("pass"), both, both, agreed).status == "pass"
    noted = heard(leaf("pass", messages=("noted",)), both, both, agreed)
    assert noted.status == "pass"
    assert noted.messages == ("noted",)
    contradicted = [slope(1.0), slope(2.5)]
    assert heard(leaf("pass"), both, both, contradicted).status == "inconclusive"
    stopped = heard(leaf("pass"), both, both, contradicted, stopped=True)
    assert stopped.status == "pass"
    assert "stop_gradient" in stopped.messages[0]
    at_kink = [slope(1.0), slope(2.0, left=0.0, right=1.5, kink=True)]
    assert heard(leaf("pass"), both, both, at_kink).status == "inconclusive"


def test_witnesses_of_two_gradients_that_differ():
    manual, autodiff = np.array([1.0, 2.0]), np.array([1.0, 3.0])
    sides = {3.0: ("fail", "autodiff"), 2.0: ("pass", "hand-written"), 7.0: ("fail", "neither")}
    for centred, (status, word) in sides.items():
        found = heard(leaf("fail", wrong=1), manual, autodiff, [slope(), slope(centred)])
        assert found.status == status
        assert word in found.worst.verdict
    kink = slope(2.5, left=1.5, right=3.5, kink=True)
    admitted = heard(leaf("fail", wrong=1), manual, autodiff, [slope(), kink])
    assert admitted.status == "pass"
    assert "kinks" in admitted.messages[0]
    doubtful = leaf("inconclusive", wrong=1)
    assert heard(doubtful, manual, autodiff, [slope(), slope(3.0)]).status == "fail"
    looped = heard(doubtful, manual, autodiff, [slope(), slope(3.0)], loops=True)
    assert looped.status == "inconclusive"


def test_witnesses_where_autodiff_has_no_value():
    manual, autodiff = np.array([1.0, 2.0]), np.array([1.0, np.nan])
    doubt = leaf("inconclusive", messages=("autodiff gives nan: why?",))
    confirmed = heard(doubt, manual, autodiff, [slope(), slope(2.0, 1e-6)])
    assert confirmed.status == "pass"
    assert confirmed.sees >= 4e-6
    assert heard(doubt, manual, autodiff, [slope(), slope(2.5)]).status == "fail"
    silent = heard(doubt, manual, autodiff, [slope(), slope(2.0, np.inf)])
    assert silent.status == "inconclusive"
