"""The gradient of a convolution's kernel, the sum over examples and places of x^T dy.

    dw[k] = sum_o x[o s + k d - lo]^T dy[o]

in the notation of `jaxnn.ops.convolution`. It is a convolution of x by dy, with batch and channels
exchanged, and it is a matrix product of copies of x and dy, which for the CPU is the faster one.
"""

import math
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxnn.numerics import widen
from jaxnn.ops.windows import Windows, patches, placed

# Bytes of copies in one product: what a cache holds, and more than one image of usual sizes, alone
# in a block each of which XLA copies once more, for its layout. Of fewer bytes in all a convolution
# takes no longer, less memory and half the time to compile (jaxlib 0.10.2).
PATCHES = 2**22


def kernel_gradient(x: Array, dy: Array, place: Windows, groups: int) -> Array:
    """dw[k] = sum_o x[o s + k d - lo]^T dy[o], the transpose of `_convolved` in w."""
    by_convolution = partial(_convolved_by_dy, place=place, groups=groups)
    if groups > 1 or len(x) * _copies(x, dy, *_divided(place, x, dy)) <= PATCHES:
        return by_convolution(x, dy)
    # XLA's convolution for the CPU takes up to three times as long (jaxlib 0.10.2; 0.12: 1.6).
    by_product = partial(_summed_over_patches, place=place)
    dw: Array = lax.platform_dependent(x, dy, cpu=by_product, default=by_convolution)
    return dw


def _summed_over_patches(x: Array, dy: Array, place: Windows) -> Array:
    """dw[k, j] = sum_(o, i) x[o s + k d - lo, i] dy_j[o, i], with dy_j[i] = dy[(i + lo - j d) / s].

    j are the taps of the last axis, k those of the others, and o, i the positions along them: k
    move x, j move dy. A kernel of 3x3 then takes 3 copies of either where patches take 9 of x: half
    the time (jaxlib 0.10.2). A few images at a time, so that the copies stay in a cache.
    """
    of_x, of_dy = _divided(place, x, dy)
    shape = of_x.size_of_kernel * x.shape[-1], of_dy.size_of_kernel * dy.shape[-1]
    n, least = len(x), -(-len(x) // max(1, PATCHES // _copies(x, dy, of_x, of_dy)))
    pieces = next(count for count in range(least, n + 1) if n % count == 0)
    # Two products at a time, a core each, take four fifths of the time of one over both cores
    # (96 by 4096 by 96; as long where they are wider; jaxlib 0.10.2).
    at_a_time = 1 if pieces % 2 else 2
    images = n // pieces * at_a_time

    def add(block: Array | int, dw: Array) -> Array:
        # Sliced here, not handed to a scan in blocks: XLA would write x and dy a second time, in
        # the scan's shape (jaxlib 0.10.2).
        some_x, some_dy = (lax.dynamic_slice_in_dim(a, block * images, images) for a in (x, dy))
        moved = jnp.concatenate([placed(some_dy, tap, of_dy) for tap in of_dy.taps], -1)
        rows = patches(some_x, of_x).reshape(at_a_time, -1, shape[0])
        columns = moved.reshape(at_a_time, -1, shape[1])
        products = jnp.einsum("bpi,bpj->bij", rows, columns, preferred_element_type=dw.dtype)
        return dw + products.sum(0)

    dw: Array = lax.fori_loop(0, n // images, add, widen(jnp.zeros(shape, dy.dtype)))
    taps = dw.astype(x.dtype).reshape(-1, x.shape[-1], of_dy.size_of_kernel, dy.shape[-1])
    return taps.swapaxes(1, 2).reshape(*place.kernel, x.shape[-1], dy.shape[-1])


def _divided(place: Windows, x: Array, dy: Array) -> tuple[Windows, Windows]:
    """The windows whose taps move x, and those whose taps move dy: those that copy least.

    Either all axes' taps move x or all but the last's, whose positions are then all of x's: many
    more than its places where the stride is not 1.
    """
    axes: list[Any] = list(zip(*place, strict=True))

    def still(places: int) -> tuple[Any, ...]:
        return 1, 1, (0, 0), 1, places, places

    *others, last = axes
    *_, size, places = last
    unmoved = [still(axis[-1]) for axis in others]
    divisions = (axes, [*unmoved, still(places)]), ([*others, still(size)], [*unmoved, last])
    pairs = [[Windows(*zip(*half, strict=True)) for half in pair] for pair in divisions]
    of_x, of_dy = min(pairs, key=lambda pair: _copies(x, dy, *pair))
    return of_x, of_dy


def _copies(x: Array, dy: Array, of_x: Windows, of_dy: Windows) -> int:
    """Bytes that moving one example's x and dy by all their taps takes."""
    width = of_x.size_of_kernel * x.shape[-1] + of_dy.size_of_kernel * dy.shape[-1]
    return math.prod(of_x.places) * width * x.dtype.itemsize


def _convolved_by_dy(x: Array, dy: Array, place: Windows, groups: int) -> Array:
    """A convolution with the examples for channels, the channels for examples, dy for a kernel."""
    hw = "HW"[: len(place.size)]
    padding = []
    for k, d, n, s, h, (lo, _) in zip(
        place.kernel, place.dilation, place.places, place.stride, place.size, place.padding,
        strict=True,
    ):  # fmt: skip
        padding.append((lo, d * (k - 1) + (n - 1) * s + 1 - h - lo))
    # Exchanged in memory: told of it by dimension numbers alone, XLA for the CPU takes a naive
    # loop inside a scan, fifty times slower (jaxlib 0.10.2).
    dw = lax.conv_general_dilated(
        x.swapaxes(0, -1),
        jnp.moveaxis(dy, 0, -2),
        place.dilation,
        padding,
        rhs_dilation=place.stride,
        dimension_numbers=(f"N{hw}C", f"{hw}IO", f"N{hw}C"),
        batch_group_count=groups,
    )
    return jnp.moveaxis(dw, 0, -2)
