"""The multi-head block: attention of tokens to each other, by heads that see features of their own.

q = x wq + bq        k = x wk + bk        v = x wv + bv                each shared out by heads
q, k <- rotary(rms_norm(q)), rotary(rms_norm(k))                       if there are such
z = attention(q, k, v) wo + bo

Over devices (`axis`) each has some of the heads: their columns of wq, wk and wv, their rows of wo.
x is handed to all of them, what their heads add to z is summed, and bo is added to the sum, once
(Shoeybi et al., 2019, "Megatron-LM", section 3). Over devices that hold tokens of their own
(`sequence`) attention goes round them, see `jaxnn.ops.ring_attention`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.op import Op
from jaxnn.ops.attention import AttentionResiduals, attention
from jaxnn.ops.attention_doors import check_multi_head
from jaxnn.ops.collectives import Axis, all_copy, all_sum, on_first
from jaxnn.ops.linear import Linear, LinearResiduals, linear
from jaxnn.ops.normalisation import Normalised, Scale, rms_norm
from jaxnn.ops.ring_attention import RingResiduals, ring_attention
from jaxnn.ops.rotary import Scaling, rotary


class MultiHead(NamedTuple):
    """Weights (inputs, outputs), the heads side by side; biases (outputs,) or None.

    `q_norm` and `k_norm` (Dh,) are the scales of norms over a head's features, None for no norms.
    """

    wq: Array
    wk: Array
    wv: Array
    wo: Array
    bq: Array | None = None
    bk: Array | None = None
    bv: Array | None = None
    bo: Array | None = None
    q_norm: Array | None = None
    k_norm: Array | None = None


class MultiHeadResiduals(NamedTuple):
    """The parameters, both inputs, and what attention saved, its y among that, and the norms."""

    params: MultiHead
    x: Array
    positions: Array
    attention: AttentionResiduals | RingResiduals
    q_norm: Normalised | None = None
    k_norm: Normalised | None = None


def multi_head_fwd(
    params: MultiHead,
    x: Array,
    positions: Array | None = None,
    mask: Array | None = None,
    bias: Array | None = None,
    key: Array | None = None,
    *,
    heads: int,
    kv_heads: int | None = None,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    block: int | None = None,
    softcap: float | None = None,
    rate: float = 0.0,
    rotary_base: float | None = None,
    rotary_scaling: Scaling | None = None,
    norm_eps: float = 1e-6,
    norm_offset: float = 0.0,
    axis: Axis = (),
    sequence: Axis = (),
) -> tuple[Array, MultiHeadResiduals]:
    """Attend x (N, T, D) to itself with H heads (Vaswani et al., 2017, section 3.2.2): z (N, T, O).

    wq is (D, H Dh), wk and wv (D, G Dh), wo (H Dh, O), for H `heads` and G `kv_heads`, None for H.
    Where there is a `q_norm` or `k_norm`, q or k is normalised head by head, with `norm_eps` and
    `norm_offset` as in `rms_norm_fwd` (Henry et al., 2020, "Query-key normalization for
    transformers"; Qwen3). `positions`, integers (T,) or (N, T), None for 0 .. T-1, turn q and k if
    there is a `rotary_base` (see `rotary_fwd`); the rest, `bias` and `key` too, is as in
    `attention_fwd`. Inside `jax.shard_map`, `axis` names the axes of the mesh along which each
    device has H of all heads, `sequence` those along which each has T of all tokens; then there is
    no mask, window, bias, softcap or dropout.

    Saves x, q, k, v, y, L and, of a norm, x_hat and 1/sigma.

    Raises:
        TypeError: params are no `MultiHead`, or not of one floating dtype with x.
        ValueError: shapes do not fit each other or the heads; a scaling without a base; or as
            `attention_fwd`, `rms_norm_fwd`, `rotary_fwd`.
    """
    kv_heads = heads if kv_heads is None else kv_heads
    wq, wk, wv, wo, bq, bk, bv, bo, gq, gk = params
    (n, t, _), size = x.shape, wq.shape[1] // heads
    positions = jnp.arange(t) if positions is None else positions
    here, _ = all_copy.fwd(x, axis=axis)
    q = linear.fwd(Linear(wq, bq), here)[0].reshape(n, t, heads, size)
    k = linear.fwd(Linear(wk, bk), here)[0].reshape(n, t, kv_heads, size)
    v = linear.fwd(Linear(wv, bv), here)[0].reshape(n, t, kv_heads, size)
    q_norm = k_norm = None
    if gq is not None:
        q, q_norm = rms_norm.fwd(Scale(gq, None), q, eps=norm_eps, offset=norm_offset)
    if gk is not None:
        k, k_norm = rms_norm.fwd(Scale(gk, None), k, eps=norm_eps, offset=norm_offset)
    if rotary_base is not None:
        q, _ = rotary.fwd(q, positions, base=rotary_base, scaling=rotary_scaling)
        k, _ = rotary.fwd(k, positions, base=rotary_base, scaling=rotary_scaling)
    saved: AttentionResiduals | RingResiduals
    if sequence:
        y, saved = ring_attention.fwd(
            q, k, v, axis=sequence, causal=causal, scale=scale, block=block
        )
    else:
        y, saved = attention.fwd(
            q, k, v, mask, bias, key, causal=causal, window=window, scale=scale, block=block,
            softcap=softcap, rate=rate,
        )  # fmt: skip
    z, _ = linear.fwd(Linear(wo, on_first(bo, axis=axis)), y.reshape(n, t, heads * size))
    z, _ = all_sum.fwd(z, axis=axis)
    return z, MultiHeadResiduals(params, x, positions, saved, q_norm, k_norm)


def multi_head_bwd(
    residuals: MultiHeadResiduals,
    dz: Array,
    *,
    heads: int,
    kv_heads: int | None = None,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    block: int | None = None,
    softcap: float | None = None,
    rate: float = 0.0,
    rotary_base: float | None = None,
    rotary_scaling: Scaling | None = None,
    norm_eps: float = 1e-6,
    norm_offset: float = 0.0,
    axis: Axis = (),
    sequence: Axis = (),
) -> tuple[MultiHead, Array, None, None, Array | None, None]:
    """Walk the same chain from its end; x collects from all three projections."""
    (wq, wk, wv, wo, bq, bk, bv, bo, *_), x, positions, saved, q_norm, k_norm = residuals
    n, t, _ = x.shape
    (dz,) = all_sum.bwd((), dz, axis=axis)
    (dwo, dbo), dy = linear.bwd(LinearResiduals(Linear(wo, bo), saved.y.reshape(n, t, len(wo))), dz)
    dy = dy.reshape(saved.y.shape)
    dbias = None
    if isinstance(saved, RingResiduals):
        dq, dk, dv = ring_attention.bwd(
            saved, dy, axis=sequence, causal=causal, scale=scale, block=block
        )
    else:
        dq, dk, dv, _, dbias, _ = attention.bwd(
            saved, dy, causal=causal, window=window, scale=scale, block=block, softcap=softcap,
            rate=rate,
        )  # fmt: skip
    if rotary_base is not None:
        dq, _ = rotary.bwd(positions, dq, base=rotary_base, scaling=rotary_scaling)
        dk, _ = rotary.bwd(positions, dk, base=rotary_base, scaling=rotary_scaling)
    dgq = dgk = None
    if q_norm is not None:  # whose scale all devices' heads share
        (dgq, _), dq = rms_norm.bwd(q_norm, dq, eps=norm_eps, offset=norm_offset)
        (dgq,) = all_copy.bwd((), dgq, axis=axis)
    if k_norm is not None:
        (dgk, _), dk = rms_norm.bwd(k_norm, dk, eps=norm_eps, offset=norm_offset)
        (dgk,) = all_copy.bwd((), dgk, axis=axis)
    (dwq, dbq), dxq = linear.bwd(LinearResiduals(Linear(wq, bq), x), dq.reshape(n, t, wq.shape[1]))
    (dwk, dbk), dxk = linear.bwd(LinearResiduals(Linear(wk, bk), x), dk.reshape(n, t, wk.shape[1]))
    (dwv, dbv), dxv = linear.bwd(LinearResiduals(Linear(wv, bv), x), dv.reshape(n, t, wv.shape[1]))
    dparams = MultiHead(dwq, dwk, dwv, dwo, dbq, dbk, dbv, dbo, dgq, dgk)
    (dx,) = all_copy.bwd((), dxq + dxk + dxv, axis=axis)
    return dparams, dx, None, None, dbias, None


def _example(key: Array) -> tuple[MultiHead, Array, Array, Array, Array, Array]:
    """Two kinds of bias missing, unequal positions, a row of the mask that hides everything."""
    shapes = {"wq": (3, 8), "wk": (3, 4), "wv": (3, 4), "wo": (8, 6), "bq": (8,), "bo": (6,)}
    shapes |= {"q_norm": (2,), "k_norm": (2,)}
    *keys, kx, km, kb, drops = jax.random.split(key, len(shapes) + 4)
    drawn = {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}
    x = jax.random.normal(kx, (2, 5, 3)).at[0, 0].set(0)
    mask = jax.random.bernoulli(km, 0.7, (2, 1, 5, 5)).at[1, 0, 3].set(False)
    bias = jax.random.normal(kb, (4, 1, 5))
    return MultiHead(**drawn), x, jnp.array([0, 1, 2, 4, 7]), mask, bias, drops


_kinds: Any = MultiHead  # of bools here: all are cut but bo, and the scales of q and k
_CUT = _kinds(*[True] * 7, False, False, False)
multi_head = Op(
    multi_head_fwd,
    multi_head_bwd,
    check=partial(check_multi_head, MultiHead, Scale, Scaling),
    example=_example,
    settings=(
        {"heads": 4, "kv_heads": 2, "causal": True, "norm_eps": 0.1, "rate": 0.3},
        {"heads": 4, "kv_heads": 2, "block": 4, "rotary_base": 100.0, "softcap": 2.0, "scale": 0.9},
        {
            "heads": 4, "kv_heads": 2, "causal": True, "window": 3, "rotary_base": 100.0,
            "rotary_scaling": Scaling(2.0), "norm_offset": 1.0,
        },
        {"heads": 4, "kv_heads": 2, "norm_eps": 0.1, "rotary_base": 100.0, "axis": ("devices",)},
    ),
    varies={"axis": ((_CUT, False, False, False, True, False), False)},
)  # fmt: skip
