"""Run an op of many devices on one: what they hold lies side by side, along axes with names.

    op on each device  ->  jax.vmap over a first axis, that has the name of the mesh's
    a collective       ->  an ordinary sum, copy or shift along that axis

Of these ordinary operations autodiff has the derivative, whatever it makes of collectives. What is
the same on all devices has no such axis: it is one value, and so is its cotangent.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.calls import call_bwd, call_fwd
from jaxnn.op import Op
from jaxnn.verify.problem import is_floating, to_float64

# Devices along an axis. Of two, the next is also the one before.
DEVICES = 3
# What devices have the same of may differ by so much of its scale.
ROUNDING = 1e-12


class Along(NamedTuple):
    """An axis of devices: its name; which inputs and whether the result differ along it."""

    name: str
    inputs: tuple[Any, ...]
    output: Any


class OverDevices(NamedTuple):
    """An op on all devices at once, along these axes from the outside in; without, as it is."""

    op: Op[..., Any]
    axes: tuple[Along, ...] = ()

    def drawn(self, draw: Callable[[int], tuple[Any, ...]], seed: int) -> tuple[Any, ...]:
        """Return what all devices are given, of what one is, by seed: another each, or one to all.

        Raises:
            TypeError: there are other inputs than the op says differ.
        """
        draws = [draw(seed + k) for k in range(DEVICES ** len(self.axes))]
        for axis in reversed(self.axes):
            try:
                differs = jax.tree.broadcast(axis.inputs, draws[0])
            except ValueError:
                raise TypeError(
                    f"op {self.op.name} says that of its inputs {axis.inputs!r} differ along "
                    f"{axis.name!r}; `varies` must have a bool, or a pytree of them, for each of "
                    f"{len(draws[0])} inputs"
                ) from None
            groups = [draws[i : i + DEVICES] for i in range(0, len(draws), DEVICES)]
            draws = [jax.tree.map(_side_by_side, differs, *group) for group in groups]
        return draws[0]

    def forward(self, inputs: tuple[Any, ...], static: Mapping[str, Any]) -> Any:
        """Return the result on all devices."""

        def local(*xs: Any) -> Any:
            return call_fwd(self.op.name, self.op.fwd, xs, static)[0]

        for axis in reversed(self.axes):
            local = _on_all(local, axis.name, axis.inputs, axis.output)
        return local(*inputs)

    def backward(self, inputs: tuple[Any, ...], dout: Any, static: Mapping[str, Any]) -> Any:
        """Return the cotangents; of one that devices have the same of, the first device's."""
        return self._cotangents(inputs, dout, static)[0]

    def disagreeing(
        self, inputs: tuple[Any, ...], dout: Any, static: Mapping[str, Any], names: Any
    ) -> tuple[str, ...]:
        """Say along which axes devices return different cotangents that ought to be the same."""
        if not self.axes:
            return ()
        with jax.enable_x64(True):
            leaves, tree = jax.tree.flatten((inputs, dout))
            given, douts = jax.tree.unflatten(tree, to_float64(leaves))
            _, apart = self._cotangents(given, douts, static)
        return tuple(
            f"along {axis.name!r} devices return different cotangents of {name}, which all have "
            "the same of: a sum over them left out?"
            for axis, of_inputs in zip(self.axes, apart, strict=True)
            for name, found in zip(names, of_inputs, strict=True)
            if any(float(x) > ROUNDING for x in jax.tree.leaves(found))
        )

    def _cotangents(self, inputs: tuple[Any, ...], dout: Any, static: Mapping[str, Any]) -> Any:
        """The cotangents; and along each axis how far apart the devices' are that ought not be."""

        def local(inputs: tuple[Any, ...], dout: Any) -> Any:
            _, residuals = call_fwd(self.op.name, self.op.fwd, inputs, static)
            found = call_bwd(self.op.name, self.op.bwd, residuals, dout, static, len(inputs))
            return tuple(map(_without_none, found, inputs)), ()

        for axis in reversed(self.axes):
            local = self._along(axis, local)
        return local(inputs, dout)

    def _along(self, axis: Along, function: Callable[..., Any]) -> Callable[..., Any]:
        everywhere = _on_all(function, axis.name, (axis.inputs, axis.output), True)

        def one_of_each(inputs: tuple[Any, ...], dout: Any) -> Any:
            copies, inner = everywhere(inputs, dout)
            differs = jax.tree.broadcast(axis.inputs, inputs)
            first = jax.tree.map(lambda d, x: x if d or x is None else x[0], differs, copies)
            apart = jax.tree.map(
                lambda d, x: None if d or x is None else _apart(x), differs, copies
            )
            return first, (apart, *jax.tree.map(jnp.max, inner))

        return one_of_each


def _side_by_side(differs: bool, *leaves: Any) -> Any:
    return jnp.stack(leaves) if differs else leaves[0]


def _apart(copies: Any) -> Any:
    """How far from the first device's any other's are, as a part of the largest."""
    if not is_floating(copies):
        return jnp.zeros(())
    scale = jnp.abs(copies).max(initial=0.0)
    return jnp.abs(copies - copies[0]).max(initial=0.0) / jnp.where(scale > 0, scale, 1)


def _on_all(function: Callable[..., Any], name: str, given: Any, returned: Any) -> Any:
    into, out = (jax.tree.map(lambda d: 0 if d else None, tree) for tree in (given, returned))
    return jax.vmap(function, into, out, axis_name=name, axis_size=DEVICES)


def over_devices(op: Op[..., Any], static: Mapping[str, Any]) -> OverDevices:
    """Return an op to be run on all devices, if settings of it name axes of a mesh.

    Raises:
        TypeError: they do, and the op does not say what differs from device to device.
    """
    axes = []
    for setting, names in static.items():
        if type(names) is not tuple or not names or not all(isinstance(n, str) for n in names):
            continue
        varies = op.varies or {}
        if setting in varies:
            axes += [Along(name, *varies[setting]) for name in names]
        elif setting == "axis":
            raise TypeError(
                f"op {op.name} has the setting axis={names!r}, for which `varies` is missing; to "
                "be verified over devices it must say what differs among them: Op(..., "
                "varies={'axis': ((True,), False)}) for one input that does, and a result that "
                "does not"
            )
    return OverDevices(op, tuple(axes))


def _without_none(cotangent: Any, like: Any) -> Any:
    """A cotangent with zeros for None, which means zero; None where there is no derivative."""

    def zero(x: Any) -> Any:
        real = jnp.issubdtype(jnp.result_type(x), jnp.floating)
        return jnp.zeros_like(x) if real else None

    def fill(d: Any, x: Any) -> Any:
        if d is None:
            return jax.tree.map(zero, x)
        return None if jnp.result_type(d) == jax.dtypes.float0 else d

    try:
        return jax.tree.map(fill, cotangent, like, is_leaf=lambda d: d is None)
    except (TypeError, ValueError):  # another structure, or no array: the comparison says so
        return cotangent
