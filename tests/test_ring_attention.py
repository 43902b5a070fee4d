"""Ring attention: the result and gradients of one device, and nothing sent but what must be."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnn.ops.ring_attention import ring_attention, ring_order

pytestmark = pytest.mark.usefixtures("x64", "strict_dtypes")


def mesh_of(shape, kind="Auto"):
    """A mesh of these axes and sizes, on as many devices."""
    devices = jax.devices()[: int(np.prod([*shape.values()]))]
    types = (getattr(AxisType, kind),) * len(shape)
    return jax.make_mesh(tuple(shape.values()), tuple(shape), types, devices=devices)


def draw(t, n=2, heads=4, groups=2, size=3, of_value=5, dtype="float64"):
    """q, k, v and dy of whole sequences of t tokens."""
    rng = np.random.default_rng(0)
    shapes = (heads, size), (groups, size), (groups, of_value), (heads, of_value)
    return [rng.normal(size=(n, t, *shape)).astype(dtype) for shape in shapes]


def softmax_attention(q, k, v, causal, scale=None):
    """Attention as it is written with a softmax, of whole sequences."""
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], 2) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    s = scale * jnp.einsum("nthd,nshd->nhts", q, k)
    hidden = ~jnp.tri(q.shape[1], dtype=bool) if causal else False
    return jnp.einsum("nhts,nshe->nthe", jax.nn.softmax(jnp.where(hidden, -jnp.inf, s)), v)


def expected(q, k, v, dy, causal, scale=None):
    """y, dq, dk and dv, by autodiff of that."""
    y, pull = jax.vjp(partial(softmax_attention, causal=causal, scale=scale), q, k, v)
    return y, *pull(dy)


def by_hand(q, k, v, dy, **settings):
    """What each device computes: y, dq, dk and dv of its tokens."""
    y, saved = ring_attention.fwd(q, k, v, **settings)
    return y, *ring_attention.bwd(saved, dy, **settings)


def spread(function, mesh, spec, arrays):
    """The arrays placed on the mesh, and the function as it runs on each device's part of them."""
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x in arrays]
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec)), placed


def in_order(t, p, causal):
    """The order that the tokens are spread out in, and the way back."""
    order = ring_order(t, p) if causal else np.arange(t)
    return order, np.argsort(order)


@pytest.mark.parametrize(
    ("axes", "kind", "axis", "settings"),
    [
        ({"data": 2, "sequence": 4}, "Auto", ("sequence",), {"causal": True}),
        ({"data": 2, "sequence": 4}, "Explicit", ("sequence",), {"scale": 0.7}),
        ({"a": 4, "b": 2}, "Explicit", ("a", "b"), {"causal": True, "scale": 1.3}),
        ({"data": 4, "sequence": 2}, "Auto", ("sequence",), {"causal": True, "block": 3}),
        ({"data": 2, "sequence": 1}, "Auto", ("sequence",), {"causal": True}),
        ({"data": 2}, "Auto", (), {"causal": True}),
    ],
)
def test_the_result_and_gradients_are_one_device_s(axes, kind, axis, settings):
    mesh = mesh_of(axes, kind)
    t, p = 48, int(np.prod([axes[one] for one in axis]))
    order, back = in_order(t, p, settings.get("causal", False))
    arrays = draw(t, n=4)
    spec = P("data" if "data" in axes else None, axis or None)
    run, placed = spread(
        partial(by_hand, axis=axis, **settings), mesh, spec, [x[:, order] for x in arrays]
    )
    found = [np.asarray(x)[:, back] for x in run(*placed)]
    wanted = expected(*arrays, settings.get("causal", False), settings.get("scale"))
    for ours, theirs in zip(found, wanted, strict=True):
        assert_leaves_close(ours, theirs, 1e-13)
