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
import numpy as np

from jaxnn.calls import call_bwd, call_fwd
from jaxnn.op import Op
from jaxnn.verify.problem import is_floating, to_float64
from jaxnn.verify.values import by_path

# Along the first axis and the others. Of two devices, the next is also the one before.
MOST, FEWER = 3, 2
# What devices have the same of may differ by so much of its scale.
ROUNDING = 1e-12


class OverDevices(NamedTuple):
    """An op on all devices at once; one without axes, as it is.

    Attributes:
        op: what is run.
        names: of the axes.
        inputs: which inputs differ from device to device, each True, False or a pytree of these.
        output: the same of the result.
    """

    op: Op[..., Any]
    names: tuple[str, ...] = ()
    inputs: tuple[Any, ...] = ()
    output: Any = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many devices there are along each axis."""
        return tuple(FEWER if i else MOST for i in range(len(self.names)))

    def drawn(self, draw: Callable[[int], tuple[Any, ...]], seed: int) -> tuple[Any, ...]:
        """Return what all devices are given, of what one is by seed: another each, or one to all.

        Raises:
            TypeError: there are other inputs than the op says differ.
        """
        first = draw(seed)
        if not self.names:
            return first
        count = int(np.prod(self.sizes))
        draws = [first, *(draw(seed + k) for k in range(1, count))]

        def placed(differs: bool, *leaves: Any) -> Any:
            whole = jnp.stack(leaves) if differs else leaves[0]
            return whole.reshape(*self.sizes, *leaves[0].shape) if differs else whole

        whole: tuple[Any, ...] = jax.tree.map(placed, self._each(self.inputs, first), *draws)
        return whole

    def forward(self, inputs: tuple[Any, ...], static: Mapping[str, Any]) -> Any:
        """Return the result on all devices."""
        return self._on_all(lambda *xs: self._fwd(xs, static)[0], self.inputs, self.output)(*inputs)

    def backward(self, inputs: tuple[Any, ...], dout: Any, static: Mapping[str, Any]) -> Any:
        """Return the cotangents; of one that all devices have, the first device's."""
        if not self.names:
            return self._bwd(inputs, dout, static)
        copies = self._copies(inputs, dout, static)
        differs = self._each(self.inputs, inputs)
        first = (0,) * len(self.names)
        return jax.tree.map(lambda d, x: x if d or x is None else x[first], differs, copies)

    def disagreeing(
        self, inputs: tuple[Any, ...], dout: Any, static: Mapping[str, Any], names: Any
    ) -> tuple[str, ...]:
        """Say of which inputs that all have devices return different cotangents."""
        if not self.names:
            return ()
        with jax.enable_x64(True):
            leaves, tree = jax.tree.flatten((inputs, dout))
            given, douts = jax.tree.unflatten(tree, to_float64(leaves))
            copies = self._copies(given, douts, static)
        found = []
        for name, differs, cotangent in zip(
            names, self._each(self.inputs, inputs), copies, strict=True
        ):
            same = jax.tree.map(lambda d, x: None if d else x, differs, cotangent)
            for path, leaf in by_path(same).items():
                x = np.asarray(leaf).reshape(-1, *leaf.shape[len(self.names) :])
                if is_floating(x) and np.abs(x - x[0]).max() > ROUNDING * np.abs(x).max():
                    found.append(f"{name}{path}")
        along = ", ".join(map(repr, self.names))
        return tuple(
            f"devices along {along} return different cotangents of {name}, which all have the "
            "same of: a sum over them left out?"
            for name in found
        )

    def _fwd(self, inputs: tuple[Any, ...], static: Mapping[str, Any]) -> Any:
        return call_fwd(self.op.name, self.op.fwd, inputs, static)

    def _bwd(self, inputs: tuple[Any, ...], dout: Any, static: Mapping[str, Any]) -> Any:
        _, residuals = self._fwd(inputs, static)
        return call_bwd(self.op.name, self.op.bwd, residuals, dout, static, len(inputs))

    def _copies(self, inputs: tuple[Any, ...], dout: Any, static: Mapping[str, Any]) -> Any:
        """The cotangents of every device."""

        def local(inputs: tuple[Any, ...], dout: Any) -> Any:
            return self._bwd(inputs, dout, static)

        return self._on_all(local, (self.inputs, self.output), True)(inputs, dout)

    def _on_all(self, function: Callable[..., Any], given: Any, returned: Any) -> Any:
        into, out = (jax.tree.map(lambda d: 0 if d else None, t) for t in (given, returned))
        for name, size in zip(reversed(self.names), reversed(self.sizes), strict=True):
            function = jax.vmap(function, into, out, axis_name=name, axis_size=size)
        return function

    def _each(self, prefix: Any, tree: Any) -> Any:
        return jax.tree.broadcast(prefix, tree)


def over_devices(op: Op[..., Any], static: Mapping[str, Any]) -> OverDevices:
    """Return an op to be run on all devices, if a setting `axis` of it names axes of a mesh.

    Raises:
        TypeError: it does, and the op does not say what differs from device to device.
    """
    names = static.get("axis", ())
    if type(names) is not tuple or not names or not all(isinstance(n, str) for n in names):
        return OverDevices(op)
    if op.varies is None:
        raise TypeError(
            f"op {op.name} has the setting axis={names!r} and no `varies`; to be verified over "
            "devices it must say what differs among them: Op(..., varies=((True,), False)) for "
            "one input that does, and a result that does not"
        )
    return OverDevices(op, names, *op.varies)
