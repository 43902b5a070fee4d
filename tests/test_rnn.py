"""The recurrent language model against autodiff, a loop, and what it ought to learn."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_leaves_close, run

from jaxnn import train, verify
from jaxnn.data import KeyedBatch as Batch
from jaxnn.models import rnn

RNN, LSTM, GRU = rnn.EXAMPLE_CONFIGS
SETTINGS = {
    "rnn": RNN,
    "lstm, two layers, dropout": LSTM,
    "gru, two layers, truncated": dataclasses.replace(GRU, layers=2, truncate=4),
    "lstm, truncated at every step": dataclasses.replace(LSTM, dropout=0.0, truncate=1),
}


def draw(config, seed=0):
    """Parameters without zeros and a batch."""
    params = rnn.init_params(jax.random.key(seed), config)
    params = jax.tree.map(
        lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params
    )
    return params, rnn.example_batch(jax.random.key(seed + 1), config)


@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_manual_grad_equals_autodiff(config, x64, strict_dtypes):
    params, batch = draw(config)
    (value, grads), (expected, oracle) = run(
        lambda *a: (
            rnn.manual_value_and_grad(*a, config),
            jax.value_and_grad(rnn.loss)(*a, config),
        ),
        params,
        batch,
    )
    assert_leaves_close(value, expected, 1e-14)
    assert_leaves_close(grads, oracle, 1e-10, floor=1e-16)


@pytest.mark.parametrize("config", rnn.EXAMPLE_CONFIGS, ids=["rnn", "lstm", "gru"])
def test_the_verifier_passes_the_model(config):
    report = verify.model(rnn, config)
    assert report.status == "pass", report


@pytest.mark.usefixtures("undiagnosed")
def test_a_fault_in_a_layers_backward_is_caught(monkeypatch):
    config = dataclasses.replace(RNN, dropout=0.3)
    params, batch = draw(config)
    right = rnn.layer_bwd

    def without_dropout(residuals, dout, config):
        return right(residuals._replace(kept=None), dout, config)

    monkeypatch.setattr(rnn, "layer_bwd", without_dropout)
    report = verify.gradient(rnn.loss, rnn.manual_grad, params, batch, config)
    assert [row.path for row in report.leaves if row.status == "fail"] == ["embedding.table"]


def test_twenty_steps_by_hand_and_by_autodiff_end_alike(x64):
    _, batch = draw(LSTM)
    ends, optimizer = [], optax.adam(0.01)
    for gradient in ("manual", "autodiff"):
        state = train.init_state(rnn, LSTM, optimizer, jax.random.key(0))
        step = train.make_step(rnn, LSTM, optimizer, gradient)
        for _ in range(20):
            state, loss = step(state, batch)
        ends.append((state.params, loss))
    chex.assert_trees_all_close(*ends, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cell", rnn.CELLS)
def test_a_tiny_text_is_learned_by_heart_and_recited(cell):
    config = rnn.Config(vocabulary=5, width=8, hidden=24, cell=cell)
    page = jnp.array([[0, 1, 2, 0, 3, 1, 1, 4, 0, 2, 2, 3]])
    batch = Batch(page[:, :-1], page[:, 1:])
    optimizer = optax.adam(0.03)
    state = train.init_state(rnn, config, optimizer, jax.random.key(0))
    step = train.make_step(rnn, config, optimizer)
    for _ in range(150):
        state, loss = step(state, batch)
    assert loss < 0.01
    recite = partial(rnn.generate, state.params, page[:, :1], config, length=11)
    for temperature in (0.0, 0.1):
        np.testing.assert_array_equal(recite(jax.random.key(0), temperature=temperature), page)


def test_what_is_drawn_follows_the_models_own_distribution(x64, strict_dtypes):
    """Each token's frequency at step 2, over many draws, is that of the forward's softmax."""
    params, _ = draw(GRU)
    prompt, n, temperature = jnp.array([1, 4]), 4000, 0.7
    drawn = rnn.generate(
        params, jnp.tile(prompt, (n, 1)), GRU, jax.random.key(0), length=2, temperature=temperature
    )
    assert drawn.shape == (n, 4)
    assert (drawn[:, :2] == prompt).all()
    continued = jnp.array([[*prompt, token] for token in range(GRU.vocabulary)])
    p = jax.nn.softmax(rnn.forward(params, continued, GRU) / temperature)
    first, second = p[0, 1], p[:, 2]
    for expected, tokens in ((first, drawn[:, 2]), (first @ second, drawn[:, 3])):
        share = np.bincount(tokens, minlength=GRU.vocabulary) / n
        np.testing.assert_allclose(share, expected, atol=5 * np.sqrt(0.25 / n))


def test_no_token_sees_the_one_after_it():
    params, batch = draw(LSTM)
    other = batch.inputs.at[:, 4].set((batch.inputs[:, 4] + 1) % LSTM.vocabulary)
    ours, theirs = (rnn.forward(params, tokens, LSTM) for tokens in (batch.inputs, other))
    np.testing.assert_array_equal(ours[:, :4], theirs[:, :4])
    assert (ours[:, 4:] != theirs[:, 4:]).any(-1).all()


def test_dropout_needs_a_key_and_follows_it():
    params, batch = draw(LSTM)
    loss = jax.jit(rnn.loss, static_argnums=2)
    once, again, other = (
        loss(params, batch._replace(key=jax.random.key(seed)), LSTM) for seed in (1, 1, 2)
    )
    evaluated = loss(params, batch._replace(key=None), LSTM)
    plain = dataclasses.replace(LSTM, dropout=0.0)
    assert once == again
    assert len({float(once), float(other), float(evaluated)}) == 3
    assert evaluated == loss(params, batch, plain)


def test_an_lstm_starts_with_open_forget_gates():
    params = rnn.init_params(jax.random.key(0), LSTM)
    for layer in params.layers:
        np.testing.assert_array_equal(layer.b, [0, 0, 1, 1, 0, 0, 0, 0])
    assert [layer.w_x.shape for layer in params.layers] == [(4, 8), (2, 8)]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"cell": "elman"}, ValueError, "'elman'.*'rnn', 'lstm', 'gru'"),
        ({"layers": 0}, ValueError, "layers is 0.*at least 1"),
        ({"hidden": 2.5}, TypeError, "hidden is 2.5.*integer"),
        ({"vocabulary": True}, TypeError, "vocabulary is True.*integer"),
        ({"dropout": 1.0}, ValueError, r"dropout is 1.0.*\[0, 1\)"),
        ({"dropout": float("nan")}, ValueError, r"dropout is nan.*\[0, 1\)"),
        ({"truncate": 0}, ValueError, "truncate is 0.*at least 1"),
        ({"cell": ["lstm"]}, ValueError, "cell is .*'rnn', 'lstm', 'gru'"),
    ],
)
def test_a_bad_configuration_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        rnn.Config(**settings)


GOOD = jnp.array([[0, 1, 2], [3, 0, 1]])


@pytest.mark.parametrize(
    ("tokens", "targets", "error", "message"),
    [
        (GOOD.at[1, 0].set(7), GOOD, ValueError, r"token 7 at index \(1, 0\).*\[0, 7\)"),
        (GOOD, GOOD.at[0, 2].set(-1), ValueError, r"targets: token -1 at index \(0, 2\)"),
        (GOOD, GOOD[:, 1:], ValueError, r"\(2, 2\).*\(2, 3\).*one target for each"),
        (GOOD[0], GOOD[0], ValueError, r"\(3,\).*tokens\[None\]"),
        (GOOD[:0], GOOD[:0], ValueError, r"\(0, 3\).*at least one example"),
        (jnp.ones((2, 3)), GOOD, TypeError, "float32.*integers"),
        ([[0, 1]], GOOD, TypeError, "tokens is a list"),
    ],
)
def test_bad_data_is_refused_before_anything_is_compiled(tokens, targets, error, message):
    params = rnn.init_params(jax.random.key(0), RNN)
    for function in (rnn.loss, rnn.manual_grad):
        with pytest.raises(error, match=message):
            function(params, Batch(tokens, targets), RNN)


def test_parameters_of_another_configuration_are_refused():
    params = rnn.init_params(jax.random.key(0), RNN)
    with pytest.raises(ValueError, match=r"layers\[1\]\.w_x .* None"):
        rnn.forward(params, GOOD, dataclasses.replace(RNN, layers=3))
    with pytest.raises(ValueError, match=r"w_x .* \(2, 5\).* needs \(2, 20\)"):
        rnn.forward(params, GOOD, dataclasses.replace(RNN, cell="lstm"))


def test_generate_compiles_once_and_takes_numpys_integers():
    params = rnn.init_params(jax.random.key(0), RNN)
    prompt = np.asarray(GOOD, np.int64)
    before = rnn._generated.__wrapped__._cache_size()
    texts = [
        rnn.generate(params, prompt, RNN, jax.random.key(seed), length=2, top_k=3)
        for seed in range(3)
    ]
    assert rnn._generated.__wrapped__._cache_size() == before + 1
    assert texts[0].shape == (2, 5)


def test_a_pair_is_a_batch_to_evaluate():
    params = rnn.init_params(jax.random.key(0), RNN)
    assert rnn.loss(params, (GOOD, GOOD), RNN) == rnn.loss(params, Batch(GOOD, GOOD), RNN)
