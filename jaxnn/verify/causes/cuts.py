"""Leave cotangents out, wholly or in part: at an operand, a carry, a broadcast, a linear scan."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from jaxnn.verify.causes.jaxprs import bind_equation, inner_of, live_in, scan_ends
from jaxnn.verify.causes.saved_values import axes_in_words
from jaxnn.verify.problem import is_floating


@jax.custom_vjp
def shadow(x: Any) -> Any:
    """Return zeros whose cotangent is x's: linear in them is a derivative without a value."""
    return jnp.zeros_like(x)


shadow.defvjp(lambda x: (jnp.zeros_like(x), None), lambda _, dx: (dx,))


Plant = Callable[[str, str, "Site"], Any]  # registers a mistake; 1 if it is the one to make
# A cotangent is cut at single classes where there are at most so many of them.
MOST_CLASSES = 16
# A carry is cut at single steps, and at every so many, up to so many.
MOST_BLOCKS = 9
# A cotangent that is summed over several axes is cut to a slice along up to so many of them.
MOST_SUMMED = 3
# What takes one class of each row, or what the others are subtracted from.
PICKING = {"gather", "sub", "mul"}
BROADCASTING = {"add", "sub", "mul", "div", "max", "min"}


class Site(NamedTuple):
    """Where a mistake is made: the equation's number, inner ones last, and its words."""

    path: tuple[int, ...]
    text: str

    def operand(self, j: int, eqn: JaxprEqn) -> "Site":
        """Return one operand of the equation."""
        words = f"operand {j + 1} of {self.text}" if len(eqn.invars) > 1 else self.text
        return Site((*self.path, j), words)


class Mistake(NamedTuple):
    """One mistake; `cut` if any multiple of what it takes away counts.

    `subtracted` if that is a term with a minus before it.
    """

    cause: str
    text: str
    site: Site
    cut: bool
    subtracted: bool = False


@jax.custom_vjp
def _weighed(x: Any, weight: Any) -> Any:
    """x, its cotangent multiplied by a weight of its shape."""
    return x


_weighed.defvjp(lambda x, w: (x, w), lambda w, dx: (dx * w, jnp.zeros_like(w)))


def weigh(x: Any, weight: Any) -> Any:
    """Return x, its cotangent multiplied by a weight."""
    return _weighed(x, jnp.broadcast_to(weight, jnp.shape(x)).astype(x.dtype))


def inner_left_out(x: Any, u: Any, on: Any) -> Any:
    """Return x, a function of u entry by entry, its derivative perhaps taken as 1."""
    return weigh(x, 1.0 - on) + (on * shadow(u)).astype(x.dtype)


def cut_carry(c: Any, i: int, step: tuple[Any, int], site: Site, plant: Plant) -> Any:
    """Return a carry whose cotangent may be lost: always, every few steps, or before one of them.

    `step` is the number of the step in the order in which they run, and of all of them.
    """
    number, length = step
    if not is_floating(c):
        return c
    words = f"nothing flows back from step to step through carry {i + 1} of"
    at = Site((*site.path, -1 - i), site.text)
    on = plant("detached", words, at)
    words = f"the sign is wrong of what flows back from step to step through carry {i + 1} of"
    on += 2 * plant("sign", words, at)
    for block in range(2, min(length, MOST_BLOCKS)):
        for first in (0, block - 1):
            if sum(t % block == first for t in range(1, length)) < 2:
                continue
            words = (
                f"nothing flows back every {block} steps, before step {first or block} "
                f"first, through carry {i + 1} of"
            )
            there = (number % block == first) & (number > 0)
            on += there * plant("detached", words, at)
    for at_step in range(1, min(length, MOST_BLOCKS)):
        words = f"nothing flows back from step {at_step} to step {at_step - 1} through "
        words += f"carry {i + 1} of"
        on += (number == at_step) * plant("detached", words, at)
    return weigh(c, 1.0 - on)


def cut_sum_over_steps(c: Any, number: Any, length: int, site: Site, plant: Plant) -> Any:
    """Return what every step uses, its cotangent summed over the steps, or perhaps over some."""
    weight = jnp.ones(())
    for at, when in ((0, "first"), (length - 1, "last")):
        there = number == at
        words = f"the {when} step is left out of every sum over the steps of"
        weight -= there * plant("missing term", words, site)
        words = f"only the {when} step is kept, not the sum over the steps, of"
        weight -= ~there * plant("not summed", words, site)
    return weigh(c, weight)


def cut_broadcast(x: Any, eqn: JaxprEqn, site: Site, plant: Plant) -> Any:
    """Return x broadcast, its cotangent summed over an axis, or perhaps one slice of it."""
    shape = eqn.outvars[0].aval.shape  # type: ignore[attr-defined]
    trailing = range(len(shape) - jnp.ndim(x), len(shape))
    kept = eqn.params.get("broadcast_dimensions", trailing)
    sizes = dict(zip(kept, jnp.shape(x), strict=True))
    axes = [axis for axis, size in enumerate(shape) if sizes.get(axis, 1) < size]
    out = lax.broadcast_in_dim(x, shape, kept)
    if not axes:
        return out
    full = [axis for axis in kept if axis not in axes]
    s = shadow(x)
    for others in itertools.combinations(range(len(shape)), len(full)):
        wanted = tuple(shape[axis] for axis in full)
        if tuple(shape[axis] for axis in others) != wanted or not full or list(others) == full:
            continue
        got = tuple(axis for axis in range(len(shape)) if axis not in others)
        words = f"summed over {axes_in_words(got)}, not {axes_in_words(tuple(axes))}:"
        on = plant("wrong axis", f"{words} the cotangent of", site)
        other = lax.broadcast_in_dim(s.reshape(wanted), shape, others)
        out += jnp.where(on > 0, other - lax.broadcast_in_dim(s, shape, kept), 0)
    weight = jnp.ones(shape, out.dtype)
    several = [a for n in range(1, len(axes) + 1) for a in itertools.combinations(axes, n)]
    for chosen in several[: 2**MOST_SUMMED]:
        words = " and ".join(map(str, chosen))
        for which in ("first", "last"):
            on = plant("not summed", f"only the {which} slice along axis {words} is kept of", site)
            for axis in chosen:
                at = 0 if which == "first" else shape[axis] - 1
                index = lax.broadcasted_iota(int, shape, axis)
                weight = jnp.where((on > 0) & (index != at), 0, weight)
    return weigh(out, weight)


_LINEAR = {
    "add", "add_any", "sub", "neg", "reshape", "transpose", "broadcast_in_dim", "squeeze",
    "convert_element_type", "concatenate", "slice", "rev", "reduce_sum", "copy", "pad", "cumsum",
}  # fmt: skip
_BILINEAR = {"mul", "dot_general", "conv_general_dilated"}


def linear_outputs(eqn: JaxprEqn, alive: list[bool]) -> Iterator[tuple[int, int]]:
    """Yield the outputs of a scan with a slice for each step, linear in one operand alone.

    Each by its number among those outputs, with the operand, of the same shape.
    """
    closed, (n, k) = inner_of(eqn), scan_ends(eqn)
    live = [j for j, a in enumerate(alive) if a and is_floating(eqn.invars[j].aval)]
    if closed is None or len(live) != 1 or live[0] < k:
        return
    jaxpr, shape = closed.jaxpr, eqn.invars[live[0]].aval.shape  # type: ignore[attr-defined]
    if _is_linear(jaxpr, {jaxpr.invars[live[0]], *jaxpr.invars[n:k]}):
        for i, out in enumerate(eqn.outvars[k - n :]):
            if out.aval.shape == shape:  # type: ignore[attr-defined]
                yield i, live[0]


def _is_linear(jaxpr: Jaxpr, live: set[Any]) -> bool:
    """Whether all that depends on live variables is linear in them, or a constant beside it."""
    found = live_in(jaxpr, live)
    for eqn in jaxpr.eqns:
        given = [not isinstance(v, Literal) and v in found for v in eqn.invars]
        name, inner = eqn.primitive.name, inner_of(eqn)
        if not any(given) or name in _LINEAR or (name in _BILINEAR and sum(given) == 1):
            continue
        if name == "div" and not given[1]:
            continue
        if inner is None or name == "scan":
            return False
        arguments = {v for v, g in zip(inner.jaxpr.invars, given, strict=True) if g}
        if not _is_linear(inner.jaxpr, arguments):
            return False
    return True


def forward_map_applied(eqn: JaxprEqn, xs: list[Any], ends: tuple[int, int], on: Any) -> Any:
    """Return what a mistake adds to an output's tangent if its own map is applied to its cotangent.

    `ends` are the output and the operand.
    """
    i, j = ends

    def f(x: Any) -> Any:
        return bind_equation(eqn, [*at[:j], x, *at[j + 1 :]])[i]

    at = lax.stop_gradient(xs)
    s = shadow(xs[j])
    _, pull = jax.vjp(f, at[j])
    _, move = jax.jvp(f, (at[j],), (s,))
    return jnp.where(on > 0, pull(s)[0] - move, 0)
