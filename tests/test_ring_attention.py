"""Ring attention: the result and gradients of one device, and nothing sent but what must be."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnn.ledger import found
from jaxnn.models import transformer
from jaxnn.ops.attention import attention
from jaxnn.ops.collectives import Axes
from jaxnn.ops.ring_attention import ring_attention, ring_order, ring_positions

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


def test_a_single_token_on_one_device_sees_itself():
    q, k, v, _ = (jnp.asarray(x) for x in draw(1))
    y = ring_attention(q, k, v, axis=(), causal=True)
    assert y.tolist() == jnp.repeat(v, 2, 2).tolist()


def test_two_layers_in_a_scan_are_differentiated_by_the_rule():
    mesh, (order, back) = mesh_of({"sequence": 4}), in_order(16, 4, True)
    x, _, _, dy = draw(16, n=1, heads=2, size=3, of_value=3)

    def layers(attend, x, dy, total=lambda loss: loss):
        def layer(h, _):
            return attend(h, 0.9 * h[:, :, :1], jnp.sin(h[:, :, :1])), None

        return jax.grad(lambda x: total((lax.scan(layer, x, length=2)[0] * dy).sum()))(x)

    ring = partial(ring_attention, axis=("sequence",), causal=True)
    local = partial(layers, ring, total=lambda loss: lax.psum(loss, "sequence"))
    run, placed = spread(local, mesh, P(None, "sequence"), [x[:, order], dy[:, order]])
    wanted = layers(partial(softmax_attention, causal=True), x, dy)
    assert_leaves_close(np.asarray(run(*placed))[:, back], wanted, 1e-13)


@pytest.mark.parametrize("causal", [False, True])
def test_16_bits_are_as_exact_as_a_peer_s(causal):
    arrays, (order, back) = draw(64, dtype="float32", of_value=3), in_order(64, 4, causal)
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    wanted = expected(*(x.astype("float64") for x in arrays), causal)
    local = partial(by_hand, axis=("sequence",), causal=causal)
    run, placed = spread(
        local, mesh_of({"sequence": 4}), P(None, "sequence"), [x[:, order] for x in arrays]
    )
    q, k, v, dy = arrays
    with jax.numpy_dtype_promotion("standard"):
        y, pull = jax.vjp(partial(jax.nn.dot_product_attention, is_causal=causal), q, k, v)
        of_peer = y, *pull(dy)
    for ours, theirs, exact in zip(run(*placed), of_peer, wanted, strict=True):
        assert ours.dtype == jnp.bfloat16
        off, by = (np.abs(np.asarray(x, float) - exact).max() for x in (ours[:, back], theirs))
        assert off <= 3 * by


def test_only_keys_values_and_their_gradients_are_sent_and_hidden_scores_are_not_computed():
    t, p = 512, 8
    arrays = draw(t, n=1, heads=2, groups=1, size=16, of_value=8)
    _, k, v, _ = arrays
    alone = jax.jit(lambda *a: attention.bwd(attention.fwd(*a[:3])[1], a[3])[:3])
    of_one = alone.lower(*arrays).compile().memory_analysis().temp_size_in_bytes
    flops = {}
    for causal in (False, True):
        local = partial(by_hand, axis=("sequence",), causal=causal)
        run, placed = spread(local, mesh_of({"sequence": p}), P(None, "sequence"), arrays)
        compiled = run.lower(*placed).compile()
        ledger = found(compiled, {"sequence": p})
        # Forward k and v; backward these again, and dk and dv: each p - 1 times.
        assert {sent.kind for sent in ledger} == {"collective-permute"}
        assert sum(sent.times for sent in ledger) == 6 * (p - 1)
        assert sum(sent.bytes for sent in ledger) == 3 * (p - 1) * (k.nbytes + v.nbytes) // p
        assert compiled.memory_analysis().temp_size_in_bytes < of_one / p
        flops[causal] = compiled.cost_analysis()["flops"]
    # The program has the first turn, of T^2 scores in both, and a loop over the others, counted
    # once: of these T^2 without causal, and half as many with it.
    assert 0.7 < flops[True] / flops[False] < 0.77


@pytest.mark.parametrize("p", [1, 2, 4])
def test_zigzag_order_gives_each_device_an_early_and_a_late_chunk(p):
    t = 24
    order, chunk = ring_order(t, p), t // (2 * p)
    for i, own in enumerate(order.reshape(p, -1)):
        late = (2 * p - 1 - i) * chunk
        early = i * chunk
        assert own.tolist() == [*range(early, early + chunk), *range(late, late + chunk)]
    mesh = mesh_of({"sequence": p})
    for causal, places in ((True, order), (False, np.arange(t))):
        local = partial(ring_positions, t // p, axis=("sequence",), causal=causal)
        run = jax.shard_map(local, mesh=mesh, in_specs=(), out_specs=P("sequence"))
        assert jax.jit(run)().tolist() == places.tolist()


X = np.zeros((2, 3, 4, 5), "float32")


@pytest.mark.parametrize(
    ("arrays", "settings", "error", "message"),
    [
        ((X, X, X), {"axis": "sequence"}, TypeError, "axis is 'sequence'; it must be a tuple"),
        ((X, X, X), {"axis": ("rows",)}, ValueError, "no axis 'rows' here"),
        ((X, X[:, :2], X[:, :2]), {"axis": ()}, ValueError, "as many queries as keys"),
        ((X, X[:, :, :3], X[:, :, :3]), {"axis": ()}, ValueError, "the second must divide"),
        ((X, X, X), {"axis": ("sequence",), "causal": True}, ValueError, "3 tokens.*pad the"),
        ((X, X, X), {"axis": (), "causal": 1}, TypeError, "causal is 1; it must be True or"),
        ((X, X, X), {"axis": (), "scale": "big"}, TypeError, "scale is 'big'"),
        ((X, X, X.astype("float64")), {"axis": ()}, TypeError, "must be one: cast"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(arrays, settings, error, message):
    def local():
        return ring_attention(*map(jnp.asarray, arrays), **settings)

    spec = P(None, "sequence")
    run = jax.shard_map(local, mesh=mesh_of({"sequence": 2}), in_specs=(), out_specs=spec)
    with pytest.raises(error, match=message):
        jax.eval_shape(run)


def test_orders_and_positions_that_do_not_divide_are_refused_in_words():
    with pytest.raises(ValueError, match="t is 20 for 4 devices; it must be divisible by 8"):
        ring_order(20, 4)
    with pytest.raises(TypeError, match=r"devices is 2\.5"):
        ring_order(20, 2.5)
    with pytest.raises(ValueError, match="no axis 'sequence' here"):
        ring_positions(4, axis=("sequence",), causal=True)
    with pytest.raises(TypeError, match="causal is None"):
        ring_positions(4, axis=(), causal=None)
    assert ring_positions(3, axis=(), causal=True).tolist() == [0, 1, 2]


def test_a_model_with_a_window_is_refused_where_tokens_are_spread():
    with pytest.raises(ValueError, match="window is 3 with tokens spread along seq; it must be"):
        transformer.llama(window=3, axes=Axes(sequence=("seq",)))
