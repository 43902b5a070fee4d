"""Multi-head attention: projections to queries, keys and values, attention, and one back.

    q = x wq + bq,  k = x wk + bk,  v = x wv + bv       split into H, G and G heads
    y = attention(rotary(q), rotary(k), v)              or of q and k as they are
    z = y wo + bo                                       of y's heads side by side

The backward is the same chain from its end; x collects from all three projections.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.checks import check_array, check_params
from jaxnn.op import Op
from jaxnn.ops.attention import AttentionResiduals, attention, check_heads
from jaxnn.ops.linear import Linear, LinearResiduals, linear
from jaxnn.ops.rotary import rotary
from jaxnn.settings import check_integer


class MultiHead(NamedTuple):
    """Parameters: weights (inputs, outputs) and, or None, biases (outputs,).

    Heads lie side by side in the outputs of `wq`, `wk` and `wv` and in the inputs of `wo`.
    """

    wq: Array
    wk: Array
    wv: Array
    wo: Array
    bq: Array | None = None
    bk: Array | None = None
    bv: Array | None = None
    bo: Array | None = None


class MultiHeadResiduals(NamedTuple):
    """The parameters, both inputs, and what attention saved, its output y among that."""

    params: MultiHead
    x: Array
    positions: Array
    attention: AttentionResiduals


def multi_head_fwd(
    params: MultiHead,
    x: Array,
    positions: Array | None,
    mask: Array | None,
    *,
    heads: int,
    kv_heads: int | None = None,
    causal: bool = False,
    window: int | None = None,
    block: int | None = None,
    rotary_base: float | None = None,
) -> tuple[Array, MultiHeadResiduals]:
    """Multi-head self-attention with optional rotary positions, grouped heads and biases.

    Saves x, q, k, v and y, T (2 D + (H + 2 G) Dh) values per example where D = H Dh, and H T
    numbers from which the probabilities are computed again, as are sines and cosines.

    Args:
        params: wq (D, H Dh), wk and wv (D, G Dh), wo (H Dh, O); each bias as its weights' outputs.
            Without rotary, bk adds the same to all scores of a query: it changes nothing.
        x: (N, T, D).
        positions: integers (T,) or (N, T) for `rotary_base`, not looked at without it; None for
            0 .. T-1.
        mask: None, or booleans that broadcast to (N, H, T, T), True where a query may see a key.
        heads: H, the number of query heads.
        kv_heads: G, the number of heads of keys and values; None for H.
        causal: as `attention_fwd`, as are `window` and `block`.
        window: how many positions a query sees, its own and those before it; None for all.
        block: how many queries to compute at a time; None for a whole run, see `attention_fwd`.
        rotary_base: the base of `rotary_fwd`; None for no rotary embedding.

    Returns:
        z (N, T, O), residuals.

    Raises:
        TypeError: params are no `MultiHead`, what should be an array is none, or the heads are no
            integers.
        ValueError: the shapes of x and the parameters do not fit each other or the heads, or hold
            a 0.
        TypeError, ValueError: as `attention_fwd` and `rotary_fwd`, by their names.

    Vaswani et al. (2017), "Attention is all you need", section 3.2.2.
    """
    kv_heads = heads if kv_heads is None else kv_heads
    _check(params, x, heads, kv_heads)
    wq, wk, wv, wo, bq, bk, bv, bo = params
    positions = jnp.arange(x.shape[1]) if positions is None else positions
    q, _ = linear.fwd(Linear(wq, bq), x)
    k, _ = linear.fwd(Linear(wk, bk), x)
    v, _ = linear.fwd(Linear(wv, bv), x)
    q, k, v = _split(q, heads), _split(k, kv_heads), _split(v, kv_heads)
    if rotary_base is not None:
        q, _ = rotary.fwd(q, positions, base=rotary_base)
        k, _ = rotary.fwd(k, positions, base=rotary_base)
    y, saved = attention.fwd(q, k, v, mask, causal=causal, window=window, block=block)
    z, _ = linear.fwd(Linear(wo, bo), _merged(y))
    return z, MultiHeadResiduals(params, x, positions, saved)


def multi_head_bwd(
    residuals: MultiHeadResiduals,
    dz: Array,
    *,
    heads: int,
    kv_heads: int | None = None,
    causal: bool = False,
    window: int | None = None,
    block: int | None = None,
    rotary_base: float | None = None,
) -> tuple[MultiHead, Array, None, None]:
    """From z back to the parameters and x; positions and mask have no cotangent."""
    (wq, wk, wv, wo, bq, bk, bv, bo), x, positions, saved = residuals
    (dwo, dbo), dy = linear.bwd(LinearResiduals(Linear(wo, bo), _merged(saved.y)), dz)
    dq, dk, dv, _ = attention.bwd(
        saved, _split(dy, heads), causal=causal, window=window, block=block
    )
    if rotary_base is not None:
        dq, _ = rotary.bwd(positions, dq, base=rotary_base)
        dk, _ = rotary.bwd(positions, dk, base=rotary_base)
    (dwq, dbq), dx_q = linear.bwd(LinearResiduals(Linear(wq, bq), x), _merged(dq))
    (dwk, dbk), dx_k = linear.bwd(LinearResiduals(Linear(wk, bk), x), _merged(dk))
    (dwv, dbv), dx_v = linear.bwd(LinearResiduals(Linear(wv, bv), x), _merged(dv))
    return MultiHead(dwq, dwk, dwv, dwo, dbq, dbk, dbv, dbo), dx_q + dx_k + dx_v, None, None


def _split(x: Array, heads: int) -> Array:
    """(N, T, heads size) as (N, T, heads, size)."""
    return x.reshape(*x.shape[:2], heads, -1)


def _merged(x: Array) -> Array:
    """(N, T, heads, size) as (N, T, heads size)."""
    return x.reshape(*x.shape[:2], -1)


def _check(params: MultiHead, x: Array, heads: int, kv_heads: int) -> None:
    """Refuse parameters and inputs that do not fit each other or the heads."""
    check_params("multi_head", params, MultiHead)
    check_array("multi_head: x", x)
    check_integer("multi_head: heads", heads)
    check_integer("multi_head: kv_heads", kv_heads, hint=", or None for as many as heads")
    check_heads("multi_head", heads, kv_heads)
    wq, wk, wv, wo, *biases = params
    shapes = f"wq, wk, wv, wo have shapes {wq.shape}, {wk.shape}, {wv.shape}, {wo.shape}"
    if not wq.ndim == wk.ndim == wv.ndim == wo.ndim == 2:
        raise ValueError(f"multi_head: {shapes}; each must be (inputs, outputs): reshape them")
    if x.ndim != 3 or x.shape[2] != wq.shape[0] or x.size == 0:
        raise ValueError(
            f"multi_head: x has shape {x.shape}; it must be (batch, positions, size), none of them "
            f"0, of the {wq.shape[0]} inputs of wq: reshape x or change the parameters"
        )
    if wq.shape[1] < heads or wq.shape[1] % heads:
        raise ValueError(
            f"multi_head: wq has {wq.shape[1]} outputs for {heads} heads; the heads must divide "
            "them: change one"
        )
    size, inner = wq.shape[1] // heads, (wq.shape[0], wq.shape[1] // heads * kv_heads)
    if wk.shape != inner or wv.shape != inner or wo.shape[0] != wq.shape[1]:
        raise ValueError(
            f"multi_head: {shapes}; with heads of size {size}, {heads} of queries and {kv_heads} "
            f"of keys and values, wk and wv must be {inner}, and wo have {wq.shape[1]} inputs: "
            "change the shapes or kv_heads"
        )
    for name, b, w in zip(("bq", "bk", "bv", "bo"), biases, params[:4], strict=True):
        if b is not None and b.shape != w.shape[1:]:
            raise ValueError(
                f"multi_head: {name} has shape {b.shape}; it must be {w.shape[1:]}, one per output "
                "of its weights, or None: reshape it"
            )


def _example(key: Array) -> tuple[MultiHead, Array, Array, Array]:
    """Two kinds of bias missing, unequal positions, a row of the mask that hides everything."""
    sizes = {"wq": (3, 8), "wk": (3, 4), "wv": (3, 4), "wo": (8, 6), "bq": (8,), "bo": (6,)}
    *keys, kx, km = jax.random.split(key, len(sizes) + 2)
    drawn = {
        name: jax.random.normal(k, size)
        for k, (name, size) in zip(keys, sizes.items(), strict=True)
    }
    x = jax.random.normal(kx, (2, 5, 3))
    mask = jax.random.bernoulli(km, 0.7, (2, 1, 5, 5)).at[1, 0, 3].set(False)
    return MultiHead(**drawn), x.at[0, 0].set(0), jnp.array([0, 1, 2, 4, 7]), mask


multi_head = Op(
    multi_head_fwd,
    multi_head_bwd,
    example=_example,
    settings=(
        {"heads": 2, "kv_heads": 1, "causal": True},
        {"heads": 4, "kv_heads": 2, "causal": True, "window": 3, "rotary_base": 100.0},
        {"heads": 4, "kv_heads": 2, "block": 4, "rotary_base": 100.0},
    ),
)
