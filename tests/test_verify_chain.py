"""For gradients made of ops: which op is wrong, or that the chain between them is."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnn.models import mlp
from jaxnn.op import Op, watched
from jaxnn.ops.activations import sigmoid, tanh
from jaxnn.ops.linear import Linear, linear
from jaxnn.ops.losses import l2_penalty, mean_squared_error
from jaxnn.ops.softmax import softmax
from jaxnn.verify.causes.chain import locate
from jaxnn.verify.problem import bind, to_float64


def located(loss, manual_grad, params, *args):
    problem = bind(loss, manual_grad, params, args, {})
    with jax.enable_x64(True):
        return locate(problem, to_float64(problem.floats), to_float64(problem.rest))


def with_bwd(op, change):
    """The op, its backward's cotangents changed."""
    plain = op.bwd  # taken here, so that its calls are not watched as the changed one's are
    return op.replace(bwd=lambda *args, **static: change(*plain(*args, **static)))


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


# Two blocks around which the input skips, a linear layer after them, mean squared error, a penalty.
OPS = {"in": linear, "act": tanh, "gate": sigmoid, "out": linear, "loss": mean_squared_error}
LAYERS = {name: Linear(normal(i, 4, 4), normal(9 + i, 4)) for i, name in enumerate("abo")}
X, TARGETS = normal(20, 6, 4), normal(21, 6, 4)


def residual_net(p, x, targets, ops):
    """The loss, and what is needed for its backward."""
    h1, r1 = ops["in"].fwd(p["a"], x)
    a1, r2 = ops["act"].fwd(h1)
    x1 = x + a1
    h2, r3 = ops["in"].fwd(p["b"], x1)
    a2, r4 = ops["gate"].fwd(h2)
    x2 = x1 + a2
    y, r5 = ops["out"].fwd(p["o"], x2)
    data, r6 = ops["loss"].fwd(y, targets)
    penalty, r7 = l2_penalty.fwd(p["o"].w, coefficient=0.3)
    return data + penalty, (r1, r2, r3, r4, r5, r6, r7)


def residual_loss(p, x, targets, ops=OPS):
    return residual_net(p, x, targets, ops)[0]


def residual_grad(p, x, targets, ops=OPS, fault=""):
    _, (r1, r2, r3, r4, r5, r6, r7) = residual_net(p, x, targets, ops)
    dy, _ = ops["loss"].bwd(r6, 1.0)
    do, dx2 = ops["out"].bwd(r5, dy)
    (dh2,) = ops["gate"].bwd(r4, dx2)
    db, dx1 = ops["in"].bwd(r3, dx2 if fault == "past the gate" else dh2)
    if fault != "skip":
        dx1 = dx1 + dx2
    (dh1,) = ops["act"].bwd(r2, dx1)
    da, _ = ops["in"].bwd(r1, dh1)
    if fault != "penalty":
        do = do._replace(w=do.w + l2_penalty.bwd(r7, 1.0, coefficient=0.3)[0])
    if fault == "leaves":
        da, db = db, da
    return {"a": da, "b": db, "o": do}


def residual(ops=OPS, fault=""):
    return located(
        partial(residual_loss, ops=ops),
        partial(residual_grad, ops=ops, fault=fault),
        LAYERS,
        X,
        TARGETS,
    )


def test_the_gradient_that_the_faults_are_planted_in_is_right():
    autodiff = jax.grad(residual_loss)(LAYERS, X, TARGETS)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        residual_grad(LAYERS, X, TARGETS),
        autodiff,
    )


@pytest.mark.parametrize(
    ("where", "change", "says"),
    [
        ("act", lambda dx: (2 * dx,), "op tanh (5th of 7 backward calls): its cotangent of x is"),
        ("gate", lambda dx: (-dx,), "op sigmoid (3rd of 7 backward calls): its cotangent of x is"),
        ("gate", lambda dx: (dx.at[3, 1].set(0),), "worst at [3, 1]: 0 instead of"),
        ("gate", lambda dx: (dx.at[3, 1].set(jnp.nan),), "is not finite, worst at [3, 1]: nan"),
        ("gate", lambda dx: (dx + 1e-7 * dx.max(),), "op sigmoid (3rd of 7"),
        ("in", lambda dp, dx: (dp._replace(b=dp.b / 6), dx), "op linear (4th of 7 backward"),
        ("in", lambda dp, dx: (dp._replace(b=dp.b / 6), dx), "params.b is off by 8.3e-01 of its"),
        ("in", lambda dp, dx: (dp._replace(b=dp.b[:1]), dx), "params.b has shape (1,) instead of"),
        ("in", lambda dp, dx: (dp._asdict(), dx), "it returns no cotangent of params.b"),
        ("out", lambda dp, dx: (dp, dx * 1.5), "op linear (2nd of 7 backward calls): its cot"),
        ("loss", lambda dy, dt: (dy * 6, dt), "op mean_squared_error (1st of 7 backward calls)"),
    ],
)
def test_the_first_op_whose_rule_is_wrong_is_named(where, change, says):
    said = residual(OPS | {where: with_bwd(OPS[where], change)})
    assert said.startswith("the first wrong rule in backward order is that of op ")
    assert says in said


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (
            "skip",
            "right, but the cotangent that arrives at op tanh (5th of 7 backward calls, after",
        ),
        ("past the gate", "arrives at op linear (4th of 7 backward calls, after op sigmoid's)"),
        ("penalty", "every cotangent that arrives: what is done with their results is wrong"),
        ("penalty", "no backward belongs to a forward of op l2_penalty"),
        (
            "leaves",
            "every cotangent that arrives: what is done with their results is wrong (leaves",
        ),
    ],
)
def test_a_chain_that_is_wrong_between_right_rules_is_said_to_be(fault, says):
    said = residual(fault=fault)
    assert said.startswith("every op's own rule is right")
    assert says in said


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_an_activation_of_the_library_s_own_net_is_named(monkeypatch, name):
    wrong = with_bwd(mlp.ACTIVATIONS[name], lambda dx: (0.5 * dx,))
    monkeypatch.setitem(mlp.ACTIVATIONS, name, wrong)
    config = mlp.Config(sizes=(3, 5, 4), activation=name)
    params = mlp.init_params(jax.random.key(0), config)
    batch = mlp.example_batch(jax.random.key(1), config)
    said = located(mlp.loss, mlp.manual_grad, params, batch, config)
    assert f"op {name} (4th of 5 backward calls): its cotangent of x is off by 5.0e-01" in said


# A recurrent net: one cell, its weights tied over the steps of a scan.
SEQUENCE = normal(30, 5, 3, 4)


def scan_loss(p, xs, act=tanh):
    def step(h, x):
        return act.fwd(linear.fwd(p, h + x)[0])[0], None

    return (lax.scan(step, jnp.zeros_like(xs[0]), xs)[0] ** 2).sum()


def scan_grad(p, xs, act=tanh, fault=1.0):
    def step(h, x):
        z, r1 = linear.fwd(p, h + x)
        h, r2 = act.fwd(z)
        return h, (r1, r2)

    @jax.jit
    def back(carry, residuals):
        dp, dh = carry
        (dz,) = act.bwd(residuals[1], dh)
        dstep, dh = linear.bwd(residuals[0], dz)
        return (jax.tree.map(jnp.add, dp, dstep), fault * dh), None

    h, residuals = lax.scan(step, jnp.zeros_like(xs[0]), xs)
    start = (jax.tree.map(jnp.zeros_like, p), 2 * h)
    return lax.scan(back, start, residuals, reverse=True)[0][0]


def scanned(act=tanh, fault=1.0):
    loss, manual = partial(scan_loss, act=act), partial(scan_grad, act=act, fault=fault)
    return located(loss, manual, LAYERS["a"], SEQUENCE)


def test_an_op_in_a_scan_is_named_with_its_step():
    third = SEQUENCE[2]

    def late(residuals, dh):  # wrong at one step only: where it sees the third hidden state
        (dx,) = plain(residuals, dh)
        h = jnp.zeros_like(third)
        for x in SEQUENCE[:3].astype(dh.dtype):
            h = jnp.tanh((h + x) @ w.astype(dh.dtype) + b.astype(dh.dtype))
        return (jnp.where(jnp.abs(h - residuals).max() < 1e-12, 2 * dx, dx),)

    plain, (w, b) = tanh.bwd, LAYERS["a"]
    assert "op tanh (1st of 10 backward calls)" in scanned(with_bwd(tanh, lambda dx: (2 * dx,)))
    assert "op tanh (5th of 10 backward calls)" in scanned(tanh.replace(bwd=late))


def test_a_carry_that_a_scan_hands_on_wrong_is_said_to_be():
    assert "arrives at op tanh (3rd of 10 backward calls, after op linear's)" in scanned(fault=0.9)
    assert "and so is every cotangent that arrives" in scanned()


def test_compiled_functions_are_seen_through_and_left_as_they_were():
    loss = jax.jit(scan_loss, static_argnames="act")
    with jax.enable_x64(True):
        params, xs = jax.tree.map(lambda x: x.astype("float64"), (LAYERS["a"], SEQUENCE))
        before = jax.grad(loss)(params, xs)
        said = located(loss, jax.jit(partial(scan_grad, fault=0.9)), params, xs)
        after = jax.grad(loss)(params, xs)
    assert "arrives at op tanh (3rd of 10 backward calls" in said
    jax.tree.map(np.testing.assert_array_equal, before, after)


def one_op(op, change=lambda d: d, at=None):
    """The loss and gradient of one op, whose cotangent is changed after; and their arguments."""

    def loss(x, w):
        return (op.fwd(x)[0] * w).sum()

    def manual(x, w):
        return change(op.bwd(op.fwd(x)[1], w)[0])

    x = normal(3, 3, 5) if at is None else at
    return loss, manual, x, jnp.ones_like(x)


def absolute_fwd(x):
    return jnp.abs(x), jnp.where(x > 0, 1, -1)


def test_rounding_and_kinks_are_not_wrong_rules():
    cancelling = located(*one_op(softmax, lambda d: d + 1))  # the true cotangents are all 0
    assert cancelling.startswith("every op's own rule is right")
    kink = Op(absolute_fwd, lambda sign, dy: (sign * dy,), example=lambda key: (normal(0, 3),))
    at = jnp.array([0.0, 1.0, -2.0])
    assert located(*one_op(kink, jnp.zeros_like, at)).startswith("every op's own rule is right")
    wrong = with_bwd(kink, lambda dx: (3 * dx,))
    assert "worst at [0]: -3 instead of -1" in located(*one_op(wrong, at=at))


def test_what_cannot_be_followed_is_said_and_why():
    loss, manual, x, w = one_op(tanh, lambda d: 2 * d)

    def other_residuals(x, w):
        return tanh.bwd(jnp.tanh(x) * 0.99, w)[0]

    def refuses(x, w):
        manual(x, w)
        raise RuntimeError("numbers are not welcome\nat all")

    said = located(loss, other_residuals, x, w)
    assert "could not be followed; op tanh (1st of 1 backward call) was not checked" in said
    assert "residuals that no forward call of that op returned" in said
    assert "runs inside jax.vmap" in located(loss, jax.vmap(manual), x, w)
    said = located(loss, refuses, x, w)
    assert said == "the ops could not be followed: RuntimeError: numbers are not welcome"


def test_a_loss_whose_ops_cannot_be_seen_leaves_the_place_open():
    loss, manual, x, w = one_op(tanh, lambda d: 2 * d)

    def without(x, w):
        return (jnp.tanh(x) * w).sum()

    said = located(jax.checkpoint(loss), manual, x, w)
    assert "in the loss op tanh runs inside jax.vmap, jax.checkpoint" in said
    assert "the loss calls the forward of op tanh never" in located(without, manual, x, w)


def test_a_forward_pass_that_departs_from_the_loss_is_said_to():
    loss, manual, x, w = one_op(tanh)
    said = located(loss, lambda x, w: manual(2 * x, w), x, w)
    assert "already in its forward pass, the result of op tanh (1st of 1 forward call)" in said


def test_settings_that_differ_between_forward_and_backward_are_shown():
    def loss(x, w):
        return (softmax.fwd(x, axis=0)[0] * w).sum()

    def manual(x, w):
        return softmax.bwd(softmax.fwd(x, axis=0)[1], w, axis=-1)[0]

    said = located(loss, manual, normal(3, 3, 5), normal(4, 3, 5))
    assert "it was called with {'axis': -1}, its forward {'axis': 0}" in said


def test_calls_of_an_op_that_saves_nothing_are_told_apart():
    def scale_fwd(x, *, by):
        return by * x, ()

    scale = Op(scale_fwd, lambda _, dy, *, by: (by * dy,), example=lambda key: (normal(0, 3),))

    def loss(p):
        return (scale.fwd(p["a"], by=2.0)[0] ** 2).sum() + scale.fwd(p["b"], by=3.0)[0].sum()

    def manual(p):
        da = scale.bwd(scale.fwd(p["a"], by=2.0)[1], 4 * p["a"], by=2.0)[0]
        db = scale.bwd(scale.fwd(p["b"], by=3.0)[1], fault * jnp.ones(4), by=3.0)[0]
        return {"a": da, "b": db}

    params = {"a": normal(0, 3), "b": normal(1, 4)}
    fault = 1.0
    assert "and so is every cotangent that arrives" in located(loss, manual, params)
    fault = 2.0
    assert "arrives at op scale (2nd of 2 backward calls" in located(loss, manual, params)


def test_inputs_given_by_name_and_results_of_several_arrays_are_followed():
    def both_fwd(x, y):
        return (x * y, {"s": x + y, "n": jnp.arange(3)}), (x, y)

    def both_bwd(residuals, dout):
        (x, y), (dp, ds) = residuals, dout
        return dp * y + ds["s"], dp * x + factor * ds["s"]

    op = Op(both_fwd, both_bwd, example=lambda key: (normal(0, 3), normal(1, 3)))

    def loss(p, w):
        (a, b), _ = op.fwd(p["x"], y=p["y"])
        return (a * w).sum() + b["s"].sum()

    def manual(p, w):
        _, residuals = op.fwd(p["x"], y=p["y"])
        dx, dy = op.bwd(residuals, dout=(w, {"s": jnp.ones(3), "n": None}))
        return {"x": dy, "y": dx}

    params, w = {"x": normal(0, 3), "y": normal(1, 3)}, normal(2, 3)
    factor = 1.0
    assert "and so is every cotangent that arrives" in located(loss, manual, params, w)
    factor = 2.0
    assert "its cotangent of y is off by" in located(loss, manual, params, w)


def test_a_gradient_that_calls_no_backward_has_no_chain():
    loss, _, x, w = one_op(tanh)
    assert not located(loss, lambda x, w: w * tanh.fwd(x)[0], x, w)
    assert not located(lambda x: (x**2).sum(), lambda x: 1 / 0 * x, x)


def test_an_op_is_watched_inside_only_and_when_called_itself_never():
    seen, plain = [], tanh.fwd

    def watch(op, role, function):
        seen.append(role)
        return function

    with watched(watch):
        assert tanh.fwd is plain
        jax.grad(lambda x: tanh(x).sum())(jnp.ones(2))
    assert tanh.bwd(*tanh.fwd(jnp.ones(2))) is not None
    assert seen == ["fwd"]
