"""Attention beside PyTorch where numbers are not ordinary; its biases beside transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.op import plain_forms
from jaxnn.ops.attention import attention
from jaxnn.ops.position_bias import PositionBias, alibi_bias, alibi_slopes, relative_position_bias

torch = pytest.importorskip(
    "torch", reason="PyTorch is an optional peer: pip install -e '.[peers]'"
)

HIDDEN = {
    "nothing": np.ones((1, 1, 4, 4), bool),
    "a key": np.arange(4) != 1,
    "all from a query": np.arange(4)[:, None] != 1,
}


def in_torch(q, k, v, mask, bias, dy):
    """The result and the gradients, of NumPy's arrays."""
    q, k, v, bias = (torch.tensor(x, requires_grad=True) for x in (q, k, v, bias))
    y = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)),
        attn_mask=torch.where(torch.tensor(mask), bias, -torch.inf),
        enable_gqa=True,
    ).transpose(1, 2)
    y.backward(torch.tensor(dy))
    return [x.detach().numpy() for x in (y, q.grad, k.grad, v.grad, bias.grad)]


@jax.jit
def in_jax_nn(q, k, v, mask, bias, dy):
    y, pull = jax.vjp(
        lambda q, k, v, bias: jax.nn.dot_product_attention(q, k, v, bias, mask), q, k, v, bias
    )
    return y, *pull(dy)


@jax.jit
def in_both_forms(q, k, v, mask, bias, dy):
    def by_hand(**static):
        y, residuals = attention.fwd(q, k, v, mask, bias, **static)
        dq, dk, dv, _, dbias, _ = attention.bwd(residuals, dy, **static)
        return y, dq, dk, dv, dbias

    with plain_forms():
        plain = by_hand()
    return plain, by_hand(block=3)


def kinds(x):
    """0 for a finite number, 1 and -1 for the infinities, 2 for NaN."""
    x = np.asarray(x)
    return np.where(np.isnan(x), 2, np.where(np.isinf(x), np.sign(x), 0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_what_is_nan_or_infinite_is_so_in_pytorch_or_in_jax(hidden, dtype):
    """In y and every gradient, for entries of a query, key, value or the bias, or all of one."""
    rng = np.random.default_rng(0)
    shapes = {"q": (1, 4, 2, 3), "k": (1, 4, 1, 3), "v": (1, 4, 1, 3), "bias": (1, 2, 4, 4)}
    clean = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    dy, limits = rng.normal(size=shapes["q"]).astype(dtype), np.finfo(dtype)
    mask = np.broadcast_to(HIDDEN[hidden], (1, 1, 4, 4))
    values = (np.nan, np.inf, -np.inf, limits.max / 4, limits.smallest_subnormal, 0, "all huge")
    for name in shapes:
        for value in values:
            x = clean[name].copy()
            if value == "all huge":
                x = np.sign(x) * limits.max / 4
            else:
                x[(0, 0, 1, 1) if name == "bias" else (0, 1, 0, slice(2))] = value
            inputs = [*(clean | {name: x}).values()]
            inputs = *inputs[:3], mask, inputs[3], dy
            with jax.enable_x64(dtype is np.float64):
                forms, peer = in_both_forms(*inputs), in_jax_nn(*inputs)
            peers = [*zip(in_torch(*inputs), peer, strict=True)]
            for form in forms:
                for number, (ours, theirs) in enumerate(zip(form, peers, strict=True)):
                    assert any((kinds(ours) == kinds(p)).all() for p in theirs), (
                        *(name, value, number),
                        *map(kinds, (ours, *theirs)),
                    )


def test_where_pytorch_drops_p_it_is_divided_likewise():
    """With the draws of a key: PyTorch's own dropout of ones, told apart by what is 0."""
    torch.manual_seed(0)
    kept = torch.nn.functional.dropout(torch.ones(1000), 0.25)
    q = k = jnp.zeros((1, 30, 1, 1))
    v = jnp.eye(30)[None, :, None]
    p = attention(q, k, v, None, None, jax.random.key(0), rate=0.25)
    np.testing.assert_allclose(30 * np.unique(p), np.unique(kept.numpy()), rtol=1e-6)


@pytest.mark.parametrize(
    ("buckets", "bidirectional", "max_distance", "queries", "keys"),
    [
        (32, True, 128, 300, 300),
        (32, False, 128, 300, 300),
        (6, True, 50, 70, 130),
        (16, False, 9, 1, 40),
        (64, True, 1000, 5, 1500),
    ],
)
def test_buckets_and_gradients_are_t5s(buckets, bidirectional, max_distance, queries, keys):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    heads, rng = 3, np.random.default_rng(0)
    theirs = t5.T5Attention(
        t5.T5Config(
            num_heads=heads,
            is_decoder=not bidirectional,
            relative_attention_num_buckets=buckets,
            relative_attention_max_distance=max_distance,
        ),
        has_relative_attention_bias=True,
    ).double()
    weight = theirs.relative_attention_bias.weight
    expected = theirs.compute_bias(queries, keys, past_seen_tokens=keys - queries)
    dbias = rng.normal(size=expected.shape)
    expected.backward(torch.tensor(dbias))
    static = {"queries": queries, "keys": keys, "bidirectional": bidirectional}
    with jax.enable_x64(True):
        params = PositionBias(jnp.asarray(weight.detach().numpy()))
        ours, pull = jax.vjp(
            lambda p: relative_position_bias(p, **static, max_distance=max_distance), params
        )
        (dparams,) = pull(jnp.asarray(dbias))
    np.testing.assert_array_equal(ours, expected.detach().numpy())
    np.testing.assert_allclose(dparams.table, weight.grad.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("heads", [1, 2, 4, 6, 8, 12, 16, 20])
def test_alibi_is_blooms(heads):
    """Bloom's is one for all queries: to the softmax of each, that is the same."""
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    theirs = bloom.build_alibi_tensor(torch.ones(1, 9), heads, torch.float32).numpy()
    np.testing.assert_allclose(alibi_slopes(heads), theirs[:, 0, 1], rtol=1e-6)
    bias = np.asarray(alibi_bias(heads, 9, 9))
    for i in range(9):
        shifted = theirs[:, 0, : i + 1] - theirs[:, 0, i : i + 1]
        np.testing.assert_allclose(bias[:, i, : i + 1], shifted, rtol=1e-5)
