"""Every row of `tests/rows` that PyTorch can do, forward and backward, float64, to 1e-9."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close, run
from test_ops import ROWS, as_jax, by_hand, cotangent, is_real

torch = pytest.importorskip(
    "torch", reason="PyTorch is an optional peer: pip install -e '.[peers]'"
)

from jaxnn.ops.batch_norm import Running, batch_norm  # noqa: E402
from jaxnn.ops.multi_head import MultiHead, multi_head  # noqa: E402
from jaxnn.ops.normalisation import Scale  # noqa: E402

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


NARROW = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def in_torch(row, inputs, dout, dtype):
    """The result and the gradients of a row's peer in a dtype of PyTorch's, as float64; None where
    PyTorch cannot compute in it."""

    def cast(x):
        x = tensor(np.asarray(x, np.float64) if is_real(x) else x)
        return x.detach().to(dtype).requires_grad_() if x.is_floating_point() else x

    tensors = jax.tree.map(cast, inputs)
    try:
        outs = jax.tree.leaves(row.peer(torch, *tensors, **row.static))
        douts = [torch.tensor(np.asarray(d, np.float64)).to(dtype) for d in jax.tree.leaves(dout)]
        torch.autograd.backward(outs, douts)
    except (NotImplementedError, RuntimeError):
        return None
    grads = [t.grad for t in jax.tree.leaves(tensors) if t.requires_grad]
    return [x.detach().double().numpy() for x in (*outs, *grads)]


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("row", PEERS.values(), ids=PEERS.keys())
def test_in_16_bits_within_three_times_pytorchs_error(row, dtype, scale):
    """Against PyTorch in float64 of the same rounded inputs; half a unit of the largest entry is an
    error that nobody can help, nor is one of the float32 that terms near 1 are summed in."""
    drawn = row.draw(np.random.default_rng(0), (8, 8))
    scaled = jax.tree.map(lambda x: x * scale if row.scalable and is_real(x) else x, drawn)
    inputs = as_jax(scaled, dtype)
    dout = cotangent(row, inputs, 1)
    out, hand = run(lambda x, d: (row.op(*x, **row.static), by_hand(row, x, d)), inputs, dout)
    truth = in_torch(row, inputs, dout, torch.float64)
    theirs = in_torch(row, inputs, dout, NARROW[dtype]) or truth
    half, wide = (float(jnp.finfo(kind).eps) / 2 for kind in (dtype, jnp.float32))
    ours = [np.asarray(x, np.float64) for x in jax.tree.leaves((out, hand))]
    for number, (o, t, exact) in enumerate(zip(ours, theirs, truth, strict=True)):
        error, peer = (np.abs(x - exact).max(initial=0.0) for x in (o, t))
        largest = np.abs(exact).max(initial=0.0)
        assert error <= 3 * max(peer, half * largest, wide), (number, error, peer, largest)


def hand_of(op, inputs, dout, **settings):
    out, residuals = op.fwd(*inputs, **settings)
    return out, op.bwd(residuals, dout, **settings)


@pytest.mark.parametrize("training", [True, False])
def test_pytorch_moves_its_running_statistics_likewise(training):
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 5, 3, 4))
    scale, shift, mean = rng.normal(size=(3, 4))
    variance = rng.uniform(0.5, 2, 4)
    tensors = [torch.tensor(v, requires_grad=True) for v in (scale, shift, x)]
    buffers = [torch.tensor(mean), torch.tensor(variance)]
    y = torch.nn.functional.batch_norm(
        tensors[2].movedim(-1, 1), *buffers, *tensors[:2], training, momentum=0.3
    ).movedim(1, -1)
    y.backward(torch.tensor(dy))
    with jax.enable_x64(True):
        inputs = jax.tree.map(jnp.asarray, (Scale(scale, shift), Running(mean, variance), x))
        zeros = Running(jnp.zeros(4), jnp.zeros(4))
        out, (dparams, _, dx) = run(
            lambda x, d: hand_of(batch_norm, x, d, training=training, momentum=0.3),
            inputs,
            (jnp.asarray(dy), zeros),
        )
    assert_leaves_close(out, (y.detach().numpy(), *(b.numpy() for b in buffers)), 1e-12)
    assert_leaves_close((*dparams, dx), [t.grad.numpy() for t in tensors], 1e-12)


def test_the_block_is_pytorchs_multihead_attention():
    rng = np.random.default_rng(0)
    theirs = torch.nn.MultiheadAttention(6, 3, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.tensor(rng.normal(size=tuple(parameter.shape))))
    w, b = theirs.in_proj_weight.detach().numpy(), theirs.in_proj_bias.detach().numpy()
    wo, bo = theirs.out_proj.weight.detach().numpy().T, theirs.out_proj.bias.detach().numpy()
    with jax.enable_x64(True):
        params = jax.tree.map(
            jnp.asarray, MultiHead(*(m.T for m in np.split(w, 3)), wo, *np.split(b, 3), bo)
        )
        x, hidden = rng.normal(size=(2, 5, 6)), rng.random((2, 5)) < 0.3
        expected, _ = theirs(*[torch.tensor(x)] * 3, key_padding_mask=torch.tensor(hidden))
        mask = jnp.asarray(~hidden[:, None, None, :])
        z = run(lambda p, x, m: multi_head(p, x, None, m, heads=3), params, jnp.asarray(x), mask)
        assert_leaves_close(z, expected.detach().numpy(), 1e-12)
