"""What people hand to the verifier, and what their functions return: taken, or refused in words."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import verify
from jaxnn.op import Op
from jaxnn.verify.problem import bind

# Whether a gradient is wrong, not why, is asked here.
pytestmark = pytest.mark.usefixtures("undiagnosed")
W = jnp.array([0.5, -1.5, 2.0])
X = jnp.array([[1.0, 2.0, 3.0], [2.0, 5.0, 4.0]])


def square(w):
    return (w**2).sum()


def twice(w):
    return jax.tree.map(lambda x: 2 * x, w)


def scaled(params, x):
    return ((x @ params["w"] + params["b"]) ** 2).mean()


def scaled_grad(params, x):
    r = 2 * (x @ params["w"] + params["b"]) / len(x)
    return {"w": x.T @ r, "b": r.sum()}


PARAMS = {"w": W, "b": jnp.float32(0.3)}


@jax.tree_util.register_pytree_with_keys_class
class Module:
    """As Equinox has them: settings and functions among the leaves."""

    def __init__(self, weight, bias, activation, rate, label):
        self.weight, self.bias, self.activation = weight, bias, activation
        self.rate, self.label = rate, label

    def tree_flatten_with_keys(self):
        names = ("weight", "bias", "activation", "rate", "label")
        return [(jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in names], None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)

    def __call__(self, x):
        assert self.label == "dense"
        assert self.rate > 0  # a number of Python's: it may be looked at
        return self.activation(self.rate * (x @ self.weight + self.bias))


@jax.tree_util.register_pytree_with_keys_class
class Variable:
    """As Flax has them: an array in a box."""

    def __init__(self, value):
        self.value = value

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("value"), self.value)], None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


MODULE = Module(W, jnp.array([0.1, 0.2]), jnp.tanh, 0.5, "dense")


def of_module(module, x):
    return module(x).sum()


def module_grad(module, x):
    """As a gradient that is filtered: None where there is no array."""
    d = module.rate * (1 - jnp.tanh(module.rate * (x @ module.weight + module.bias)) ** 2)
    return Module(x.T @ d, d, None, None, None)


def with_leaves(module, x):
    """The same, with the leaves that are no arrays as they were."""
    g = module_grad(module, x)
    return Module(g.weight, g.bias, module.activation, module.rate, module.label)


def as_state(module, x):
    """A dictionary of boxes."""
    g = module_grad(module, x)
    return {"bias": Variable(g.bias), "weight": Variable(g.weight)}


@pytest.mark.parametrize("gradient", [module_grad, with_leaves, as_state])
def test_arrays_of_a_module_are_judged_and_the_rest_handed_over(gradient):
    report = verify.gradient(of_module, gradient, MODULE, X)
    assert report, str(report)
    assert [leaf.path for leaf in report.leaves] == ["weight", "bias"]

    def wrong(module, x):
        g = gradient(module, x)
        if isinstance(g, dict):
            return g | {"weight": Variable(2 * g["weight"].value)}
        g.weight = 2 * g.weight
        return g

    report = verify.gradient(of_module, wrong, MODULE, X)
    assert [leaf.path for leaf in report.leaves if leaf.status == "fail"] == ["weight"]
    assert not report.problems


def test_a_number_of_a_module_is_a_parameter_where_a_gradient_is_returned_for_it():
    grad = jax.grad(lambda rate, x: jnp.tanh(rate * x).sum())
    loss = lambda m, x: m.activation(m.rate * (x @ m.weight)).sum()  # noqa: E731
    for factor, status in ((1.0, "pass"), (2.0, "fail")):

        def gradient(m, x, factor=factor):
            dz = m.rate * (1 - jnp.tanh(m.rate * (x @ m.weight)) ** 2)
            rate = factor * grad(m.rate, x @ m.weight)
            return Module(x.T @ dz, jnp.zeros_like(m.bias), None, rate, None)

        report = verify.gradient(loss, gradient, MODULE, X)
        assert [(leaf.path, leaf.status) for leaf in report.leaves] == [
            ("weight", "pass"),
            ("bias", "pass"),
            ("rate", status),
        ]


def test_a_leaf_that_a_state_lacks_may_be_skipped():
    lacking = lambda module, x: {"weight": Variable(module_grad(module, x).weight)}  # noqa: E731
    report = verify.gradient(of_module, lacking, MODULE, X)
    assert "skip={'bias': 'the reason'}" in report.leaves[1].messages[0]
    assert verify.gradient(of_module, lacking, MODULE, X, skip={"bias": "running statistics"})


def test_another_container_of_pythons_is_still_a_problem():
    report = verify.gradient(lambda p: square(p[0]), lambda p: (2 * p[0],), [W])
    assert report.status == "fail"
    assert len(report.problems) == 1


def with_value(p, x):
    return scaled(p, x), scaled_grad(p, x)


def with_value_and_extra(p, x):
    return (scaled(p, x), {"name": "accuracy"}), scaled_grad(p, x)


def with_extra(p, x):
    return scaled_grad(p, x), {"name": "accuracy"}


def alone(p, x):
    return (scaled_grad(p, x),)


@pytest.mark.parametrize(
    ("returned", "form"),
    [
        (with_value, "(value, gradient)"),
        (with_value_and_extra, "((value, extra), gradient)"),
        (with_extra, "(gradient, extra)"),
        (alone, "(gradient,)"),
    ],
)
def test_the_gradient_is_taken_out_of_what_is_returned(returned, form):
    report = verify.gradient(scaled, returned, PARAMS, X)
    assert report, str(report)
    assert f"what manual_grad returns beside its gradient, in {form}" in report.coverage
    assert not verify.gradient(scaled, lambda p, x: returned(p, 2 * x), PARAMS, X)


@pytest.mark.parametrize(
    ("loss", "gradient", "arguments", "words"),
    [
        (lambda a, b: (a * b).sum(), lambda a, b: (b, a), (W, W + 1), r"argnums=\(0, 1\)"),
        (lambda a, b: (a * b).sum(), lambda a, b: (a.sum(), (b, a)), (W, W + 1), r"argnums=\(0, 1"),
        (lambda s: s**2, lambda s: (s**2, 2 * s), (jnp.float32(3.0),), "has_aux=True"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(loss, gradient, arguments, words):
    with pytest.raises(ValueError, match=words):
        verify.gradient(loss, gradient, *arguments)


def test_auxiliary_outputs_as_in_jax_grad():
    def loss(w):
        return square(w), {"norm": w.sum()}

    for gradient in (jax.grad(loss, has_aux=True), jax.value_and_grad(loss, has_aux=True), twice):
        assert verify.gradient(loss, gradient, W, has_aux=True)
    assert not verify.gradient(loss, lambda w: (3 * w, None), W, has_aux=True)
    s = jnp.float32(3.0)
    assert verify.gradient(lambda s: (s**2, s), lambda s: (2 * s, s), s, has_aux=True)
    with pytest.raises(ValueError, match=r"the loss returns .*say has_aux=True"):
        verify.gradient(loss, twice, W)
    with pytest.raises(TypeError, match=r"the loss returns a .*must return a tuple \(value, extra"):
        verify.gradient(square, twice, W, has_aux=True)
    with pytest.raises(TypeError, match="has_aux is 1; it must be True or False"):
        verify.gradient(square, twice, W, has_aux=1)


def product(a, b, scale):
    return (scale * a * b["c"]).sum()


def test_several_arguments_are_differentiated_and_named():
    b = {"c": W + 1}
    both = lambda a, b, scale: (scale * b["c"], {"c": scale * a})  # noqa: E731
    report = verify.gradient(product, both, W, b, 2.0, argnums=(0, 1))
    assert [(leaf.path, leaf.status) for leaf in report.leaves] == [
        ("a", "pass"),
        ("b['c']", "pass"),
    ]
    report = verify.gradient(
        product, lambda a, b, scale: (scale * b["c"], {"c": a}), W, b, 2.0, argnums=(0, 1)
    )
    assert [leaf.status for leaf in report.leaves] == ["pass", "fail"]
    second = lambda a, b, scale: {"c": scale * a}  # noqa: E731
    report = verify.gradient(product, second, W, b, scale=2.0, argnums=1)
    assert report
    assert [leaf.path for leaf in report.leaves] == ["['c']"]
    loss = lambda x, w: (x @ w).mean()  # noqa: E731
    laws = verify.BatchLaws(arguments=(0,))
    report = verify.gradient(loss, lambda x, w: x.mean(0), X, W, argnums=1, batch_laws=laws)
    assert report, str(report)
    assert report.leaves[0].path == "w"
    report = verify.gradient(loss, lambda x, w: x.sum(0) / 2, X, W, argnums=1, batch_laws=laws)
    assert "batch laws" in str(report)


@pytest.mark.parametrize(
    ("argnums", "error", "words"),
    [
        ("a", TypeError, "argnums is 'a'; it must be a position"),
        ((), TypeError, r"argnums is \(\); it must be"),
        (True, TypeError, "argnums is True"),
        (3, ValueError, "argnums is 3; it must name positions among 0 to 2"),
        ((0, 0), ValueError, "each once"),
    ],
)
def test_positions_that_are_not_there_are_refused(argnums, error, words):
    with pytest.raises(error, match=words):
        verify.gradient(product, product, W, {"c": W}, 2.0, argnums=argnums)


def in_numpy(factor):
    def gradient(params, x):
        w, b, x = (np.array(a) for a in (params["w"], params["b"], x))
        r = factor * (np.dot(x, w) + b) / len(x)
        r[r == 0] = 0.0
        return {"w": np.dot(x.T, r), "b": r.sum()}

    return gradient


def test_a_gradient_in_numpy_is_run_as_it_is():
    laws = verify.BatchLaws(arguments=(0,))
    for params, x in ((PARAMS, X), jax.tree.map(np.asarray, (PARAMS, X))):
        report = verify.gradient(scaled, in_numpy(2), params, x, batch_laws=laws)
        assert report, str(report)
        assert any("was run as it is" in line for line in report.coverage)
        assert not report.elsewhere
        assert max(leaf.difference for leaf in report.leaves) < 1e-12
    assert not verify.gradient(scaled, in_numpy(3), PARAMS, X)
    constant = lambda p, x: jax.tree.map(lambda g: g * len(x) / 2, in_numpy(2)(p, x))  # noqa: E731
    assert "not additive" in str(verify.gradient(scaled, constant, PARAMS, X, batch_laws=laws))
    second = verify.gradient(scaled, in_numpy(2), PARAMS, X, second_order=True)
    assert "cannot be differentiated in forward mode" in str(second)


def test_numpy_that_writes_into_what_it_is_given():
    def relu_grad(w):
        w[w < 0] = 0  # cannot be traced, nor done to an array of JAX's
        return 2 * w

    w = np.array([1.0, -2.0, 3.0], np.float32)
    assert verify.gradient(lambda w: (jnp.maximum(w, 0) ** 2).sum(), relu_grad, w)
    assert w.tolist() == [1, -2, 3]


def test_a_gradient_in_numpy_says_itself_what_is_wrong_with_it():
    with pytest.raises(TypeError, match="manual_grad returns None"):
        verify.gradient(square, lambda w: print(np.asarray(w)), W)

    def misshapen(w):
        raise KeyError("no such thing")

    with pytest.raises(KeyError, match="no such thing"):
        verify.gradient(square, misshapen, W)


@pytest.mark.parametrize(
    "loss", [lambda w: float(np.sin(w).sum()), lambda w: w.sum() if w.sum() > 0 else -w.sum()]
)
def test_a_loss_that_cannot_be_traced_is_refused(loss):
    with pytest.raises(TypeError, match=r"the loss runs on numbers but cannot .*with jax\.numpy"):
        verify.gradient(loss, twice, W)


def test_arguments_of_the_callers_are_neither_changed_nor_deleted():
    x, w = np.array([1.0, 2.0, 3.0], np.float32), jnp.array(W)

    def writes(w, x, more):
        x *= 2
        more["y"] *= 3
        return w * x * more["y"]

    more = {"y": np.array([1.0, 1.0, 2.0], np.float32)}
    loss = lambda w, x, more: (3 * w**2 * x * more["y"]).sum()  # noqa: E731
    assert verify.gradient(loss, writes, w, x, more=more)
    assert x.tolist() == [1, 2, 3]
    assert more["y"].tolist() == [1, 1, 2]

    donates = jax.jit(lambda w, x: 2 * w * x, donate_argnums=(0, 1))
    with pytest.warns(UserWarning, match="donated"):
        verify.gradient(lambda w, x: (w**2 * x).sum(), donates, w, x := jnp.array(x))
    assert not w.is_deleted()
    assert not x.is_deleted()


def test_numerical_gradient_of_numpy():
    def f(params):
        params["w"] *= 2  # its own copy
        return float(np.sin(params["w"]).sum() * params["b"])

    params = {"w": np.array([0.1, 0.7]), "b": 0.5}
    slopes = verify.numerical_gradient(f, params)
    np.testing.assert_allclose(slopes["w"], np.cos(2 * params["w"]), rtol=1e-7)
    np.testing.assert_allclose(slopes["b"], np.sin(2 * params["w"]).sum(), rtol=1e-7)
    assert params["w"].tolist() == [0.1, 0.7]
    with pytest.raises(ValueError, match="must return one floating scalar"):
        verify.numerical_gradient(np.sin, np.ones(2))
    with pytest.raises(TypeError, match=r"'act'. is a ufunc; every leaf must be floating"):
        verify.numerical_gradient(f, {"act": np.sin})


class Scalar(NamedTuple):
    s: jax.Array


@pytest.mark.parametrize("params", [jnp.float32(0.7), Scalar(jnp.float32(0.7))])
def test_parameters_without_dimensions(params):
    laws = verify.BatchLaws(arguments=(0,))
    of = lambda p: getattr(p, "s", p)  # noqa: E731

    def loss(p, x):
        return jnp.sin(of(p) * x).mean()

    def slope(p, x):
        return jax.tree.map(lambda s: (jnp.cos(s * x) * x).mean(), p)

    report = verify.gradient(loss, slope, params, X, batch_laws=laws, second_order=True)
    assert report, str(report)
    assert not report.elsewhere
    for wrong in (
        lambda p, x: jax.tree.map(lambda g: g * len(x) / 2, slope(p, x)),
        lambda p, x: jax.tree.map(lambda s: (jnp.cos(jax.lax.stop_gradient(s) * x) * x).mean(), p),
    ):
        assert verify.gradient(loss, wrong, params, X, batch_laws=laws, second_order=True).problems


OP = Op(lambda x: (x**2, x), lambda x, d: (2 * x * d,), example=lambda key: (W,))


def refused(call):
    """Whether a verification says, inside of jit, that it must be outside."""

    def step(x):
        with pytest.raises(TypeError, match=r"inside jax\.jit.* call it outside"):
            call(x)
        return x

    jax.jit(step)(W)
    jax.grad(lambda x: step(x).sum())(W)


CALLS = [
    lambda x: verify.gradient(square, twice, x),
    lambda x: verify.assert_gradient(square, twice, x),
    lambda x: verify.op(OP, x),
    lambda x: verify.numerical_gradient(square, x),
]


@pytest.mark.parametrize("call", CALLS)
def test_inside_jit_it_says_so_and_without_jit_it_works(call):
    refused(call)
    with jax.disable_jit():
        assert np.all(call(W)) if call is CALLS[-1] else call(W)


def test_nothing_traced_is_needed_to_be_inside_jit():
    @jax.jit
    def step(x):
        with pytest.raises(TypeError, match=r"inside jax\.jit"):
            verify.op(OP)
        return x

    step(W)


def test_a_function_that_ends_the_process_is_a_failure():
    def leaves(w):
        raise SystemExit(0)

    with pytest.raises(RuntimeError, match=r"the hand-written gradient called sys.exit\(0\)"):
        verify.gradient(square, leaves, W)
    with pytest.raises(RuntimeError, match=r"the loss called sys.exit\(0\)"):
        verify.gradient(leaves, twice, W)
    with pytest.raises(RuntimeError, match=r"the function called sys.exit\(0\)"):
        verify.numerical_gradient(leaves, W)


def names_of(params, names=None, loss=square):
    return bind(loss, twice, params, (), {}, names=names).paths


def test_leaves_are_named_by_argument():
    assert names_of(W) == ["w"]
    assert names_of(W, loss=max) == ["params"]
    assert names_of(W, loss=lambda *xs: xs[0].sum()) == ["params"]
    assert names_of({"w": W}) == ["['w']"]
    assert names_of([W]) == ["[0]"]
    assert names_of(Scalar(W)) == ["s"]
    assert names_of((W, {"w": W}, Scalar(W)), names=("x", "p", "q")) == ["x", "p['w']", "q.s"]

    def fwd(params, *xs):
        return params.s * xs[0] * xs[1], (params, xs)

    def bwd(residuals, d):
        params, (x, y) = residuals
        return Scalar(x * y * d), params.s * y * d, params.s * x * d

    op = Op(fwd, bwd, example=lambda key: (Scalar(W), W + 1, W + 2))
    report = verify.op(op)
    assert report, str(report)
    assert [leaf.path for leaf in report.leaves] == ["params.s", "xs[0]", "xs[1]"]
    assert not report.elsewhere


def test_a_tolerance_is_declared_with_its_reason():
    off = lambda w: 2 * w * (1 + 1e-4)  # noqa: E731
    reason = "the solver stops there"
    assert not verify.gradient(square, off, W)
    report = verify.gradient(square, off, W, tolerance={"w": (2e-4, reason)})
    assert report, str(report)
    assert report.leaves[0].sees > 2e-4
    assert f"declared tolerance 0.0002: {reason}" in report.leaves[0].messages
    assert not verify.gradient(square, off, W, tolerance={"w": (5e-5, reason)})
    laws = verify.BatchLaws(arguments=(0,))
    stops = lambda w, x: x.mean(0) * jnp.where(len(x) > 1, 1 + 1e-6, 1)  # noqa: E731
    call = (lambda w, x: (x @ w).mean(), stops, W, X)
    assert verify.gradient(*call, tolerance={"w": (2e-6, reason)}, batch_laws=laws)


@pytest.mark.parametrize(
    ("tolerance", "error", "words"),
    [
        (1e-6, TypeError, "tolerance is 1e-06; it must map leaves"),
        ({"v": (1e-6, "why")}, ValueError, "tolerance names 'v', which is no floating leaf"),
        ({"w": 1e-6}, TypeError, r"tolerance gives 1e-06 for w; it must be a tuple"),
        ({"w": ("1e-6", "why")}, TypeError, "'1e-6' for w; it must be a number"),
        ({"w": (True, "why")}, TypeError, "True for w; it must be a number"),
        ({"w": (0.0, "why")}, ValueError, "0.0 for w; it must be above 0 and below 1"),
        ({"w": (1.0, "why")}, ValueError, "must be above 0 and below 1"),
        ({"w": (float("nan"), "why")}, ValueError, "must be above 0 and below 1"),
        ({"w": (1e-6, " ")}, ValueError, "a tolerance needs a reason in words"),
        ({"w": (1e-6, None)}, ValueError, "gives None for w; a tolerance needs a reason"),
    ],
)
def test_a_tolerance_that_is_none_is_refused(tolerance, error, words):
    with pytest.raises(error, match=words):
        verify.gradient(square, twice, W, tolerance=tolerance)


def test_a_surrogate_is_the_reference():
    def rounded(w):
        return (jnp.round(w) ** 2).sum()

    def straight(w):
        return ((w + jax.lax.stop_gradient(jnp.round(w) - w)) ** 2).sum()

    def wrong(w):
        return w

    surrogate = (square, "straight-through")
    report = verify.gradient(rounded, twice, W, surrogate=surrogate)
    assert report, str(report)
    assert report.loss == float(rounded(W))
    assert any("surrogate square: straight-through" in line for line in report.coverage)
    assert verify.gradient(rounded, wrong, W, surrogate=surrogate).status == "fail"
    for given, error, words in (
        (square, TypeError, r"it must be a tuple \(function, 'reason'\)"),
        ((1, "why"), TypeError, r"it must be a tuple \(function, 'reason'\)"),
        ((square, ""), ValueError, "surrogate gives ''; .*needs a reason in words"),
        ((lambda: 0.0, "why"), TypeError, r"surrogate\(\) cannot take 1"),
    ):
        with pytest.raises(error, match=words):
            verify.gradient(rounded, twice, W, surrogate=given)


def test_trees_given_by_name():
    report = verify.gradient(
        lambda w, *, data: (w * data["x"][0]).sum() * data["scale"],
        lambda w, *, data: data["x"][0] * data["scale"],
        W,
        data={"x": [W + 1], "scale": 2.0, "name": "train"},
    )
    assert report, str(report)


def test_modules_of_equinox_and_flax():
    eqx, nnx = pytest.importorskip("equinox"), pytest.importorskip("flax.nnx")
    mlp = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    of_mlp = lambda mlp, x: (jax.vmap(mlp)(x) ** 2).sum()  # noqa: E731
    assert verify.gradient(of_mlp, eqx.filter_grad(of_mlp), mlp, X)
    assert verify.gradient(of_mlp, eqx.filter_value_and_grad(of_mlp), mlp, X)
    layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    of_layer = lambda layer, x: (layer(x) ** 2).sum()  # noqa: E731
    assert verify.gradient(of_layer, nnx.grad(of_layer), layer, X)
    assert not verify.gradient(of_layer, lambda m, x: twice(nnx.grad(of_layer)(m, x)), layer, X)
