"""Find which collective of a gradient on a mesh is wrong, by mending one after the other.

What is mended so that every entry is right on every device was wrong. Of several that belong
together (the leaves of a tree that is summed, the statistics of a batch) those are named that it
needs.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr

from jaxnn.verify.causes.evidence import Gradients
from jaxnn.verify.causes.mended import Kind, Mended, Repair, Varies, subsets
from jaxnn.verify.causes.one_leaf import READINGS, readings_of
from jaxnn.verify.findings import Diagnosis
from jaxnn.verify.mesh import axes_in, cut, disagreeing, put_together
from jaxnn.verify.point import Point
from jaxnn.verify.problem import is_floating
from jaxnn.verify.values import largest

# More repairs than that are not tried: each takes a run, and time to compile.
MOST_REPAIRS = 600
# What says most comes first.
_ORDER: tuple[Kind, ...] = (
    "sum too many", "sum left out", "sum over another axis", "sum for a mean", "mean for a sum",
    "ring", "per shard", "one shard",
)  # fmt: skip
# In what repairs that are made together are alike, the closest first.
_ALIKE = (
    ("axes", "group", "where", "loop"),
    ("axes", "group", "where"),
    ("axes", "group", "loop"),
    ("axes", "group"),
    ("axes", "kin"),
    ("axes",),
)


def on_devices(point: Point, found: Gradients) -> dict[str, Diagnosis]:
    """Return the cause of a wrong gradient on a mesh for each wrong leaf, where a collective is it.

    Args:
        point: the problem, and the right gradient.
        found: both gradients by path.

    Raises:
        ValueError: it cannot be told.
    """
    wrong = [path for path, mask in found.wrong.items() if mask.any()]
    chosen = _Mending(point, found, within=False).first()
    several = len(chosen) > 1 and all(r.group == "leaf" for r in chosen)
    if not chosen or several:
        within = _Mending(point, found, within=True)
        if not chosen or len(within.repairs) <= MOST_REPAIRS:
            chosen = within.first() or chosen
    if not chosen:
        return {}
    sizes = point.problem.on_mesh.spread.mesh.shape
    n = int(np.prod([sizes[axis] for axis in chosen[0].axes]))
    text = _in_words(chosen, n)
    if chosen[0].kind in ("sum for a mean", "mean for a sum"):
        # A number of devices may be the size of something else, too.
        read = readings_of(n if chosen[0].kind == "sum for a mean" else 1 / n, found.numbers)
        others = [words for _, words in read if "number of devices" not in words][:READINGS]
        text += "".join(f"; or {words}" for words in others)
    return dict.fromkeys(wrong, Diagnosis(chosen[0].kind, text))


class _Mending:
    """A gradient in which repairs can be made, of those of one sort."""

    def __init__(self, point: Point, found: Gradients, within: bool) -> None:
        self._point, self._found, mesh_run = point, found, point.problem.on_mesh
        mesh, specs = mesh_run.spread.mesh, mesh_run.placed
        sizes = dict(mesh.shape)
        varies: list[Varies] = [frozenset(axes_in(spec)) for spec in specs]
        self._arrays = [*point.floats, *point.rest]
        closed, names = _traced(point)

        def on_all(mended: Mended, arrays: list[Any]) -> Any:
            """What all devices return, each axis of the mesh an ordinary one of one device."""

            def local(*parts: Any) -> Any:
                return _run_mended(closed, names, mended, list(parts), varies)

            for name, size in reversed(sizes.items()):
                into = tuple(0 if name in axes else None for axes in varies)
                local = jax.vmap(local, into, 0, axis_name=name, axis_size=size)
            parts = [cut(x, spec, mesh) for x, spec in zip(arrays, specs, strict=True)]
            leaves = local(*parts)
            return {path: x.reshape(-1, *x.shape[len(sizes) :]) for path, x in leaves.items()}

        rehearsal = Mended(sizes, within)
        jax.eval_shape(lambda arrays: on_all(rehearsal, arrays), self._arrays)
        self.repairs = rehearsal.repairs
        self._run = jax.jit(lambda xs, chosen: on_all(Mended(sizes, within, chosen), xs))

    def first(self) -> list[Repair]:
        """Return what has to be mended, and no more; empty if nothing explains the gradient.

        Raises:
            ValueError: it cannot be told.
        """
        if len(self.repairs) > MOST_REPAIRS:
            raise ValueError(
                f"in {len(self.repairs)} places; more than {MOST_REPAIRS} would take minutes"
            )
        if not self._reproduces():
            raise ValueError("run operation by operation, it gives another gradient")
        for trial in _trials(self.repairs):
            if self._explains(trial):
                for repair in trial:
                    fewer = [r for r in trial if r != repair]
                    if fewer and self._explains(fewer):
                        trial = fewer
                return trial
        return []

    def _with(self, chosen: Iterable[Repair]) -> dict[str, Any]:
        numbers = [self.repairs.index(r) for r in chosen]
        mask = np.isin(np.arange(len(self.repairs)), numbers)
        return {path: np.asarray(x) for path, x in self._run(self._arrays, mask).items()}

    def _reproduces(self) -> bool:
        """Whether the gradient is what it was, evaluated here: JAX's types may change it."""
        point = self._point
        there = point.problem.on_mesh.copies(point.floats, point.rest).leaves
        return all(
            np.allclose(x, there[path], 0, self._found.exact * (largest(x) or 1.0))
            for path, x in self._with(()).items()
        )

    def _explains(self, chosen: list[Repair]) -> bool:
        mesh_run, found = self._point.problem.on_mesh, self._found
        mesh = mesh_run.spread.mesh
        for path, leaf in self._with(chosen).items():
            if path not in found.autodiff:
                continue
            right, spec = found.autodiff[path], mesh_run.specs[path]
            got = put_together(leaf, spec, mesh)
            known = np.isfinite(right)
            allowed = found.exact * largest(right)
            if got.shape != right.shape or disagreeing(leaf, spec, mesh, found.exact):
                return False
            if not (np.abs(got - right)[known] <= allowed).all():
                return False
        return True


def _traced(point: Point) -> tuple[ClosedJaxpr, list[str]]:
    """What one device of the mesh does, and the names of what it returns."""
    mesh_run, found = point.problem.on_mesh, []

    def local(floats: list[Any], rest: list[Any]) -> Any:
        closed, out = jax.make_jaxpr(mesh_run.local, return_shape=True)(floats, rest)
        found.append((closed, [*out.leaves]))
        return mesh_run.local(floats, rest)

    jax.eval_shape(mesh_run.of(local, not mesh_run.refused), point.floats, point.rest)
    return found[0]


def _trials(repairs: list[Repair]) -> Iterator[list[Repair]]:
    """Yield what may have to be mended at once: one, those of a line, those that are alike, all."""
    for kind in _ORDER:
        # To sum what all devices have already is the likelier mistake.
        own = sorted((r for r in repairs if r.kind == kind), key=lambda r: r.group != "the same")
        yield from ([r] for r in own)
        seen: list[list[Repair]] = []
        for fields in _ALIKE:
            groups: dict[Any, list[Repair]] = {}
            for r in own:
                key = tuple(getattr(r, name) for name in fields)
                groups.setdefault(key, []).append(r)
            for group in groups.values():
                if len(group) > 1 and group not in seen:
                    seen.append(group)
                    yield group


def _in_words(chosen: list[Repair], n: int) -> str:
    """What was wrong, and where."""
    first = chosen[0]
    axes = ", ".join(map(repr, first.axes))
    at = ", ".join(dict.fromkeys(r.where for r in chosen))
    if first.kind == "sum left out":
        of = "of the gradient of" if first.group == "leaf" else "at"
        return f"the sum over {axes} is left out {of} {at}"
    if first.kind == "sum too many":
        why = (
            "all devices have the same there already"
            if first.group == "the same"
            else "every device has its own there"
        )
        return f"a sum over {axes} too many at {at}: {why}"
    return {
        "sum over another axis": f"the sum is over other axes than {axes} at {at}",
        "sum for a mean": f"a sum over {axes} where the mean is meant, {n} times as much, at {at}",
        "mean for a sum": f"a mean over {axes} where the sum is meant, 1/{n} of it, at {at}",
        "per shard": (
            f"a term is added on every device before the sum over {axes}, and so {n} times, at "
            f"{at}: add it after"
        ),
        "one shard": f"statistics of one device's part, not of all along {axes}, at {at}",
        "ring": f"the ring along {axes} turns the wrong way at {at}",
    }[first.kind]


def _run_mended(
    closed: ClosedJaxpr, names: list[str], mended: Mended, args: list[Any], varies: list[Varies]
) -> dict[str, Any]:
    """A traced gradient's leaves, by name, with repairs made; `varies` goes with the arguments."""
    done = {}
    for name, leaf, along in zip(names, *mended.run(closed, args, varies), strict=True):
        done[name] = leaf
        for over in subsets(sorted(along)) if not mended.within and is_floating(leaf) else ():
            repair = Repair("sum left out", over, name, (), name, "leaf")
            done[name] = mended.mend(done[name], repair, partial(lax.psum, leaf, over))
    return done
