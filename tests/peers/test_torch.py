"""The same networks in PyTorch, float64, to 1e-9."""

import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close

torch = pytest.importorskip(
    "torch", reason="PyTorch is an optional peer: pip install -e '.[peers]'"
)

from experiments import square, torch_peer, two_layer  # noqa: E402
from jaxnn.models import mlp  # noqa: E402


@hypothesis.settings(max_examples=25)
@hypothesis.given(
    sizes=st.lists(st.sampled_from([1, 2, 3, 5, 9]), min_size=2, max_size=4).map(tuple),
    activation=st.sampled_from(sorted(mlp.ACTIVATIONS)),
    loss=st.sampled_from(sorted(mlp.LOSSES)),
    l2=st.sampled_from([0.0, 0.3]),
    n=st.sampled_from([1, 2, 7]),
)
def test_mlp(sizes, activation, loss, l2, n):
    config = mlp.Config(sizes=sizes, activation=activation, loss=loss, l2=l2)
    rng = np.random.default_rng(n)
    with jax.enable_x64(True):
        params = mlp.init_params(jax.random.key(n), config)
        inputs = jnp.asarray(rng.normal(size=(n, sizes[0])))
        if loss == "softmax_cross_entropy":
            targets = jnp.asarray(rng.integers(0, sizes[-1], n))
        else:
            targets = jnp.asarray(rng.normal(size=(n, sizes[-1])))
        value, grads = mlp.manual_value_and_grad(params, (inputs, targets), config)
        theirs, expected = torch_peer.value_and_grad(params, (inputs, targets), config)
    assert_leaves_close(value, theirs, 1e-9, floor=1e-15)
    assert_leaves_close(grads, expected, 1e-9, floor=1e-15)


def test_the_fixed_case():
    with jax.enable_x64(True):
        params, batch = two_layer.fixed_case()
        value, grads = mlp.manual_value_and_grad(params, batch, two_layer.CONFIG)
        theirs, expected = torch_peer.value_and_grad(params, batch, two_layer.CONFIG)
    assert_leaves_close(value, theirs, 1e-12)
    assert_leaves_close(grads, expected, 1e-12, floor=1e-12)


def test_the_experiments_show_pytorch_beside_us(tmp_path, capsys):
    assert two_layer.main(out=tmp_path) == 0
    assert "PyTorch" in capsys.readouterr().out
    assert square.main(epochs=50, out=tmp_path) == 0
    out = capsys.readouterr().out
    ours, theirs = re.findall(r"^(?:jaxnn|PyTorch): +loss (\d\.\d{2})", out, re.MULTILINE)
    assert ours == theirs
