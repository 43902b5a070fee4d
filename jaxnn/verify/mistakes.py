"""The mistakes that can be made in the derivative of one equation.

Each is a value that an operand wrongly had, or another linear map of its tangent, beside the words
for it. `on(cause, words, operand)` registers a mistake and is 1 if it is the one to make, else 0.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import JaxprEqn, Literal

from jaxnn.verify.jaxprs import bind_equation, name_of
from jaxnn.verify.slopes import OF_OUTPUT, SLIPS, others

Plain = dict[Any, tuple[str, Any]]
On = Callable[[str, str, int | None], Any]

_TAKING = {"gather", "slice", "dynamic_slice"}
# So many other values of the right shape are tried as the wrong one saved.
MOST_OTHERS = 8

_BILINEAR = {"dot_general", "mul", "conv_general_dilated"}
_NONLINEAR = {
    "tanh", "logistic", "exp", "exp2", "log", "log1p", "expm1", "sin", "cos", "sqrt", "rsqrt",
    "erf", "integer_pow", "square", "abs", "max", "custom_jvp_call",
}  # fmt: skip


@jax.custom_vjp
def shadow(x: Any) -> Any:
    """Zeros, whose cotangent is x's: what is linear in them has a derivative and no value."""
    return jnp.zeros_like(x)


shadow.defvjp(lambda x: (jnp.zeros_like(x), None), lambda _, dx: (dx,))


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
    """An equation's output, its derivative perhaps taken at other values or left out.

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
        which = on("transpose", "reshaped where it should be transposed: the cotangent of", None)
        s = shadow(xs[0])
        slopes = s.reshape(out.shape), bind_equation(eqn, [s])[0]
        return lax.stop_gradient(out) + jnp.where(which > 0, *slopes)
    elementwise = sum(alive) == 1 and out.shape == jnp.shape(xs[j]) != ()
    nonlinear = elementwise and name in _NONLINEAR
    weighted = elementwise and name == "mul" and jnp.shape(xs[1 - j]) == out.shape
    masked = weighted or (elementwise and name == "select_n" and j > 0)
    if not (nonlinear or masked or name in _BILINEAR | _TAKING | {"div", "select_n", "reduce_sum"}):
        return out
    at = [lax.stop_gradient(x) for x in xs]
    for i, (v, x) in enumerate(zip(eqn.invars, at, strict=True)):
        if isinstance(v, Literal) or jnp.ndim(x) == 0:
            continue
        for cause, words, value in _values(eqn, i, x, nonlinear or weighted, plain):
            at[i] = jnp.where(on(cause, words, i) > 0, value, at[i])
    if nonlinear:
        words = "the derivative is taken at the output, not the input, of"
        which = on("wrong saved value", words, None)
        at[j] = jnp.where(which > 0, lax.stop_gradient(out), at[j])

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
        words = "the derivative is taken as 1 in" if nonlinear else "the mask is ignored in"
        left_out = on("derivative left out" if nonlinear else "mask", words, None)
        if masked and step is not None:
            words = "the mask is ignored in the first step, in"
            left_out += on("mask", words, None) * (step[0] == 0)
        slope = jnp.where(left_out > 0, 0, slope) + left_out * s
        if _cuts(eqn):
            which = on("mask", "the cotangent's own sign is taken for the mask of", None)
            slope = jnp.where(which > 0, 0, slope) + which * _positive(s)
        x, y = lax.stop_gradient((xs[j], out))
        for cause, words, value in _coefficients(eqn, j, x, y, plain, step is not None):
            which = on(cause, words, None)
            # A choice of coefficients, not of slopes: 0 times the infinite one is NaN.
            slope = jnp.where(which > 0, 0, slope) + jnp.where(which > 0, value, 0) * s
    elif name in ("mul", "div") and out.shape == jnp.shape(xs[0]) and alive[0] and jnp.ndim(xs[1]):
        slope += _factor_left_out(name, tangents[0], at, 0, on)
    if name == "mul" and all(alive) and out.shape == jnp.shape(xs[1]) and jnp.ndim(xs[0]):
        slope += _factor_left_out(name, tangents[1], at, 1, on)
    if name == "reduce_sum":
        slope += _other_axes(eqn, tangents[0], out, on)
    if name == "dot_general" and out.ndim >= 2 and out.shape[-2] == out.shape[-1] > 1:
        for i in (i for i, a in enumerate(alive) if a):
            words = "the cotangent of the product is not transposed as it should be, for"
            which = on("transpose", words, i)
            alone = [t if k == i else jnp.zeros_like(t) for k, t in enumerate(tangents)]
            right = linear(alone)
            slope += jnp.where(which > 0, jnp.swapaxes(right, -1, -2) - right, 0)
    if name == "conv_general_dilated":
        for padded, words in _paddings(eqn):
            for i in (i for i, a in enumerate(alive) if a):
                which = on("shifted", words, i)
                alone = [t if k == i else jnp.zeros_like(t) for k, t in enumerate(tangents)]
                slope += which * (linear(alone, padded) - linear(alone))
    return lax.stop_gradient(out) + slope.astype(out.dtype)


def _other_axes(eqn: JaxprEqn, s: Array, out: Array, on: On) -> Any:
    """What is added to the slope of a sum if it were over other axes of equal size."""
    right, added = tuple(eqn.params["axes"]), jnp.zeros_like(out)
    for axes in itertools.islice(itertools.combinations(range(s.ndim), len(right)), MOST_OTHERS):
        left = tuple(n for axis, n in enumerate(s.shape) if axis not in axes)
        if axes != right and left == out.shape != ():
            words = (
                f"spread over {axes_in_words(axes)}, not {axes_in_words(right)}: the cotangent of"
            )
            added = jnp.where(on("wrong axis", words, None) > 0, s.sum(axes) - s.sum(right), added)
    return added


def axes_in_words(axes: tuple[int, ...]) -> str:
    """Axes as one says them."""
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {axes}"


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
        for words, value in (("the input", x), *_like(eqn, j, x, plain)):
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
    if name in ("tanh", "logistic") or _cuts(eqn):
        yield from others("max" if _cuts(eqn) else name, x, few)


def _cuts(eqn: JaxprEqn) -> bool:
    """Whether an equation is a maximum, whose derivative is a mask."""
    return eqn.primitive.name == "max" or name_of(eqn) == "relu"


def _values(
    eqn: JaxprEqn, j: int, x: Any, pointwise: bool, plain: Plain
) -> Iterator[tuple[str, str, Any]]:
    """Values that operand j may wrongly have had in the backward pass: cause, words, value."""
    name = eqn.primitive.name
    predicate = name == "select_n" and j == 0
    if predicate and x.dtype == bool:
        yield "mask", "the mask is inverted: not", ~x
    if pointwise and _cuts(eqn):
        yield "mask", "the mask is inverted: minus", -x
    if predicate or pointwise or name == "dot_general":
        axes = range(min(x.ndim - 1, 2)) if name == "dot_general" else range(x.ndim)
        for axis, shift in ((a, s) for a in axes for s in (1, -1) if x.shape[a] > 2):
            words = f"shifted by {shift} along axis {axis}: the saved"
            yield "shifted", words, jnp.roll(x, shift, axis)
    if name == "gather" and j == 1:
        yield from _indices(x, plain)
        for column, shift in ((c, s) for c in range(x.shape[-1]) for s in (1, -1)):
            words = f"shifted by {shift} along axis 0: column {column + 1} of the indices in"
            yield "shifted", words, x.at[..., column].set(jnp.roll(x[..., column], shift, 0))
    for words, value in _rearranged(eqn, j, x) if name not in _TAKING else ():
        yield _cause_of(words), words, value
    if name in _BILINEAR:
        for words, value in _like(eqn, j, x, plain):
            yield "wrong saved value", f"{words} was saved instead of", value


def _indices(x: Any, plain: Plain) -> Iterator[tuple[str, str, Any]]:
    """Other indices than those of a gather: of other axes, and other arrays of integers."""
    columns = range(x.shape[-1])
    for a, b in itertools.combinations(columns, 2):
        words = f"rows for columns: columns {a + 1} and {b + 1} are exchanged of the indices in"
        yield "index", words, x.at[..., a].set(x[..., b]).at[..., b].set(x[..., a])
    size = x[..., 0].size
    found = [
        (words, value)
        for words, value in plain.values()
        if value.size == size and jnp.issubdtype(value.dtype, jnp.integer) and value.ndim
    ]
    for words, value in found[-MOST_OTHERS:] if size > 1 else ():
        other = value.reshape(x.shape[:-1]).astype(x.dtype)
        for c in columns:
            yield (
                "index",
                f"{words} was taken for column {c + 1} of the indices in",
                x.at[..., c].set(other),
            )


def _rearranged(eqn: JaxprEqn, j: int, x: Any) -> Iterator[tuple[str, Any]]:
    """A matrix transposed (or reshaped to look so), a kernel flipped or with its channels swapped.

    Of the same shape; the map of x is linear, so that tangents may be rearranged too.
    """
    name = eqn.primitive.name
    if name == "dot_general" and x.ndim >= 2 and min(x.shape[-2:]) > 1:
        swapped = (*x.shape[:-2], x.shape[-1], x.shape[-2])
        words = "transposed:" if x.shape[-1] == x.shape[-2] else "reshaped, not transposed:"
        yield words, jnp.swapaxes(x.reshape(swapped), -1, -2)
    if name in _TAKING and j == 0 and x.ndim >= 2 and x.shape[-1] == x.shape[-2] > 1:
        yield "rows for columns, an index of another axis:", jnp.swapaxes(x, -1, -2)
    if name == "conv_general_dilated" and j == 1:
        out_channels, in_channels, *spatial = eqn.params["dimension_numbers"].rhs_spec
        yield "flipped in space:", jnp.flip(x, spatial)
        if x.shape[out_channels] == x.shape[in_channels]:
            yield "input and output channels swapped:", jnp.swapaxes(x, out_channels, in_channels)


def _cause_of(words: str) -> str:
    return next((c for c in ("flip", "index") if c in words), "transpose")


def _other_tangents(eqn: JaxprEqn, tangents: list[Any], alive: list[bool], on: On) -> list[Any]:
    """The tangents, those of matrices and kernels perhaps rearranged: so are their cotangents."""
    found = list(tangents)
    for j, (t, a) in enumerate(zip(tangents, alive, strict=True)):
        for words, value in _rearranged(eqn, j, t) if a else ():
            cause = _cause_of(words)
            found[j] = jnp.where(on(cause, f"{words} the cotangent of", j) > 0, value, found[j])
    return found


def _like(eqn: JaxprEqn, j: int, x: Any, plain: Plain) -> list[tuple[str, Any]]:
    """Other values of an operand's shape and dtype, those made nearest to it first."""
    order = {v: i for i, v in enumerate(plain)}
    here = order.get(eqn.invars[j], len(order))
    same = [
        (abs(order[v] - here), words, lax.stop_gradient(value))
        for v, (words, value) in plain.items()
        if v is not eqn.invars[j] and value.shape == x.shape and value.dtype == x.dtype
    ]
    return [(words, value) for _, words, value in sorted(same, key=lambda s: s[0])[:MOST_OTHERS]]


def _paddings(eqn: JaxprEqn) -> Iterator[tuple[JaxprEqn, str]]:
    """A convolution with its padding moved by one along each axis in space."""
    padding = eqn.params["padding"]
    for axis, (low, high) in enumerate(padding):
        for shift in (1, -1):
            other = [*padding[:axis], (low + shift, high - shift), *padding[axis + 1 :]]
            moved = eqn.replace(params=eqn.params | {"padding": tuple(other)})
            yield moved, f"shifted by {shift} along axis {axis} in space: the padding for"
