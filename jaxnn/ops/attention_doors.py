"""What attention, rotary positions and the multi-head block refuse: their doors."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checks import (
    check_broadcasting,
    check_broadcasts,
    check_integers,
    check_key,
    check_kind,
    check_one_dtype,
    check_shapes,
)
from jaxnn.ops.collectives_doors import check_axis
from jaxnn.ops.normalisation_doors import check_last_axes
from jaxnn.settings import (
    MOST,
    check_flag,
    check_integer,
    check_normal,
    check_number,
    check_rate,
)


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
        check_normal("attention: softcap", softcap, q.dtype, ", or None for no cap")
    check_rate("attention: rate", rate)
    if window is not None and not causal:
        raise ValueError(
            f"attention: window is {window!s:.50} but causal is False; it must be True, for a "
            "window reaches back from the query: pass causal=True, or a mask"
        )


def check_scaling(name: str, scaling: Any, kind: Any) -> Any:
    """A scaling of rotary positions, of this kind and of Python's numbers, or None.

    Raises:
        TypeError: it is of another kind, or a part of it no number.
        ValueError: a part is outside its range, or of three that belong together one is missing.
    """
    if scaling is None:
        return None
    check_kind(name, scaling, kind)
    factor, low, high, positions = scaling
    rule = "finite and at least 1, by how much to slow the turns down"
    factor = check_number(f"{name}: factor", factor, rule, lambda f: 1 <= f < math.inf)
    if low is high is positions is None:
        return kind(factor)
    if None in (low, high, positions):
        raise ValueError(
            f"{name} has low {low!s:.50}, high {high!s:.50} and positions {positions!s:.50}; they "
            "must be all given, or all None: give those that are missing"
        )
    low = check_number(f"{name}: low", low, "finite and above 0", lambda v: 0 < v < math.inf)
    rule = f"finite and above low, which is {low}"
    high = check_number(f"{name}: high", high, rule, lambda v: low < v < math.inf)
    return kind(factor, low, high, check_integer(f"{name}: positions", positions))


def check_base(name: str, base: Any, dtype: Any) -> float:
    """The base of rotary positions, of which every angle is finite in this dtype, as a float.

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite and positive in the dtype, or too near 0.
    """
    number = check_normal(name, base, dtype, ", for example 10000.0")
    least = MOST * float(np.finfo(np.promote_types(dtype, np.float32)).tiny)
    if number < least:
        raise ValueError(
            f"{name} is {number}; it must be at least {least:.2g}, or the angles of far positions "
            "would be infinite: 10000.0 is usual"
        )
    return number


def check_rotary(
    kind: type[NamedTuple], x: Any, positions: Any, *, base: Any, scaling: Any
) -> None:
    """Refuse what `rotary_fwd` says it raises; `kind` is the scaling's.

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
    check_base("rotary: base", base, x.dtype)
    check_scaling("rotary: scaling", scaling, kind)


def check_multi_head(
    kind: type[NamedTuple],
    of_norm: Any,
    scaling: type[NamedTuple],
    params: Any,
    x: Any,
    positions: Any,
    mask: Any,
    bias: Any = None,
    key: Any = None,
    **settings: Any,
) -> None:
    """Refuse what `multi_head_fwd` says it raises.

    The first three are the kinds of its parameters, of a norm's, and of a scaling.

    Raises:
        TypeError, ValueError: as `multi_head_fwd`.
    """
    heads, kv_heads = settings.pop("heads"), settings.pop("kv_heads")
    rotary = {name: settings.pop(f"rotary_{name}") for name in ("base", "scaling")}
    norm = {name: settings.pop(f"norm_{name}") for name in ("eps", "offset")}
    check_axis("multi_head: axis", settings.pop("axis"))
    sequence = settings.pop("sequence")
    check_axis("multi_head: sequence", sequence)
    whole = {"mask": mask, "bias": bias, "key": key}
    whole |= {name: settings[name] for name in ("window", "softcap")}
    for name in [name for name in whole if sequence and whole[name] is not None]:
        raise ValueError(
            f"multi_head: {name} is {whole[name]!s:.50} with tokens on devices along {sequence}; "
            "it must be None, for attention that goes round them has none"
        )
    check_kind("multi_head: params", params, kind)
    check_heads("multi_head", heads, kv_heads)
    fix = "reshape x or change the parameters"
    forms = ("DQ", "DK", "DK", "QO", "Q?", "K?", "K?", "O?", "S?", "S?")
    given = dict(zip(kind._fields, zip(params, forms, strict=True), strict=True))
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
    q: Any
    q, k = (jax.ShapeDtypeStruct((n, t, h, size), x.dtype) for h in (heads, kv_heads))
    check_attention(q, k, k, mask, bias, key, **settings)
    norms = {name: getattr(params, name) for name in ("q_norm", "k_norm")}
    for name in [name for name in norms if norms[name] is not None]:
        if norms[name].shape != (size,):
            raise ValueError(
                f"multi_head: {name} has shape {norms[name].shape}; with {heads} heads of size "
                f"{size} it must be {(size,)}: change the shape or the heads"
            )
        check_last_axes(of_norm, "rms_norm", of_norm(norms[name], None), q, axes=1, **norm)
    if all(one is None for one in norms.values()) and norm["offset"]:
        raise ValueError(
            f"multi_head: norm_offset is {norm['offset']!s:.50} but q_norm and k_norm are None; it "
            "must be added to their scales: leave it 0, or pass one"
        )
    if rotary["base"] is not None:
        places = jnp.arange(t) if positions is None else positions
        check_rotary(scaling, q, places, **rotary)
    elif rotary["scaling"] is not None:
        raise ValueError(
            f"multi_head: rotary_scaling is {rotary['scaling']!s:.50} but rotary_base is None; "
            "there must be a base, for it is its turns that are slowed: pass both or neither"
        )
