"""Plant the mistakes that can be made in the derivative of one equation.

Each is a value that an operand wrongly had, or another linear map of its tangent, beside the words
for it. `on(cause, words, operand)` registers a mistake and is 1 if it is the one to make, else 0.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import JaxprEqn, Literal

from jaxnn.verify.causes.cuts import shadow
from jaxnn.verify.causes.jaxprs import On, bind_equation, with_mistake
from jaxnn.verify.causes.reductions import (
    EXTREMES,
    FACTORS,
    wrong_axes,
    wrong_extremes,
    wrong_running,
)
from jaxnn.verify.causes.saved_values import (
    BILINEAR,
    TAKING,
    Plain,
    cause_of,
    cuts,
    rearranged,
    saved_values,
    values_alike,
)
from jaxnn.verify.causes.slopes import OF_OUTPUT, SLIPS, other_slopes

# Solutions of a linear system: linear in one operand, and of its shape.
LINEAR = {"custom_linear_solve", "triangular_solve"}
_NONLINEAR = {
    "tanh", "logistic", "exp", "exp2", "log", "log1p", "expm1", "sin", "cos", "sqrt", "rsqrt",
    "erf", "integer_pow", "pow", "square", "abs", "max", "custom_jvp_call",
}  # fmt: skip


@jax.custom_vjp
def _positive(x: Any) -> Any:
    """x, whose cotangent is cut where it is not positive."""
    return x


_positive.defvjp(lambda x: (x, None), lambda _, dx: (jnp.where(dx > 0, dx, 0),))


def mistaken(
    eqn: JaxprEqn,
    xs: list[Any],
    alive: list[bool],
    out: Any,
    plain: Plain,
    on: On,
    step: tuple[Any, int] | None,
) -> Any:
    """Return an equation's output, its derivative perhaps taken at other values or left out.

    Args:
        eqn: with one output.
        xs: its operands; `alive` says which of them are differentiated.
        alive: at least one is true.
        out: the output.
        plain: the values that there are beside it, with words for each.
        on: see above.
        step: in a scan the number of the step, and of all of them.
    """
    name, j = eqn.primitive.name, alive.index(True)
    if name == "transpose":
        s, words = shadow(xs[0]), "reshaped where it should be transposed: the cotangent of"
        wrong = [("transpose", words, s.reshape(out.shape))]
        return lax.stop_gradient(out) + with_mistake(bind_equation(eqn, [s])[0], wrong, on)
    elementwise = sum(alive) == 1 and out.shape == jnp.shape(xs[j]) != ()
    nonlinear = elementwise and name in _NONLINEAR
    weighted = elementwise and name == "mul" and jnp.shape(xs[1 - j]) == out.shape
    masked = weighted or (elementwise and name == "select_n" and j > 0)
    if name in EXTREMES:
        x, y = lax.stop_gradient((xs[0], out))
        wrong_ones = wrong_extremes(eqn, shadow(xs[0]), x, y)
        return out + with_mistake(jnp.zeros_like(out), wrong_ones, on).astype(out.dtype)
    others = {"div", "select_n", "reduce_sum"}
    if not (nonlinear or masked or name in BILINEAR | TAKING | LINEAR | set(FACTORS) | others):
        return out
    at = [lax.stop_gradient(x) for x in xs]
    for i, (v, x) in enumerate(zip(eqn.invars, at, strict=True)):
        if isinstance(v, Literal) or jnp.ndim(x) == 0:
            continue
        at[i] = with_mistake(x, saved_values(eqn, i, x, nonlinear or weighted, plain), on, i)
    if nonlinear:
        words = "the derivative is taken at the output, not the input, of"
        at[j] = with_mistake(at[j], [("wrong saved value", words, lax.stop_gradient(out))], on)

    def linear(tangents: list[Any], eqn: JaxprEqn = eqn) -> Any:
        """The equation's linear map at the operands `at`, of tangents of the live ones."""

        def f(*active: Any) -> Any:
            given = iter(active)
            operands = [next(given) if a else x for a, x in zip(alive, at, strict=True)]
            return bind_equation(eqn, operands)[0]

        points, moves = (
            tuple(x for a, x in zip(alive, values, strict=True) if a) for values in (at, tangents)
        )
        return jax.jvp(f, points, moves)[1]

    tangents = [shadow(x) if a else x for a, x in zip(alive, xs, strict=True)]
    slope = linear(_other_tangents(eqn, tangents, alive, on))
    if nonlinear or masked:
        s = tangents[j]
        ignored = "the other factor is taken as 1 in" if weighted else "the mask is ignored in"
        words = "the derivative is taken as 1 in" if nonlinear else ignored
        left_out = on("derivative left out" if nonlinear else "mask", words, None)
        if masked and step is not None:
            words = "the mask is ignored in the first step, in"
            left_out += on("mask", words, None) * (step[0] == 0)
        slope = jnp.where(left_out > 0, 0, slope) + left_out * s
        if cuts(eqn):
            words = "the cotangent's own sign is taken for the mask of"
            slope = with_mistake(slope, [("mask", words, _positive(s))], on)
        x, y = lax.stop_gradient((xs[j], out))
        for cause, words, value in _coefficients(eqn, j, x, y, plain, step is not None):
            which = on(cause, words, None)
            # A choice of coefficients, not of slopes: 0 times the infinite one is NaN.
            slope = jnp.where(which > 0, 0, slope) + jnp.where(which > 0, value, 0) * s
    elif name in ("mul", "div"):
        # A number is a factor of the whole, but not in a step of a scan.
        for i in (0, 1) if name == "mul" else (0,):
            other = jnp.ndim(xs[1 - i]) or step is not None
            if alive[i] and out.shape == jnp.shape(xs[i]) and other:
                slope += _factor_left_out(name, tangents[i], at, i, on)
        if name == "div" and all(alive) and out.shape == jnp.shape(xs[1]):
            which = on("derivative left out", "neither term is divided in", None)
            slope = slope * jnp.where(which > 0, at[1], 1)
    if name in LINEAR and sum(alive) == 1 and jnp.shape(xs[j]) == out.shape:
        words = "the forward's own map is applied to the cotangent, not its transpose, at"
        turned = jax.linear_transpose(lambda s: linear([*at[:j], s, *at[j + 1 :]]), tangents[j])
        slope = with_mistake(slope, [("transpose", words, turned(tangents[j])[0])], on)
    if name in FACTORS:
        running = wrong_running(eqn, tangents[0], at[0], lax.stop_gradient(out))
        slope += with_mistake(jnp.zeros_like(out), running, on)
    if name == "reduce_sum":
        slope += with_mistake(jnp.zeros_like(out), wrong_axes(eqn, tangents[0], out), on)
    if name == "dot_general" and out.ndim >= 2 and out.shape[-2] == out.shape[-1] > 1:
        for i in (i for i, a in enumerate(alive) if a):
            words = "the cotangent of the product is not transposed as it should be, for"
            right = linear([t if k == i else jnp.zeros_like(t) for k, t in enumerate(tangents)])
            wrong = [("transpose", words, jnp.swapaxes(right, -1, -2) - right)]
            slope += with_mistake(jnp.zeros_like(right), wrong, on, i)
    if name == "conv_general_dilated":
        for padded, words in _paddings(eqn):
            for i in (i for i, a in enumerate(alive) if a):
                which = on("shifted", words, i)
                alone = [t if k == i else jnp.zeros_like(t) for k, t in enumerate(tangents)]
                slope += which * (linear(alone, padded) - linear(alone))
    return lax.stop_gradient(out) + slope.astype(out.dtype)


def _factor_left_out(name: str, s: Array, at: list[Any], i: int, on: On) -> Any:
    """What is added to the slope if operand i is not multiplied (divided) by the other one."""
    which = on("derivative left out", "the other factor is left out for", i)
    other = at[1 - i] if name == "mul" else 1 / at[1]
    return jnp.where(which > 0, 1 - other, 0) * s


def _coefficients(
    eqn: JaxprEqn, j: int, x: Any, y: Any, plain: Plain, few: bool
) -> Iterator[tuple[str, str, Any]]:
    """What may wrongly be written for the derivative of y = f(x): cause, words, value."""
    name = eqn.primitive.name
    if name in OF_OUTPUT:
        for words, value in (("the input", x), *values_alike(eqn, j, x, plain)):
            words = f"the derivative in terms of the output is given {words} of"
            yield "wrong saved value", words, OF_OUTPUT[name](value)
    right, slips = SLIPS.get(name, ("", {}))
    for words, wrong in slips.items():
        yield "wrong derivative", f"{words} is taken for {right}, the derivative of", wrong(y)
    if name in ("integer_pow", "square"):
        n = eqn.params.get("y", 2)
        for power in (n, n - 2):
            words = f"{n} x^{power} is taken for {n} x^{n - 1}, the derivative of"
            yield "wrong derivative", words, n * x**power
    n = getattr(eqn.invars[1], "val", None) if name == "pow" and j == 0 else None
    if n is not None:
        words = f"the exponent {n:.6g} is left out of {n:.6g} x^{n - 1:.6g}, the derivative of"
        yield "derivative left out", words, x ** (n - 1)
    if name in ("tanh", "logistic") or cuts(eqn):
        yield from other_slopes("max" if cuts(eqn) else name, x, few)


def _other_tangents(eqn: JaxprEqn, tangents: list[Any], alive: list[bool], on: On) -> list[Any]:
    """The tangents, those of matrices and kernels perhaps rearranged: so are their cotangents."""
    found = list(tangents)
    for j, (t, a) in enumerate(zip(tangents, alive, strict=True)):
        others = rearranged(eqn, j, t) if a else ()
        wrong = ((cause_of(words), f"{words} the cotangent of", value) for words, value in others)
        found[j] = with_mistake(t, wrong, on, j)
    return found


def _paddings(eqn: JaxprEqn) -> Iterator[tuple[JaxprEqn, str]]:
    """A convolution with its padding moved by one along each axis in space."""
    padding = eqn.params["padding"]
    for axis, (low, high) in enumerate(padding):
        for shift in (1, -1):
            other = [*padding[:axis], (low + shift, high - shift), *padding[axis + 1 :]]
            moved = eqn.replace(params=eqn.params | {"padding": tuple(other)})
            yield moved, f"shifted by {shift} along axis {axis} in space: the padding for"


def is_opened(eqn: JaxprEqn, alive: list[bool]) -> bool:
    """Tell whether an equation's derivative is made of several, in which mistakes may be made."""
    name = eqn.primitive.name
    several = name == "custom_linear_solve" and any(alive[:-1])
    return several or (name in ("cholesky", "eigh", "qr") and any(alive))


def other_masks(mask: Any, alive: list[bool]) -> Iterator[tuple[str, str, Any]]:
    """Yield other masks for select_n to choose by, as if the forward had had them."""
    if mask.dtype != bool or mask.ndim == 0:
        return
    yield "mask", "it is the derivative with the mask ignored in", jnp.full_like(mask, alive[2])
    for axis, shift in ((a, s) for a in range(mask.ndim) for s in (1, -1) if mask.shape[a] > 2):
        at = (jnp.arange(mask.shape[axis]) - shift).clip(0, mask.shape[axis] - 1)
        words = f"it is the derivative with the mask shifted by {shift} along axis {axis} in"
        yield "mask", words, mask.take(at, axis)
