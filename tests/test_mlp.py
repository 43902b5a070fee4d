"""The multilayer perceptron against autodiff, NumPy, and the tutorials' own figures."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from conftest import assert_leaves_close, run

from experiments import numpy_net
from experiments.two_layer import CONFIG, fixed_case
from jaxnn import verify
from jaxnn.data import Batch
from jaxnn.models import mlp
from jaxnn.ops.linear import Linear

pytestmark = pytest.mark.usefixtures("strict_dtypes")
widths = st.lists(st.sampled_from([1, 2, 3, 5, 9]), min_size=2, max_size=4).map(tuple)
configs = st.builds(
    mlp.Config,
    sizes=widths,
    activation=st.sampled_from(sorted(mlp.ACTIVATIONS)),
    loss=st.sampled_from(sorted(mlp.LOSSES)),
    l2=st.sampled_from([0.0, 0.3]),
    init=st.sampled_from(sorted(mlp.INITIALISERS)),
)


def draw(config, n, seed):
    """Parameters without zeros and a batch of any size, in the default dtype."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda p: p + jnp.asarray(0.1 * rng.normal(size=p.shape), p.dtype),
        mlp.init_params(jax.random.key(seed), config),
    )
    inputs = jnp.asarray(rng.normal(size=(n, config.sizes[0])), float)
    if config.loss == "softmax_cross_entropy":
        return params, Batch(inputs, jnp.asarray(rng.integers(0, config.sizes[-1], n)))
    return params, Batch(inputs, jnp.asarray(rng.normal(size=(n, config.sizes[-1])), float))


@hypothesis.settings(max_examples=25)
@hypothesis.given(config=configs, n=st.sampled_from([1, 2, 7]), seed=st.integers(0, 99))
@hypothesis.example(config=mlp.Config(sizes=(1, 1)), n=1, seed=0)
@hypothesis.example(config=mlp.Config(sizes=(1, 3, 1), loss="mean_squared_error"), n=1, seed=1)
def test_manual_grad_equals_autodiff_and_numpy(config, n, seed):
    with jax.enable_x64(True):
        params, batch = draw(config, n, seed)
        (value, grads), (expected, oracle) = run(
            lambda *a: (
                mlp.manual_value_and_grad(*a, config),
                jax.value_and_grad(mlp.loss)(*a, config),
            ),
            params,
            batch,
        )
        layers = [(np.asarray(w), np.asarray(b)) for w, b in params.layers]
        theirs, reference = numpy_net.value_and_grad(
            layers, *map(np.asarray, batch), config.activation, config.loss, config.l2
        )
        assert_leaves_close(value, expected, 1e-14)
        assert_leaves_close(value, theirs, 1e-12, floor=1e-15)
        assert_leaves_close(grads, oracle, 1e-10, floor=1e-16)
        assert_leaves_close(grads, reference, 1e-10, floor=1e-16)


def test_the_fixed_case_has_the_tutorials_figures(x64):
    params, batch = fixed_case()
    value, grads = mlp.manual_value_and_grad(params, batch, CONFIG)
    layers = [(np.asarray(w), np.asarray(b)) for w, b in params.layers]
    _, reference = numpy_net.value_and_grad(layers, *map(np.asarray, batch), "sigmoid", l2=0.5)
    first, second = grads.layers
    np.testing.assert_allclose(value, 35.6094379124341, rtol=0, atol=1e-12)
    np.testing.assert_allclose(first.w, np.tile([[0.5], [1.0], [1.5]], 4), atol=1e-12)
    np.testing.assert_allclose(second.b, [0.2, 0.2, 0.2, -0.3, -0.3], atol=1e-12)
    np.testing.assert_allclose(second.w, np.tile([1.2, 1.2, 1.2, 0.7, 0.7], (4, 1)), atol=1e-7)
    for ours, theirs in zip(grads.layers, reference, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_no_hidden_layer_is_the_logistic_function(x64):
    config = mlp.Config(sizes=(1, 2))
    params = mlp.Params((Linear(jnp.array([[1.0, 0.0]]), jnp.zeros(2)),))
    x = jnp.linspace(-2, 2, 50)[:, None]
    p = mlp.probabilities(params, x, config)
    np.testing.assert_allclose(p[:, 0], scipy.special.expit(x[:, 0]), rtol=1e-14)


def test_probabilities_of_a_deep_network_sum_to_one(x64):
    config = mlp.Config(sizes=(500, 100, 50, 40, 10))
    params = mlp.init_params(jax.random.key(0), config)
    p = mlp.probabilities(params, jax.random.uniform(jax.random.key(1), (3, 500)), config)
    np.testing.assert_allclose(p.sum(-1), np.ones(3), rtol=1e-14)
    assert (p > 0).all()


@pytest.mark.parametrize(("init", "gain"), [("he", 2.0), ("xavier", 1.0)])
def test_initial_weights_have_the_promised_variance(init, gain):
    config = mlp.Config(sizes=(400, 300, 2), init=init)
    first, second = mlp.init_params(jax.random.key(0), config).layers
    np.testing.assert_allclose(first.w.var(), gain / 400, rtol=0.02)
    np.testing.assert_allclose(second.w.var(), gain / 300, rtol=0.15)
    assert not first.b.any()
    assert not second.b.any()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"activation": "swish"}, ValueError, "'swish'.*'relu', 'sigmoid', 'tanh'"),
        ({"loss": "hinge"}, ValueError, "'hinge'.*'softmax_cross_entropy', 'mean_squared_error'"),
        ({"init": "zeros"}, ValueError, "'zeros'.*'he', 'xavier'"),
        ({"sizes": (3,)}, ValueError, r"\(3,\).*at least two"),
        ({"sizes": (3, 0, 2)}, ValueError, r"\(3, 0, 2\).*at least 1"),
        ({"sizes": (3, 2.5)}, TypeError, "2.5.*integer"),
        ({"l2": -1.0}, ValueError, "-1.0.*at least 0"),
        ({"l2": float("nan")}, ValueError, "nan.*finite"),
        ({"l2": "x"}, TypeError, "l2 is 'x'.*number"),
        ({"sizes": 3}, TypeError, "sizes is 3.*tuple"),
        ({"activation": ["relu"]}, ValueError, "activation is .*'relu', 'sigmoid'"),
    ],
)
def test_a_bad_configuration_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        mlp.Config(**settings)


GOOD = Batch(jnp.ones((4, 3)), jnp.array([0, 1, 1, 0]))


@pytest.mark.parametrize(
    ("inputs", "targets", "error", "message"),
    [
        (GOOD.inputs, jnp.array([0, 1, 2, 0]), ValueError, r"label 2 at index \(2,\).*\[0, 2\)"),
        (GOOD.inputs, jnp.array([0, -1, 1, 0]), ValueError, r"label -1.*\[0, 2\)"),
        (GOOD.inputs, jnp.zeros(4), TypeError, "float32.*integer"),
        (GOOD.inputs, jnp.zeros(3, int), ValueError, r"\(3,\).*\(4, 2\).*same length"),
        (jnp.ones((4, 5)), GOOD.targets, ValueError, r"\(4, 5\).*\(examples, 3\).*the size"),
        (jnp.ones(3), GOOD.targets, ValueError, r"\(3,\).*x\[None\]"),
        (jnp.ones((0, 3)), jnp.zeros(0, int), ValueError, r"\(0, 3\).*at least one example"),
        ([[1.0, 2.0, 3.0]], GOOD.targets, TypeError, "inputs is a list.*jnp.asarray"),
        (GOOD.inputs, [0, 1, 1, 0], TypeError, "labels is a list.*jnp.asarray"),
        (jnp.ones((4, 3), int), GOOD.targets, TypeError, "int32.*floating.*astype"),
        (GOOD.inputs.at[2, 1].set(jnp.nan), GOOD.targets, ValueError, r"\[2, 1\] is nan"),
        (GOOD.inputs.at[0, 0].set(jnp.inf), GOOD.targets, ValueError, r"\[0, 0\] is inf"),
    ],
)
def test_bad_data_is_refused_before_anything_is_compiled(inputs, targets, error, message):
    config = mlp.Config(sizes=(3, 4, 2))
    params = mlp.init_params(jax.random.key(0), config)
    for function in (mlp.loss, mlp.manual_grad, mlp.manual_value_and_grad):
        with pytest.raises(error, match=message):
            function(params, Batch(inputs, targets), config)


def test_under_jit_a_label_out_of_range_makes_the_loss_nan():
    config = mlp.Config(sizes=(3, 4, 2), l2=0.1)
    params = mlp.init_params(jax.random.key(0), config)
    batch = Batch(jnp.ones((4, 3)), jnp.array([0, 1, 2, 0]))
    for function in (mlp.loss, lambda *a: mlp.manual_value_and_grad(*a)[0]):
        assert np.isnan(jax.jit(function, static_argnums=2)(params, batch, config))
    for gradient in (mlp.manual_grad, jax.grad(mlp.loss)):
        grads = jax.jit(gradient, static_argnums=2)(params, batch, config)
        assert np.isnan(grads.layers[-1].b).all()


def test_probabilities_need_logits():
    config = mlp.Config(sizes=(3, 1), loss="mean_squared_error")
    with pytest.raises(ValueError, match=r"mean_squared_error.*forward"):
        mlp.probabilities(mlp.init_params(jax.random.key(0), config), jnp.ones((1, 3)), config)


def test_accuracy_refuses_labels_that_would_broadcast():
    config = mlp.Config(sizes=(3, 2))
    params = mlp.init_params(jax.random.key(0), config)
    for labels in (jnp.zeros((4, 1), int), jnp.zeros(1, int)):
        with pytest.raises(ValueError, match="one label per row"):
            mlp.accuracy(params, Batch(GOOD.inputs, labels), config)
    assert mlp.accuracy(params, Batch(GOOD.inputs, jnp.array([0, 0, 1, 1])), config) == 0.5


def test_parameters_of_another_configuration_are_refused():
    params = mlp.init_params(jax.random.key(0), mlp.Config(sizes=(3, 4, 2)))
    with pytest.raises(ValueError, match=r"layers\[0\]\.w .*\(3, 4\).*\(3, 5\)"):
        mlp.loss(params, GOOD, mlp.Config(sizes=(3, 5, 2)))


def test_targets_of_another_shape_are_not_broadcast():
    config = mlp.Config(sizes=(3, 1), loss="mean_squared_error")
    params = mlp.init_params(jax.random.key(0), config)
    with pytest.raises(ValueError, match=r"\(4, 1\).*\(4,\).*None"):
        mlp.loss(params, Batch(jnp.ones((4, 3)), jnp.ones(4)), config)


WRONG = {
    "a bias gradient averaged instead of summed": ("b", 0, lambda d, p: d / 7),
    "a forgotten penalty": ("w", 1, lambda d, p: d - 0.5 * p),
    "a penalty on a bias": ("b", 1, lambda d, p: d + 0.5 * p),
    "a layer's gradient not sent back": ("w", 0, lambda d, p: d * 0),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_the_verifier_passes_the_model_and_catches_a_fault_in_it(wrong):
    leaf, number, fault = wrong
    config = mlp.EXAMPLE_CONFIGS[1]
    params, batch = draw(config, 7, 0)

    def faulty(params, batch, config):
        layers = list(mlp.manual_grad(params, batch, config).layers)
        d, p = getattr(layers[number], leaf), getattr(params.layers[number], leaf)
        layers[number] = layers[number]._replace(**{leaf: fault(d, p)})
        return mlp.Params(tuple(layers))

    assert verify.gradient(mlp.loss, mlp.manual_grad, params, batch, config).status == "pass"
    report = verify.gradient(mlp.loss, faulty, params, batch, config)
    assert [row.path for row in report.leaves if row.status == "fail"] == [
        f"layers[{number}].{leaf}"
    ]
    assert "side with autodiff" in str(report)


def test_a_cotangent_of_the_loss_is_a_scalar():
    config = mlp.EXAMPLE_CONFIGS[0]
    params = mlp.init_params(jax.random.key(0), config)
    _, saved = mlp.loss_fwd(params, mlp.example_batch(jax.random.key(1), config), config)
    with pytest.raises(ValueError, match=r"dloss has shape \(7,\); the loss is a scalar"):
        mlp.loss_bwd(saved, jnp.ones(7), config)
    doubled = mlp.loss_bwd(saved, np.float32(2.0), config)
    chex.assert_trees_all_close(
        doubled, jax.tree.map(lambda d: 2 * d, mlp.loss_bwd(saved, 1.0, config))
    )


def test_dropout_falls_on_every_hidden_layer_in_training_only():
    config = mlp.Config(sizes=(3, 40, 30, 2), activation="tanh", dropout=0.4)
    params, batch = draw(config, 7, 0)
    key = jax.random.key(5)
    value, saved = mlp.loss_fwd(params, mlp.Batch(*batch, key), config)
    masks = [hidden.kept for hidden in saved.layers.hidden]
    a = batch.inputs
    for (w, b), kept in zip(params.layers, masks, strict=False):
        assert kept.shape == (7, len(b))
        assert 0.45 < kept.mean() < 0.75
        a = jnp.where(kept, jnp.tanh(a @ w + b) / 0.6, 0.0)
    w, b = params.layers[-1]
    losses = -jax.nn.log_softmax(a @ w + b)[jnp.arange(7), batch.targets]
    np.testing.assert_allclose(value, losses.mean(), rtol=1e-5)
    assert not np.array_equal(masks[0][:, :30], masks[1])  # each layer draws its own
    # Without a key, however the batch is given, it is the network without dropout.
    plain = mlp.loss(params, batch, mlp.Config(sizes=config.sizes, activation="tanh"))
    for keyless in (batch, tuple(batch), mlp.Batch(*batch)):
        assert mlp.loss(params, keyless, config) == plain
        assert mlp.accuracy(params, keyless, config) == mlp.accuracy(params, batch, config)
    # And dropping nothing takes nothing from the key.
    none = mlp.Config(sizes=config.sizes, activation="tanh")
    assert mlp.loss_fwd(params, mlp.Batch(*batch, key), none)[1].layers.hidden[0].kept is None
