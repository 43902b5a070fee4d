"""The decoder language model against autodiff, itself, and what it ought to learn and to draw."""

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
from jaxnn.models import generate, rnn, sampling, transformer
from jaxnn.ops.rotary import Scaling

GPT2, LLAMA, WINDOWED, ROUTED, GEMMA = transformer.EXAMPLE_CONFIGS
NAMES = ["gpt2", "llama", "recompute, block and window", "experts", "gemma and qwen"]
CROSSED = dataclasses.replace(
    ROUTED, recompute=True, dropout=0.3, tied=True, biases=True, positions=9
)


def draw(config, seed=0):
    """Parameters without zeros and a batch, one token shorter than the positions."""
    params = transformer.init_params(jax.random.key(seed), config)
    params = jax.tree.map(
        lambda p: p + 0.3 * jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params
    )
    batch = transformer.example_batch(jax.random.key(seed + 1), config)
    return params, batch._replace(inputs=batch.inputs[:, 1:], targets=batch.targets[:, 1:])


def gradients(config):
    """By hand and by autodiff, each with its value."""
    params, batch = draw(config)
    return run(
        lambda *a: (
            transformer.manual_value_and_grad(*a, config),
            jax.value_and_grad(transformer.loss)(*a, config),
        ),
        params,
        batch,
    )


def test_manual_grad_equals_autodiff_with_settings_crossed(x64, strict_dtypes):
    (value, grads), (expected, oracle) = gradients(CROSSED)
    assert_leaves_close(value, expected, 1e-14)
    assert_leaves_close(grads, oracle, 1e-10, floor=1e-15)


@pytest.mark.parametrize("recompute", [False, True])
def test_layers_in_a_row_are_those_of_the_loop(recompute):
    """There is no loop then, and what is to be computed again is not found computed."""
    config = dataclasses.replace(GPT2, dropout=0.0, recompute=recompute)
    unrolled = dataclasses.replace(config, unroll=config.layers)
    params, batch = draw(config)
    expected, found = run(
        lambda *a: [transformer.manual_value_and_grad(*a, c) for c in (config, unrolled)],
        params,
        batch,
    )
    assert_leaves_close(found, expected, 1e-5, floor=1e-7)
    texts = [
        jax.jit(partial(transformer.manual_value_and_grad, config=c)).lower(params, batch).as_text()
        for c in (config, unrolled)
    ]
    assert [text.count("stablehlo.while") for text in texts] == [2, 0]
    # One in every feed-forward, and one before what is computed again; JAX writes layers in a row
    # as a function that is called, or out as often as there are layers.
    looped, in_a_row = (text.count("stablehlo.optimization_barrier") for text in texts)
    assert looped == 1
    assert in_a_row in (1 + recompute, config.layers * (1 + recompute))


OTHERS = {
    "exact": dataclasses.replace(GPT2, feed_forward="gelu_exact", head_size=3),
    "silu": dataclasses.replace(GPT2, feed_forward="silu", qk_norm=True, norm_offset=1.0),
    "relu": dataclasses.replace(GPT2, feed_forward="relu", attention_biases="none"),
    "geglu_exact": dataclasses.replace(LLAMA, feed_forward="geglu_exact", attention_biases="all"),
    "slowed": dataclasses.replace(LLAMA, rotary_scaling=Scaling(4.0), feed_forward_biases=True),
    "recomputed": dataclasses.replace(GEMMA, recompute=True, dropout=0.2, tied=False, window=2),
}


@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS.keys())
def test_manual_grad_equals_autodiff_with_each_activation(config, x64, strict_dtypes):
    (value, grads), (expected, oracle) = gradients(config)
    assert_leaves_close(value, expected, 1e-14)
    assert_leaves_close(grads, oracle, 1e-10, floor=1e-15)


@pytest.mark.parametrize("config", transformer.EXAMPLE_CONFIGS, ids=NAMES)
def test_the_verifier_passes_the_model(config, strict_dtypes):
    report = verify.model(transformer, config)
    assert report.status == "pass", report


def test_recomputation_changes_no_number(x64):
    params, batch = draw(GPT2)
    saved, again = (
        run(partial(transformer.manual_value_and_grad, config=config), params, batch)
        for config in (GPT2, dataclasses.replace(GPT2, recompute=True))
    )
    assert_leaves_close(saved, again, 1e-14, floor=1e-17)


SAVED = {"gpt2": (12, 6624), "llama": (11, 6720), NAMES[2]: (1, 720), "experts": (14, 9032)}
SAVED["gemma and qwen"] = (15, 9360)


@pytest.mark.parametrize("config", transformer.EXAMPLE_CONFIGS, ids=NAMES)
def test_the_scan_stacks_no_more_than_it_must(config):
    """So many arrays of so many bytes, no parameter among them; recomputed, the inputs alone."""
    params, batch = jax.eval_shape(
        lambda: (
            transformer.init_params(jax.random.key(0), config),
            transformer.example_batch(jax.random.key(1), config),
        )
    )
    _, residuals = jax.eval_shape(partial(transformer.loss_fwd, config=config), params, batch)
    saved = jax.tree.leaves(residuals.network.layers.saved)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in saved)
    assert (len(saved), size) == SAVED[NAMES[transformer.EXAMPLE_CONFIGS.index(config)]]
    weights = {leaf.shape for leaf in jax.tree.leaves(params.blocks)}
    weights -= {(config.layers, config.experts)}  # the share of tokens that chose each is saved
    assert not weights & {leaf.shape for leaf in saved}


def test_what_is_left_out_is_put_back(x64):
    """The residuals of a layer are again those that its forward saved."""
    for config in (GPT2, LLAMA, ROUTED, GEMMA, OTHERS["relu"]):
        params, batch = draw(config)
        block = jax.tree.map(lambda leaf: leaf[0], params.blocks)
        x = jax.random.normal(jax.random.key(2), (*batch.inputs.shape, config.width))
        keys = jax.random.split(jax.random.key(3)) if config.dropout else None
        _, saved = transformer.block_fwd(block, x, keys, config)
        again = transformer.put_back(transformer.leave_out(saved), block, config)
        assert jax.tree.structure(again) == jax.tree.structure(saved)
        assert_leaves_close(again, saved, 1e-15)


def test_compiling_does_not_take_longer_with_more_layers():
    def program(layers):
        config = dataclasses.replace(LLAMA, layers=layers)
        function = partial(transformer.manual_value_and_grad, config=config)
        arguments = jax.eval_shape(lambda: draw(config))
        return len(jax.jit(function).lower(*arguments).as_text().splitlines())

    assert program(2) == program(7)


def forgets_the_residual_stream(residuals, dout, config):
    dblock, dx = RIGHT(residuals, dout, config)
    return dblock, dx - dout[0]


def forgets_the_feed_forward_dropout(residuals, dout, config):
    return RIGHT(residuals._replace(feed_forward_kept=None), dout, config)


RIGHT = transformer.block_bwd


@pytest.mark.parametrize(
    ("wrong", "clean"),
    [
        (forgets_the_residual_stream, []),
        (forgets_the_feed_forward_dropout, ["norm.scale", "norm.shift"]),
    ],
)
def test_a_fault_in_a_layers_backward_is_caught(wrong, clean, monkeypatch):
    monkeypatch.setattr(transformer, "block_bwd", wrong)
    with jax.enable_x64(True):
        (_, grads), (_, oracle) = gradients(GPT2)
    wrong_leaves = [
        jax.tree_util.keystr(path)
        for (path, ours), theirs in zip(
            jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(oracle), strict=True
        )
        if np.abs(ours - theirs).max() > 1e-6 * np.abs(theirs).max()
    ]
    assert ".blocks.attention.wv" in wrong_leaves
    assert ".tokens.table" in wrong_leaves
    assert not {f".{name}" for name in clean} & set(wrong_leaves)


def test_twenty_steps_by_hand_and_by_autodiff_end_alike(x64):
    _, batch = draw(LLAMA)
    ends, optimizer = [], optax.adam(0.01)
    for gradient in ("manual", "autodiff"):
        state = train.init_state(transformer, LLAMA, optimizer, jax.random.key(0))
        step = train.make_step(transformer, LLAMA, optimizer, gradient)
        for _ in range(20):
            state, loss = step(state, batch)
        ends.append((state.params, loss))
    chex.assert_trees_all_close(*ends, rtol=1e-9, atol=1e-12)


PAGE = jnp.array([[0, 1, 2, 0, 3, 1, 1, 4, 0, 2, 2, 3]])


def test_a_tiny_text_is_learned_by_heart_and_recited():
    config = transformer.gpt2(vocabulary=5, positions=12, layers=2, width=16, heads=2)
    batch = Batch(PAGE[:, :-1], PAGE[:, 1:])
    optimizer = optax.adam(0.01)
    state = train.init_state(transformer, config, optimizer, jax.random.key(0))
    step = train.make_step(transformer, config, optimizer)
    for _ in range(150):
        state, loss = step(state, batch)
    assert loss < 0.01
    recited = generate.generate(
        state.params, PAGE[:, :1], config, jax.random.key(0), length=11, temperature=0.0
    )
    np.testing.assert_array_equal(recited, PAGE)


@pytest.mark.parametrize("config", [LLAMA, WINDOWED, ROUTED, GEMMA], ids=NAMES[1:])
def test_with_a_cache_the_logits_are_the_forwards(config, x64, strict_dtypes):
    """Two tokens are read at once, the others one by one; the cache has room to spare."""
    params, batch = draw(config)
    tokens = batch.inputs

    def one_by_one(params, tokens):
        cache = generate.init_cache(params, len(tokens), config.positions, config)
        logits, cache = generate.cached_forward(params, cache, tokens[:, :2], 0, config)
        rest = jnp.arange(2, tokens.shape[1])

        def step(cache, at):
            token = tokens[:, at][:, None]
            logits, cache = generate.cached_forward(params, cache, token, at, config)
            return cache, logits[:, 0]

        _, others = jax.lax.scan(step, cache, rest)
        return jnp.concatenate([logits, jnp.moveaxis(others, 0, 1)], 1)

    ours, full = run(lambda *a: (one_by_one(*a), transformer.forward(*a, config)), params, tokens)
    assert_leaves_close(ours, full, 1e-12)


def test_what_is_drawn_follows_the_models_own_distribution(x64, strict_dtypes):
    """Each token's frequency at step 2, over many draws, is that of the forward's softmax."""
    params, _ = draw(LLAMA)
    prompt, n, temperature = jnp.array([1, 4]), 4000, 0.7
    drawn = generate.generate(
        params,
        jnp.tile(prompt, (n, 1)),
        LLAMA,
        jax.random.key(0),
        length=2,
        temperature=temperature,
    )
    assert drawn.shape == (n, 4)
    assert (drawn[:, :2] == prompt).all()
    continued = jnp.array([[*prompt, token] for token in range(LLAMA.vocabulary)])
    logits = run(partial(transformer.forward, config=LLAMA), params, continued)
    p = jax.nn.softmax(logits / temperature)
    first, second = p[0, 1], p[:, 2]
    for expected, tokens in ((first, drawn[:, 2]), (first @ second, drawn[:, 3])):
        share = np.bincount(tokens, minlength=LLAMA.vocabulary) / n
        np.testing.assert_allclose(share, expected, atol=5 * np.sqrt(0.25 / n))


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 2}, [0.5, 0.25, 0, 0]),
        ({"top_p": 0.5}, [0.5, 0, 0, 0]),
        ({"top_p": 0.51}, [0.5, 0.25, 0, 0]),
        ({"top_k": 2, "top_p": 0.6}, [0.5, 0, 0, 0]),  # of the two kept, the first has 2/3
        ({"top_p": 1.0}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_k": 3, "temperature": 0.5}, [0.25, 0.0625, 0.0225, 0]),
    ],
)
def test_sampling_is_cut_off_where_it_should_be(settings, kept, x64, strict_dtypes):
    order, n = np.array([2, 0, 3, 1]), 4000
    logits = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1]))[order]
    tokens = sampling.sample(jnp.tile(logits, (n, 1)), jax.random.key(0), **settings)
    expected = np.array(kept)[order] / np.sum(kept)
    share = np.bincount(tokens, minlength=4) / n
    np.testing.assert_allclose(share, expected, atol=5 * np.sqrt(0.25 / n))
    np.testing.assert_array_equal(share[expected == 0], 0)


def test_no_token_sees_those_after_it_or_out_of_the_window():
    config = dataclasses.replace(WINDOWED, layers=1, positions=7)
    params, _ = draw(config)
    tokens = jnp.array([[0, 1, 2, 3, 4, 0, 1]])
    ours, theirs = (
        run(partial(transformer.forward, config=config), params, x)
        for x in (tokens, tokens.at[0, 3].set(0))
    )
    differ = (ours != theirs).any(-1)[0]
    np.testing.assert_array_equal(differ, [False] * 3 + [True] * 2 + [False] * 2)


def test_dropout_needs_a_key_and_follows_it():
    params, batch = draw(GPT2)
    loss = jax.jit(transformer.loss, static_argnums=2)
    once, again, other = (
        loss(params, batch._replace(key=jax.random.key(seed)), GPT2) for seed in (1, 1, 2)
    )
    evaluated = loss(params, batch._replace(key=None), GPT2)
    assert once == again
    assert len({float(once), float(other), float(evaluated)}) == 3
    assert evaluated == loss(params, batch, dataclasses.replace(GPT2, dropout=0.0))


def test_initial_weights_have_the_promised_scale():
    config = transformer.llama(layers=8, width=64, biases=True, norm="layer")
    params = transformer.init_params(jax.random.key(0), config)
    blocks = params.blocks
    for w in (blocks.attention.wq, blocks.feed_forward.gate, params.tokens.table, params.output):
        np.testing.assert_allclose(w.std(), np.sqrt(2 / (5 * config.width)), rtol=0.05)
    for w in (blocks.attention.wo, blocks.feed_forward.down):
        np.testing.assert_allclose(w.std(), np.sqrt(2 / (5 * config.width)) / 4, rtol=0.05)
    assert not blocks.attention.bq.any()
    assert (blocks.attention_norm.scale == 1).all()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"layers": 0}, ValueError, "layers is 0.*at least 1"),
        ({"experts": -1}, ValueError, "experts is -1.*at least 0"),
        ({"width": 2.5}, TypeError, "width is 2.5.*integer"),
        ({"width": None}, TypeError, "width is None.*integer"),
        ({"width": 10, "heads": 4}, ValueError, "width is 10 for 4 heads.*divide"),
        ({"heads": 4, "kv_heads": 3}, ValueError, "kv_heads is 3 for 4 heads.*divide"),
        ({"norm": "batch"}, ValueError, "norm is 'batch'.*'layer', 'rms'"),
        ({"feed_forward": "elu"}, ValueError, "'elu'.*'gelu', .*'relu', 'swiglu', 'geglu'"),
        ({"position": "none"}, ValueError, "'none'.*'learned', 'rotary'"),
        ({"tied": "yes"}, TypeError, "tied is 'yes'.*True or False"),
        ({"tied": np.array([1, 0])}, TypeError, "tied is .*True or False"),
        ({"balance": jnp.float32(0.1)}, TypeError, "balance is .*number of Python's"),
        ({"eps": None}, TypeError, "eps is None.*number"),
        (
            {"width": 6, "heads": 2, "position": "rotary"},
            ValueError,
            "width 6 and 2 heads.*size 3.*even",
        ),
        ({"experts": 2}, ValueError, "'gelu' with 2 experts.*'swiglu'"),
        (
            {"experts": 2, "experts_per_token": 3, "feed_forward": "swiglu"},
            ValueError,
            "3 of 2 experts",
        ),
        ({"dropout": 1.0}, ValueError, r"dropout is 1.0.*\[0, 1\)"),
        ({"balance": float("nan")}, ValueError, "balance is nan.*finite"),
        ({"eps": 0.0}, ValueError, "eps is 0.0.*positive"),
        ({"eps": 1e-300}, ValueError, "eps is 1e-300.*positive in float32: 1e-5 is usual"),
        ({"rotary_base": 1e-50}, ValueError, "rotary_base is 1e-50.*positive in float32"),
        ({"rotary_base": 1e-37}, ValueError, "rotary_base is 1e-37.*at least 2.5e-29.*infinite"),
        ({"rotary_base": 1e39}, ValueError, r"rotary_base is 1e\+39.*finite"),
        ({"window": 0}, ValueError, "window is 0.*at least 1"),
        ({"head_size": 0}, ValueError, "head_size is 0.*at least 1"),
        ({"head_size": 3, "position": "rotary"}, ValueError, "^heads of size 3.*even"),
        ({"norm_offset": 1.0}, ValueError, "norm_offset is 1.0 with norm 'layer' and no qk_norm"),
        ({"norm_offset": -1.0, "norm": "rms"}, ValueError, "norm_offset is -1.0.*at least 0"),
        ({"qk_norm": 1}, TypeError, "qk_norm is 1.*True or False"),
        ({"attention_biases": "q"}, ValueError, "'q'; it must be one of 'all', 'qkv', 'none'"),
        ({"attention_biases": True}, ValueError, "attention_biases is True; it must be one of"),
        ({"feed_forward_biases": "no"}, TypeError, "feed_forward_biases is 'no'.*True or False"),
        (
            {"feed_forward_biases": True, "experts": 2, "feed_forward": "swiglu"},
            ValueError,
            "feed_forward_biases is True with 2 experts",
        ),
        ({"rotary_scaling": 8.0}, TypeError, "rotary_scaling is a float.*rotary.Scaling"),
        (
            {"rotary_scaling": Scaling(8.0)},
            ValueError,
            "rotary_scaling is .*8.0.* with 'learned' positions; they must be 'rotary'",
        ),
    ],
)
def test_a_bad_configuration_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        transformer.Config(**settings)


GOOD = jnp.zeros((2, 3), int)


@pytest.mark.parametrize(
    ("tokens", "targets", "error", "message"),
    [
        (GOOD.at[1, 2].set(7), GOOD, ValueError, r"token 7 at index \(1, 2\).*\[0, 7\)"),
        (GOOD.at[0, 0].set(-1), GOOD, ValueError, r"token -1.*\[0, 7\)"),
        (GOOD, GOOD.at[1, 2].set(7), ValueError, r"targets: token 7 at index \(1, 2\).*\[0, 7\)"),
        (GOOD, GOOD[:1], ValueError, r"\(1, 3\).*\(2, 3\).*one target for each"),
        (jnp.ones((2, 3)), GOOD, TypeError, "float32.*integers"),
        ([[0, 1]], GOOD, TypeError, "tokens is a list.*jnp.asarray"),
        (GOOD[0], GOOD[0], ValueError, r"\(3,\).*tokens\[None\]"),
        (GOOD, [[0] * 3] * 2, TypeError, "targets is a list.*jnp.asarray"),
        (GOOD[:, :0], GOOD[:, :0], ValueError, r"\(2, 0\).*at least one"),
        (jnp.zeros((2, 7), int), GOOD, ValueError, "sequences of 7; there are 6 positions"),
    ],
)
def test_bad_data_is_refused_before_anything_is_compiled(tokens, targets, error, message):
    params = transformer.init_params(jax.random.key(0), GPT2)
    for function in (transformer.loss, transformer.manual_value_and_grad):
        with pytest.raises(error, match=message):
            function(params, Batch(tokens, targets), GPT2)


def test_parameters_of_another_configuration_are_refused():
    params = transformer.init_params(jax.random.key(0), LLAMA)
    other = dataclasses.replace(LLAMA, kv_heads=1)
    with pytest.raises(ValueError, match=r"attention.wk .*\(2, 8, 4\).*\(2, 8, 2\).*must fit"):
        transformer.forward(params, GOOD, other)
    with pytest.raises(ValueError, match=r"tokens.table.*\(6, 8\).*\(7, 4\)"):
        transformer.forward(params, GOOD, GPT2)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"length": 0}, ValueError, "length is 0.*at least 1"),
        ({"length": 2.5}, TypeError, "length is 2.5.*integer"),
        ({"length": None}, TypeError, "length is None.*integer"),
        ({"temperature": -0.1}, ValueError, "temperature is -0.1.*at least 0"),
        ({"temperature": float("nan")}, ValueError, "temperature is nan.*finite"),
        ({"temperature": "x"}, TypeError, "temperature is 'x'.*number"),
        ({"top_k": 0}, ValueError, "top_k is 0.*at least 1"),
        ({"top_k": 8}, ValueError, "top_k is 8 of 7 tokens"),
        ({"top_k": True}, TypeError, "top_k is True.*integer"),
        ({"top_p": 0.0}, ValueError, r"top_p is 0.0.*\(0, 1\]"),
        ({"top_p": jnp.float32(0.5)}, TypeError, "top_p is .*number of Python's"),
        ({"prompt": GOOD.at[0, 0].set(9)}, ValueError, "token 9.*outside"),
    ],
)
def test_bad_sampling_settings_are_refused(settings, error, message):
    for model, config in ((generate, GPT2), (rnn, rnn.Config(vocabulary=7, width=2, hidden=3))):
        net = transformer if model is generate else rnn
        params = net.init_params(jax.random.key(0), config)
        given = {"prompt": GOOD, "config": config, "key": jax.random.key(0), "length": 2} | settings
        with pytest.raises(error, match=message):
            model.generate(params, **given)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.5}])
def test_where_there_is_nothing_to_draw_from_no_token_is_drawn(settings):
    nan, inf = jnp.nan, jnp.inf
    rows = [[nan, 1, 2], [0, nan, nan], [inf, 0, 1], [-inf, -inf, -inf], [-inf, 3, -inf]]
    for dtype in ("float32", "bfloat16"):
        logits = jnp.array(rows, dtype)
        tokens = sampling.sample(logits, jax.random.key(0), **settings)
        np.testing.assert_array_equal(tokens, [-1, -1, -1, -1, 1])


@pytest.mark.parametrize("strange", [7, 100, -1])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32"])
def test_after_a_token_outside_the_vocabulary_there_is_no_other(dtype, strange):
    """Under jit, where it cannot be refused; the other rows are what they would be."""
    prompt = GOOD.at[1, 1].set(2).at[0, 1].set(strange).astype(dtype)
    for model, config in ((generate, GPT2), (rnn, rnn.Config(vocabulary=7, width=2, hidden=3))):
        net = transformer if model is generate else rnn
        params = net.init_params(jax.random.key(0), config)
        write = partial(model.generate, config=config, length=3, temperature=0.0)
        written = jax.jit(write)(params, prompt, key=jax.random.key(0))
        right = write(params, prompt[1:], key=jax.random.key(0))
        assert written.dtype == jnp.int32
        np.testing.assert_array_equal(written[0, 3:], [-1, -1, -1])
        np.testing.assert_array_equal(written[1:], right)
        with pytest.raises(ValueError, match=r"token .* outside \[0, 7\)"):
            write(params, prompt, key=jax.random.key(0))


def test_tokens_of_a_vocabulary_wider_than_the_prompts_dtype_are_kept():
    config = transformer.gpt2(vocabulary=300, positions=4, layers=1, width=2, heads=1, tied=False)
    params = transformer.init_params(jax.random.key(0), config)
    params = params._replace(output=jnp.zeros((2, 300)))
    prompt = jnp.zeros((200, 1), jnp.int8)
    tokens = generate.generate(params, prompt, config, jax.random.key(0), length=1)
    assert tokens.max() > 255
    assert tokens.min() == 0


def test_a_text_longer_than_the_positions_is_refused():
    params = transformer.init_params(jax.random.key(0), GPT2)
    with pytest.raises(ValueError, match=r"prompt has 3 tokens, length is 4.*the 6 positions"):
        generate.generate(params, GOOD, GPT2, jax.random.key(0), length=4)


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        (None, TypeError, "start is None; it must be an integer of at least 0"),
        ("a", TypeError, "start is 'a'; it must be an integer"),
        (1.5, TypeError, "start is 1.5; it must be an integer"),
        (True, TypeError, "start is True; it must be an integer"),
        (jnp.array(True), TypeError, "start has dtype bool; it must be of integers"),
        (np.float32(1), TypeError, "start is 1.0; it must be an integer"),
        (jnp.array([0, 1]), ValueError, r"start has shape \(2,\); it must be one integer"),
        (-1, ValueError, "start is -1; it must be at least 0"),
        (2**31, ValueError, "start is 2147483648; it must be below"),
        (jnp.array(3), ValueError, r"\(2, 3\) at start 3; .* room of 5 and .* 6 positions"),
        (np.int8(100), ValueError, r"at start 100; they must end within"),
    ],
)
def test_a_start_that_is_none_is_refused(start, error, message):
    params = transformer.init_params(jax.random.key(0), GPT2)
    cache = generate.init_cache(params, 2, 5, GPT2)
    generate.cached_forward(params, cache, GOOD, np.int8(2), GPT2)
    with pytest.raises(error, match=message):
        generate.cached_forward(params, cache, GOOD, start, GPT2)


def test_a_cache_without_room_or_of_another_dtype_is_refused():
    params = transformer.init_params(jax.random.key(0), GPT2)
    cache = jax.tree.map(jnp.bfloat16, generate.init_cache(params, 2, 5, GPT2))
    with pytest.raises(TypeError, match=r"parameters float32, k bfloat16.*must be one"):
        generate.cached_forward(params, cache, GOOD, 0, GPT2)
    cache = generate.init_cache(params, 2, 2, GPT2)
    with pytest.raises(ValueError, match=r"\(2, 3\); .* within the cache's room of 2"):
        jax.jit(lambda at: generate.cached_forward(params, cache, GOOD, at, GPT2))(0)
    cache = generate.init_cache(params, 2, 9, GPT2)
    with pytest.raises(ValueError, match="room of 9 and the model's 6 positions"):
        generate.cached_forward(params, cache, GOOD, 4, GPT2)
    for sizes, error, words in (
        ((-1, 5), ValueError, "n is -1; it must be at least 0"),
        ((2, 0), ValueError, "length is 0; it must be at least 1"),
        ((2, 1.5), TypeError, "length is 1.5; it must be an integer"),
    ):
        with pytest.raises(error, match=words):
            generate.init_cache(params, *sizes, GPT2)
    assert generate.init_cache(params, 0, 5, GPT2).k.shape == (2, 0, 5, 2, 2)


def test_settings_become_pythons_and_hash():
    config = transformer.Config(eps=np.float32(0.5), tied=np.bool_(True), layers=np.int64(2))
    assert (type(config.eps), type(config.tied), type(config.layers)) == (float, bool, int)
    scaling = Scaling(np.float32(2), np.int64(1), 4, np.int64(8))
    scaling = transformer.Config(position="rotary", rotary_scaling=scaling).rotary_scaling
    assert [type(part) for part in scaling] == [float, float, float, int]
    assert hash(config) == hash(transformer.Config(eps=0.5, tied=True, layers=2))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("top_p", [None, 0.5])
def test_among_equal_logits_every_token_is_drawn_alike(dtype, top_p):
    tokens = sampling.sample(jnp.zeros((4000, 1000), dtype), jax.random.key(0), top_p=top_p)
    # Of 1000 tokens 4000 draws miss 1 in e^4 and meet the commonest about 14 times.
    counts = np.bincount(tokens, minlength=1000)
    assert (counts > 0).sum() > 960
    assert counts.max() < 25
    assert abs(tokens.mean() - 499.5) < 5 * 1000 / np.sqrt(12 * 4000)


@pytest.mark.parametrize("temperature", [0, 1e-45, 1e-38, 2e-38, 1e-30])
def test_towards_temperature_0_only_the_likeliest_is_drawn(temperature):
    logits = jnp.array([[1.0, 5.0, 4.9], [-7.0, -9.0, -8.0]])
    tokens = sampling.sample(logits, jax.random.key(0), temperature=temperature)
    np.testing.assert_array_equal(tokens, [1, 0])


def test_a_pair_is_a_batch_to_evaluate():
    params = transformer.init_params(jax.random.key(0), GPT2)
    pair = jax.eval_shape(partial(transformer.loss, config=GPT2), params, (GOOD, GOOD))
    assert pair.shape == ()
