"""The models on eight devices: gradients of one device, and as little sent as can be."""

import jax
import jax.numpy as jnp
import pytest
from conftest import assert_leaves_close, of_two_processes
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnn import data
from jaxnn.ledger import found
from jaxnn.models import cnn, rnn, transformer
from jaxnn.ops.convolution import Conv, conv2d
from jaxnn.ops.cross_entropy import softmax_cross_entropy
from jaxnn.ops.experts import experts
from jaxnn.ops.fast import convolution
from jaxnn.ops.linear import Linear, linear

pytestmark = pytest.mark.usefixtures("x64")
DEVICES = 8


def tokens(t, vocabulary):
    drawn = jax.random.randint(jax.random.key(3), (16, t + 1), 0, vocabulary)
    return data.KeyedBatch(drawn[:, :-1], drawn[:, 1:], None)


def images():
    kx, kt = jax.random.split(jax.random.key(1))
    return data.KeyedBatch(
        jax.random.uniform(kx, (16, 64)), jax.random.randint(kt, (16,), 0, 10), None
    )


SMALL = {"layers": 2, "width": 16, "heads": 4, "vocabulary": 40, "positions": 12}
CASES = {
    "lstm": lambda: (rnn, rnn.Config(vocabulary=20, width=6, hidden=8, layers=2), tokens(5, 20)),
    "gru": lambda: (rnn, rnn.Config(vocabulary=20, width=6, hidden=8, cell="gru"), tokens(5, 20)),
    "cnn": lambda: (cnn, cnn.Config(channels=(4, 6), norm="group", groups=2), images()),
    "gpt": lambda: (transformer, transformer.gpt2(**SMALL), tokens(12, 40)),
    "llama, in blocks and chunks": lambda: (
        transformer,
        transformer.llama(kv_heads=2, block=4, chunk=16, **SMALL),
        tokens(12, 40),
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    model, config, batch = CASES[request.param]()
    return model, config, model.init_params(jax.random.key(0), config), batch


@pytest.fixture
def mesh():
    assert jax.device_count() >= DEVICES, "conftest.py asks for eight devices"
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))


def test_data_parallel_the_gradient_is_one_device_s_and_summed_once(case, mesh, monkeypatch):
    monkeypatch.setattr(convolution, "NUMBERS", 2**11)  # in a loop over each device's examples
    model, config, params, batch = case
    replicated, over = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))

    def by_hand(params, batch):
        return model.manual_value_and_grad(params, batch, config)

    def by_jax(params, batch):
        return jax.value_and_grad(model.loss)(params, batch, config)

    alone = jax.jit(by_hand)(params, batch)
    placed = jax.device_put(params, replicated), jax.device_put(batch, over)
    compiled, theirs = (
        jax.jit(f, out_shardings=replicated).lower(*placed).compile() for f in (by_hand, by_jax)
    )
    assert_leaves_close(compiled(*placed), alone, 1e-9, 1e-12)
    ledger = found(compiled, mesh.shape)
    assert {sent.kind for sent in ledger} == {"all-reduce"}  # no activation goes anywhere
    size = sum(sent.bytes for sent in ledger)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    twice = params.tokens.table.nbytes if model is transformer else 0  # where tied, from both uses
    assert whole <= size <= whole + twice + 200  # the loss, and counts of labels
    assert size <= sum(sent.bytes for sent in found(theirs, mesh.shape))
    memory, of_jax = (c.memory_analysis().temp_size_in_bytes for c in (compiled, theirs))
    copies = 2 * 8 * convolution.NUMBERS if model is cnn else 0  # bytes, of two layers
    assert memory <= 1.02 * of_jax + copies


def test_inside_shard_map_with_checked_types(case, mesh):
    model, config, params, batch = case
    alone = jax.jit(lambda p, b: model.manual_value_and_grad(p, b, config))(params, batch)

    def local(params, batch):
        found = model.manual_value_and_grad(params, batch, config)
        return jax.lax.pmean(found, "data")

    spread = jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    assert_leaves_close(jax.jit(spread)(params, batch), alone, 1e-9, 1e-12)


def test_the_experts_of_a_token_are_chosen_where_it_is(mesh):
    params, _ = experts.example(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (16, 5, params.router.shape[0]))
    placed = (
        jax.device_put(params, NamedSharding(mesh, P())),
        jax.device_put(x, NamedSharding(mesh, P("data"))),
    )

    def both(params, x):
        out, saved = experts.fwd(params, x, k=2)
        return out, experts.bwd(saved, out, k=2)

    compiled = jax.jit(both).lower(*placed).compile()
    assert {sent.kind for sent in found(compiled, mesh.shape)} == {"all-reduce"}
    assert_leaves_close(compiled(*placed), jax.jit(both)(params, x), 1e-9, 1e-12)


def test_an_op_is_differentiated_inside_shard_map(mesh):
    kw, kx = jax.random.split(jax.random.key(0))
    w, x = jax.random.normal(kw, (4, 3)), jax.random.normal(kx, (16, 4))

    def loss(w, x):
        return (linear(Linear(w), x) ** 2).mean()

    def local(w, x):
        return jax.grad(lambda w, x: jax.lax.pmean(loss(w, x), "data"), (0, 1))(w, x)

    specs = (P(), P("data"))
    spread = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=specs))
    plain = jax.grad(lambda w, x: (linear.fwd(Linear(w), x)[0] ** 2).mean(), (0, 1))(w, x)
    assert_leaves_close(spread(w, x), plain, 1e-12)


def of_a_kernel(params, x, dy):
    saved = conv2d.fwd(params, x)[1]
    return conv2d.bwd(saved, dy)[0].w


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(convolution, "NUMBERS", 1)  # one example at a time
    kw, kx, ky = jax.random.split(jax.random.key(0), 3)
    params = Conv(jax.random.normal(kw, (3, 3, 2, 4)), None)
    return params, jax.random.normal(kx, (12, 5, 6, 2)), jax.random.normal(ky, (12, 3, 4, 4))


def test_examples_over_some_of_the_devices_stay_there_while_a_kernel_s_gradient_loops(kernel):
    mesh = jax.make_mesh((4, 2), ("data", "other"), axis_types=(AxisType.Auto,) * 2)
    params, *of_examples = kernel
    placed = jax.device_put(of_examples, NamedSharding(mesh, P("data")))
    compiled = jax.jit(of_a_kernel).lower(params, *placed).compile()
    assert {sent.kind for sent in found(compiled, mesh.shape)} == {"all-reduce"}
    assert_leaves_close(compiled(params, *placed), jax.jit(of_a_kernel)(*kernel), 1e-9, 1e-12)


def test_a_kernel_s_gradient_loops_inside_shard_map_over_some_of_a_mesh_s_axes(kernel):
    mesh = jax.make_mesh((4, 2), ("data", "other"), axis_types=(AxisType.Auto,) * 2)
    spread = jax.shard_map(
        lambda *inputs: jax.lax.psum(of_a_kernel(*inputs), "data"),
        mesh=mesh,
        in_specs=(P(), P("data"), P("data")),
        out_specs=P(),
        axis_names={"data"},
    )
    assert_leaves_close(jax.jit(spread)(*kernel), jax.jit(of_a_kernel)(*kernel), 1e-9, 1e-12)


def test_rows_spread_over_two_axes_keep_their_labels_share_where_they_are():
    mesh = jax.make_mesh((4, 2), ("data", "sequence"), axis_types=(AxisType.Auto,) * 2)
    logits = jax.random.normal(jax.random.key(0), (8, 6, 5))
    labels = jax.random.randint(jax.random.key(1), (8, 6), 0, 5)

    def dz(logits, labels):
        saved = softmax_cross_entropy.fwd(logits, labels)[1]
        return softmax_cross_entropy.bwd(saved, jnp.ones(()))[0]

    placed = jax.device_put((logits, labels), NamedSharding(mesh, P("data", "sequence")))
    compiled = jax.jit(dz).lower(*placed).compile()
    assert not {sent.kind for sent in found(compiled, mesh.shape)} - {"all-reduce"}
    assert_leaves_close(compiled(*placed), jax.jit(dz)(logits, labels), 1e-9, 1e-12)


def test_values_that_another_process_holds_are_not_looked_at():
    losses = [float(out.split()[-1]) for out in of_two_processes("two_processes.py")]
    assert losses[0] == losses[1]
    assert jnp.isfinite(losses[0])
