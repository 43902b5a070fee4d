"""A convolution's kernel gradient as products of copies of x and dy, on a CPU.

There XLA computes it as a convolution whose kernel is as large as the image, at a twentieth to a
third of the rate of a matrix product. Here copies of x, moved by each tap, lie side by side, as
many columns as taps and channels, and one product with dy sums over all places. Taps of the first
axis may move dy instead, where it has no stride: of 3x3 taps that is three copies of either for
nine of x. A loop takes as many examples at a time as have their copies stay in a cache.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.numerics import widen
from jaxnn.ops import convolution as plain
from jaxnn.ops.convolution import Conv, ConvResiduals
from jaxnn.ops.windows import Placement, placement, transposed_placement
from jaxnn.varying import axes_of, vary_with

conv_fwd, conv_transpose_fwd = plain.conv_fwd, plain.conv_transpose_fwd

NUMBERS = 2**18  # of all copies at a time


def conv_bwd(
    residuals: ConvResiduals, dy: Array, *, groups: int = 1, **settings: Any
) -> tuple[Conv, Array]:
    """Return what the plain form does."""
    (w, b), x = residuals
    at = placement(x.shape[1:-1], w.shape[:-2], **settings)
    db = None if b is None else dy.sum(range(dy.ndim - 1))
    return Conv(convolve_dw(x, dy, at, groups), db), plain.convolve_dx(dy, w, at, groups)


def conv_transpose_bwd(
    residuals: ConvResiduals, dy: Array, *, groups: int = 1, **settings: Any
) -> tuple[Conv, Array]:
    """Return what the plain form does."""
    (w, b), x = residuals
    at = transposed_placement(x.shape[1:-1], w.shape[:-2], **settings)
    db = None if b is None else dy.sum(range(dy.ndim - 1))
    return Conv(convolve_dw(dy, x, at, groups), db), plain.convolve(dy, w, at, groups)


def convolve_dw(x: Array, dy: Array, at: Placement, groups: int) -> Array:
    """Return dw[k] = sum_o x[o s + k d - lo]^T dy[o], some examples at a time."""
    if groups > 1 or len(x) == 0 or jax.default_backend() != "cpu":
        return plain.convolve_dw(x, dy, at, groups)
    taps, channels, outputs = at.kernel, x.shape[-1], dy.shape[-1]
    moves_dy = _moves_dy(x, dy, at)
    ends = [
        (lo, (n - 1) * s + (k - 1) * d + 1 - h - lo, 0)
        for k, s, (lo, _), d, h, n in zip(*at, strict=True)
    ]

    def of_some(x: Array, dy: Array) -> Array:
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
        if moves_dy:
            first, d = taps[0], at.dilation[0]
            around = [(i * d, (first - 1 - i) * d) for i in range(first)]
            rest = [(0, 0)] * (dy.ndim - 2)
            dy = jnp.concatenate([jnp.pad(dy, [(0, 0), both, *rest]) for both in around], -1)
        moved = [slice(None)] if moves_dy else [_places(at, 0, i) for i in range(taps[0])]
        others = [[_places(at, a, i) for i in range(taps[a])] for a in range(1, len(taps))]
        cut = itertools.product(moved, *others)
        copies = jnp.concatenate([x[:, *slices] for slices in cut], -1)
        return jnp.einsum("...i,...o->io", copies, dy, preferred_element_type=widen(x).dtype)

    # Each device may hold its share of the examples: it loops over them alone, and none leaves it.
    # Which of them have one is not known: as many as there may be.
    devices = 1 if axes_of(x, dy) else math.gcd(len(x), jax.device_count())
    held = len(x) // devices
    some = examples_at_once(x, dy, at, held)
    if some == held:
        dw = of_some(x, dy)
    else:
        shares = [a.reshape(devices, held, *a.shape[1:]) for a in (x, dy)]

        def add(dw: Array, start: Array) -> tuple[Array, None]:
            parts = (lax.dynamic_slice_in_dim(share, start, some, 1) for share in shares)
            return dw + jax.vmap(of_some)(*parts), None

        form = jax.eval_shape(jax.vmap(of_some), *shares)
        zero = jnp.zeros(form.shape, form.dtype)  # not its type, which may vary already
        starts = jnp.arange(0, held, some)
        dw = lax.scan(add, vary_with(zero, x, dy), starts)[0].sum(0)
    if moves_dy:  # (other taps, C, first taps, O)
        dw = jnp.moveaxis(dw.reshape(*taps[1:], channels, taps[0], outputs), -2, 0)
    return dw.reshape(*taps, channels, outputs).astype(x.dtype)


def examples_at_once(x: Array, dy: Array, at: Placement, held: int) -> int:
    """Return of how many of the examples held the copies are made at once: a divisor of them."""
    each = math.prod(at.places) * _width(at.kernel, _moves_dy(x, dy, at), x, dy)
    return max(n for n in range(1, held + 1) if held % n == 0 and (n == 1 or n * each <= NUMBERS))


def _moves_dy(x: Array, dy: Array, at: Placement) -> bool:
    """Whether taps of the first axis move dy, and not x: where that makes fewer copies."""
    taps = at.kernel
    return at.stride[0] == 1 and _width(taps, True, x, dy) < _width(taps, False, x, dy)


def _width(taps: tuple[int, ...], moves_dy: bool, x: Array, dy: Array) -> int:
    """How many numbers the copies of x and dy have at each place."""
    of_x = taps[1:] if moves_dy else taps
    return math.prod(of_x) * x.shape[-1] + (taps[0] if moves_dy else 1) * dy.shape[-1]


def _places(at: Placement, axis: int, tap: int) -> slice:
    """What a tap sees of an axis of the padded x, an element for each output."""
    start, stride = tap * at.dilation[axis], at.stride[axis]
    return slice(start, start + stride * (at.places[axis] - 1) + 1, stride)
