"""Run a hand-written gradient on the devices of a mesh, and put together what they return.

The gradient is a function for one device: it is given the parts that the device has, may sum and
exchange with the others, and returns its part. The loss is one of the whole arrays.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnn.verify.findings import first_line
from jaxnn.verify.forms import extract_gradient
from jaxnn.verify.mesh import (
    Spread,
    check_spec,
    devices_along,
    disagreeing,
    entries_of,
    put_together,
    quoted,
)
from jaxnn.verify.problem import Problem, raised_by
from jaxnn.verify.returned import Returned


class OnMesh(NamedTuple):
    """A gradient on a mesh.

    Attributes:
        spread: the mesh, and the rules given.
        specs: of each floating parameter, by name.
        placed: of every array of the problem, in order.
        local: `local(floats, rest)`: the gradient on one device, of its parts.
        of: `of(function, check_vma)`: a function of such parts as one of whole arrays; what every
            device returned comes back along a first axis, in order of the devices.
        copies: what every device returned, of numbers: NumPy's arrays, again along a first axis.
        refused: why JAX's types do not let it run with `check_vma=True`; empty where they do.
    """

    spread: Spread
    specs: dict[str, P]
    placed: list[P]
    local: Callable[[list[Any], list[Any]], Returned]
    of: Callable[[Callable[..., Any], bool], Callable[..., Any]]
    copies: Callable[[list[Any], list[Any]], Returned]
    refused: str

    def differing(self, floats: list[Any], rest: list[Any], exact: float) -> tuple[str, ...]:
        """Say of which leaves devices have different values that ought to be the same.

        Args:
            floats: the parameters.
            rest: the other arrays.
            exact: what may differ, as a part of the scale.
        """
        found: dict[tuple[str, ...], list[str]] = {}
        for path, leaf in self.copies(floats, rest).leaves.items():
            if path not in self.specs:
                continue
            if axes := disagreeing(leaf, self.specs[path], self.spread.mesh, exact):
                found.setdefault(axes, []).append(path)
        return tuple(
            f"along {quoted(axes)} devices have different gradients of {', '.join(paths)}, of "
            "which by the rules all have the whole: a sum over them left out?"
            for axes, paths in found.items()
        )


def on_mesh(problem: Problem, manual_grad: Callable[..., Any], spread: Spread) -> Problem:
    """Return a problem whose gradient is a function for one device, run on all of a mesh.

    Args:
        problem: of the loss, and of whole arrays.
        manual_grad: the gradient as it was given.
        spread: where the arrays lie.

    Raises:
        TypeError: a rule is no `PartitionSpec`, or fits no argument.
        ValueError: it names another axis than those of the mesh, or sizes do not divide.
        Exception: what the gradient itself raises, on its parts.
    """
    mesh = spread.mesh
    arrays = [*problem.floats, *problem.rest]
    names = [*problem.paths, *problem.others]
    specs = _specs_of(problem, spread)
    for name, x, spec in zip(names, arrays, specs, strict=True):
        check_spec(name, x.shape, spec, mesh)
    ours = len(problem.floats)
    placed = specs[:ours], specs[ours:]
    shapes = {
        path: tuple(
            n // devices_along(axes, mesh)
            for n, axes in zip(x.shape, entries_of(spec, x.ndim), strict=True)
        )
        for path, x, spec in zip(problem.paths, problem.floats, specs[:ours], strict=True)
    }

    def on_parts(*args: Any, **kwargs: Any) -> Returned:
        with raised_by("hand-written gradient", args[0]):
            out = manual_grad(*args, **kwargs)
        return extract_gradient(out, problem.expected._replace(shapes=shapes, arguments=args))

    local = problem.call(on_parts)

    def of(function: Callable[..., Any], check_vma: bool) -> Callable[..., Any]:
        def stacked(floats: list[Any], rest: list[Any]) -> Any:
            return jax.tree.map(lambda x: jnp.asarray(x)[None], function(floats, rest))

        return jax.shard_map(
            stacked,
            mesh=mesh,
            in_specs=placed,
            out_specs=P(mesh.axis_names),
            check_vma=check_vma,
        )

    refused = ""
    try:
        jax.eval_shape(of(local, True), problem.floats, problem.rest)
    except Exception as error:  # of the types, or the gradient's own: then it is raised again
        jax.eval_shape(of(local, False), problem.floats, problem.rest)
        refused = first_line(error)
    traced = of(local, not refused)
    everywhere = NamedSharding(mesh, P())
    compiled = jax.jit(traced, out_shardings=everywhere)
    by_path = dict(zip(problem.paths, specs[:ours], strict=True))

    def copies(floats: list[Any], rest: list[Any]) -> Returned:
        out = compiled(*jax.device_put((floats, rest), everywhere))
        found: Returned = jax.tree.map(np.asarray, out)
        return found

    def gradient(floats: list[Any], rest: list[Any]) -> Returned:
        abstract = any(isinstance(x, jax.core.Tracer) for x in (*floats, *rest))
        out = (traced if abstract else copies)(floats, rest)
        leaves = {
            path: put_together(leaf, by_path.get(path, P()), mesh)
            for path, leaf in out.leaves.items()
        }
        return Returned(leaves, out.structure, out.form, out.unasked)

    found = OnMesh(spread, by_path, specs, local, of, copies, refused)
    devices = [(float(n), f"the number of devices along {a!r}") for a, n in mesh.shape.items()]
    return problem._replace(
        manual_grad=gradient,
        as_it_is=True,
        on_mesh=found,
        settings=[*devices, *problem.settings],
    )


def _specs_of(problem: Problem, spread: Spread) -> list[P]:
    """The rule of each array of a problem."""
    count = len(problem.floats)
    marks = [object() for _ in (*problem.floats, *problem.rest)]
    args = problem.call(lambda *args, **_: args)(marks[:count], marks[count:])

    def whole_if_none(rule: Any) -> Any:
        return P() if rule is None else rule

    rules = jax.tree.map(whole_if_none, spread.rules, is_leaf=lambda x: x is None)
    try:
        rules = jax.tree.broadcast(rules, args)
    except ValueError as error:
        raise TypeError(
            f"rules do not fit the arguments ({first_line(error)}); each must be a PartitionSpec, "
            "or a pytree of them with the containers of its argument"
        ) from None
    pairs = zip(jax.tree.leaves(args), jax.tree.leaves(rules), strict=True)
    found = {id(mark): rule for mark, rule in pairs}
    return [found.get(id(mark), P()) for mark in marks]
