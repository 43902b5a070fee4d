"""What a mesh's devices send: on paper as in the compiled programs, for every model and layout."""

import dataclasses
import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import mesh_cases
import optax
import pytest
from conftest import assert_leaves_close
from jax import lax
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from jaxnn.ledger import Sent, __main__, differences, found, predicted
from jaxnn.ledger.machines import MACHINES, Nodes, Torus, seconds
from jaxnn.ledger.memory import layer_residuals, memory
from jaxnn.ledger.program import compiled_step
from jaxnn.ledger.scaling import PLANS, Job, Plan, flops, reach, scaling
from jaxnn.ledger.sent import Group, Total, totals
from jaxnn.mesh import lay_out
from jaxnn.models import mlp, transformer
from jaxnn.train import steps

SIZES = {"data": 2, "model": 4}
BY_NAME = {plan.name: plan for plan in PLANS}


def sizes_of(case):
    """The sizes of a case's batch that the paper needs."""
    return case.batch[0].shape[: 2 if hasattr(case.config, "vocabulary") else 1]


OPTIMIZER = optax.sgd(0.3, momentum=0.9)


@jax.jit
def updated(params, opt_state, grads):
    updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def three_steps(gradient, params):
    """The loss and gradient at the start, and the parameters after three steps."""
    opt_state, first = OPTIMIZER.init(params), gradient(params)
    found = first
    for _ in range(3):
        params, opt_state = updated(params, opt_state, found[1])
        found = gradient(params)
    return first, params


@functools.cache
def on_one_device(name):
    """What `three_steps` returns on one device, by autodiff, of the model of this case."""
    case = mesh_cases.CASES[name]
    gradient = jax.jit(
        jax.value_and_grad(lambda params: case.model.loss(params, case.batch, case.config))
    )
    return three_steps(gradient, case.params())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", mesh_cases.CASES)
def test_on_a_mesh_gradients_are_one_device_s_and_what_is_sent_is_what_the_paper_says(name):
    case, compiled = mesh_cases.CASES[name], mesh_cases.compiled(name)
    alike = next(n for n, c in mesh_cases.CASES.items() if c[:2] == case[:2])
    ours = three_steps(lambda params: compiled.program(params, compiled.batch), compiled.params)
    # Biases of keys have a gradient of 0: all keys alike, a softmax does not change.
    assert_leaves_close(ours, on_one_device(alike), 1e-9, 1e-12)
    paper = predicted(compiled.layout, sizes_of(case), dtype="f64")
    assert not differences(paper, found(compiled.program, case.mesh))
    held, analysis = memory(compiled.layout, sizes_of(case), dtype="f64"), compiled.program
    analysis = analysis.memory_analysis()
    on_one = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(compiled.batch[:2])]
    paths = jax.tree.leaves_with_path(compiled.params)
    unused = sum(leaf.nbytes for path, leaf in paths if "running" in jax.tree_util.keystr(path))
    leaves = 1 + len(jax.tree.leaves(compiled.params))
    # Beside the loss, where each of the results is; what training does not use is not handed in.
    assert analysis.output_size_in_bytes == held.gradients + 8 + 8 * leaves
    assert analysis.argument_size_in_bytes == held.parameters - unused + sum(on_one)


@pytest.fixture(scope="module")
def all_kinds():
    """A program with every kind of collective, one of them in a loop of three turns."""
    mesh = jax.make_mesh((2, 4), tuple(SIZES), axis_types=(AxisType.Auto,) * 2)

    def local(x, w):
        def step(x, w):
            x = lax.pcast(lax.psum(x @ w, "model"), ("model",), to="varying")
            return x, lax.psum(x.sum(), ("data", "model"))

        x, sums = lax.scan(step, x, w)
        whole = lax.all_gather(x, "data", axis=0, tiled=True)
        part = lax.psum_scatter(whole, "model", scatter_dimension=1, tiled=True)
        shifted = lax.ppermute(x, "model", [(i, (i + 1) % 4) for i in range(4)])
        turned = lax.all_to_all(x, "model", 1, 0, tiled=True)
        return shifted + turned.sum() + lax.psum(part, "data").sum(), sums

    spread = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P("data", "model"), P(None, "model")),
        out_specs=(P("data", "model"), P()),
    )
    shapes = ((8, 16), jnp.float32), ((3, 16, 4), jnp.float32)
    return jax.jit(spread).lower(*(jax.ShapeDtypeStruct(*s) for s in shapes)).compile()


def test_every_kind_is_found_with_its_axes_bytes_and_turns(all_kinds):
    assert totals(found(all_kinds, SIZES)) == {
        Group("all-reduce", ("data", "model"), True): Total(3, 12),
        Group("all-reduce", ("model",), True): Total(3, 3 * 4 * 4 * 4),
        Group("all-reduce", ("data",), False): Total(1, 4 * 8),
        Group("all-gather", ("data",), False): Total(1, 4 * 8 * 4),
        Group("reduce-scatter", ("model",), False): Total(1, 4 * 8 * 4),
        Group("collective-permute", ("model",), False): Total(1, 4 * 4 * 4),
        Group("all-to-all", ("model",), False): Total(1, 4 * 4 * 4),
    }
    assert all("test_ledger.py:" in sent.why for sent in found(all_kinds, SIZES))


HEAD = "ENTRY %main (p: f32[]) -> f32[] {\n  "
LINES = {
    "of the last axis": (
        "%a = f32[6]{0} all-reduce(%p), replica_groups=[2,4]<=[8]",
        Sent("all-reduce", ("model",), 4, "f32", (6,), 1, False, ""),
    ),
    "of the first, counted across": (
        "%a = bf16[6]{0} all-reduce(%p), replica_groups=[4,2]<=[2,4]T(1,0)",
        Sent("all-reduce", ("data",), 2, "bf16", (6,), 1, False, ""),
    ),
    "of all": (
        "%a = f32[] all-reduce(%p), replica_groups={}",
        Sent("all-reduce", ("data", "model"), 8, "f32", (), 1, False, ""),
    ),
    "by name": (
        "%a = f32[6,2]{1,0} all-gather(%p), replica_groups=mesh['data'=2,'model'=4] {'model'}",
        Sent("all-gather", ("model",), 4, "f32", (6, 2), 1, False, ""),
    ),
    "by XLA's names": (
        "%a = f32[6,2]{1,0} all-gather(%p), replica_groups=mesh['axis_0'=8] {'axis_0'}",
        Sent("all-gather", ("data", "model"), 8, "f32", (6, 2), 1, False, ""),
    ),
    "by a part of its axis": (
        "%a = f32[6,2]{1,0} all-gather(%p), replica_groups=mesh['axis_0'=8] {'axis_0':(1)2}",
        Sent("all-gather", ("data",), 2, "f32", (6, 2), 1, False, ""),
    ),
    "by another": (
        "%a = f32[6,2]{1,0} all-gather(%p), replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}",
        Sent("all-gather", ("model",), 4, "f32", (6, 2), 1, False, ""),
    ),
    "in an order of its own": (
        "%a = f32[6,2]{1,0} all-gather(%p), "
        "replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_1'}",
        Sent("all-gather", ("data",), 2, "f32", (6, 2), 1, False, ""),
    ),
    "a part of an axis": (
        "%a = f32[6]{0} all-gather(%p), replica_groups={{0,1},{2,3},{4,5},{6,7}}",
        Sent("all-gather", (), 2, "f32", (6,), 1, False, ""),
    ),
    "begun without waiting": (
        "%a = (f32[2]{0}, f32[8]{0}) all-gather-start(%p), replica_groups={{0,1,2,3},{4,5,6,7}}",
        Sent("all-gather", ("model",), 4, "f32", (8,), 1, False, ""),
    ),
    "sent on without waiting": (
        "%a = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(%p), "
        "source_target_pairs={{0,4},{4,0}}",
        Sent("collective-permute", ("data",), 2, "f32", (2,), 1, False, ""),
    ),
    "a part of a sum": (
        "%a = f32[2,3]{1,0} reduce-scatter(%p), replica_groups={{0,4},{1,5},{2,6},{3,7}}",
        Sent("reduce-scatter", ("data",), 2, "f32", (2, 2, 3), 1, False, ""),
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_groups_of_devices_are_read_in_all_ways_of_writing(name):
    line, expected = LINES[name]
    text = f"{HEAD}{line}\n}}\n"
    assert found(SimpleNamespace(as_text=lambda: text), SIZES) == [expected]


def test_arrays_sent_together_are_a_line_each_and_those_of_a_loop_as_often_as_it_turns():
    turn = "%a = (f32[6]{0}, f32[]) all-reduce(%p, %q), replica_groups=[2,4]<=[8]"
    again = '"known_trip_count":{"n":"5"}'
    text = f"%turn (p: f32[]) -> f32[] {{\n  {turn}\n}}\n\n{HEAD}%w = f32[] while(%p), body=%turn, "
    program = SimpleNamespace(as_text=lambda: f"{text}{again}\n}}\n")
    assert [(s.shape, s.times, s.in_loop) for s in found(program, SIZES)] == [
        ((6,), 5, True),
        ((), 5, True),
    ]
    odd = HEAD + "%a = f4[6]{0} all-reduce(%p), replica_groups={}\n}\n"
    with pytest.raises(ValueError, match="of a dtype that the ledger has no size of"):
        found(SimpleNamespace(as_text=lambda: odd), SIZES)
    odd = HEAD + "%a = f32[6]{0} all-reduce(%p), replica_groups=@others\n}\n"
    with pytest.raises(ValueError, match="names its devices in a way that is not known"):
        found(SimpleNamespace(as_text=lambda: odd), SIZES)
    unknown = SimpleNamespace(as_text=lambda: f"{text}\n}}\n")
    with pytest.raises(ValueError, match="no number of turns"):
        found(unknown, SIZES)


PLANTED = {
    "a sum too many": (lambda x: lax.psum(lax.psum(x, "data") / 8 + x, "data"), "predicted 1 of"),
    "a gather too many": (
        lambda x: lax.psum(lax.all_gather(x, "data").sum(0) + x, "data"),
        "all-gather over data, outside loops: predicted 0 of 0 bytes, found 1 of 256",
    ),
    "a sum left out": (lambda x: x, "predicted 1 of 32 bytes, found 0 of 0"),
    "twice as wide": (lambda x: lax.psum(x.repeat(2), "data")[::2], "32 bytes, found 1 of 64"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_difference_is_named(name):
    local, said = PLANTED[name]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P(), check_vma=False)
    program = jax.jit(spread).lower(jax.ShapeDtypeStruct((64,), jnp.float32)).compile()
    paper = [Sent("all-reduce", ("data",), 8, "f32", (8,), 1, False, "the sum")]
    assert any(said in sentence for sentence in differences(paper, found(program, {"data": 8})))


@pytest.mark.parametrize("name", ["gpt tensor, vocabulary", "llama ring", "mixture experts"])
def test_what_a_layer_saves_is_what_three_more_of_them_take(name, x64):
    case, compiled = mesh_cases.CASES[name], mesh_cases.compiled(name)
    config = dataclasses.replace(case.config, layers=case.config.layers + 3)
    deeper = lay_out(transformer, config, compiled.layout.mesh, case.rules)
    program = compiled_step(transformer, config, deeper, sizes_of(case))
    few, many = (p.memory_analysis().temp_size_in_bytes for p in (compiled.program, program))
    tokens = math.prod(compiled.batch[0].addressable_shards[0].data.shape)
    # The fewer layers, the more of what a program holds at most it holds elsewhere.
    assert many - few == pytest.approx(3 * layer_residuals(deeper, tokens, 8), rel=0.03)


MORE = {
    "one layer, computed again": (
        dataclasses.replace(mesh_cases.LLAMA, layers=1, recompute=True),
        ({"data": 2, "model": 2}, mesh_cases.FSDP | mesh_cases.TENSOR),
    ),
    "one layer round a ring of two": (
        dataclasses.replace(mesh_cases.LLAMA, layers=1),
        ({"sequence": 2}, {"sequence": "sequence", "embed": "sequence"}),
    ),
    "experts in parts": (
        mesh_cases.MIXTURE,
        ({"model": 2, "part": 2}, {"experts": "model", "hidden": "part"}),
    ),
}


@pytest.mark.parametrize("name", MORE)
def test_what_xla_leaves_out_is_not_on_the_paper(name):
    config, (sizes, rules) = MORE[name]
    layout = lay_out(transformer, config, AbstractMesh(tuple(sizes.values()), tuple(sizes)), rules)
    program = compiled_step(transformer, config, layout, (4, 8))
    assert not differences(predicted(layout, (4, 8)), found(program, sizes))


@pytest.mark.parametrize("name", ["mlp fsdp", "llama cube"])
def test_an_optimizer_s_step_sends_no_more_and_its_state_is_where_the_parameters_are(name, x64):
    case, layout = mesh_cases.CASES[name], mesh_cases.compiled(name).layout
    optimizer = optax.adamw(1e-3)
    state = steps.init_state(
        case.model, case.config, optimizer, jax.random.key(0), mesh=layout.mesh, rules=case.rules
    )
    held = memory(layout, sizes_of(case), dtype="f64")
    moments = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state.opt_state)]
    assert sum(moments) == held.optimizer + 4  # the number of the step
    step = steps.one_step(case.model, case.config, optimizer, "manual", None, layout)
    placed = steps.state_shardings(layout, optimizer)
    batch = mesh_cases.compiled(name).batch
    program = jax.jit(step, out_shardings=(placed, None)).lower(state, batch).compile()
    paper = predicted(layout, sizes_of(case), dtype="f64")
    assert not differences(paper, found(program, case.mesh))


def test_to_an_axis_of_one_device_nothing_is_sent():
    config = mesh_cases.PERCEPTRON
    mesh = AbstractMesh((2, 1), tuple(SIZES))
    layout = lay_out(mlp, config, mesh, {"batch": ("data", "model")})
    program = found(compiled_step(mlp, config, layout, (4,)), mesh.shape)
    assert not differences(predicted(layout, (4,)), program)
    assert totals(program).keys() == {Group("all-reduce", ("data",), False)}


def test_layouts_of_more_devices_than_there_are_need_none():
    config = transformer.gpt2(vocabulary=512, layers=3, width=64, heads=8)
    layout = lay_out(transformer, config, AbstractMesh((512, 8), tuple(SIZES)), None)
    lines = predicted(layout, (1024, 16))
    x = 3 * 4 * 4 * 2 * 16 * 64
    assert totals(lines)[Group("all-reduce", ("model",), True)] == Total(12, x)
    with pytest.raises(ValueError, match="batch is 100 for 512 devices; they must divide it"):
        predicted(layout, (100, 16))


def test_seconds_are_bytes_over_bandwidth_and_delays():
    node, pod = Nodes(), Torus()
    over_model = Sent("all-reduce", ("model",), 8, "f32", (10**6,), 2, False, "")
    mesh = {"data": 4, "model": 8}
    wire = 2 * 7 / 8 * 8e6
    assert over_model.wire == wire
    inside = wire / 450e9 + 2 * 2 * 7 * 1.2e-6
    assert seconds(over_model, mesh, node) == pytest.approx(inside)
    over_data = over_model._replace(axes=("data",), devices=4, kind="all-gather")
    between = 3 / 4 * 8e6 / 50e9 + 2 * 2 * 8.5e-6  # one adapter of each node, two doublings
    assert seconds(over_data, mesh, node) == pytest.approx(between)
    torus = 3 / 4 * 8e6 / 200e9 + 2 * 2 * 1e-6
    assert seconds(over_data, mesh, pod) == pytest.approx(torus)
    shifted = over_data._replace(kind="collective-permute")
    assert seconds(shifted, mesh, pod) == pytest.approx(8e6 / 100e9 + 2e-6)
    assert seconds(shifted, mesh, node) == pytest.approx(8e6 / 50e9 + 2 * 8.5e-6)
    everyone = over_model._replace(axes=("data", "model"), devices=32)
    assert node.link(list(range(32)), False).bandwidth == 400e9  # eight adapters at once
    assert seconds(everyone, mesh, node) < seconds(everyone, {"data": 32, "model": 1}, node) * 1.01
    assert set(MACHINES) == {"h200", "v5p"}


def test_what_a_step_multiplies_is_what_the_compiled_one_does():
    config = transformer.llama(
        vocabulary=96, positions=64, layers=1, width=64, heads=4, kv_heads=2, hidden=160
    )
    one = Plan("one", {}, {}).layout(config, 1)
    program = jax.jit(lambda p, b: transformer.manual_value_and_grad(p, b, config))
    params = jax.eval_shape(lambda: transformer.init_params(jax.random.key(0), config))
    tokens = jax.ShapeDtypeStruct((4, 64), jnp.int32)
    compiled = program.lower(params, transformer.Batch(tokens, tokens, None)).compile()
    # The whole of the scores is computed, and not the half that is seen; and what is no product.
    attention = 4 * 64 * 3 * 2 * 64 * 64
    products = flops(one, (4, 64)) + attention
    assert products < compiled.cost_analysis()["flops"] < 1.15 * products


def test_efficiency_is_lost_to_what_is_sent_and_to_nothing_else():
    small = transformer.gpt2(vocabulary=512, positions=64, layers=3, width=64, heads=8)
    job = Job("small", small, (64, 64))
    never = Nodes(inside=math.inf, between=math.inf, delay_inside=0, delay_between=0)
    for plan in (BY_NAME[name] for name in ("data", "FSDP", "FSDP 8 x data")):
        some = scaling(job, plan, never, (8, 64))
        assert [step.efficiency for step in some] == pytest.approx([1, 1])
        slow = scaling(job, plan, Nodes(), (8, 64))
        assert all(a.efficiency < b.efficiency for a, b in zip(slow, some, strict=True))
        assert slow[0].memory > slow[1].memory
    # Of tensor parallelism too, for all of a layer's products are shared out.
    (shared,) = scaling(job, BY_NAME["FSDP x tensor 8"], never, (8,))
    assert shared.efficiency == pytest.approx(1, rel=0.01)
    assert not scaling(job, BY_NAME["data"], Nodes(), (12, 128))
    with pytest.raises(ValueError, match="12 devices over 8; they must be a multiple"):
        BY_NAME["FSDP x tensor 8"].layout(small, 12)
    assert reach(scaling(job, BY_NAME["FSDP"], never)) == 64
    assert reach([]) == 0


def called(capsys, *words):
    status = __main__.main(words)
    return status, capsys.readouterr()


def test_the_command_prints_what_is_predicted_and_found(capsys, monkeypatch):
    words = ("gpt", "--mesh", "data=2,model=2", "--layers", "2", "--width", "16", "--heads", "2")
    status, printed = called(capsys, *words, "--vocabulary", "32", "--sequence", "4")
    assert status == 0, printed
    row = next(line for line in printed.out.splitlines() if "model, in the loop" in line)
    assert row.split()[:8] == ["all-reduce", "model,", "in", "the", "loop", "8", "8.192", "KB"]
    assert "found as predicted" in printed.out
    monkeypatch.setattr(__main__, "found", lambda compiled, mesh: [])
    status, printed = called(capsys, *words, "--vocabulary", "32", "--sequence", "4")
    assert status == 1
    assert "! all-reduce over model, in loops: predicted 8 of 8,192 bytes" in printed.out


def test_the_command_has_a_paper_alone_for_thousands_of_devices(capsys):
    words = ("llama", "--mesh", "data=512,model=8", "--heads", "8", "--experts", "8")
    status, printed = called(capsys, *words, "--machine", "v5p", "--inside", "90")
    assert status == 0, printed
    assert "TPU v5p pod" in printed.out
    assert "found" in printed.out
    assert "compiled" not in printed.out


REFUSED = {
    ("gpt", "--mesh", "data"): "--mesh is 'data'; it must name each axis once",
    ("gpt", "--mesh", "data=0"): "--mesh is 'data=0'",
    ("gpt", "--mesh", "data=2,data=2"): "--mesh is 'data=2,data=2'",
    ("gpt", "--mesh", "data=2", "--rules", "batch"): "--rules is 'batch'",
    ("gpt", "--mesh", "data=2", "--rules", "batch=node"): "rules['batch'] is 'node'; it must be",
    ("gpt", "--mesh", "data=2", "--rules", "colour=data"): "rules have 'colour'",
    ("gpt", "--mesh", "model=8"): "heads is 4 for 8 devices",
    ("gpt", "--mesh", "data=8", "--batch", "12"): "batch is 12 for 8 devices",
    ("mlp", "--mesh", "data=2", "--layers", "3"): "--layers is 3; mlp has no such setting",
    ("gpt", "--mesh", "data=16"): "the mesh has 16 devices and this process 8",
    ("mlp", "--mesh", "data=2", "--machine", "v5p", "--between", "5"): "--between is 5 on TPU",
    ("mlp", "--mesh", "data=2", "--inside", "-5"): "--inside is -5; it must be above 0",
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_the_command_refuses_in_one_sentence(words, capsys):
    status, printed = called(capsys, *words)
    assert status == 2
    assert printed.err.startswith(f"error: {REFUSED[words]}")
    assert printed.err.count("\n") == 1
