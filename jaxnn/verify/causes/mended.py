"""Evaluate a gradient of a mesh, equation by equation, with one of its collectives mended.

    a sum over devices   over other axes, none, as a mean; n times as much, where it was a mean
    any other number     summed over devices
    what is added up     1/n of a term that all devices add, each of them
    a sum on one device  its mean over the devices: the statistics of all
    a turn of the ring   the other way round

Beside every value go the axes of the mesh along which it varies.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn
from jax.extend.core import Literal as Constant

from jaxnn.verify.causes.jaxprs import bind_equation, inner_of, scan_ends, words_of
from jaxnn.verify.problem import is_floating

Axes = tuple[str, ...]
Varies = frozenset[str]
Kind = Literal[
    "sum too many", "sum left out", "sum over another axis", "sum for a mean", "mean for a sum",
    "per shard", "one shard", "ring",
]  # fmt: skip
_ADDS = {"add", "sub", "add_any"}
_SAME = {"psum", "pmax", "pmin", "all_gather"}  # all devices have the same of it
_TYPES = {"pvary", "pcast"}  # which change no number
_OWN = {"axis_index", "reduce_scatter"}  # each has another


class Repair(NamedTuple):
    """Something that is done otherwise.

    Attributes:
        kind: what was wrong, if that explains the gradient.
        axes: of the mesh, over which.
        where: the equation, in words, with its line; of a leaf its name.
        loop: the jaxpr that it is in, by its number in each from the outside in.
        place: which equation there, operand, and axes.
        group: what it is alike in with others that may have to be mended together.
    """

    kind: Kind
    axes: Axes
    where: str
    loop: tuple[int, ...]
    place: Any
    group: Any = ()

    @property
    def kin(self) -> Any:
        """What it is alike in with more of them."""
        return self.group[0] if isinstance(self.group, tuple) and self.group else self.group


class Mended:
    """An evaluation in which repairs are made.

    Attributes:
        repairs: those that there were, in order.
        sizes: of the mesh's axes.
        within: whether numbers on the way are summed; else all other repairs are there.
    """

    def __init__(self, sizes: dict[str, int], within: bool, chosen: Any = None) -> None:
        """Prepare to make those `chosen`, of all of them by number; none if it is not given.

        Args:
            sizes: of the mesh's axes.
            within: whether numbers on the way are summed; else all other repairs are there.
            chosen: a boolean each.
        """
        self.sizes, self.within, self._chosen = sizes, within, chosen
        self.repairs: list[Repair] = []
        self._numbers: dict[Repair, int] = {}

    def mend(self, right: Any, repair: Repair, other: Callable[[], Any]) -> Any:
        """Return what is there, or what another way gives where this repair is chosen."""
        if repair not in self._numbers:
            self._numbers[repair] = len(self.repairs)
            self.repairs.append(repair)
        if self._chosen is None:
            return right
        number = self._numbers[repair]
        return lax.cond(self._chosen[number], lambda: other().astype(right.dtype), lambda: right)

    def run(
        self, closed: ClosedJaxpr, args: Any, varies: list[Varies], place: tuple[int, ...] = ()
    ) -> tuple[list[Any], list[Varies]]:
        """Evaluate a jaxpr: its outputs, each with the axes along which it varies."""
        jaxpr = closed.jaxpr
        env: dict[Any, tuple[Any, Varies]] = {}
        for v, x in zip(jaxpr.constvars, closed.consts, strict=True):
            env[v] = x, frozenset()
        env.update(zip(jaxpr.invars, zip(args, varies, strict=True), strict=True))

        def read(v: Any) -> tuple[Any, Varies]:
            return (v.val, frozenset()) if isinstance(v, Constant) else env[v]

        for number, eqn in enumerate(jaxpr.eqns):
            here = (*place, number)
            given = [read(v) for v in eqn.invars]
            xs, own = [x for x, _ in given], [v for _, v in given]
            inner = _called(eqn)
            if eqn.primitive.name == "scan" and inner is not None:
                outs, found = self._scan(eqn, inner, xs, own, here)
            elif inner is not None:
                outs, found = self.run(inner, xs, own, here)
            else:
                outs, found = self._equation(eqn, xs, own, here)
            env.update(zip(eqn.outvars, zip(outs, found, strict=True), strict=True))
        last = [read(v) for v in jaxpr.outvars]
        return [x for x, _ in last], [v for _, v in last]

    def _scan(
        self, eqn: JaxprEqn, inner: ClosedJaxpr, xs: Any, own: list[Varies], place: tuple[int, ...]
    ) -> tuple[list[Any], list[Varies]]:
        consts, carried = scan_ends(eqn)
        everything = frozenset[str]().union(*own)
        kinds = [v.aval for v in inner.jaxpr.invars[consts:carried]]

        def body(carry: Any, step: Any) -> Any:
            outs, _ = self.run(inner, [*xs[:consts], *carry, *step], [everything] * len(own), place)
            n = carried - consts
            return [x.astype(k.dtype) for x, k in zip(outs[:n], kinds, strict=True)], outs[n:]

        length, reverse = eqn.params["length"], eqn.params["reverse"]
        carry, ys = lax.scan(body, xs[consts:carried], xs[carried:], length, reverse)
        return [*carry, *ys], [everything] * len(eqn.outvars)

    def _equation(
        self, eqn: JaxprEqn, xs: list[Any], own: list[Varies], place: tuple[int, ...]
    ) -> tuple[list[Any], list[Varies]]:
        name, varies = eqn.primitive.name.removesuffix("_invariant"), frozenset[str]().union(*own)
        if name in _TYPES:
            return xs, own
        if name in _ADDS and not self.within:
            xs = [self._shared(eqn, i, xs, own, place) for i in range(2)]
        axes = _axes_of(eqn)
        outs = [lax.psum(x, axes) for x in xs] if name == "psum" else bind_equation(eqn, xs)
        found = varies - set(axes) if name in _SAME else varies | set(axes if name in _OWN else ())
        if not outs or not is_floating(outs[0]):
            return outs, [found] * len(outs)
        out, where = outs[0], words_of(eqn, "").replace("psum_invariant", "psum")
        if self.within:
            for over in subsets(sorted(found)):
                repair = Repair("sum left out", over, where, place[:-1], place)
                out = self.mend(out, repair, partial(lax.psum, out, over))
        elif name == "psum":
            out = self._other_sums(out, xs[0], axes, own[0], where, place)
        elif name == "reduce_scatter":
            out = self._other_sizes(out, axes, where, place)
        elif name == "ppermute":
            back = [(j, i) for i, j in eqn.params["perm"]]
            repair = Repair("ring", axes, where, place[:-1], place)
            out = self.mend(out, repair, lambda: lax.ppermute(xs[0], axes, back))
        elif name == "reduce_sum":
            for over in subsets(sorted(varies)):
                reduced = eqn.params["axes"]
                alike = "over examples" if 0 in reduced else "within", xs[0].shape, reduced
                repair = Repair("one shard", over, where, place[:-1], place, alike)
                out = self.mend(out, repair, partial(lax.pmean, out, over))
        return [out, *outs[1:]], [found] * len(outs)

    def _shared(
        self, eqn: JaxprEqn, i: int, xs: list[Any], own: list[Varies], place: tuple[int, ...]
    ) -> Any:
        """A term that is the same on all devices, where the other is not: perhaps 1/n of it."""
        x = xs[i]
        over = tuple(sorted(own[1 - i] - own[i]))
        if not over or isinstance(eqn.invars[i], Constant) or not is_floating(eqn.invars[i].aval):
            return x
        for axes in subsets(over):
            repair = Repair("per shard", axes, words_of(eqn, ""), place[:-1], (place, i))
            x = self.mend(x, repair, partial(lax.div, x, jnp.full_like(x, self._devices(axes))))
        return x

    def _other_sums(
        self, out: Any, x: Any, axes: Axes, own: Varies, where: str, place: tuple[int, ...]
    ) -> Any:
        """A sum over devices, perhaps over other axes, or as a mean."""
        for over in ((), *subsets(tuple(self.sizes))):
            if {*over} == {*axes} or not {*over} - {*axes} <= own:
                continue
            fewer, more = {*over} < {*axes}, {*over} > {*axes}
            kind: Kind = (
                "sum too many" if fewer else "sum left out" if more else "sum over another axis"
            )
            which = {*axes} - {*over} if fewer else {*over} - {*axes} if more else {*over}
            repair = Repair(
                kind,
                tuple(a for a in self.sizes if a in which),
                where,
                place[:-1],
                (place, over),
                "the same" if not {*axes} & own else "",
            )
            out = self.mend(out, repair, partial(lax.psum, x, over))
        return self._other_sizes(out, axes, where, place)

    def _other_sizes(self, out: Any, axes: Axes, where: str, place: tuple[int, ...]) -> Any:
        """A sum over devices, perhaps as a mean, or a mean as a sum."""
        n, first = self._devices(axes), out
        if n > 1:
            repair = Repair("sum for a mean", axes, where, place[:-1], place)
            out = self.mend(out, repair, lambda: first / n)
            out = self.mend(out, repair._replace(kind="mean for a sum"), lambda: first * n)
        return out

    def _devices(self, axes: Axes) -> int:
        return math.prod(self.sizes[axis] for axis in axes)


def subsets(axes: Any) -> Iterator[Axes]:
    """Yield every choice of at least one of these, small ones first."""
    for size in range(1, len(axes) + 1):
        yield from itertools.combinations(axes, size)


def _axes_of(eqn: JaxprEqn) -> Axes:
    """The axes of the mesh that an equation names."""
    named = eqn.params.get("axes", eqn.params.get("axis_name", ()))
    named = named if isinstance(named, tuple) else (named,)
    return tuple(axis for axis in named if isinstance(axis, str))


def _called(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The function that an equation calls, a rule's own included: nothing is differentiated."""
    if eqn.primitive.name == "custom_jvp_call" or eqn.primitive.name.startswith("custom_vjp_call"):
        inner = eqn.params.get("call_jaxpr", eqn.params.get("fun_jaxpr"))
        return inner if isinstance(inner, ClosedJaxpr) else None
    return inner_of(eqn)
