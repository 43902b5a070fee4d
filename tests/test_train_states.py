"""Whole states on disk: what is read is what was saved, or one sentence says why not."""

import errno
import logging
import shutil

import faults
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from faults import CONFIG, init_state

from jaxnn import mlp, train
from jaxnn.models import transformer
from jaxnn.train import checkpoints

WHOSE = {"model": faults, "config": CONFIG, "notes": {"seed": 0}}
HISTORY = {
    "loss": np.array([0.1, 1e-30, np.nan, np.inf], np.float32),
    "val_right": np.array([1, 2, 2**60, -1]),
}
STEP = train.make_step(faults, CONFIG, faults.OPTIMIZER, "autodiff")


def leaves(tree):
    return [(x.dtype, x.shape, x.tobytes()) for x in map(np.asarray, jax.tree.leaves(tree))]


def after(steps, state=None):
    state = init_state() if state is None else state
    for _ in range(steps):
        state, _ = STEP(state, faults.examples(2))
    return state


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Two states, of steps 2 and 3."""
    folder = tmp_path_factory.mktemp("kept") / "state"
    for steps in (1, 2, 3):
        state = after(steps)
        where = train.save_state(
            folder, state, **WHOSE, best=init_state().params, history=HISTORY, ends=[2, 4]
        )
    assert where == folder / "3"
    return folder


@pytest.fixture
def folder(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "state")


def test_what_is_read_is_what_was_saved(kept):
    state, about = train.load_state(kept, init_state(seed=7), **WHOSE)
    saved = after(3)
    assert type(state) is train.State
    assert jax.tree.structure(state) == jax.tree.structure(saved)
    assert leaves(faults.bits(state)) == leaves(faults.bits(saved))
    assert leaves(faults.bits(after(1, state))) == leaves(faults.bits(after(4)))
    assert about.model == "faults"
    assert about.config == {"rate": 0.25, "features": 3}
    assert about.notes == {"seed": 0}
    assert about.versions["jax"] == jax.__version__
    assert about.ends == [2, 4]
    assert leaves(about.best) == leaves(init_state().params)
    for name, values in HISTORY.items():
        assert leaves(about.history[name]) == leaves(values)


def test_the_last_two_are_kept(kept):
    assert sorted(path.name for path in kept.iterdir()) == ["2", "3"]


def test_no_program_is_compiled_anew_for_what_was_read(kept):
    counted = []
    state, _ = train.load_state(kept, init_state())

    @jax.jit
    def program(state):
        counted.append(1)
        return state

    program(init_state())
    program(state)
    assert counted == [1]


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_keys_and_dtypes_of_all_kinds(impl, dtype, tmp_path):
    """A factor in the optimizer's state is weakly typed: it must not widen bfloat16."""
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9)
    key = jax.random.key(0, impl=impl)
    state = train.init_state(faults, CONFIG, optimizer, key)
    params = jax.tree.map(lambda x: x.astype(dtype), state.params)
    state = state._replace(params=params, opt_state=(optimizer.init(params), jnp.asarray(0.1)))
    train.save_state(tmp_path, state)
    read, _ = train.load_state(tmp_path, state)
    assert leaves(faults.bits(read)) == leaves(faults.bits(state))
    assert read.key.dtype == state.key.dtype
    weak = [getattr(x, "weak_type", False) for x in jax.tree.leaves(state)]
    assert [getattr(x, "weak_type", False) for x in jax.tree.leaves(read)] == weak
    assert any(weak)


def test_an_old_style_key_and_a_larger_model(tmp_path):
    config = transformer.EXAMPLE_CONFIGS[0]
    optimizer = optax.adamw(optax.cosine_decay_schedule(0.01, 20))
    state = train.init_state(transformer, config, optimizer, jax.random.PRNGKey(0))
    train.save_state(tmp_path, state, model=transformer, config=config)
    read, _ = train.load_state(tmp_path, state, model=transformer, config=config)
    assert leaves(read) == leaves(state)


def test_nothing_is_said_and_logging_is_as_it_was(tmp_path, capfd):
    root, absl = logging.getLogger(), logging.getLogger("absl")
    before = root.handlers[:], root.level, absl.level
    train.save_state(tmp_path, init_state())
    train.load_state(tmp_path, init_state())
    assert (root.handlers[:], root.level, absl.level) == before
    assert capfd.readouterr() == ("", "")


# What is refused.


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": mlp}, "model is 'faults' in the file, 'jaxnn.models.mlp' here"),
        ({"config": faults.Config(rate=0.5)}, "rate is 0.25 in the file, 0.5 here"),
        ({"notes": {"seed": 1}}, "seed is 0 in the file, 1 here"),
        ({"notes": {"seed": 0, "more": 1}}, "more is None in the file, 1 here"),
        ({"like": init_state(optax.sgd(0.1))}, "of another model or optimizer: opt_state"),
        (
            {"like": train.init_state(faults, faults.Config(features=4), faults.OPTIMIZER,
                                      jax.random.key(0))},
            r"params.w is 'float32\[3\]' in the file, 'float32\[4\]' here",
        ),
        (
            {"like": init_state()._replace(key=jax.random.key(0, impl="rbg"))},
            r"key is 'key<fry>\[\]' in the file, 'key<rbg>\[\]' here",
        ),
        (
            {"like": init_state()._replace(step=jnp.float32(0))},
            r"step is 'int32\[\]' in the file, 'float32\[\]' here",
        ),
    ],
)  # fmt: skip
def test_a_state_of_another_run_is_refused(settings, words, kept):
    with pytest.raises(ValueError, match=words) as refused:
        train.load_state(**{"folder": kept, "like": init_state()} | WHOSE | settings)
    assert str(kept / "3") in str(refused.value)


def test_what_is_not_given_is_not_compared(kept):
    train.load_state(kept, init_state())


@pytest.mark.parametrize("give", [lambda s: s.params, lambda s: (s, 1.0), lambda s: None])
def test_no_state_is_refused(give, kept):
    with pytest.raises(TypeError, match=r"state is \w+; it must be the State that init_state"):
        train.load_state(kept, give(init_state()))
    with pytest.raises(TypeError, match=r"state is \w+; it must be the State that init_state"):
        train.save_state(kept, give(init_state()))


def test_an_empty_a_missing_and_another_folder_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("")
    for name in ("none", "file", "other", "."):
        with pytest.raises(ValueError, match="holds no state; it must be one that a run saved"):
            train.load_state(tmp_path / name, init_state())
    assert {path.name for path in tmp_path.iterdir()} == {"file", "other"}


@pytest.mark.parametrize("step", [2, 3])
def test_a_step_that_is_not_later_is_refused(step, folder):
    words = f"holds a state of step 3; one that is saved there must be of a later step.* {step}:"
    with pytest.raises(ValueError, match=words):
        train.save_state(folder, after(step), **WHOSE)
    assert leaves(train.load_state(folder, init_state())[0].params) == leaves(after(3).params)


@pytest.mark.parametrize(
    ("notes", "error"), [({"x": {1}}, TypeError), ({"x": object()}, TypeError), (3, TypeError)]
)
def test_notes_that_are_not_for_json_are_refused(notes, error, tmp_path):
    with pytest.raises(error, match="notes"):
        train.save_state(tmp_path / "state", init_state(), notes=notes)
    assert not (tmp_path / "state").exists()


DAMAGES = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": lambda path: path.write_bytes(
        bytes(b ^ (0x10 if i == path.stat().st_size // 2 else 0) for i, b in
              enumerate(path.read_bytes()))
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused_or_read_as_it_was(damage, kept, tmp_path):
    """Every file of it, one after the other; the sentence says what to remove to go on."""
    expected = leaves(faults.bits(after(3)))
    refused = []
    names = [path.relative_to(kept) for path in (kept / "3").rglob("*") if path.is_file()]
    names = [name for name in names if (name.name, damage) != ("seal.json", "gone")]
    for i, name in enumerate(names):
        folder = shutil.copytree(kept, tmp_path / str(i))
        DAMAGES[damage](folder / name)
        try:
            state, _ = train.load_state(folder, init_state(), **WHOSE)
        except ValueError as error:
            refused.append(str(error))
        else:
            assert leaves(faults.bits(state)) == expected, name
    assert len(refused) >= len(names) - 2  # some are empty
    for words in refused:
        assert f"{tmp_path}" in words
        assert "/3 " in words
        assert "remove it, to go on from the state before it" in words
        assert len(words) < 600
    shutil.rmtree(folder / "3")
    state, _ = train.load_state(folder, init_state(), **WHOSE)
    assert leaves(faults.bits(state)) == leaves(faults.bits(after(2)))


@pytest.mark.parametrize(
    ("seal", "words"),
    [
        ('{"format": 2, "files": {}}', "is of format 2, this jaxnn reads those up to 1; install a"),
        ('{"format": "new", "files": {}}', "is no seal; .* is damaged: remove it, to go on from"),
        ('{"format": 1, "files": []}', "is no seal"),
        ("[]", "is no seal"),
        ('{"format": 1, "files": {}}', "about.json.* is not what it was"),
        ('{"format": 1, "files": {"about.json": 3}}', "about.json.* is not what it was"),
        ("{", "is not JSON .*; .* is damaged: remove it"),
        ("[" * 100_000, "too deep inside each other; no such file has: .* is damaged: remove it"),
    ],
)
def test_a_seal_that_is_none_or_newer_is_refused(seal, words, folder):
    (folder / "3" / "seal.json").write_text(seal)
    with pytest.raises(ValueError, match=words) as refused:
        train.load_state(folder, init_state(), **WHOSE)
    assert str(folder / "3") in str(refused.value)


def test_a_state_without_its_seal_does_not_count_and_stays(folder):
    (folder / "3" / "seal.json").unlink()
    state, _ = train.load_state(folder, init_state(), **WHOSE)
    assert int(state.step) == 2
    with pytest.raises(ValueError, match="holds 3, no state that was saved whole; what is"):
        train.save_state(folder, after(1, state), **WHOSE)
    assert (folder / "3" / "about.json").exists()


@pytest.mark.parametrize("where", ["params", "opt_state"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(where, value, tmp_path):
    state = after(1)
    poisoned = jax.tree.map(
        lambda x: jnp.full_like(x, value) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        getattr(state, where),
    )
    state = state._replace(**{where: poisoned})
    train.save_state(tmp_path, state)
    if where == "opt_state" and value == np.inf:  # of a best value so far, say
        train.load_state(tmp_path, init_state())
        return
    with pytest.raises(ValueError, match="holds numbers that are not finite; remove it"):
        train.load_state(tmp_path, init_state())


def test_what_a_killed_save_left_does_not_count(folder):
    """What was being written, under orbax's name too, and what was being removed."""
    for name in ("4", "4.orbax-checkpoint-tmp-1", "1"):
        shutil.copytree(folder / "3", folder / ".unfinished-jaxnn" / name)
    state, _ = train.load_state(folder, init_state())
    assert int(state.step) == 3
    train.save_state(folder, after(4), **WHOSE)
    assert sorted(path.name for path in folder.iterdir()) == ["3", "4"]


@pytest.mark.parametrize("name", ["2024/thesis.txt", "7"])
def test_what_is_named_by_a_number_and_no_state_is_refused_and_stays(name, tmp_path):
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("mine")
    with pytest.raises(ValueError, match=r"holds (2024|7), no state that was saved whole; what is"):
        train.save_state(tmp_path, after(1))
    assert own.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [tmp_path / name.split("/")[0]]


def test_other_files_stay_and_a_save_that_fails_leaves_nothing(folder, monkeypatch):
    others = [".hidden", "deleted", "mine.orbax-checkpoint-tmp", "params.safetensors"]
    for name in others:
        (folder / name).mkdir()
        (folder / name / "thesis.txt").write_text("mine")

    def full(path):
        raise OSError("No space left")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.files, "replaced", full)
        with pytest.raises(ValueError, match=r"cannot be written \(No space left\); make room"):
            train.save_state(folder, after(4))
    assert sorted(path.name for path in folder.iterdir()) == sorted([*others, "2", "3"])
    train.save_state(folder, after(4))
    assert sorted(path.name for path in folder.iterdir()) == sorted([*others, "3", "4"])
    assert all((folder / name / "thesis.txt").read_text() == "mine" for name in others)


@pytest.mark.parametrize(
    ("saved", "given", "words"),
    [
        (optax.adam(0.1), optax.adamw(0.1), r"opt_state\[2\] is None in the file, 'EmptyState'"),
        (
            optax.sgd(0.1),
            optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
            r"opt_state\[1\] is 'EmptyState' in the file, 'tuple' here",
        ),
    ],
    ids=["adamw", "clipped"],
)
def test_an_optimizer_of_the_same_arrays_is_another(saved, given, words, tmp_path):
    train.save_state(tmp_path, init_state(saved))
    with pytest.raises(ValueError, match=rf"of another model or optimizer: .*{words}") as refused:
        train.load_state(tmp_path, init_state(given))
    assert "remove" not in str(refused.value)


def test_a_sound_state_that_cannot_be_read_now_is_not_to_be_removed(kept, monkeypatch):
    def fails(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(orbax.checkpoint.StandardCheckpointHandler, "restore", fails)
    with pytest.raises(ValueError, match=r"3 cannot be read \(.*Too many .*: try again") as refused:
        train.load_state(kept, init_state())
    assert "remove" not in str(refused.value)


@pytest.mark.parametrize(
    "params",
    [
        {"a.b": jnp.zeros(2), "a": {"b": jnp.ones(2)}, "a/b": {"": jnp.full(2, 2.0)}},
        jnp.arange(3.0),
        {"w": jnp.ones(3), "none": jnp.zeros((0, 2)), "empty": {}, "absent": None},
    ],
    ids=["names of one path", "one array", "arrays of no element"],
)
def test_trees_of_all_kinds_come_back(params, tmp_path):
    state = init_state()._replace(params=params, opt_state=faults.OPTIMIZER.init(params))
    train.save_state(tmp_path, state, best=params)
    like = jax.tree.map(jnp.zeros_like, state._replace(key=None))._replace(key=state.key)
    read, about = train.load_state(tmp_path, like)
    assert jax.tree.structure((read, about.best)) == jax.tree.structure((state, params))
    assert leaves(faults.bits(read)) == leaves(faults.bits(state))
    assert leaves(about.best) == leaves(params)
