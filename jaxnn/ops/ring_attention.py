"""Ring attention: the sequence is spread over devices, and keys and values travel round them.

Device i of p has the queries q_i, keys k_i and values v_i of its own tokens. At turn r of 0 to
p - 1 it has the keys and values of device i - r, and of them, as `attention` does, the average y_r
and the log-normaliser L_r. What it had before, y and L, becomes

L' = log(exp L + exp L_r)        y' = exp(L - L') y + exp(L_r - L') y_r

(Liu, Zaharia and Abbeel, 2023, "Ring attention with blockwise transformers"; the sums of Milakov
and Gimelshein, 2018, "Online normalizer calculation for softmax"). In the end L is the logarithm of
the sum over the keys of all devices, and with it p_ij = exp(s_ij - L_i) is known of each key alone:
attention's own backward, given that L and that y, is each turn's part of dq, dk and dv.

The backward takes the turns the other way round: from device to device the keys come back as they
went, and the sum that is their gradient comes home with them.

If `causal`, tokens are in zigzag order: the sequence is cut into 2p chunks, and device i has chunks
i and 2p - 1 - i, so that all devices have as much to do (Llama team, 2024, "The Llama 3 herd of
models", section 3.3.2). Of the keys of another device two of four pairs of chunks are seen, whole:
the later queries see the earlier keys; and of a device before, the earlier queries too, while of a
device after it is the later queries that see the later keys too.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxnn.checks import check_shapes
from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops.attention import AttentionResiduals, attention
from jaxnn.ops.attention_doors import check_attention
from jaxnn.ops.collectives import Axis, ring_shift
from jaxnn.ops.collectives_doors import check_axis
from jaxnn.settings import check_flag, check_integer
from jaxnn.varying import vary_with


class RingResiduals(NamedTuple):
    """What this device was given, and its y (N, T, H, E) and L (N, T, H, 1)."""

    q: Array
    k: Array
    v: Array
    y: Array
    log_normaliser: Array


def ring_attention_fwd(
    q: Array,
    k: Array,
    v: Array,
    *,
    axis: Axis,
    causal: bool = False,
    scale: float | None = None,
    block: int | None = None,
) -> tuple[Array, RingResiduals]:
    """Average the values of all devices that each query of this one sees: y (N, T, H, E).

    To be called inside `jax.shard_map`. Each device has T tokens of the sequence: q (N, T, H, D),
    k (N, T, G, D) and v (N, T, G, E), where query head h uses head h // (H / G) of these. Without
    `causal` a query sees all keys; with it, those at no later position, and the tokens are in the
    order of `ring_order`. `scale` is 1 / sqrt(D) unless given. A turn holds N H T^2 scores; in the
    fast form, with a `block`, N H block T.

    k and v are sent p - 1 times. Saves its inputs, its result and L: nothing of what came by.

    Args:
        q: queries.
        k: keys.
        v: values.
        axis: the names of the axes of the mesh that the sequence is spread over; () for none.
        causal: whether later positions are hidden.
        scale: what q . k is multiplied by.
        block: how many queries the fast form computes at a time; None for many.

    Raises:
        TypeError: q, k and v are not floating of one dtype, or a setting is mistyped.
        ValueError: the shapes do not fit, T is odd where two chunks are asked for, there is no such
            axis here, the scale is not finite, or the block below 1.
    """
    attend = partial(attention.fwd, scale=scale, block=block)
    y, own = attend(q, k, v, causal=causal)

    def turn(carry: tuple[Array, ...], r: Array) -> tuple[tuple[Array, ...], None]:
        k, v, y, log = carry
        k, v = (ring_shift.fwd(x, axis=axis)[0] for x in (k, v))
        for i, j in _seen(r, q.shape[1], axis, causal):
            yr, part = attend(i.of(q), j.of(k), j.of(v))
            total = jnp.logaddexp(i.of(log), part.log_normaliser)
            before, now = jnp.exp(i.of(log) - total), jnp.exp(part.log_normaliser - total)
            y, log = i.put(y, before * i.of(y) + now * widen(yr)), i.put(log, total)
        return (k, v, y, log), None

    carry = vary_with((k, v, widen(y), own.log_normaliser), q, k, v, lax.axis_index(axis))
    (_, _, y, log), _ = lax.scan(turn, carry, _turns(axis))
    y = y.astype(v.dtype)
    return y, RingResiduals(q, k, v, y, log)


def ring_attention_bwd(
    saved: RingResiduals,
    dy: Array,
    *,
    axis: Axis,
    causal: bool = False,
    scale: float | None = None,
    block: int | None = None,
) -> tuple[Array, Array, Array]:
    """Return dq, dk and dv of this device's tokens: from the last turn back to the first.

    k and v are sent p - 1 times, and so are dk and dv, in float32 or wider.
    """
    q, k, v, y, log = saved
    dy, y = widen(dy), widen(y)
    attend = partial(attention.bwd, scale=scale, block=block)

    def turn(carry: tuple[Array, ...], r: Array) -> tuple[tuple[Array, ...], None]:
        k, v, dq, dk, dv = carry
        k, v = (ring_shift.bwd((), x, axis=axis)[0] for x in (k, v))
        for i, j in _seen(r, q.shape[1], axis, causal):
            seen = i.of(q), j.of(k), j.of(v), None, None, None
            part = AttentionResiduals(*seen, i.of(y), i.of(log))
            dqr, dkr, dvr = attend(part, i.of(dy))[:3]
            dq = i.put(dq, i.of(dq) + dqr)
            dk, dv = j.put(dk, j.of(dk) + dkr), j.put(dv, j.of(dv) + dvr)
        dk, dv = (ring_shift.bwd((), x, axis=axis)[0] for x in (dk, dv))
        return (k, v, dq, dk, dv), None

    zeros = (jnp.zeros_like(widen(x)) for x in (q, k, v))
    carry = vary_with((k, v, *zeros), q, k, v, dy, lax.axis_index(axis))
    (_, _, *sums), _ = lax.scan(turn, carry, _turns(axis), reverse=True)
    part = AttentionResiduals(q, k, v, None, None, None, y, log)
    own = attend(part, dy, causal=causal)[:3]
    dq, dk, dv = (a + b for a, b in zip(sums, own, strict=True))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


class _Chunk(NamedTuple):
    """Some of a device's tokens, side by side: where they start, and how many."""

    start: int | Array
    size: int

    def of(self, x: Array) -> Array:
        """Those of x (N, T, ...)."""
        return lax.dynamic_slice_in_dim(x, self.start, self.size, axis=1)

    def put(self, x: Array, part: Array) -> Array:
        """The tokens x (N, T, ...), in the place of these the part."""
        return lax.dynamic_update_slice_in_dim(x, part, self.start, axis=1)


def _turns(axis: Axis) -> Array:
    """The turns after the first, at which a device has its own keys."""
    return jnp.arange(1, lax.axis_size(axis), dtype=jnp.int32)


def _seen(r: Array, t: int, axis: Axis, causal: bool) -> list[tuple[_Chunk, _Chunk]]:
    """Which queries of this device see which keys of the device r before it, all of them."""
    if lax.axis_size(axis) == 1:
        return []  # there is no other
    if not causal:
        return [(_Chunk(0, t), _Chunk(0, t))]
    half = t // 2
    earlier, later = _Chunk(0, half), _Chunk(half, half)
    either = _Chunk(jnp.where(r <= lax.axis_index(axis), 0, half), half)
    return [(later, earlier), (either, either)]


def ring_order(t: int, devices: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return which token stands where in zigzag order (t,): x[:, order] is what to spread out.

    Cut into p equal parts, side by side, it gives each device its two chunks. `numpy.argsort` of it
    is the way back.

    Args:
        t: the number of tokens in the sequence.
        devices: over how many the sequence is spread, p.

    Raises:
        TypeError: they are no integers.
        ValueError: 2p does not divide t.
    """
    check_integer("ring_order: t", t)
    check_integer("ring_order: devices", devices)
    if t % (2 * devices):
        raise ValueError(
            f"ring_order: t is {t} for {devices} devices; it must be divisible by {2 * devices}, "
            "for each has two chunks of it: pad the sequence, or use fewer devices"
        )
    chunks = np.arange(t).reshape(2 * devices, -1)
    return np.stack([chunks[:devices], chunks[devices:][::-1]], 1).reshape(-1)


def ring_positions(t: int, *, axis: Axis, causal: bool) -> Array:
    """Return at which positions of the sequence the t tokens (t,) of this device are.

    Raises:
        TypeError, ValueError: as `ring_attention_fwd`.
    """
    check_integer("ring_positions: t", t)
    check_flag("ring_positions: causal", causal)
    p, i = check_axis("ring_positions: axis", axis), lax.axis_index(axis)
    _check_halves("ring_positions", t, p, causal)
    if not causal or p == 1:
        return i * t + jnp.arange(t, dtype=jnp.int32)
    half = jnp.arange(t // 2, dtype=jnp.int32)
    return jnp.concatenate([i * (t // 2) + half, (2 * p - 1 - i) * (t // 2) + half])


def _check_halves(name: str, t: int, p: int, causal: bool) -> None:
    if causal and p > 1 and t % 2:
        raise ValueError(
            f"{name}: this device has {t} tokens; if causal it must have two chunks alike, an even "
            "number: pad the sequence"
        )


def _check(q: Any, k: Any, v: Any, *, axis: Any, causal: Any, scale: Any, block: Any) -> None:
    fix = "each device has as many queries as keys, of the same tokens"
    check_shapes("ring_attention", fix, q=(q, "NTHD"), k=(k, "NTGD"), v=(v, "NTGE"))
    check_attention(q, k, v, None, causal=causal, window=None, scale=scale, block=block)
    p = check_axis("ring_attention: axis", axis)
    _check_halves("ring_attention", q.shape[1], p, causal)


def _example(key: Array) -> tuple[Array, Array, Array]:
    """The tokens of one device: two query heads to a key head."""
    kq, kk, kv = jax.random.split(key, 3)
    q, k = jax.random.normal(kq, (2, 4, 4, 3)), jax.random.normal(kk, (2, 4, 2, 3))
    return q, k, jax.random.normal(kv, (2, 4, 2, 5))


ring_attention = Op(
    ring_attention_fwd,
    ring_attention_bwd,
    _example,
    tuple({"axis": ("devices",), "causal": causal} for causal in (False, True)),
    check=_check,
    varies={"axis": ((True, True, True), True)},
)
