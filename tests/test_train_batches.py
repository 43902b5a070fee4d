"""Epochs over a user's own batches: from lists, loaders and iterators, and resumed."""

import itertools

import faults
import jax
import numpy as np
import optax
import pytest

from jaxnn import data, mlp, train

CONFIG = faults.CONFIG


def batches(n=4, seed=0):
    return [faults.examples(2, seed=100 * seed + i) for i in range(n)]


def endless():
    """The same batches each time it is made, never twice the same."""
    for seed in itertools.count():
        yield from batches(seed=seed)


def epoch_of(source, **settings):
    settings = {"gradient": "autodiff", "evaluate": faults.evaluate} | settings
    return train.make_epoch(faults, CONFIG, faults.OPTIMIZER, source, **settings)


def leaves(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(faults.bits(tree))]


STEP = train.make_step(faults, CONFIG, faults.OPTIMIZER, "autodiff")


def looped(source, state):
    losses = []
    for batch in source:
        state, loss = STEP(state, batch)
        losses.append(float(loss))
    return state, losses


def test_an_epoch_is_the_loop_of_its_steps():
    state, losses = looped(batches(), faults.init_state())
    ours, history = epoch_of(batches())(faults.init_state())
    assert leaves(ours) == leaves(state)
    np.testing.assert_allclose(history.loss, [np.mean(losses)], rtol=1e-6)
    assert history.loss.shape == history.metrics["loss"].shape == (1,)
    np.testing.assert_allclose(
        history.metrics["loss"][0], faults.evaluate(ours.params)["loss"], rtol=1e-6
    )


def test_a_list_is_gone_through_again_from_its_start():
    run = epoch_of(batches())
    state, _ = run(run(faults.init_state())[0])
    assert leaves(state) == leaves(looped(batches() * 2, faults.init_state())[0])


def test_steps_are_the_first_of_a_list():
    run = epoch_of(batches(), steps=2)
    state, _ = run(run(faults.init_state())[0])
    assert leaves(state) == leaves(looped(batches()[:2] * 2, faults.init_state())[0])


def test_an_iterator_goes_on():
    run = epoch_of(endless(), steps=3)
    state, _ = run(run(faults.init_state())[0])
    expected = looped(itertools.islice(endless(), 6), faults.init_state())[0]
    assert leaves(state) == leaves(expected)


def test_a_loader_of_plain_tuples_and_other_dtypes_of_numpy():
    """Made anew by each `iter`, as PyTorch's is."""

    class Loader:
        def __iter__(self):
            for x, t, _ in batches():
                yield [x.astype(np.float64), t.astype(np.float64)]

    state, _ = epoch_of(Loader())(faults.init_state())
    assert leaves(state) == leaves(looped(batches(), faults.init_state())[0])


def test_an_array_of_another_library_is_taken():
    class Tensor:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    source = [(Tensor(x), Tensor(t)) for x, t, _ in batches()]
    state, _ = epoch_of(source)(faults.init_state())
    assert leaves(state) == leaves(looped(batches(), faults.init_state())[0])


def test_the_batches_can_be_augmented():
    def double(key, batch):
        return batch._replace(inputs=2 * batch.inputs)

    ours, _ = epoch_of(batches(), augment=double)(faults.init_state())
    plain, _ = epoch_of(batches())(faults.init_state())
    assert leaves(ours) != leaves(plain)


@pytest.mark.parametrize("source", [batches, endless])
def test_a_run_that_is_resumed_is_the_run_that_was_not(source, tmp_path):
    settings = {"epochs": 4, "folder": tmp_path, "model": faults, "config": CONFIG, "show": False}
    run = epoch_of(source(), steps=3)
    whole = train.fit(run, faults.init_state(), epochs=4, show=False)
    train.fit(epoch_of(source(), steps=3), faults.init_state(), **settings | {"epochs": 2})
    ours = train.fit(
        epoch_of(source(), steps=3), faults.init_state(seed=1), resume=True, **settings
    )
    assert leaves(ours.state) == leaves(whole.state)
    np.testing.assert_array_equal(ours.history.loss, whole.history.loss)


def test_an_iterator_goes_on_to_where_the_state_is():
    """As in a process that made its first call to compile, and then resumes."""
    run = epoch_of(endless(), steps=3)
    run(faults.init_state())
    further = looped(itertools.islice(endless(), 7), faults.init_state())[0]
    ours, _ = run(further)
    assert leaves(ours) == leaves(looped(itertools.islice(endless(), 10), faults.init_state())[0])


# What is refused.


def test_an_iterator_that_is_ahead_of_the_state_is_refused(tmp_path):
    """After a call whose state was not kept its batches are gone."""
    run, fails = epoch_of(endless(), steps=3), [True]

    def failing(state):
        later = run(state)
        if int(state.step) == 3 and fails:
            raise RuntimeError(fails.pop())
        return later

    with pytest.raises(RuntimeError):
        faults.fit_into(tmp_path, failing)
    words = "the iterator is ahead: it gave 6 batches, and the state has taken 3 steps: pass"
    with pytest.raises(train.BatchError, match=words):
        run(faults.look(tmp_path).state)
    ours = faults.fit_into(tmp_path, failing, resume=True)
    assert (ours.ended, len(ours.history.loss)) == ("batches", 1)
    with pytest.raises(train.BatchError, match="it gave 6 batches, and the state has taken 0"):
        run(faults.init_state())


@pytest.mark.parametrize(
    ("source", "settings", "error", "words"),
    [
        (3, {}, TypeError, "batches is 3; it must be a list, a loader or an iterator"),
        ({"x": 1}, {}, TypeError, "batches is {'x': 1}; it must be a list"),
        (iter([]), {}, TypeError, "steps is None; an iterator does not say where an epoch ends"),
        ([], {"steps": 0}, ValueError, "steps is 0; it must be at least 1"),
        ([], {"gradient": "x"}, ValueError, "gradient is 'x'"),
        ([], {"evaluate": 3}, TypeError, "evaluate is 3; it must be a function"),
    ],
)
def test_arguments_are_refused(source, settings, error, words):
    with pytest.raises(error, match=words):
        epoch_of(source, **settings)


def misfit(change):
    first, second, *rest = batches()
    return [first, change(second), *rest]


@pytest.mark.parametrize(
    ("source", "steps", "words"),
    [
        ([], None, "the batches ended after 0 of 1 in this epoch"),
        (batches(), 5, "the batches ended after 4 of 5 in this epoch; pass an iterator that goes"),
        (iter(batches()), 5, "the batches ended after 4 of 5"),
        (
            misfit(lambda b: b._replace(inputs=b.inputs[:1], targets=b.targets[:1])),
            None,
            r"batch 2 of the epoch is inputs float32\[1, 3\], targets float32\[1\], the first was "
            r"inputs float32\[2, 3\], targets float32\[2\]; all must be alike: leave out a last",
        ),
        (misfit(lambda b: b._replace(targets=b.targets.astype(int))), None, "targets int32"),
        (misfit(lambda b: b[:1]), None, r"batch 2 of the epoch is \[0\] float32"),
        (misfit(lambda b: ("text", b.targets)), None, r"batch 2: batch\[0\] is a str"),
        (misfit(lambda b: (b.inputs.astype(object), b.targets)), None, "batch 2: batch.* object"),
    ],
)
def test_batches_that_end_or_change_are_refused(source, steps, words):
    with pytest.raises(train.BatchError, match=words):
        epoch_of(source, steps=steps)(faults.init_state())


def test_a_first_batch_is_looked_at_as_a_runs_data_is():
    config = mlp.Config(sizes=(3, 2))
    batch = data.Batch(np.zeros((2, 3), np.float32), np.array([0, 2]))
    run = train.make_epoch(mlp, config, faults.OPTIMIZER, [batch])
    state = train.init_state(mlp, config, faults.OPTIMIZER, jax.random.key(0))
    with pytest.raises(ValueError, match="label 2 at index"):
        run(state)


@pytest.mark.parametrize("number", [2, 3, 4])
def test_values_that_spoil_the_loss_are_refused_and_not_the_learning_rate(number, tmp_path):
    """Also the last batch's; what the epochs before left is kept."""
    config = mlp.Config(sizes=(3, 2))
    sound = [data.Batch(np.ones((2, 3), np.float32), np.array([0, 1])) for _ in range(8)]
    state = train.init_state(mlp, config, faults.OPTIMIZER, jax.random.key(0))
    for spoilt, words in (
        (sound[0]._replace(targets=np.array([0, 2])), f"batch {number} of the epoch: .*label 2"),
        (sound[0]._replace(inputs=np.full((2, 3), np.nan, np.float32)), f"batch {number} .*nan"),
    ):
        source = iter([*sound[: 3 + number], spoilt, *sound])
        run = train.make_epoch(mlp, config, faults.OPTIMIZER, source, steps=4)
        later, _ = run(state)
        with pytest.raises(train.BatchError, match=words):
            run(later)


def test_a_batch_of_a_model_that_looks_at_none_is_looked_at():
    source = misfit(lambda b: b._replace(inputs=b.inputs * np.inf))
    with pytest.raises(train.BatchError, match=r"batch 2 of the epoch: batch.inputs\[0, 0\] is"):
        epoch_of(source)(faults.init_state())


def test_what_diverges_on_sound_batches_has_diverged(capsys):
    wild = optax.sgd(1e30)
    run = train.make_epoch(faults, CONFIG, wild, batches(), gradient="autodiff")
    ours = train.fit(run, faults.init_state(wild), epochs=2, show=False)
    assert ours.ended == "diverged"
    assert "in epoch 1; nothing is kept: try a smaller" in capsys.readouterr().err


def test_an_iterator_too_short_for_what_was_taken_is_refused():
    state = faults.init_state()._replace(step=np.int32(5))
    words = "the iterator ended after 4 batches, and the run that goes on had taken 5"
    with pytest.raises(train.BatchError, match=words):
        epoch_of(iter(batches()), steps=1)(state)


def test_what_finished_before_an_iterator_ended_is_kept(tmp_path, capsys):
    run = epoch_of(iter(batches(8)), steps=3)
    ours = faults.fit_into(tmp_path, run)
    assert (ours.ended, ours.status, len(ours.history.loss)) == ("batches", 2, 2)
    assert "the run stopped: the batches ended after 2 of 3" in capsys.readouterr().err
    assert faults.look(tmp_path).saved == 2
    assert int(ours.state.step) == 6


def test_batches_that_end_before_anything_finished_are_refused(tmp_path):
    with pytest.raises(train.BatchError, match="ended after 2 of 3"):
        faults.fit_into(tmp_path, epoch_of(iter(batches(2)), steps=3))
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}
