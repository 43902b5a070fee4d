"""The value and gradient of a model's loss, compiled for a layout on this machine's processor."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding

from jaxnn.mesh import Layout, batch_specs, shardings, value_and_grad


def compiled_step(model: Any, config: Any, layout: Layout, batch: tuple[int, ...]) -> Any:
    """Return the compiled program of `jaxnn.mesh.value_and_grad`, for no array in particular.

    Args:
        model: a module with the model functions.
        config: its configuration, as one device has it.
        layout: of `jaxnn.mesh.lay_out`; its mesh may be an abstract one.
        batch: its sizes: (N, T) of tokens, (N,) of a model without a sequence.

    Raises:
        ValueError: this process has fewer virtual devices, and can have no more.
    """
    devices = processors(layout.mesh.size)
    mesh = jax.make_mesh(
        layout.mesh.axis_sizes,
        layout.mesh.axis_names,
        axis_types=(AxisType.Auto,) * len(layout.mesh.axis_names),
        devices=devices,
    )
    layout = layout._replace(mesh=mesh)
    params = jax.tree.map(_placed, layout.shapes, shardings(layout))
    example = jax.eval_shape(lambda: model.example_batch(jax.random.key(0), config))
    of_batch = jax.tree.map(lambda leaf: _sized(leaf, batch), example)
    specs = batch_specs(layout, of_batch)
    of_batch = jax.tree.map(
        lambda leaf, spec: _placed(leaf, NamedSharding(mesh, spec)), of_batch, specs
    )
    return jax.jit(value_and_grad(model, layout)).lower(params, of_batch).compile()


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """An array's shape there; of a layout that was made with 64 bits, without them in 32."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    dtype = leaf.dtype if is_key else jax.dtypes.canonicalize_dtype(leaf.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)


def _sized(leaf: Any, batch: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """An example's array with the batch's sizes; a key is for all of it."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct((*batch, *leaf.shape[len(batch) :])[: leaf.ndim], leaf.dtype)


def processors(number: int) -> list[jax.Device]:
    """Return so many virtual devices of the processor, made if JAX has computed nothing yet.

    Raises:
        ValueError: it has, and has fewer.
    """
    with contextlib.suppress(RuntimeError):  # JAX has begun, with as many as it was told
        jax.config.update("jax_num_cpu_devices", number)
    devices = jax.devices("cpu")
    if len(devices) < number:
        raise ValueError(
            f"the mesh has {number} devices and this process {len(devices)} of the processor's; it "
            "must have as many before JAX computes anything: set JAX_NUM_CPU_DEVICES, or compile "
            "nothing (--paper)"
        )
    return devices[:number]
