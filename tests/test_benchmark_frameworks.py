"""Flax NNX's and Equinox's arms of the benchmark: the same model, with the same numbers in it."""

import dataclasses
import importlib.util
import random
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close, run

from experiments.benchmark import decoders, frameworks, measure, models
from experiments.benchmark.arms import AUTODIFF, BY_HAND, LeftOutError
from experiments.benchmark.frameworks import EQUINOX, FLAX, FORMS, PACKAGES, SCANNED
from jaxnn.models import rnn
from jaxnn.models.transformer import gpt2, llama

CASES = {
    "mlp": models.mlp_step(5, (6, 4, 4, 3)),
    "cnn": models.cnn_step(3, (4, 4, 2), (4, 6)),
    "rnn": models.rnn_step(3, 5, rnn.Config(vocabulary=7, width=4, hidden=6, layers=2)),
    "gpt": decoders.transformer_step(
        2, 6, gpt2(vocabulary=11, positions=8, layers=2, width=8, heads=2)
    ),
    "llama": decoders.transformer_step(
        2, 6, llama(vocabulary=11, positions=8, layers=2, width=16, heads=4, kv_heads=2)
    ),
    "autoencoder": models.autoencoder_step(5, (6, 4, 2)),
}
ARMS = [
    (name, library, form)
    for name in CASES
    for library in PACKAGES
    for form in (FORMS["transformer"] if name in ("gpt", "llama") else ("",))
]


def drawn(case, monkeypatch):
    """What a case gives its arms: model, parameters, batch, configuration."""
    given = []
    monkeypatch.setattr(models, "frameworks", lambda *inputs: given.append(inputs) or {})
    case.make()
    return given[0]


def moved(params):
    """Parameters none of which is 0 or 1, as biases and scales are at first."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    pairs = zip(leaves, keys, strict=True)
    return tree.unflatten(
        [leaf + jax.random.uniform(key, leaf.shape, leaf.dtype, 0.1, 0.3) for leaf, key in pairs]
    )


@pytest.mark.parametrize(("name", "library", "form"), ARMS)
def test_loss_and_gradient_are_ours(name, library, form, monkeypatch):
    pytest.importorskip(PACKAGES[library])
    model, params, batch, config = drawn(CASES[name], monkeypatch)
    kind, params = model.__name__.rpartition(".")[2], moved(params)
    autodiff = jax.value_and_grad(lambda params, batch: model.loss(params, batch, config))
    loss, gradient = run(autodiff, params, batch)

    step = frameworks.step_of(library, kind, form, params, batch, config)
    (theirs, state), found = run(step.function, step.arrays, step.batch)
    np.testing.assert_allclose(theirs, loss, rtol=1e-5)
    # Our gradient put in the place of the parameters is in their layout. That of the keys' biases
    # is 0 but for rounding.
    inputs = gradient, batch, config
    expected, _ = frameworks.step_of(library, kind, form, *inputs).arrays
    assert_leaves_close(found, expected, rtol=1e-4, floor=1e-7)
    assert_leaves_close(step.first(found), jax.tree.leaves(gradient)[0], rtol=1e-4)
    if kind == "cnn":  # whose running statistics, and in Equinox counters, are state
        before = jax.tree.leaves(step.arrays[1])
        assert len(before) >= 2 * 5
        assert all((a != b).any() for a, b in zip(before, jax.tree.leaves(state), strict=True))


@pytest.mark.parametrize(("library", "form"), [(one, f) for one in PACKAGES for f in ("", SCANNED)])
def test_parameters_of_bfloat16_stay_so_and_the_loss_is_wider(library, form, monkeypatch):
    pytest.importorskip(PACKAGES[library])
    case = CASES["gpt"]
    _, params, batch, config = drawn(case, monkeypatch)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    step = frameworks.step_of(library, "transformer", form, params, batch, config)
    (loss, _), gradient = jax.eval_shape(step.function, step.arrays, step.batch)
    assert loss.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}


def with_another_eps(monkeypatch, library):
    """One library is given a configuration with another eps."""
    step_of = frameworks.step_of

    def other(one, kind, form, params, batch, config):
        config = dataclasses.replace(config, eps=0.1) if one == library else config
        return step_of(one, kind, form, params, batch, config)

    monkeypatch.setattr(frameworks, "step_of", other)


def without_causal_mask(monkeypatch, library):
    """One library's tokens see those that come after them."""
    if library == FLAX:
        from flax import nnx

        attend = nnx.dot_product_attention
        blind = lambda *args, is_causal, **settings: attend(*args, **settings)  # noqa: E731
        monkeypatch.setattr(nnx, "dot_product_attention", blind)
    else:
        from experiments.benchmark import equinox_transformer

        whole = SimpleNamespace(**{**vars(jnp), "tril": lambda mask: mask})
        monkeypatch.setattr(equinox_transformer, "jnp", whole)


@pytest.mark.parametrize(
    ("plant", "library"), [(with_another_eps, FLAX), (without_causal_mask, EQUINOX)]
)
def test_a_wrong_model_is_found_by_the_comparison_and_the_right_ones_are_timed(
    plant, library, monkeypatch
):
    for package in PACKAGES.values():
        pytest.importorskip(package)
    monkeypatch.setattr(measure, "TURN_SECONDS", 0.0)
    plant(monkeypatch, library)
    case = CASES["gpt"]
    theirs = [f"{one}{form}" for one in PACKAGES for form in ("", f", {SCANNED}")]
    wanted = {BY_HAND, AUTODIFF, *theirs}
    skip = set(case.make()) - wanted
    assert wanted <= set(case.make())
    result = measure.measure(case, 1, random.Random(0), 16, skip)
    wrong = {arm for arm in theirs if arm.startswith(library)}
    assert set(result.disagree) == wrong
    assert set(result.seconds) == wanted - wrong
    assert all(result.arms[arm].temporary for arm in result.seconds)


def test_what_is_not_installed_is_left_out_with_the_reason(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    builds = {arm: build for arm, build in CASES["mlp"].make().items() if arm in PACKAGES}
    assert set(builds) == set(PACKAGES)
    for build in builds.values():
        with pytest.raises(LeftOutError, match=r"not installed; pip install -e \"\.\[rules\]\""):
            build()
