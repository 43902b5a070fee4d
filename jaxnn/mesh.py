"""Models on a mesh of devices: rules say what is spread along which of its axes.

    mesh = jax.make_mesh((2, 4), ("data", "model"))
    rules = {"batch": "data", "embed": "data", "heads": "model", "hidden": "model"}
    layout = lay_out(model, config, mesh, rules)
    params = jax.device_put(params, shardings(layout))
    loss, grads = jax.jit(value_and_grad(model, layout))(params, place(layout, batch))

A rule leads from a logical axis to axes of the mesh. The logical axes of a model's parameters are
in its `AXES`, those of its batches in its `BATCH_AXES`:

    batch       data parallel: each device has examples of its own; gradients are summed once
    embed       parameters are cut too, along axes that examples or tokens are spread over, and put
                together where they are used (fully sharded data parallel)
    heads, hidden, vocab, experts
                tensor parallel: each device has some heads, units, experts, or words
    sequence    each device has some tokens of every example, and attention goes round a ring

The gradient is the model's own, by hand, inside `jax.shard_map`, whose types know which values are
the same on all devices: a sum over devices that is left out is refused.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnn.calls import path_name
from jaxnn.checks import check_array, parameter_shapes
from jaxnn.op import door
from jaxnn.ops.collectives import ONE_DEVICE, Axes, Axis, all_mean
from jaxnn.ops.ring_attention import ring_order
from jaxnn.ops.sharded import STACKED, logical_axes, whole_bwd, whole_fwd
from jaxnn.rules import Rules as Rules
from jaxnn.rules import axes_by_rules
from jaxnn.varying import cotangent_of


class Layout(NamedTuple):
    """Where the parts of a model are on a mesh.

    Attributes:
        mesh: the mesh; its axes are automatic.
        axes: over which axes of the mesh each logical axis is spread.
        shapes: of each parameter, whole, with its dtype.
        names: its logical axes.
        specs: the axes of the mesh that each parameter is spread over.
        batch: the axes of the mesh that the first dimensions of a batch are spread over.
        config: the model's configuration, as one device has it.
    """

    mesh: Mesh | AbstractMesh
    axes: Axes
    shapes: Any
    names: Any
    specs: Any
    batch: P
    config: Any

    @property
    def tokens(self) -> Axis:
        """The axes of the mesh along which devices have examples, or tokens, of their own."""
        return self.axes.batch + self.axes.sequence

    def devices(self, axis: Axis | str | None) -> int:
        """How many devices there are along axes of the mesh."""
        return math.prod(self.mesh.shape[one] for one in _along(axis))


def lay_out(
    model: Any, config: Any, mesh: Mesh | AbstractMesh, rules: Rules | None = None
) -> Layout:
    """Return where the parts of a model are on a mesh, checked.

    Args:
        model: a module with the model functions.
        config: its configuration.
        mesh: of `jax.make_mesh`; or an abstract one, without devices, for `jaxnn.ledger`.
        rules: from logical axes to names of axes of the mesh; None for those that its axes' names
            usually have: data, fsdp, model, sequence.

    Raises:
        TypeError: the mesh is none, the model has no AXES, or a rule is none.
        ValueError: the model's AXES have one that there is not; a rule is for an axis that the
            model has not, or leads to one that the mesh has not; an axis of the mesh has no rule,
            or one for examples or tokens and another for what devices share that have the same;
            "embed" leads to an axis that neither examples nor tokens are spread over; other rules
            than for these three are of a model whose configuration has no axes; a parameter is
            spread along one axis twice; or a size is not divided by the number of devices that it
            is spread over.
    """
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise TypeError(
            f"mesh is a {type(mesh).__name__}; it must be a jax.sharding.Mesh: make one with "
            "jax.make_mesh"
        )
    if not isinstance(getattr(model, "AXES", None), Mapping):
        raise TypeError(
            f"model {getattr(model, '__name__', model)!s:.50} has no AXES; on a mesh the axes of "
            "its parameters must have names, in a dict: add them, as jaxnn.models.mlp does"
        )
    for field, named in model.AXES.items():
        if not isinstance(named, P | tuple) or not {None, *Axes._fields}.issuperset(named):
            raise ValueError(
                f"AXES[{field!r}] of the model is {named!r:.80}; it must be a PartitionSpec that "
                f"has, for each of its axes, None or one of {', '.join(Axes._fields)}: name those"
            )
    shapes = parameter_shapes(model.init_params, config)
    names = logical_axes(shapes, model.AXES)
    of_batch = getattr(model, "BATCH_AXES", P("batch"))
    known = {name for names in (of_batch, *jax.tree.leaves(names)) for name in names}
    axes = axes_by_rules(mesh, rules, [name for name in Axes._fields if name in known])
    automatic = {"axis_types": (AxisType.Auto,) * len(mesh.axis_names)}
    layout = Layout(
        AbstractMesh(mesh.axis_sizes, mesh.axis_names, **automatic)
        if isinstance(mesh, AbstractMesh)
        else Mesh(mesh.devices, mesh.axis_names, **automatic),
        axes,
        shapes,
        names,
        jax.tree.map(lambda names: _spec(axes, names), names),
        _spec(axes, of_batch),
        dataclasses.replace(config, axes=axes) if hasattr(config, "axes") else config,
    )
    _check_sizes(layout, config)
    unknown = [n for n, axis in axes._asdict().items() if axis and n not in ("batch", "embed")]
    if unknown and not hasattr(config, "axes"):
        raise ValueError(
            f"rules have {unknown[0]!r}, and the model's configuration has no axes, from which its "
            "backward pass would know what to sum over devices: give it such a field, as "
            "jaxnn.models.transformer.Config has, or leave that rule out"
        )
    return layout


def shardings(layout: Layout) -> Any:
    """Return where each parameter is, as `jax.device_put` takes it."""
    return jax.tree.map(lambda spec: NamedSharding(layout.mesh, spec), layout.specs)


def optimizer_shardings(layout: Layout, opt_state: Any) -> Any:
    """Return where each array of an optimizer's state is: moments are where their parameter is.

    A moment has the shape of its parameter, and its path ends as that of the parameter does. All
    else is on all devices.
    """
    shapes = jax.tree_util.tree_leaves_with_path(layout.shapes)
    pairs = zip(shapes, jax.tree.leaves(layout.specs), strict=True)
    specs = {(path, leaf.shape): spec for (path, leaf), spec in pairs}

    def placed(path: Any, leaf: Any) -> NamedSharding:
        ends = ((path[start:], leaf.shape) for start in range(len(path) + 1))
        spec = next((specs[end] for end in ends if end in specs), P())
        return NamedSharding(layout.mesh, spec)

    return jax.tree_util.tree_map_with_path(placed, opt_state)


def place(layout: Layout, batch: Any) -> Any:
    """Spread a batch over the devices; tokens in the order that attention round a ring wants.

    Args:
        layout: of `lay_out`.
        batch: the model's, its tokens in the order of the text; a key in it goes to all devices.
            Of several processes each gives the whole one.

    Raises:
        ValueError: the devices do not divide the examples, or the tokens; or the processes have
            other ones.
    """
    check_batch(layout, batch)
    return jax.tree.map(put, in_order(layout, batch), batch_shardings(layout, batch))


def put(examples: Any, where: Any) -> Any:
    """Return examples as `jax.device_put` lays them out, which compares those of all processes.

    Raises:
        ValueError: they are not the same.
    """
    if isinstance(examples, Array) and jnp.issubdtype(examples.dtype, jax.dtypes.prng_key):
        numbers = put(jax.random.key_data(examples), where)  # keys go to no other process
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(examples))
    try:
        return jax.device_put(examples, where)
    except AssertionError:  # with every number of an array in its message
        raise ValueError(
            "the processes have other examples than each other; each must give all of them, the "
            "same: or make global arrays of what each has, as loaders.windows with layout= and "
            "jax.make_array_from_process_local_data do"
        ) from None


def in_order(layout: Layout, batch: Any, back: bool = False) -> Any:
    """Return a batch whose tokens are in the order that attention round a ring wants.

    Args:
        layout: of `lay_out`.
        batch: the model's, whole.
        back: whether they are in that order, and are to be in the order of the text.
    """
    ring = layout.devices(layout.axes.sequence)

    def ordered(leaf: Any, spec: P) -> Any:
        if ring == 1 or len(spec) < 2:
            return leaf
        order = ring_order(leaf.shape[1], ring)
        return leaf[:, order.argsort() if back else order]

    return jax.tree.map(ordered, batch, batch_specs(layout, batch))


def check_batch(layout: Layout, batch: Any) -> None:
    """Refuse a batch that the devices do not divide; its shapes will do.

    Raises:
        ValueError: they do not divide the examples, or the tokens of one.
    """
    ring = layout.devices(layout.axes.sequence)

    def check(leaf: Any, spec: P) -> None:
        for size, axis in zip(jnp.shape(leaf), spec, strict=False):
            _check_divides(layout, f"a batch's array of shape {leaf.shape} has {size}", size, axis)
        if ring > 1 and len(spec) > 1:
            ring_order(leaf.shape[1], ring)

    jax.tree.map(check, batch, batch_specs(layout, batch))


def batch_specs(layout: Layout, batch: Any) -> Any:
    """Return the axes of the mesh that each array of a batch is spread over; of a key none.

    Raises:
        TypeError: a part of it is neither an array nor a number.
    """

    def spec(path: Any, leaf: Any) -> P:
        if isinstance(leaf, int | float | complex):
            return P()
        check_array("a batch's part", leaf)
        return P() if _is_key(path, leaf) else P(*layout.batch[: leaf.ndim])

    return jax.tree_util.tree_map_with_path(spec, batch)


def batch_shardings(layout: Layout, batch: Any) -> Any:
    """Return where each array of a batch is."""
    return jax.tree.map(lambda spec: NamedSharding(layout.mesh, spec), batch_specs(layout, batch))


def entered(layout: Layout | None) -> AbstractContextManager[Any]:
    """Enter the layout's mesh where `jax.set_mesh` has set one with explicit axes.

    There JAX would want every array to be of that one.
    """
    explicit = jax.sharding.get_abstract_mesh().explicit_axes
    mesh = layout.mesh if layout and explicit else None
    return jax.set_mesh(mesh) if isinstance(mesh, Mesh) else nullcontext()


def value_and_grad(model: Any, layout: Layout) -> Callable[[Any, Any], tuple[Array, Any]]:
    """Return `f(params, batch) -> (loss, gradient)` by hand, on a mesh, of a batch of `place`.

    The loss is the mean over all examples, the same on all devices; the gradient is spread as the
    parameters are. The model's `manual_value_and_grad` is called on each device with the examples
    that it has, and returns their own mean loss and its gradient; the mean over devices is taken
    here. A key in the batch is made each device's own that has examples or tokens of its own: what
    is dropped is other than on one device. What the model refuses is refused.

    Raises:
        TypeError: from that function, the gradient has another structure than the parameters.
    """
    tokens, embed = layout.tokens, layout.axes.embed
    names = layout.names
    if hasattr(layout.config, "axes"):  # it puts together what is stacked, layer by layer
        names = jax.tree.map(lambda names: P() if names[:1] == STACKED[:1] else names, names)

    def own_key(path: Any, leaf: Any) -> Any:
        return jax.random.fold_in(leaf, lax.axis_index(tokens)) if _is_key(path, leaf) else leaf

    @door()
    def of_device(params: Any, batch: Any) -> tuple[Array, Any]:
        batch = jax.tree_util.tree_map_with_path(own_key, batch) if tokens else batch
        whole = whole_fwd(params, names, axis=embed)
        value, dwhole = model.manual_value_and_grad(whole, batch, layout.config)
        given, wanted = (str(jax.tree.structure(tree)) for tree in (dwhole, whole))
        if given != wanted:
            raise TypeError(
                f"manual_value_and_grad returned a gradient {given:.200}; it must have the "
                f"structure of the parameters, {wanted:.200}: return one like them"
            )
        loss, _ = all_mean.fwd(value, axis=tokens)
        grads = whole_bwd(dwhole, names, axis=embed)
        # Devices that share a parameter each found a part of its gradient, of their own loss.
        grads = jax.tree.map(lambda p, d: cotangent_of(jax.typeof(p), d), params, grads)
        return loss, jax.tree.map(lambda d: all_mean.bwd((), d, axis=tokens)[0], grads)

    config = layout.config
    config = dataclasses.replace(config, axes=ONE_DEVICE) if hasattr(config, "axes") else config
    check = getattr(getattr(model, "loss_fwd", model.manual_value_and_grad), "check", None)

    def spread(params: Any, batch: Any) -> tuple[Array, Any]:
        if check is not None:
            check(params, batch, config)  # whole, as on one device: parts of them would not pass
        of_mesh = jax.shard_map(
            of_device,
            mesh=layout.mesh,
            in_specs=(layout.specs, batch_specs(layout, batch)),
            out_specs=(P(), layout.specs),
        )
        found: tuple[Array, Any] = of_mesh(params, batch)
        return found

    return spread


def _is_key(path: Any, leaf: Any) -> bool:
    """Whether this part of a batch is a key: those of `jax.random.PRNGKey` are known by name."""
    named = bool(path) and getattr(path[-1], "name", "") == "key"
    return named or bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _spec(axes: Axes, names: P) -> P:
    """The axes of the mesh that an array with these logical axes is spread over."""
    return P(*(getattr(axes, name or "", ()) or None for name in names))


def _check_sizes(layout: Layout, config: Any) -> None:
    """Refuse sizes that are not divided by the numbers of devices they are spread over."""
    for name, logical in {"heads": "heads", "kv_heads": "heads", "experts": "experts"}.items():
        size = getattr(config, name, None) or 0
        _check_divides(layout, f"{name} is {size}", size, getattr(layout.axes, logical))

    def check(path: Any, leaf: Any, spec: P) -> None:
        used = [one for axis in spec for one in _along(axis)]
        twice = [one for one in used if used.count(one) > 1]
        name = f"parameter {path_name(path)} of shape {leaf.shape}"
        if twice:
            raise ValueError(
                f"{name} would be spread along {twice[0]!r} twice; it must be once: lead one of "
                "the rules to another axis"
            )
        for size, axis in zip(leaf.shape, spec, strict=True):
            _check_divides(layout, f"{name} has {size}", size, axis)

    jax.tree_util.tree_map_with_path(check, layout.shapes, layout.specs)


def _along(axis: Axis | str | None) -> Axis:
    """The axes of the mesh that a dimension is spread over: JAX makes one of a tuple of one."""
    return (axis,) if isinstance(axis, str) else axis or ()


def _check_divides(layout: Layout, what: str, size: int, axis: Axis | str | None) -> None:
    devices = layout.devices(axis)
    if size % devices:
        raise ValueError(
            f"{what} for {devices} devices along {', '.join(_along(axis))}; they must divide it: "
            "change the size, the mesh or the rules"
        )
