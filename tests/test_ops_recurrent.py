"""What the table of laws does not ask of the recurrent layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close, run
from rows.recurrent import layer, one_by_one, projected

from jaxnn.ops.bidirectional import Directions, bidirectional
from jaxnn.ops.gru import gru
from jaxnn.ops.recurrent import lstm, rnn
from jaxnn.ops.recurrent_parts import CellState, Recurrent, init_gru, init_lstm, init_rnn

pytestmark = pytest.mark.usefixtures("strict_dtypes")

LAYERS = {"rnn": (rnn, 1), "lstm": (lstm, 4), "gru": (gru, 3)}


def drawn(gates, shape):
    """Inputs in float64; the sequences are shape[0], the steps shape[-1]."""
    inputs = layer(gates)(np.random.default_rng(0), shape)
    return jax.tree.map(jnp.asarray, inputs)


def cotangent(op, inputs, **static):
    rng = np.random.default_rng(1)
    out = jax.eval_shape(lambda *x: op.fwd(*x, **static)[0], *inputs)
    return jax.tree.map(lambda o: jnp.asarray(rng.normal(size=o.shape), o.dtype), out)


def by_hand(op, inputs, dout, **static):
    _, residuals = op.fwd(*inputs, **static)
    return op.bwd(residuals, dout, **static)


def by_autodiff(op, inputs, dout, **static):
    *reals, lengths = inputs
    _, pull = jax.vjp(lambda *x: op.fwd(*x, lengths, **static)[0], *reals)
    return *pull(dout), None


@pytest.mark.parametrize("reverse", [False, True])
def test_truncation_cuts_gradients_and_nothing_else(reverse, x64):
    """The state enters each block of steps as a constant, also where the last one is padded."""
    params, state, x, _ = drawn(4, (5, 7))
    inputs = params, state, x, jnp.array([7, 0, 6, 4, 3])
    static = {"reverse": reverse, "truncate": 3}
    (y, final), dout = lstm(*inputs, reverse=reverse), cotangent(lstm, inputs)

    def ways(inputs, dout):
        return (
            lstm(*inputs, **static),
            by_hand(lstm, inputs, dout, **static),
            by_autodiff(lstm, inputs, dout, **static),
            jax.vjp(in_blocks, *inputs[:3])[1](dout),
            by_hand(lstm, inputs, dout, reverse=reverse),
            by_hand(lstm, inputs, dout, reverse=reverse, truncate=7),
        )

    def in_blocks(params, state, x):
        """The same by calls of three steps, with what passes between them stopped."""
        blocks, lengths = [slice(0, 3), slice(3, 6), slice(6, 7)], inputs[-1]
        outputs = {}
        for number, block in enumerate(blocks[::-1] if reverse else blocks):
            here = jnp.clip(lengths - block.start, 0, block.stop - block.start)
            begun = jnp.minimum(lengths, 7) > block.stop if reverse else here > 0
            if number:  # a state that has yet to enter, or has left, is not stopped
                state = jax.tree.map(
                    lambda s, begun=begun: jnp.where(begun[:, None], jax.lax.stop_gradient(s), s),
                    state,
                )
            (outputs[block.start], state), _ = lstm.fwd(
                params, state, x[:, block], here, reverse=reverse
            )
        return jnp.concatenate([outputs[b.start] for b in blocks], 1), state

    same, hand, auto, blocks, whole, longer = run(ways, inputs, dout)
    assert_leaves_close(same, (y, final), 1e-12)
    assert_leaves_close(hand, auto, 1e-12)
    assert_leaves_close(hand, blocks, 1e-12)
    assert np.abs(whole[0].w_h - hand[0].w_h).max() > 1e-3
    assert_leaves_close(longer, whole, 1e-12)
    assert_leaves_close(lstm(*inputs, reverse=reverse, truncate=2**31 - 1), same, 1e-12)


def test_both_directions_carry_the_memory_of_an_lstm(x64):
    params, state, x, lengths = drawn(4, (3, 4))
    other = jax.tree.map(lambda v: -v, params)
    inputs = Directions(params, other), Directions(state, state), x, lengths
    static = {"cell": lstm, "truncate": 2}
    dout = cotangent(bidirectional, inputs, **static)
    (y, final), hand, auto = run(
        lambda inputs, dout: (
            bidirectional(*inputs, **static),
            by_hand(bidirectional, inputs, dout, **static),
            by_autodiff(bidirectional, inputs, dout, **static),
        ),
        inputs,
        dout,
    )
    assert_leaves_close(hand, auto, 1e-12)
    there, back = np.split(y, 2, -1)
    arrays = jax.tree.map(np.asarray, (params, other, state, x, lengths))
    assert_leaves_close((there, final.forward), one_by_one(arrays[0], *arrays[2:]), 1e-12)
    back_too = one_by_one(*arrays[1:], reverse=True)
    assert_leaves_close((back, final.backward), back_too, 1e-12)


def test_where_the_reset_gate_is_open_it_does_not_matter_when_it_multiplies():
    params, state, x, lengths = drawn(3, (3, 4))
    params = params._replace(b=params.b.at[: len(params.w_h)].set(50))
    before, after = (gru(params, state, x, lengths, reset_after=r) for r in (False, True))
    assert_leaves_close(before, after, 1e-6)
    shut = params._replace(b=params.b.at[: len(params.w_h)].set(-50))
    before, after = (gru(shut, state, x, lengths, reset_after=r)[0] for r in (False, True))
    assert np.abs(before - after).max() > 1e-3  # b_hn is inside the gate or not


def test_both_directions_may_project_their_states(x64):
    params, state, x, lengths = jax.tree.map(
        jnp.asarray, projected(np.random.default_rng(0), (3, 4))
    )
    inputs = Directions(params, params), Directions(state, state), x, lengths
    dout = cotangent(bidirectional, inputs, cell=lstm)
    (y, _), hand, auto = run(
        lambda inputs, dout: (
            bidirectional(*inputs, cell=lstm),
            by_hand(bidirectional, inputs, dout, cell=lstm),
            by_autodiff(bidirectional, inputs, dout, cell=lstm),
        ),
        inputs,
        dout,
    )
    assert y.shape == (3, 4, 2 * params.w_hr.shape[1])
    assert_leaves_close(hand, auto, 1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_memory_of_an_lstm_in_16_bits_is_carried_in_float32(dtype):
    """Each of 64 steps adds an eighth of a unit: a memory rounded after each would stay 1."""
    eps, ones = float(jnp.finfo(dtype).eps), jnp.ones((1, 1))
    b = jnp.array([0, 50, eps / 4, 0])  # i is 1/2, f 1 and g eps/4
    params = Recurrent(jnp.zeros((1, 4)), jnp.zeros((1, 4)), b)
    inputs = params, CellState(ones, ones), jnp.zeros((1, 64, 1))
    _, final = lstm(*jax.tree.map(lambda v: v.astype(dtype), inputs), None)
    np.testing.assert_allclose(np.asarray(final.c, float), 1 + 8 * eps, rtol=eps)


@pytest.mark.parametrize(("op", "gates"), LAYERS.values(), ids=LAYERS.keys())
def test_nothing_in_the_padding_is_looked_at(op, gates):
    params, state, x, _ = jax.tree.map(lambda v: v.astype("float32"), drawn(gates, (3, 4)))
    lengths = jnp.array([4, 0, 1])
    hidden = jnp.arange(4) >= lengths[:, None]
    dout = cotangent(op, (params, state, x, lengths))
    backward = jax.jit(lambda x: (op.fwd(params, state, x, lengths)[0],
                                  by_hand(op, (params, state, x, lengths), dout)))  # fmt: skip
    (y, final), cotangents = backward(jnp.where(hidden[..., None], jnp.nan, x))
    assert_leaves_close(((y, final), cotangents), backward(x), 0)
    assert not y[hidden].any()
    assert not cotangents[2][hidden].any()
    np.testing.assert_array_equal(final.h[1], state.h[1])


@pytest.mark.parametrize(("op", "gates"), LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_huge_inputs_stay_finite(op, gates, scale):
    params, state, x, _ = jax.tree.map(lambda v: v.astype("float32"), drawn(gates, (3, 4)))
    inputs = params, state, scale * x, None
    out, hand = run(
        lambda inputs, dout: (op(*inputs), by_hand(op, inputs, dout)), inputs, cotangent(op, inputs)
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((out, hand)))
    assert np.abs(out[0]).max() <= np.abs(state.h).max() + 1


def test_lengths_that_cannot_be_seen_are_clipped():
    params, state, x, _ = drawn(1, (2, 3))
    clipped = jax.jit(rnn)(params, state, x, jnp.array([9, -1], jnp.int8))
    assert_leaves_close(clipped, rnn(params, state, x, jnp.array([3, 0])), 1e-6)


def test_initial_weights_are_orthogonal_and_forget_gates_open():
    key = jax.random.key(0)
    for init, gates in ((init_rnn, 1), (init_lstm, 4), (init_gru, 3)):
        params = init(key, 3, 5)
        assert params.w_x.shape == (3, gates * 5)
        squares = [np.asarray(w.T @ w) for w in jnp.split(params.w_h, gates, 1)]
        np.testing.assert_allclose(squares, [np.eye(5)] * gates, atol=1e-5)
        drawings = jnp.split(params.w_h, gates, 1)
        assert len({float(w[0, 0]) for w in drawings}) == gates
    np.testing.assert_array_equal(init_lstm(key, 3, 5).b, np.repeat([0.0, 1.0, 0.0, 0.0], 5))
    assert init_gru(key, 3, 5).b_hn.shape == (5,)
    assert init_rnn(key, 3, 5).b_hn is init_lstm(key, 3, 5).b_hn is None


PARAMS = Recurrent(jnp.zeros((2, 5)), jnp.zeros((5, 5)), jnp.zeros(5))
FOUR = Recurrent(jnp.zeros((2, 20)), jnp.zeros((5, 20)), jnp.zeros(20))
START = CellState(jnp.zeros((3, 5)))
HALF = CellState(START.h.astype(jnp.bfloat16), START.h)
X = jnp.zeros((3, 4, 2))
BOTH_PARTS = CellState(START.h, START.h)
BOTH, STARTS = Directions(PARAMS, PARAMS), Directions(START, START)
call = functools.partial(rnn, PARAMS, START, X)
PROJECTED = Recurrent(jnp.zeros((2, 20)), jnp.zeros((3, 20)), jnp.zeros(20), w_hr=jnp.zeros((5, 3)))
THREE = Recurrent(jnp.zeros((2, 15)), jnp.zeros((5, 15)), jnp.zeros(15), jnp.zeros(5))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rnn(PARAMS, START, X[0], None), ValueError, r"\(4, 2\).*\(N, T, D\)"),
        (
            lambda: rnn(PARAMS, START, X[:, :0], None),
            ValueError,
            r"number of steps of x .*\(3, 0, 2\) is 0",
        ),
        (
            lambda: rnn(PARAMS, START, X[..., :1], None),
            ValueError,
            r"x has shape \(3, 4, 1\), .*w_x \(2, 5\)",
        ),
        (lambda: lstm(PARAMS, BOTH_PARTS, X, None), ValueError, r"lstm: w_h .*\(5, 5\).*H, 4 H"),
        (lambda: lstm(FOUR, START, X, None), ValueError, "lstm: c is None; .*an array.*h and c"),
        (
            lambda: rnn(PARAMS, CellState(START.h[:2]), X, None),
            ValueError,
            r"x has shape \(3, 4, 2\), .*h \(2, 5\);.*h \(N, H\)",
        ),
        (
            lambda: rnn(PARAMS, CellState(START.h, START.h), X, None),
            ValueError,
            "c is an array; .*be None.*h alone",
        ),
        (lambda: call(jnp.zeros(3)), TypeError, "rnn: lengths has dtype float32.*integers"),
        (
            lambda: call(jnp.zeros(2, int)),
            ValueError,
            r"lengths has shape \(2,\), beside x \(3, 4, 2\).*one length per",
        ),
        (
            lambda: call(jnp.array([0, 5, 4])),
            ValueError,
            r"length 5 at index \(1,\) .*\[0, 5\); x has 4 steps",
        ),
        (lambda: call(jnp.array([0, 4, -1])), ValueError, r"length -1 at index \(2,\)"),
        (lambda: call(None, truncate=0), ValueError, "truncate is 0.*at least 1"),
        (lambda: call(None, truncate=1.5), TypeError, "rnn: truncate is 1.5.*integer.*or None"),
        (lambda: call(None, truncate=float("nan")), TypeError, "truncate is nan.*integer"),
        (lambda: call(None, truncate=True), TypeError, "truncate is True.*integer"),
        (lambda: call(None, truncate=[2]), TypeError, r"truncate is \[2\].*integer"),
        (lambda: rnn(None, START, X, None), TypeError, "params is a NoneType.*Recurrent"),
        (lambda: rnn(PARAMS._replace(b=None), START, X, None), ValueError, "rnn: b is None"),
        (lambda: gru(PARAMS, START, X, None), ValueError, "gru: b_hn is None; .*init_gru"),
        (
            lambda: rnn(PARAMS, START, X.astype(complex), None),
            TypeError,
            "x has dtype complex.*floating",
        ),
        (
            lambda: lstm(PROJECTED, BOTH_PARTS, X, None),
            ValueError,
            r"h has shape \(3, 5\), .*w_hr \(5, 3\).*h \(N, P\)",
        ),
        (
            lambda: lstm(FOUR._replace(w_hr=jnp.zeros((5, 3))), BOTH_PARTS, X, None),
            ValueError,
            r"w_hr has shape \(5, 3\), .*w_h \(5, 20\).*w_h \(P, G\)",
        ),
        (
            lambda: rnn(PARAMS._replace(w_hr=jnp.zeros((5, 3))), START, X, None),
            ValueError,
            "rnn: w_hr is an array; it must be None",
        ),
        (lambda: call(None, activation="gelu"), ValueError, "activation is 'gelu'.*'tanh', 'relu'"),
        (lambda: call(None, activation=1), ValueError, "rnn: activation is 1; it must be one of"),
        (
            lambda: gru(THREE, START, X, None, reset_after=1),
            TypeError,
            "gru: reset_after is 1; it must be True or False",
        ),
        (lambda: lstm(FOUR, BOTH_PARTS, X, None, activation="relu"), TypeError, "no setting acti"),
        (
            lambda: bidirectional(BOTH, STARTS, X, None, cell=rnn, reset_after=True),
            TypeError,
            "rnn takes no setting reset_after",
        ),
        (
            lambda: bidirectional(BOTH, STARTS, X, None, cell=rnn, activation="no"),
            ValueError,
            "rnn: activation is 'no'",
        ),
        (lambda: init_lstm(jax.random.key(0), 0, 5), ValueError, "init_lstm: inputs is 0"),
        (lambda: init_gru(jax.random.key(0), 2, -5), ValueError, "init_gru: hidden is -5"),
        (lambda: init_rnn(jnp.zeros(3), 2, 5), TypeError, r"init_rnn: key is float32\[3\]"),
        (
            lambda: bidirectional(BOTH, (), X, None, cell=rnn),
            TypeError,
            "states is a tuple.*Directions",
        ),
        (
            lambda: bidirectional(BOTH, STARTS, X, jnp.array([0, 9, 1]), cell=rnn),
            ValueError,
            r"rnn: length 9 at index \(1,\)",
        ),
        (lambda: call(None, reverse="yes"), TypeError, "rnn: reverse is 'yes'.*True or False"),
        (lambda: call([3, 4, 1]), TypeError, "rnn: lengths is a list.*jnp.asarray"),
        (lambda: rnn(PARAMS, START, [[1.0]], None), TypeError, "rnn: x is a list.*jnp.asarray"),
        (lambda: rnn(tuple(PARAMS), START, X, None), TypeError, "params is a tuple.*Recurrent"),
        (lambda: rnn(PARAMS, (START.h,), X, None), TypeError, r"state is a tuple.*State\("),
        (
            lambda: rnn(PARAMS, CellState(None), X, None),
            ValueError,
            "rnn: h is None; it must be an array",
        ),
        (lambda: lstm(FOUR, HALF, X, None), TypeError, "w_x float32, .* h bfloat16, .*be one.*ast"),
        (lambda: rnn(PARAMS, START, X.astype(int), None), TypeError, "rnn: x has dtype int.*float"),
        (
            lambda: bidirectional((), (), X, None, cell=rnn),
            TypeError,
            "params is a tuple.*Directio",
        ),
        (lambda: bidirectional((), (), X, None, cell="lstm"), ValueError, "cell is 'lstm'.*gru"),
    ],
)
def test_bad_inputs_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(("op", "gates"), LAYERS.values(), ids=LAYERS.keys())
def test_an_empty_batch_is_taken(op, gates):
    params, state, x, lengths = jax.tree.map(lambda v: v.astype("float32"), drawn(gates, (3, 4)))
    state, x, lengths = jax.tree.map(lambda v: v[:0], (state, x, lengths.astype(int)))
    (y, final), pull = jax.vjp(lambda *p: op(*p, lengths), params, state, x)
    dparams, _, dx = pull((y, final))
    assert (y.shape[:2], final.h.shape[0], dx.shape) == ((0, 4), 0, x.shape)
    assert not any(np.asarray(d).any() for d in jax.tree.leaves(dparams))


def test_what_numpy_made_is_taken():
    params, state, x = jax.tree.map(np.asarray, (PARAMS, START, X))
    static = {"reverse": np.True_, "truncate": np.int64(2)}
    inputs = params, state, x, np.array([1, 0, 4])
    dout = cotangent(rnn, inputs, **static)
    assert dout[0].dtype == rnn(*inputs, **static)[0].dtype == jnp.float32
    assert [d.shape for d in by_hand(rnn, inputs, dout, **static)[0][:3]] == [(2, 5), (5, 5), (5,)]


def test_no_hidden_units_have_a_backward():
    params = Recurrent(jnp.zeros((5, 0)), jnp.zeros((0, 0)), jnp.zeros(0))
    out, residuals = rnn.fwd(params, CellState(jnp.zeros((2, 0))), jnp.ones((2, 3, 5)), None)
    dparams, _, dx, _ = rnn.bwd(residuals, out)
    assert dparams.w_x.shape == (5, 0)
    np.testing.assert_array_equal(dx, np.zeros((2, 3, 5)))
