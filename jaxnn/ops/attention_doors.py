"""What attention, rotary positions and the multi-head block refuse: their doors."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.checks import (
    check_broadcasting,
    check_broadcasts,
    check_integers,
    check_key,
    check_kind,
    check_one_dtype,
    check_shapes,
)
from jaxnn.settings import check_flag, check_integer, check_number, check_rate


def check_heads(op: str, heads: Any, kv_heads: Any) -> None:
    """Refuse heads that cannot be shared out evenly; `kv_heads` None is as many as `heads`.

    Raises:
        TypeError: they are no integers.
        ValueError: they are below 1, or `kv_heads` does not divide `heads`.
    """
    check_integer(f"{op}: heads", heads)
    if kv_heads is not None:
        check_integer(f"{op}: kv_heads", kv_heads, hint=", or None for as many as heads")
        if heads % kv_heads:
            raise ValueError(
                f"{op}: {heads} query heads, {kv_heads} heads of keys and values; the second must "
                "divide the first, so that each is used by as many query heads: change one"
            )


def check_attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    bias: Any = None,
    key: Any = None,
    *,
    causal: Any,
    window: Any,
    scale: Any,
    block: Any,
    softcap: Any = None,
    rate: Any = 0.0,
) -> None:
    """Refuse what `attention_fwd` says it raises.

    Raises:
        TypeError, ValueError: as `attention_fwd`.
    """
    fix = "reshape, transpose or slice what differs"
    sizes = check_shapes("attention", fix, q=(q, "NTHD"), k=(k, "NSGD"), v=(v, "NSGE"))
    check_one_dtype("attention", q=q, k=k, v=v, bias=bias)
    if 0 in sizes["THDSGE"]:
        raise ValueError(
            f"attention: q, k and v have shapes {q.shape}, {k.shape} and {v.shape}; all "
            "sizes but the batch's must be at least 1: leave out a call about nothing"
        )
    check_heads("attention", sizes.H, sizes.G)
    if mask is not None:
        fix = "a padding mask (batch, keys) is mask[:, None, None, :]"
        check_broadcasts("attention: mask", mask, sizes["NHTS"], fix)
    if bias is not None:
        fix = (
            "a bias (heads, queries, keys) needs no other axis; one of heads is bias[:, None, None]"
        )
        check_broadcasting("attention: bias", bias, sizes["NHTS"], fix)
    if key is not None:
        check_key("attention: key", key, ", or None to drop nothing")
    check_flag("attention: causal", causal)
    for name, value in (("window", window), ("block", block)):
        if value is not None:
            check_integer(f"attention: {name}", value, hint=", or None for no limit")
    if scale is not None:
        check_number("attention: scale", scale, "finite, or None for 1 / sqrt(D)")
    if softcap is not None:
        rule = "finite and above 0, or None for no cap"
        check_number("attention: softcap", softcap, rule, lambda c: 0 < c < math.inf)
    check_rate("attention: rate", rate)
    if window is not None and not causal:
        raise ValueError(
            f"attention: window is {window!s:.50} but causal is False; it must be True, for a "
            "window reaches back from the query: pass causal=True, or a mask"
        )


def check_rotary(x: Any, positions: Any, *, base: Any) -> None:
    """Refuse what `rotary_fwd` says it raises.

    Raises:
        TypeError, ValueError: as `rotary_fwd`.
    """
    check_shapes("rotary", "reshape x to four dimensions", x=(x, "NTHD"))
    check_one_dtype("rotary", x=x)
    if x.shape[3] % 2:
        raise ValueError(
            f"rotary: x has shape {x.shape}, heads of size {x.shape[3]}; the size must be even, "
            "because its halves are paired: choose an even head size"
        )
    check_integers("rotary: positions", positions, "cast them with positions.astype(int)")
    if positions.shape not in (x.shape[1:2], x.shape[:2]):
        raise ValueError(
            f"rotary: positions have shape {positions.shape}, x {x.shape}; there must be one "
            f"for each of the {x.shape[1]} positions, {x.shape[1:2]} or {x.shape[:2]}: pass "
            f"jnp.arange({x.shape[1]}), or slice what you have"
        )
    rule = "finite and above 0, for example 10000.0"
    check_number("rotary: base", base, rule, lambda b: 0 < b < math.inf)


def check_multi_head(
    kind: type[NamedTuple], params: Any, x: Any, positions: Any, mask: Any, **settings: Any
) -> None:
    """Refuse what `multi_head_fwd` says it raises; `kind` is the parameters'.

    Raises:
        TypeError, ValueError: as `multi_head_fwd`.
    """
    heads, kv_heads, base = (settings.pop(n) for n in ("heads", "kv_heads", "rotary_base"))
    check_kind("multi_head: params", params, kind)
    check_heads("multi_head", heads, kv_heads)
    fix = "reshape x or change the parameters"
    axes = zip(params, ("DQ", "DK", "DK", "QO", "Q?", "K?", "K?", "O?"), strict=True)
    given = dict(zip(kind._fields, axes, strict=True))
    sizes = check_shapes("multi_head", fix, **given, x=(x, "NTD"))
    check_one_dtype("multi_head", **params._asdict(), x=x)
    if sizes.Q % heads:
        raise ValueError(
            f"multi_head: wq has {sizes.Q} outputs for {heads!s:.50} heads; they must divide it"
        )
    size, kv_heads = sizes.Q // heads, heads if kv_heads is None else kv_heads
    if kv_heads * size != sizes.K:
        raise ValueError(
            f"multi_head: wk and wv have shape {params.wk.shape}; with {kv_heads} heads of keys "
            f"and values of the queries' size {size} they must be {(sizes.D, kv_heads * size)}: "
            "change the shapes or kv_heads"
        )
    n, t = x.shape[:2]
    q, k = (jax.ShapeDtypeStruct((n, t, h, size), x.dtype) for h in (heads, kv_heads))
    check_attention(q, k, k, mask, scale=None, **settings)
    if base is not None:
        check_rotary(q, jnp.arange(t) if positions is None else positions, base=base)
