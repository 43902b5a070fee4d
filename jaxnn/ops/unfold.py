"""Images as rows of patches, the opposite, and convolution as their matrix product with the kernel.

    u[n, o] = the values of x under a window at place o, side by side
    y = u w + b, with w (KH KW C, O)

Unfolding only copies: its backward adds every copy's cotangent to the value it came from. Folding
is that sum, and its backward unfolding.
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
from jaxnn.ops.windows import Padding, Sizes, from_tap, per_axis, placement, under_tap
from jaxnn.ops.windows_doors import check_convolution, check_images, check_placement, check_size
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
        x: (N, ..., C), one to three axes of positions: (N, H, W, C) of images.
        kernel: positions of a patch along each axis, or one number for all.
        stride: from one patch to the next, for all axes or per axis, as `dilation`.
        padding: "valid", "same", a number for all sides, or (before, after) per axis: zeros.
        dilation: positions from one value of a patch to the next.

    Returns:
        u (N, places ..., KH KW C), a patch row by row, the channels of a position together;
        residuals.

    Raises:
        TypeError: x is no floating array, or a setting is of another type.
        ValueError: x has not three to five axes, or a 0 but for N; a setting has the wrong form; or
            a patch is larger than the padded input.
    """
    at = placement(x.shape[1:-1], kernel, stride, padding, dilation)
    padded = windows.padded(x, at)
    return jnp.concatenate([under_tap(padded, tap, at) for tap in at.taps], -1), x


def unfold_bwd(x: Array, du: Array, *, kernel: Sizes, **settings: Any) -> tuple[Array]:
    """Return dx = the patches added up where they came from, in float32 or wider."""
    dx, _ = fold_fwd(du, size=x.shape[1:-1], kernel=kernel, **settings)
    return (dx,)


def fold_fwd(
    u: Array,
    *,
    size: Sizes,
    kernel: Sizes,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
) -> tuple[Array, None]:
    """Add patches up where `unfold` would take them from, also called col2im: its adjoint.

    In float32 or wider. Saves nothing. As `unfold_fwd`, but:

    Args:
        u: (N, places ..., KH KW C), as many places as `unfold` has of that size.
        size: positions along each axis of x, or one number for all.
        kernel: see there.
        stride: see there.
        padding: see there; what falls on it is lost.
        dilation: see there.

    Returns:
        x (N, size ..., C), residuals.

    Raises:
        ValueError: as there; or u has another number of places, or channels that are no multiple of
            the positions of a patch.
    """
    at = placement(per_axis(size, u.ndim - 2), kernel, stride, padding, dilation)
    under = jnp.split(widen(u), math.prod(at.kernel), -1)
    x = reduce(jnp.add, (from_tap(d, tap, at) for d, tap in zip(under, at.taps, strict=True)))
    return x.astype(u.dtype), None


def fold_bwd(residuals: None, dx: Array, *, size: Sizes, **settings: Any) -> tuple[Array]:
    """Return du = the patches of dx."""
    return (unfold_fwd(dx, **settings)[0],)


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
    groups: int = 1,
) -> tuple[Array, UnfoldedResiduals]:
    """Convolve as `conv2d`, by unfolding and one matrix product for each group.

    Saves the patches, KH KW values for each of x where the stride is 1: what the plain convolution
    does without.

    Args:
        params: w (KH, KW, C / groups, O) and b (O,) or None.
        x: (N, H, W, C).
        stride: as `conv2d`, as are all settings.
        padding: see there.
        dilation: see there.
        groups: see there.

    Returns:
        y (N, OH, OW, O), residuals.

    Raises:
        TypeError, ValueError: as `conv2d`.
    """
    w, b = params
    kernel = w.shape[:2]
    u, _ = unfold_fwd(x, kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    y = _product(
        "nhwkgc,kcgo->nhwgo", _in_groups(u, math.prod(kernel), groups), _by_group(w, groups)
    )
    y = y.reshape(*y.shape[:3], w.shape[-1])
    return (y if b is None else y + widen(b)).astype(x.dtype), UnfoldedResiduals(params, x, u)


def conv2d_unfold_bwd(
    residuals: UnfoldedResiduals, dy: Array, *, groups: int = 1, **settings: Any
) -> tuple[Conv, Array]:
    """Return dw = u^T dy, db = sum dy, and dx from du = dy w^T."""
    (w, b), x, u = residuals
    k = math.prod(w.shape[:2])
    dys = dy.reshape(*dy.shape[:3], groups, w.shape[-1] // groups)
    dw = _product("nhwkgc,nhwgo->kcgo", _in_groups(u, k, groups), dys)
    du = _product("nhwgo,kcgo->nhwkgc", dys, _by_group(w, groups)).reshape(u.shape)
    dx, _ = fold_fwd(du, size=x.shape[1:-1], kernel=w.shape[:2], **settings)
    db = None if b is None else dy.sum((0, 1, 2))
    return Conv(dw.reshape(w.shape).astype(w.dtype), db), dx.astype(x.dtype)


def _product(form: str, a: Array, b: Array) -> Array:
    """Return their product, summed and kept in float32 or wider."""
    return jnp.einsum(form, a, b, preferred_element_type=widen(a).dtype)


def _in_groups(u: Array, k: int, groups: int) -> Array:
    """Return patches (N, OH, OW, K C) as (N, OH, OW, K, groups, C / groups)."""
    return u.reshape(*u.shape[:3], k, groups, u.shape[-1] // (k * groups))


def _by_group(w: Array, groups: int) -> Array:
    """Return the kernel (KH, KW, C / groups, O) as (KH KW, C / groups, groups, O / groups)."""
    return w.reshape(-1, w.shape[2], groups, w.shape[3] // groups)


def _check_unfold(x: Array, *, kernel: Any, **settings: Any) -> None:
    check_images("unfold", x)
    check_per_axis("unfold: kernel", kernel, len(x.shape) - 2)
    check_placement("unfold", x.shape[1:-1], kernel, **settings)


def _check_fold(u: Array, *, size: Any, kernel: Any, **settings: Any) -> None:
    check_size("fold", u, size)
    axes = len(u.shape) - 2
    check_per_axis("fold: kernel", kernel, axes)
    at = check_placement("fold", per_axis(size, axes), kernel, **settings)
    if u.shape[1:-1] != at.places or u.shape[-1] % math.prod(at.kernel):
        raise ValueError(
            f"fold: u has shape {u.shape}; by its settings it must have {at.places} places and "
            f"channels that {math.prod(at.kernel)} divides: give the settings of the unfolding"
        )


def _check_conv(params: Conv, x: Array, **settings: Any) -> None:
    check_kind("conv2d_unfold: params", params, Conv)
    check_convolution("conv2d_unfold", params.w, params.b, x, **settings)


def _example(key: Array) -> tuple[Array]:
    return (jax.random.normal(key, (2, 7, 5, 4)).at[0, 0, 0].set(0.0),)


def _kernel_example(key: Array) -> tuple[Conv, Array]:
    kw, kb, kx = jax.random.split(key, 3)
    params = Conv(jax.random.normal(kw, (2, 3, 2, 6)), jax.random.normal(kb, (6,)))
    return params, *_example(kx)


_SPREAD = {"kernel": (2, 3), "stride": (2, 3), "padding": ((2, 0), (1, 3)), "dilation": (2, 1)}

unfold = Op(unfold_fwd, unfold_bwd, check=_check_unfold, example=_example, settings=(_SPREAD,))
fold = Op(
    fold_fwd,
    fold_bwd,
    check=_check_fold,
    example=lambda key: (jax.random.normal(key, (2, 4, 3, 12)),),
    settings=({**_SPREAD, "size": (7, 5)},),
)
conv2d_unfold = Op(
    conv2d_unfold_fwd,
    conv2d_unfold_bwd,
    check=_check_conv,
    example=_kernel_example,
    settings=(
        {"stride": 2, "padding": "same", "groups": 2},
        {"padding": ((2, 0), (1, 3)), "dilation": (2, 1), "groups": 2},
    ),
)
