"""Images as rows of patches, and convolution as their matrix product with the kernel.

    u[n, o] = the values of x under a window at place o, side by side
    y = u w + b, with w (KH KW C, O)

Unfolding only copies: its backward adds every copy's cotangent to the value it came from.
"""

import math
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.checks import check_kind
from jaxnn.numerics import widen
from jaxnn.op import Op
from jaxnn.ops import windows
from jaxnn.ops.convolution import Conv
from jaxnn.ops.windows import Padding, Sizes, from_tap, placement, under_tap
from jaxnn.settings import check_per_axis


def unfold_fwd(
    x: Array,
    *,
    kernel: Sizes,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> tuple[Array, Array]:
    """Return the patches of images, also called im2col (Chellapilla et al., 2006, section 3.1).

    Saves x for its shape: no extra bytes.

    Args:
        x: (N, H, W, C).
        kernel: height and width of a patch, or one number for both.
        stride: from one patch to the next, for both axes or per axis, as `dilation`.
        padding: "valid", "same", a number for all sides, or ((top, bottom), (left, right)): zeros.
        dilation: positions from one value of a patch to the next.

    Returns:
        u (N, OH, OW, KH KW C), a patch row by row, the channels of a position together; residuals.

    Raises:
        TypeError: x is no floating array, or a setting is of another type.
        ValueError: x is not (N, H, W, C), or has a 0 but for N; a setting has the wrong form; or a
            patch is larger than the padded image.
    """
    at = placement(x.shape[1:3], kernel, stride, padding, dilation)
    padded = jnp.pad(x, ((0, 0), *at.padding, (0, 0)))
    return jnp.concatenate([under_tap(padded, tap, at) for tap in at.taps], -1), x


def unfold_bwd(
    x: Array,
    du: Array,
    *,
    kernel: Sizes,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> tuple[Array]:
    """Return dx = the patches added up where they came from, also called fold or col2im."""
    at = placement(x.shape[1:3], kernel, stride, padding, dilation)
    under = jnp.split(widen(du), math.prod(at.kernel), -1)
    dx = reduce(jnp.add, (from_tap(d, tap, at) for d, tap in zip(under, at.taps, strict=True)))
    return (dx.astype(x.dtype),)


class UnfoldedResiduals(NamedTuple):
    """The parameters, the images and their patches."""

    params: Conv
    x: Array
    u: Array


def conv2d_unfold_fwd(
    params: Conv,
    x: Array,
    *,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> tuple[Array, UnfoldedResiduals]:
    """Convolve as `conv2d` of one group, by unfolding and one matrix product.

    Saves the patches, KH KW values for each of x where the stride is 1: what the plain convolution
    does without.

    Args:
        params: w (KH, KW, C, O) and b (O,) or None.
        x: (N, H, W, C).
        stride: as `conv2d_fwd`, as are `padding` and `dilation`.
        padding: see there.
        dilation: see there.

    Returns:
        y (N, OH, OW, O), residuals.

    Raises:
        TypeError, ValueError: as `unfold_fwd`.
        TypeError: params are no `Conv` of arrays of the dtype of x.
        ValueError: w and b do not fit each other or x.
    """
    w, b = params
    u, _ = unfold_fwd(x, kernel=w.shape[:2], stride=stride, padding=padding, dilation=dilation)
    y = u @ w.reshape(-1, w.shape[-1])
    return y if b is None else y + b, UnfoldedResiduals(params, x, u)


def conv2d_unfold_bwd(
    residuals: UnfoldedResiduals, dy: Array, **settings: Any
) -> tuple[Conv, Array]:
    """Return dw = u^T dy, db = sum dy, and dx from du = dy w^T."""
    (w, b), x, u = residuals
    rows_u, rows_dy = u.reshape(-1, u.shape[-1]), dy.reshape(-1, dy.shape[-1])
    dw, db = rows_u.T @ rows_dy, None if b is None else rows_dy.sum(0)
    du = dy @ w.reshape(-1, w.shape[-1]).T
    (dx,) = unfold_bwd(x, du, kernel=w.shape[:2], **settings)
    return Conv(dw.reshape(w.shape), db), dx


def _check_unfold(x: Array, *, kernel: Any, **settings: Any) -> None:
    windows.check_images("unfold", x)
    check_per_axis("unfold: kernel", kernel, 2)
    windows.check_placement("unfold", x.shape[1:3], kernel, **settings)


def _check_conv(params: Conv, x: Array, **settings: Any) -> None:
    check_kind("conv2d_unfold: params", params, Conv)
    w, b = params
    windows.check_images("conv2d_unfold", x, w=(w, "KLCO"), b=(b, "O?"))
    windows.check_placement("conv2d_unfold", x.shape[1:3], w.shape[:2], **settings)


def _example(key: Array) -> tuple[Array]:
    return (jax.random.normal(key, (2, 7, 5, 3)).at[0, 0, 0].set(0.0),)


def _kernel_example(key: Array) -> tuple[Conv, Array]:
    kw, kb, kx = jax.random.split(key, 3)
    params = Conv(jax.random.normal(kw, (2, 3, 3, 4)), jax.random.normal(kb, (4,)))
    return params, *_example(kx)


unfold = Op(
    unfold_fwd,
    unfold_bwd,
    check=_check_unfold,
    example=_example,
    settings=(
        {"kernel": (2, 3), "stride": (2, 3), "padding": ((2, 0), (1, 3)), "dilation": (2, 1)},
    ),
)
conv2d_unfold = Op(
    conv2d_unfold_fwd,
    conv2d_unfold_bwd,
    check=_check_conv,
    example=_kernel_example,
    settings=({"stride": 2, "padding": "same"},),
)
