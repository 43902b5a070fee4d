"""An op as a function: what it makes of its inputs, and what it says of a wrong fwd or bwd."""

import copy
import functools
import inspect
import pickle
import pydoc

import fuzz
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.op import Op, door, plain_forms, watched
from jaxnn.ops.attention import attention


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


def test_numpys_numbers_and_arrays_are_taken_as_pythons_and_jaxs():
    scaled = bind(lambda x, *, gain=1.0: (gain * x, x), lambda x, dy, *, gain=1.0: (gain * dy,))
    x = jnp.ones(3, jnp.bfloat16)
    gain = np.float32(2.0)  # a number of NumPy's would widen x to float32
    assert scaled(x, gain=gain).dtype == jnp.bfloat16
    assert scaled.fwd(x, gain=gain)[0].dtype == jnp.bfloat16
    assert scaled.bwd(x, x, gain=gain)[0].dtype == jnp.bfloat16
    picked = bind(lambda x: (x.at[0].get(), x), lambda x, dy: (jnp.zeros_like(x).at[0].set(dy),))
    assert picked(np.ones(3, np.float32)) == picked.fwd(np.ones(3, np.float32))[0] == 1


def test_a_cotangent_of_another_dtype_is_refused():
    wide = bind(lambda x: (x, x), lambda x, dy: (dy.astype(jnp.float32),))
    with pytest.raises(TypeError, match=r"float32\[2\] for its input .*bfloat16\[2\]: .*astype"):
        jax.grad(lambda x: wide(x).sum())(jnp.ones(2, jnp.bfloat16))
    assert jax.grad(lambda x: wide(x).sum())(jnp.ones(2)).dtype == jnp.float32


def checked_square(seen):
    return Op(square_fwd, square_bwd, check=lambda x: seen.append(jnp.shape(x)))


def test_the_door_is_run_where_a_person_enters_and_not_inside_a_model():
    seen = []
    inner = checked_square(seen)
    twice = Op(
        lambda x: (inner.fwd(inner.fwd(x)[0])[0], x),
        lambda x, dy: (4 * x**3 * dy,),
        check=lambda x: seen.append("twice"),
    )

    @door(lambda x, times=2: seen.append(("model", times)))
    def model(x, times=2):
        return inner(x) + inner.fwd(x)[0] + twice(x)

    model(X)
    assert seen == [("model", 2)]
    seen.clear()
    inner(X)
    inner.fwd(X)
    twice(X)
    assert seen == [(3,), (3,), "twice"]
    seen.clear()
    jax.grad(lambda x: twice(x).sum())(X)
    assert seen == ["twice"]


def test_the_door_is_open_again_after_an_error_inside():
    seen = []
    inner = checked_square(seen)

    @door()
    def failing(x):
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        failing(X)
    inner(X)
    assert seen == [(3,)]
    with pytest.raises(TypeError, match="failing takes no setting colour: it is failing"):
        failing(X, colour="red")


def test_help_and_signature_are_the_forwards():
    def fwd(x, *, gain=1.0):
        """Multiply x by the gain."""
        return gain * x, x

    scaled = bind(fwd, lambda x, dy, *, gain=1.0: (gain * dy,))
    assert str(inspect.signature(scaled)) == "(x, *, gain=1.0)"
    returned = inspect.signature(attention).return_annotation  # the result, and no residuals
    assert returned is jax.Array
    assert "(x, *, gain=1.0) Multiply x by the gain." in " ".join(pydoc.render_doc(scaled).split())


def test_a_program_can_be_told_to_run_the_plain_forms():
    scores = [jnp.ones((1, 200, 1, 2))] * 3
    plain = attention.plain.fwd(*scores, None, causal=True)
    with plain_forms():
        assert attention.form is attention.plain
        assert jax.make_jaxpr(lambda q: attention(q, *scores[1:], None, causal=True))(scores[0])
        inside = str(jax.make_jaxpr(lambda q: attention.fwd(q, *scores[1:], None))(scores[0]))
    assert attention.form is attention.fast is not attention.plain
    assert square.form is square.fast is square.plain
    assert inside == str(
        jax.make_jaxpr(lambda q: attention.plain.fwd(q, *scores[1:], None))(scores[0])
    )
    np.testing.assert_allclose(attention(*scores, None, causal=True), plain[0], rtol=1e-6)


def test_replace_keeps_the_rest():
    wrong = product.replace(bwd=lambda r, dout, *, gain=1.0: (dout, dout))
    assert jax.grad(wrong)(5.0, 7.0) == 1
    assert wrong.settings == product.settings
    assert jax.grad(product)(5.0, 7.0) == 7
    assert attention.replace(check=None).plain == attention.plain
    assert attention.replace(check=None).fast == attention.fast


def test_an_op_is_pickled_by_its_name_as_a_function_is():
    for op in fuzz.ops().values():
        assert pickle.loads(pickle.dumps(op)) is op


def test_copies_of_an_op_without_a_name_are_ops_of_their_own():
    again = pickle.loads(pickle.dumps(bind(square_fwd, square_bwd)))
    assert again.plain == square.plain
    np.testing.assert_array_equal(jax.grad(lambda x: again(x).sum())(X), 2 * X)
    seen = []
    copied = copy.copy(checked_square(seen).replace(check=None))
    copied(X)
    copied.fwd(X)
    assert not seen


def test_a_number_of_pythons_takes_a_cotangent_of_any_floating_dtype():
    scaled = bind(lambda x, s: (x * s, (x, s)), lambda r, d: (d * r[1], (d * r[0]).sum()))
    half = X.astype(jnp.bfloat16)
    assert jax.grad(lambda x: scaled(x, 3.0).sum())(half).dtype == jnp.bfloat16
    assert jax.grad(lambda s: scaled(half, s).sum())(3.0) == 6
    in_numpy = bind(lambda x: (x, ()), lambda r, d: (np.ones(3),))
    np.testing.assert_array_equal(jax.grad(lambda x: in_numpy(x).sum())(X), np.ones(3))


def test_an_input_that_is_left_out_has_its_default_and_a_cotangent():
    scaled = bind(lambda x, s=2.0: (x * s, (x, s)), lambda r, d: (d * r[1], (d * r[0]).sum()))
    np.testing.assert_array_equal(jax.grad(lambda x: scaled(x).sum())(X), [2, 2, 2])


def test_a_bare_array_for_a_tuple_of_parameters_is_said_to_be_one():
    affine = bind(lambda p, x: (p[0] * x + p[1], (p, x)), lambda r, d: (d * r[1], d * r[0][0]))
    with pytest.raises(TypeError, match=r"returns float32\[3\] for its input p; .*astype"):
        jax.grad(lambda p: affine(p, X).sum())((X, X))
    unused = bind(lambda x, mask: (x, ()), lambda r, d: (d, d))
    np.testing.assert_array_equal(jax.grad(lambda x: unused(x, None).sum())(X), [1, 1, 1])


def test_a_backward_traced_among_plain_forms_is_that_of_its_forward():
    _, back = jax.vjp(lambda q: attention(q, q, q, None, causal=True), jnp.ones((1, 200, 1, 2)))
    with plain_forms():
        (inside,) = back(jnp.ones((1, 200, 1, 2)))
    np.testing.assert_array_equal(inside, back(jnp.ones((1, 200, 1, 2)))[0])
