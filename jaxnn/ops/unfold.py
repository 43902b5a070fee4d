"""Images as rows of patches, and convolution as their matrix product with the kernel.

    u[n, o] = the values of x under a window at place o, side by side
    y = u w + b, with w (KH KW C, O)

Unfolding only copies: its backward adds every copy's cotangent to the value it came from.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.checks import check_params
from jaxnn.op import Op
from jaxnn.ops.convolution import Conv
from jaxnn.ops.linear import Linear, LinearResiduals, linear
from jaxnn.ops.windows import Padding, Sizes, Windows, added, check_rank, patches, windows


def unfold_fwd(
    x: Array,
    *,
    kernel: Sizes,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> tuple[Array, Array]:
    """The patches of images, also called im2col (Chellapilla et al., 2006, section 3.1).

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
        TypeError: x is no array, or a setting is of another type.
        ValueError: a setting has the wrong form, or a patch is larger than the padded image.
    """
    return patches(x, _windows("unfold", x, kernel, stride, padding, dilation)), x


def unfold_bwd(
    x: Array,
    du: Array,
    *,
    kernel: Sizes,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> tuple[Array]:
    """dx = the patches added up where they came from, also called fold or col2im."""
    w = _windows("unfold", x, kernel, stride, padding, dilation)
    return (added(jnp.split(du, w.size_of_kernel, -1), w),)


class UnfoldedResiduals(NamedTuple):
    """The parameters, the images, and what the matrix product saved: the patches among it."""

    params: Conv
    x: Array
    product: LinearResiduals


def conv2d_unfold_fwd(
    params: Conv,
    x: Array,
    *,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> tuple[Array, UnfoldedResiduals]:
    """`conv2d` of one group, by unfolding and one matrix product.

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
        TypeError: params are no `Conv` of arrays.
        ValueError: w and b do not fit each other or x.
    """
    check_params("conv2d_unfold", params, Conv)
    check_rank("conv2d_unfold", x, 2)
    w, b = params
    outputs = w.shape[-1:]
    if w.ndim != 4 or w.shape[2] != x.shape[-1] or (b is not None and b.shape != outputs):
        raise ValueError(
            f"conv2d_unfold: w has shape {w.shape}, b {None if b is None else b.shape}, x "
            f"{x.shape}; they must be (KH, KW, C, O), (O,) or None, and (N, H, W, C): reshape one "
            "of them"
        )
    place = _windows("conv2d_unfold", x, w.shape[:2], stride, padding, dilation)
    y, product = linear.fwd(Linear(w.reshape(-1, w.shape[-1]), b), patches(x, place))
    return y, UnfoldedResiduals(params, x, product)


def conv2d_unfold_bwd(
    residuals: UnfoldedResiduals,
    dy: Array,
    *,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> tuple[Conv, Array]:
    """Back through the matrix product, then the patches."""
    (w, _), x, product = residuals
    (dw, db), dpatches = linear.bwd(product, dy)
    (dx,) = unfold_bwd(
        x, dpatches, kernel=w.shape[:2], stride=stride, padding=padding, dilation=dilation
    )
    return Conv(dw.reshape(w.shape), db), dx


def _windows(
    name: str, x: Array, kernel: Sizes, stride: Sizes, padding: Padding, dilation: Sizes
) -> Windows:
    check_rank(name, x, 2)
    return windows(name, x.shape[1:3], kernel, stride, padding, dilation)


def _example(key: Array) -> tuple[Array]:
    return (jax.random.normal(key, (2, 7, 5, 3)).at[0, 0, 0].set(0.0),)


def _kernel_example(key: Array) -> tuple[Conv, Array]:
    kw, kb, kx = jax.random.split(key, 3)
    params = Conv(jax.random.normal(kw, (2, 3, 3, 4)), jax.random.normal(kb, (4,)))
    return params, *_example(kx)


unfold = Op(
    unfold_fwd,
    unfold_bwd,
    example=_example,
    settings=(
        {"kernel": (2, 3), "stride": (2, 3), "padding": ((2, 0), (1, 3)), "dilation": (2, 1)},
    ),
)
conv2d_unfold = Op(
    conv2d_unfold_fwd,
    conv2d_unfold_bwd,
    example=_kernel_example,
    settings=({"stride": 2, "padding": "same"},),
)
