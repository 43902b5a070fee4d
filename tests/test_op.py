"""An op as a function: what it makes of its inputs, and what it says of a wrong fwd or bwd."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.op import Op, watched


def bind(fwd, bwd):
    return Op(fwd, bwd, example=None)


def square_fwd(x):
    return x * x, x


def square_bwd(x, dy):
    return (2 * x * dy,)


def product_fwd(x, y, *, gain=1.0):
    return gain * x * y, (x, y)


def product_bwd(residuals, dout, *, gain=1.0):
    x, y = residuals
    return gain * dout * y, gain * dout * x


square, product = bind(square_fwd, square_bwd), bind(product_fwd, product_bwd)
of_a_lambda = bind(lambda x: (x * x, x), lambda x, dy: (2 * x * dy,))
op = bind(square_fwd, square_bwd)
X = jnp.arange(1.0, 4.0)


@pytest.mark.parametrize(
    ("fwd", "bwd", "words"),
    [
        (square_fwd, lambda x, dy: 2 * x * dy, r"bwd .* returns a bare array; .* tuple \(dinput"),
        (square_fwd, lambda x, dy: [2 * x * dy], "bwd .* returns a list; it must return a tuple"),
        (square_fwd, lambda x, dy: (dy, dy), "bwd .* returns a tuple of 2; .* one per input"),
        (square_fwd, lambda x, dy: (dy[:1],), r"bwd .* float32\[1\] for its input x; .*\[3\]"),
        (square_fwd, lambda x, dy: ({"x": dy},), r"bwd .* {'x': 'float32\[3\]'} for its input x"),
        (square_fwd, lambda x, dy: ("dy",), "bwd .* returns 'dy' for its input x"),
        (square_fwd, lambda dy: (dy,), r"bwd .* takes other arguments .*: it is bwd\(dy\)"),
        (lambda x: x * x, square_bwd, r"fwd .* returns a bare array; .* \(out, residuals\)"),
        (lambda x: (x, x, x), square_bwd, r"fwd .* a tuple of 3; .* \(out, residuals\)"),
        (lambda x: (x * x, {"how": "plain"}), square_bwd, "fwd .* 'plain' among the residuals"),
        (lambda x: (x * x, np.array(["a"])), square_bwd, "fwd .* among the residuals"),
        (lambda x: (x * x, len), square_bwd, "fwd .* <built-in function len> among the residuals"),
        (lambda x: (np.sin(x), x), square_bwd, "fwd .* hands a traced array to NumPy"),
        (square_fwd, lambda x, dy: (np.cos(x) * dy,), "bwd .* hands a traced array to NumPy"),
        (lambda x, y: (x, y), square_bwd, r"fwd .* takes other arguments .*: it is fwd\(x, y\)"),
    ],
)
def test_what_has_not_the_form_of_an_op_is_refused_in_words(fwd, bwd, words):
    wrong = bind(fwd, bwd)
    with pytest.raises(TypeError, match=f"(?s)^{words}"):
        jax.jit(jax.grad(lambda x: wrong(x).sum()))(X)


def test_a_forward_without_residuals_does_not_hand_back_its_first_row():
    with pytest.raises(TypeError, match="fwd of op <lambda> returns a bare array"):
        bind(lambda x: x * x, square_bwd)(X)


def test_what_the_functions_raise_themselves_is_left_as_it_is():
    def fwd(x):
        raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine"):
        bind(fwd, square_bwd)(X)


def test_a_setting_that_a_function_does_not_take_is_named():
    with pytest.raises(TypeError, match="fwd of op square takes no setting gian: it is fwd"):
        square(X, gian=2.0)
    deaf = bind(product_fwd, lambda residuals, dout: residuals)
    assert deaf(2.0, 3.0, gain=2.0) == 12
    with pytest.raises(TypeError, match="bwd of op product takes no setting gain"):
        jax.grad(deaf)(2.0, 3.0, gain=2.0)


def test_inputs_by_name_take_their_place():
    def loss(x, y):
        return product(y=y, x=x, gain=3.0)

    assert jax.grad(loss, (0, 1))(5.0, 7.0) == (21.0, 15.0)
    assert jax.grad(lambda y: product(5.0, y=y))(7.0) == 5.0
    with pytest.raises(TypeError, match="given x by position and by name"):
        product(1.0, x=1.0)
    with pytest.raises(TypeError, match="given y but not x; its inputs are x, y"):
        product(y=1.0)


def test_a_setting_that_may_be_given_by_position_is_one_where_bwd_takes_it():
    def fwd(x, gain=1.0):
        return gain * x, ()

    assert jax.grad(bind(fwd, lambda _, dy, gain=1.0: (gain * dy,)))(1.0, gain=3.0) == 3
    assert jax.grad(bind(fwd, lambda _, dy, **s: (s["gain"] * dy,)))(1.0, gain=3.0) == 3
    as_input = bind(lambda x, gain=2.0: (gain * x, (x, gain)), lambda r, dy: (r[1] * dy, r[0] * dy))
    assert jax.grad(lambda gain: as_input(5.0, gain=gain))(3.0) == 5
    assert [*as_input.inputs] == ["x", "gain"]


@pytest.mark.parametrize(
    "cotangent",
    [
        lambda index: None,
        lambda index: np.zeros(index.shape, jax.dtypes.float0),
        lambda index: jnp.zeros_like(index),
    ],
)
def test_an_integer_input_has_no_cotangent_in_any_of_three_forms(cotangent):
    def bwd(residuals, dout):
        table, index = residuals
        return jnp.zeros_like(table).at[index].add(dout), cotangent(index)

    rows = bind(lambda table, index: (table[index], (table, index)), bwd)
    d = jax.jit(jax.grad(lambda t: rows(t, jnp.array([0, 2, 2])).sum()))(jnp.ones((3, 2)))
    np.testing.assert_array_equal(d, [[1, 1], [0, 0], [2, 2]])


@pytest.mark.parametrize("none", [None, np.zeros((), jax.dtypes.float0)])
def test_nor_has_a_random_key(none):
    noisy = bind(lambda key, x: (x * jax.random.normal(key), x), lambda x, dy: (none, dy))
    assert jax.grad(noisy, 1)(jax.random.key(0), 2.0) == 1


def test_none_is_zero_for_an_input_or_a_part_of_it():
    half = bind(
        lambda p, x: (p["a"] * x, (p, x)), lambda r, dy: ({"a": r[1] * dy, "b": None}, None)
    )
    d, dx = jax.grad(half, (0, 1))({"a": 2.0, "b": X}, 3.0)
    assert (d["a"], dx) == (3, 0)
    np.testing.assert_array_equal(d["b"], np.zeros(3))


@pytest.mark.parametrize("x", [1.0, jnp.ones(3)])
def test_forward_mode_is_refused_for_numbers_as_for_arrays(x):
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(square, (x,), (x,))


def test_an_op_is_called_by_the_name_it_is_bound_to():
    assert repr(of_a_lambda) == "Op(of_a_lambda)"
    assert op.name == "square"  # `op` says less than its forward does
    assert bind(functools.partial(square_fwd), square_bwd).name == "square"
    assert bind(jax.jit(square_fwd), square_bwd).name == "square"
    assert bind(lambda x: (x, x), square_bwd).name == "<lambda>"


def test_jax_knows_the_forward_by_its_name_and_line():
    (eqn,) = jax.make_jaxpr(square)(X).eqns
    (call,) = [v for v in eqn.params.values() if hasattr(v, "jaxpr")]
    line = square_fwd.__code__.co_firstlineno
    assert call.jaxpr.debug_info.func_src_info == f"square_fwd at {__file__}:{line}"


def test_a_watched_op_still_runs_its_own_functions_when_called():
    seen = []

    def watch(op, role, function):
        seen.append((op, role))
        return function

    with watched(watch):
        product.fwd(1.0, 2.0)
        assert jax.grad(product)(1.0, 2.0) == 2
    assert seen == [(product, "fwd")]
