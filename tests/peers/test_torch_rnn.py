"""The recurrent language model in PyTorch, float64, to 1e-9."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close, run

torch = pytest.importorskip(
    "torch", reason="PyTorch is an optional peer: pip install -e '.[peers]'"
)

from jaxnn.models import rnn  # noqa: E402


def tensor(x):
    return torch.tensor(np.asarray(x), requires_grad=True)


def torch_loss(params, tokens, targets, config):
    """The same model out of PyTorch's own modules; truncated, each piece starts from a constant."""
    x = params.embedding.table[tokens]
    module = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[config.cell]
    for layer in params.layers:
        net = module(x.shape[-1], config.hidden, batch_first=True, dtype=x.dtype)
        inner = torch.zeros_like(layer.b)
        if layer.b_hn is not None:
            inner = torch.cat([inner[: -config.hidden], layer.b_hn])
        weights = {
            "weight_ih_l0": layer.w_x.T,
            "weight_hh_l0": layer.w_h.T,
            "bias_ih_l0": layer.b,
            "bias_hh_l0": inner,
        }
        state, pieces = None, []
        for piece in x.split(config.truncate or x.shape[1], dim=1):
            y, state = torch.func.functional_call(net, weights, (piece, state))
            state = jax.tree.map(lambda s: s.detach(), state)
            pieces.append(y)
        x = torch.cat(pieces, 1)
    logits = x @ params.output.w + params.output.b
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize("truncate", [None, 4])
@pytest.mark.parametrize("cell", rnn.CELLS)
def test_loss_and_gradient(cell, truncate):
    config = rnn.Config(vocabulary=7, width=2, hidden=5, layers=2, cell=cell, truncate=truncate)
    with jax.enable_x64(True):
        params = rnn.init_params(jax.random.key(0), config)
        params = jax.tree.map(
            lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params
        )
        batch = rnn.example_batch(jax.random.key(1), config)
        value, grads = run(lambda *a: rnn.manual_value_and_grad(*a, config), params, batch)
    theirs = jax.tree.map(tensor, params)
    tokens, targets = (torch.from_numpy(np.array(x)).long() for x in batch[:2])
    expected = torch_loss(theirs, tokens, targets, config)
    expected.backward()
    assert_leaves_close(value, expected.item(), 1e-9)
    assert_leaves_close(grads, jax.tree.map(lambda p: p.grad.numpy(), theirs), 1e-9, floor=1e-15)
