"""States over several devices and processes: written in parts, in the background, read onto any."""

import asyncio
import re
import threading
import time
from functools import partial

import jax
import jax.numpy as jnp
import kill_mesh
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from kill_mesh import CONFIG, EPOCHS, STEPS, WHOSE, contents, fit_into, init_state, mesh_of, values

from jaxnn import mlp, together, train
from jaxnn.ending import is_first
from jaxnn.train import arrays, checkpoints, logs, saving, states
from jaxnn.train import folder as train_folder
from jaxnn.train.progress import is_sound

DEVICES = 4


@pytest.fixture(scope="module")
def mesh():
    return mesh_of(jax.devices()[:DEVICES])


@pytest.fixture(scope="module")
def run(mesh):
    return kill_mesh.make_run(mesh)


@pytest.fixture
def background(monkeypatch):
    """Every state is written in a thread, after every call if it is time."""
    monkeypatch.setattr(saving, "LARGE", 0)
    monkeypatch.setattr(saving, "PAUSE", 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, mesh, run):
    """A run that was not interrupted, of one process, each state saved before the next."""
    folder = tmp_path_factory.mktemp("whole")
    fit_into(folder, mesh, run)
    return folder


# One process, several devices.


def laid(kind):
    """A state laid out in another way: over all devices, by columns, in two directions, on one."""
    if kind == "one device":
        return init_state()
    if kind == "rows":
        return init_state(mesh_of())
    axis = AxisType.Auto if kind == "both" else AxisType.Explicit
    mesh = jax.make_mesh((2, 4), ("a", "b"), (axis, axis))
    spec = P("b", "a") if kind == "both" else P(None, "b")

    def put(leaf):
        return jax.device_put(leaf, NamedSharding(mesh, spec if leaf.ndim == 2 else P()))

    return jax.tree.map(put, laid("one device"))


@pytest.mark.parametrize("kind", ["rows", "columns", "both", "one device"])
def test_what_is_saved_on_one_mesh_is_read_onto_another(kind, whole):
    like = laid(kind)
    saved, about = train.load_state(whole / "state", init_state(mesh_of(jax.devices()[:4])))
    read, same = train.load_state(whole / "state", like, **WHOSE)
    assert values(read) == values(saved)
    assert values(same.best) == values(about.best)
    assert int(read.step) == EPOCHS * STEPS
    for ours, theirs in zip(jax.tree.leaves(read), jax.tree.leaves(like), strict=True):
        assert ours.sharding == theirs.sharding
    again = train.save_state(whole / f"of {kind}", read)
    back, _ = train.load_state(again.parent, init_state(mesh_of(jax.devices()[:2])))
    assert values(back) == values(saved)


def test_a_weakly_typed_number_on_a_mesh_stays_so(mesh, tmp_path):
    """As a rate in an optimizer's state, which must not widen what it is multiplied by."""
    made = jax.jit(lambda: jnp.multiply(0.5, 1.0), out_shardings=NamedSharding(mesh, P()))
    state = init_state(mesh)._replace(opt_state=made())
    assert state.opt_state.weak_type
    train.save_state(tmp_path, state)
    read, _ = train.load_state(tmp_path, state)
    assert read.opt_state.weak_type
    assert values(read) == values(state)
    assert read.opt_state.sharding == state.opt_state.sharding


def test_arrays_that_are_given_away_while_they_are_written_are_those_of_before(mesh, tmp_path):
    state = init_state(mesh)
    expected = values(state)
    finish = states.begin_state(tmp_path, state)

    def next_one(state):
        return jax.tree.map(lambda x: x + 1 if jnp.issubdtype(x.dtype, jnp.number) else x, state)

    later = jax.jit(next_one, donate_argnums=0)(state)
    assert values(later) != expected
    assert not [*tmp_path.glob("*/seal.json")]
    finish()
    read, _ = train.load_state(tmp_path, init_state(mesh))
    assert values(read) == expected


def test_parameters_that_are_spread_are_one_file(mesh, tmp_path):
    params = init_state(mesh).params
    train.save_params(tmp_path / "p.safetensors", params, model=mlp, config=CONFIG)
    loaded = train.load_params(tmp_path / "p.safetensors")
    assert values(loaded.params) == values(params)


class Wide:
    """A model of three numbers, as wide as JAX is."""

    @staticmethod
    def init_params(key, config):
        return {"w": jnp.arange(3.0) / 3}


def test_all_64_bits_are_there_from_a_thread_as_in_a_notebook(background, x64, tmp_path):
    """Where an event loop runs already, orbax needs a thread: it must know that JAX is wide."""

    def run(state):
        return state._replace(step=state.step + 1), train.History(jnp.ones(1), None)

    async def cell():
        state = train.State(Wide.init_params(None, None), (), jnp.int32(0), jax.random.key(0))
        train.fit(run, state, epochs=2, folder=tmp_path, model=Wide, show=False)
        return train.load_state(tmp_path / "state", state)[0].params["w"]

    read = asyncio.run(cell())
    np.testing.assert_array_equal(read, np.arange(3.0) / 3)
    loaded = train.load_params(tmp_path / "params.safetensors", Wide, {})
    np.testing.assert_array_equal(loaded.params["w"], np.arange(3.0) / 3)


# In the background.


def test_a_run_that_is_saved_in_the_background_ends_alike(background, mesh, run, whole, tmp_path):
    fit_into(tmp_path, mesh, run)
    assert contents(tmp_path, mesh) == contents(whole, mesh)
    fit_into(tmp_path, mesh, run, epochs=EPOCHS + 1, resume=True)
    assert checkpoints.last_step(tmp_path / "state") == (EPOCHS + 1) * STEPS


def test_the_run_goes_on_while_it_writes_and_says_only_what_is_saved(
    background, mesh, run, tmp_path, monkeypatch, capsys
):
    """The first state is written when the fourth call is made, and not before."""
    go_on, calls = threading.Event(), []
    wait = arrays.Writing.wait

    def waiting(writing):
        assert go_on.wait(60)
        wait(writing)

    def called(state):
        calls.append(int(state.step) // STEPS)
        if len(calls) == 4:
            assert checkpoints.last_step(tmp_path / "state") is None
            go_on.set()
            while checkpoints.last_step(tmp_path / "state") is None:
                pass
        return run(state)

    seen = []

    def look(row, state):
        lines = re.findall(r"epoch (\d+)/6 ", capsys.readouterr().out)
        seen.append([int(n) for n in lines])

    monkeypatch.setattr(arrays.Writing, "wait", waiting)
    monkeypatch.setattr(logs.Terminal, "_write", unhurried())
    fit_into(tmp_path, mesh, called, show=True, callbacks=[look])
    assert seen[:3] == [[], [], []]
    assert calls == [*range(EPOCHS)]
    assert re.findall(r"epoch (\d+)/6 ", capsys.readouterr().out)[-1:] == ["6"]


def unhurried():
    """Show every line that may be, however many a second."""
    write = logs.Terminal._write

    def shown(terminal, saved):
        write(terminal, saved)
        terminal._shown = 0.0

    return shown


@pytest.mark.parametrize("failing", ["wait", "_write_logs"])
def test_what_fails_in_the_background_ends_the_run_and_the_rest_is_whole(
    failing, background, mesh, run, whole, tmp_path, monkeypatch
):
    owner = arrays.Writing if failing == "wait" else train_folder.Folder
    works, calls = getattr(owner, failing), []

    def fails(*arguments):
        calls.append(1)
        if len(calls) >= 2:
            raise OSError(28, "No space left")
        return works(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, failing, fails)
        with pytest.raises((ValueError, OSError), match="No space left"):
            fit_into(tmp_path, mesh, run)
    assert not (tmp_path / "state" / ".unfinished-jaxnn").exists()
    fit_into(tmp_path, mesh, run, resume=True)
    assert contents(tmp_path, mesh) == contents(whole, mesh)


# Several processes.


@pytest.fixture(scope="module")
def processes():
    return kill_mesh.Processes()


def told(function):
    """What a call is refused with."""
    try:
        function()
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


def together_they_do(sender, folder, saved_by_one):
    """All that two processes are asked to do, one thing after the other."""
    mesh, first = mesh_of(), is_first()
    state = init_state(mesh)
    fit_into = partial(kill_mesh.fit_into, mesh=mesh, run=kill_mesh.make_run(mesh), state=state)
    fit_into(folder / "small")
    saving.LARGE, saving.PAUSE = 0, 0
    works = arrays.Writing.wait

    def slow(writing):
        time.sleep(0.3)
        works(writing)

    if not first:  # process 0 must wait for what it writes
        arrays.Writing.wait = slow
    fit_into(folder / "large", epochs=EPOCHS - 2)
    arrays.Writing.wait = works
    fit_into(folder / "large", resume=True)
    fit_into(saved_by_one, epochs=EPOCHS + 1, resume=True)
    place = folder / "small" / "state"
    refused = {
        "configuration": lambda: train.load_state(
            place, state, model=mlp, config=mlp.Config(sizes=(8, 8))
        ),
        "configuration of one": lambda: train.load_state(
            place, state, model=mlp, config=CONFIG if first else mlp.Config(sizes=(8, 8))
        ),
        "optimizer": lambda: train.load_state(place, init_state(mesh, optax.sgd(0.1))),
        "none": lambda: train.load_state(folder / "none", state),
        "alone": lambda: train.save_state(folder / "alone", init_state()),
        "a later one": lambda: train.save_state(place, state),
        "no run": lambda: fit_into(folder / "none", resume=True),
    }
    words = {name: told(call) for name, call in refused.items()}
    if first:
        (place / str(EPOCHS * STEPS) / "_METADATA").write_text("torn")
    together.first("damaging", lambda: None)
    words["damaged"] = told(lambda: fit_into(folder / "small", resume=True))

    def full(*_):
        raise OSError(28, "No space left")

    if not first:
        arrays.Writing.wait = full
    words["full"] = told(lambda: fit_into(folder / "full"))
    arrays.Writing.wait = works
    poisoned = state._replace(
        params=jax.tree.map(lambda x: x.at[0].set(jnp.nan) if x.ndim == 2 else x, state.params)
    )  # in rows that process 0 has
    sound = [is_sound(tree) for tree in (state, poisoned, poisoned.params, poisoned.opt_state)]
    return {"words": words, "sound": sound}


def test_two_processes_save_and_one_reads_and_the_other_way_round(processes, mesh, run, tmp_path):
    alone = tmp_path / "alone"
    fit_into(alone, mesh, run)
    before = contents(alone, mesh)
    ours, theirs = processes.done(together_they_do, tmp_path, alone)
    assert isinstance(ours, dict), ours
    assert isinstance(theirs, dict), theirs
    small, large = (
        train.load_params(tmp_path / n / "params.safetensors") for n in ("small", "large")
    )
    assert values(small.params) == values(large.params)
    whole = contents(tmp_path / "large", mesh)
    for (mine, *_), (other, *_) in zip(whole.params, before.params, strict=True):
        np.testing.assert_allclose(
            np.frombuffer(mine, np.float32), np.frombuffer(other, np.float32), rtol=1e-4, atol=1e-6
        )
    one = init_state()
    read, _ = train.load_state(tmp_path / "large" / "state", one)
    assert values(read) == whole.state
    assert checkpoints.last_step(alone / "state") == (EPOCHS + 1) * STEPS
    fit_into(tmp_path / "large", mesh, run, epochs=EPOCHS + 1, resume=True)
    assert ours["sound"] == theirs["sound"] == [True, False, False, True]
    for name, words in WORDS.items():
        for said in (ours["words"][name], theirs["words"][name]):
            assert re.search(words, said), (name, ours["words"][name], theirs["words"][name])
            assert len(said) < 1000
            assert "\n" not in said
    assert not (tmp_path / "full" / "state" / ".unfinished-jaxnn").exists()


WORDS = {
    "configuration": "of another configuration: sizes",
    "configuration of one": r"^(process 1: )?.* is of another configuration: sizes",
    "optimizer": "of another model or optimizer",
    "none": "holds no state; it must be one",
    "alone": r"is laid out on devices of process \d alone .* over a mesh of all devices",
    "a later one": "holds a state of step 18; one that is saved there must be of a later",
    "no run": "holds no run to resume",
    "damaged": r"is damaged: remove it, to go on from the state before it \(_METADATA",
    "full": r"^(process 1: )?.* cannot be written \(.*No space left",
}


def test_killed_one_or_all_they_end_as_if_they_were_not(tmp_path):
    assert kill_mesh.kill_at(2, tmp_path) >= 1
