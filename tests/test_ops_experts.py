"""The mixture of experts: what its row does not show."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close, run
from rows.experts import routed, token_by_token

from jaxnn.ops.experts import Experts, experts

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def both(params, x, k):
    """The result, the cotangents by hand and those of `jax.vjp` of the forward."""
    out, residuals = experts.fwd(params, x, k=k)
    dout = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), jnp.ones_like(out[1])
    _, pull = jax.vjp(lambda *inputs: experts.fwd(*inputs, k=k)[0], params, x)
    return out, experts.bwd(residuals, dout, k=k), pull(dout)


@pytest.mark.parametrize("shape", [(1, 1), (3, 4, 5)])
def test_one_chosen_and_all_chosen(shape, x64):
    params, x = routed(np.random.default_rng(0), shape)
    every = params.router.shape[1]
    given = jax.tree.map(jnp.asarray, (params, x))
    each = run(lambda p, x: (both(p, x, 1), both(p, x, every)), *given)
    for k, (out, hand, auto) in zip((1, every), each, strict=True):
        assert_leaves_close(out, token_by_token(params, x, k), 1e-12)
        assert_leaves_close(hand, auto, 1e-10, floor=1e-14)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_huge_logits_stay_finite(scale):
    params, x = experts.example(jax.random.key(0))
    params = params._replace(router=scale * jnp.sign(params.router))
    (y, loss), *cotangents = run(lambda p, x: both(p, jnp.sign(x), 2), params, x)
    for leaf in jax.tree.leaves((y, loss, cotangents)):
        assert np.isfinite(leaf).all()


def test_of_equal_logits_the_first_are_chosen_and_the_balanced_loss_is_k(x64):
    params, x = jax.tree.map(jnp.asarray, routed(np.random.default_rng(1), (3, 4)))
    params = params._replace(router=jnp.zeros_like(params.router))
    y, loss = experts(params, x, k=2)
    assert_leaves_close(loss, 2.0, 1e-12)
    others = jax.tree.map(lambda w: w.at[2:].set(jnp.nan), params[1:])
    kept = Experts(params.router[:, :2], *(w[:2] for w in others))
    assert_leaves_close(y, experts(kept, x, k=2)[0], 1e-12)


def test_one_expert_for_all_tokens_costs_as_much_as_there_are_experts():
    params, _ = experts.example(jax.random.key(0))
    router = jnp.zeros_like(params.router).at[:, 1].set(50)
    _, loss = experts(params._replace(router=router), jnp.ones((3, 5)), k=1)
    assert_leaves_close(loss, 4.0, 1e-6)


def test_close_logits_in_16_bits_are_told_apart():
    """Rounded to bfloat16 these two are equal, and the first would be chosen."""
    params, _ = experts.example(jax.random.key(0))
    router = jnp.zeros((5, 4)).at[0, 1:3].set(1).at[1, 1:3].set(jnp.array([0.25, 0.5]))
    params = jax.tree.map(lambda w: w.astype("bfloat16"), params._replace(router=router))
    x = jnp.array([[256.0, 1, 0, 0, 0]], "bfloat16")
    _, residuals = experts.fwd(params, x, k=1)
    np.testing.assert_array_equal(residuals.w > 0, [[False, False, True, False]])


PARAMS = Experts(
    jnp.zeros((5, 4)), jnp.zeros((4, 5, 3)), jnp.zeros((4, 5, 3)), jnp.zeros((4, 3, 5))
)


@pytest.mark.parametrize(
    ("params", "shape", "k", "message"),
    [
        (PARAMS, (2, 5), 0, "k is 0; it must be at least 1, and at most 4"),
        (PARAMS, (2, 5), 5, "k is 5 for 4 experts"),
        (PARAMS, (2, 6), 1, "x has shape (2, 6), beside router (5, 4)"),
        (PARAMS, (0, 5), 1, "(0, 5), no element; it must have some, for the loss is a mean"),
        (
            PARAMS._replace(down=PARAMS.up),
            (2, 5),
            1,
            "down has shape (4, 5, 3), beside router (5, 4)",
        ),
        (
            PARAMS._replace(router=jnp.zeros((4, 5))),
            (2, 5),
            1,
            "gate has shape (4, 5, 3), beside router (4, 5)",
        ),
    ],
)
def test_bad_inputs_are_named(params, shape, k, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        experts(params, jnp.zeros(shape), k=k)


@pytest.mark.parametrize(
    ("params", "x", "k", "message"),
    [
        (PARAMS, jnp.zeros((2, 5)), True, "experts: k is True; it must be an integer"),
        (PARAMS, jnp.zeros((2, 5)), None, "experts: k is None; it must be an integer"),
        (PARAMS, [[0.0] * 5], 1, "experts: x is a list; it must be an array"),
        (PARAMS, jnp.zeros((2, 5), int), 1, "experts: x has dtype int32; it must be floating"),
        (PARAMS, jnp.zeros((2, 5), "bfloat16"), 1, "experts: .*router float32, .*x bfloat16"),
        (None, jnp.zeros((2, 5)), 1, "experts: params is a NoneType; .*wrap its parts"),
        (
            tuple(PARAMS),
            jnp.zeros((2, 5)),
            1,
            "experts: params is a tuple; .* jaxnn.ops.experts.Experts",
        ),
    ],
)
def test_what_is_of_a_wrong_kind_is_named(params, x, k, message):
    with pytest.raises(TypeError, match=message):
        experts(params, x, k=k)


def test_what_numpy_made_is_taken():
    params, x = jax.tree.map(np.asarray, (PARAMS, jnp.ones((2, 5))))
    y, _ = jax.eval_shape(lambda: experts.fwd(params, x, k=np.int64(2))[0])
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
