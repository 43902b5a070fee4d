"""Every row of `tests/rows` that PyTorch can do, forward and backward, float64, to 1e-9."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close, run
from test_ops import ROWS, as_jax, by_hand, cotangent

torch = pytest.importorskip(
    "torch", reason="PyTorch is an optional peer: pip install -e '.[peers]'"
)

PEERS = {name: row for name, row in ROWS.items() if row.peer}


def tensor(x):
    """A leaf's tensor: real numbers with a gradient, integers as PyTorch's indices."""
    x = np.asarray(x)
    if x.dtype.kind in "iu":
        return torch.tensor(x, dtype=torch.int64)
    return torch.tensor(x, requires_grad=x.dtype.kind == "f")


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 4)])
@pytest.mark.parametrize("row", PEERS.values(), ids=PEERS.keys())
def test_pytorch_agrees(row, shape):
    drawn = row.draw(np.random.default_rng(0), shape)
    with jax.enable_x64(True):
        inputs = as_jax(drawn, jnp.float64)
        dout = cotangent(row, inputs, 1)
        out, hand = run(lambda x, d: (row.op(*x, **row.static), by_hand(row, x, d)), inputs, dout)
    tensors = jax.tree.map(tensor, drawn)
    theirs = row.peer(torch, *tensors, **row.static)
    outs, douts = jax.tree.leaves(theirs), jax.tree.leaves(dout)
    torch.autograd.backward(outs, [torch.tensor(np.asarray(d)) for d in douts])
    grads = [t.grad.numpy() for t in jax.tree.leaves(tensors) if t.requires_grad]
    assert_leaves_close(out, [o.detach().numpy() for o in outs], 1e-9, floor=1e-15)
    assert_leaves_close(hand, grads, 1e-9, floor=1e-15)
