"""What the normalisations refuse: their doors. `kind` is the NamedTuple of their parameters."""

from typing import Any

from jax import Array

from jaxnn.checks import check_floating, check_kind, check_shapes
from jaxnn.settings import check_integer, check_normal, check_number


def check_norm(
    kind: type, name: str, params: Any, x: Array, eps: float, least: int = 1, alike: int = 1
) -> None:
    """Refuse what no normalisation can take, or one of x with so many axes; as `layer_norm_fwd`.

    The parameters have the shape of at most `alike` last axes of x.
    """
    check_kind(f"{name}: params", params, kind)
    scale, shift = params
    fix, last = "one value per channel, channels last", "CDEFGHIJ"[:alike]
    forms = {"x": (x, f"...{last}")}
    for field, value in {"scale": scale, "shift": shift}.items():
        axes = min(max(getattr(value, "ndim", alike), 1), alike)
        forms[field] = (value, f"{last[-axes:]}?")
    check_shapes(name, fix, **forms)
    for field, value in {"x": x, "scale": scale, "shift": shift}.items():
        if value is not None:
            check_floating(f"{name}: {field}", value)
    if x.ndim < least:
        raise ValueError(
            f"{name}: x has shape {x.shape}; it must be (N, ..., C), {least} axes or more: add an "
            "axis of examples, or of positions"
        )
    if 0 in x.shape[-alike if least == alike else 1 :]:
        raise ValueError(
            f"{name}: x has shape {x.shape}; no axis may be empty that a mean is taken over: pass "
            "at least one value"
        )
    check_normal(f"{name}: eps", eps, x.dtype, ", or 0 could be divided by 0: 1e-5 is usual")


def check_last_axes(
    kind: type, name: str, params: Any, x: Any, *, axes: int, eps: float, offset: float = 0.0
) -> None:
    """Refuse what `layer_norm_fwd` and `rms_norm_fwd` say they raise."""
    check_integer(f"{name}: axes", axes, hint=", the last ones, normalised together")
    check_norm(kind, name, params, x, eps, axes, alike=axes)
    check_number(f"{name}: offset", offset)
    if offset and params.scale is None:
        raise ValueError(
            f"{name}: offset is {offset} but scale is None; it must be added to a scale: leave it "
            "0, or pass a scale"
        )


def check_groups(kind: type, params: Any, x: Array, *, groups: int, eps: float) -> None:
    """Refuse what `group_norm_fwd` says it raises."""
    check_norm(kind, "group_norm", params, x, eps, least=2)
    check_integer("group_norm: groups", groups, hint=", a divisor of the channels")
    if x.shape[-1] % groups:
        raise ValueError(
            f"group_norm: groups are {groups} but x has {x.shape[-1]} channels; groups must divide "
            "the channels: choose a divisor"
        )


def check_l2(x: Array, *, axis: int, eps: float) -> None:
    """Refuse what `jaxnn.ops.l2_normalize.l2_normalize_fwd` says it raises."""
    check_floating("l2_normalize: x", x)
    check_integer("l2_normalize: axis", axis, -max(x.ndim, 1), f", to name an axis of x {x.shape}")
    if x.ndim <= max(axis, 0):
        raise ValueError(
            f"l2_normalize: axis is {axis}, x has shape {x.shape}; it must be an axis of x: pass "
            "-1 for the last"
        )
    hint = ", or 0 could be divided by 0: 1e-12 is usual"
    check_normal("l2_normalize: eps", eps, x.dtype, hint)
