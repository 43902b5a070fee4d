"""Convolution, pooling, resizing and padding beside PyTorch: extremes, larger images in 16 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import run
from rows import convolution, pooling, resize
from test_ops import as_jax, by_hand, cotangent, is_real

torch = pytest.importorskip(
    "torch", reason="PyTorch is an optional peer: pip install -e '.[peers]'"
)

from test_torch_ops import NARROW, in_torch  # noqa: E402

ROWS = convolution.ROWS | pooling.ROWS | resize.ROWS
PEERS = {name: row for name, row in ROWS.items() if row.peer}
each_row = pytest.mark.parametrize("row", PEERS.values(), ids=PEERS.keys())


def kinds(x):
    """What every entry is: NaN, an infinity of either sign, or a number."""
    return np.where(np.isnan(x), "nan", np.where(np.isinf(x), np.where(x > 0, "+", "-"), "number"))


# Zeros between the places of dy, which make NaN of what is infinite in the kernel: see `conv_fwd`.
SPREADING = ("conv1d_transpose", "conv2d_transpose", "conv3d_transpose")


@pytest.mark.parametrize("name", sorted(PEERS.keys() - set(SPREADING)))
def test_infinities_and_nan_are_where_pytorch_has_them(name):
    """In y and in the gradients; one of each kind, and a denormal, in x."""
    row = PEERS[name]
    drawn = row.draw(np.random.default_rng(0), (5, 4))
    for number, special in enumerate((np.inf, -np.inf, np.nan, 1e-310)):

        def with_special(x, special=special, number=number):
            x = np.array(x)
            if x.dtype.kind == "f" and x.ndim > 1:
                x.flat[(5 * number + 3) % x.size] = special
            return x

        changed = (*drawn[:-1], jax.tree.map(with_special, drawn[-1]))
        if not is_real(drawn[-1]):
            changed = (with_special(drawn[0]), *drawn[1:])
        with jax.enable_x64(True):
            inputs = as_jax(changed, jnp.float64)
            dout = cotangent(row, inputs, 1)
            ours = run(lambda x, d: (row.op(*x, **row.static), by_hand(row, x, d)), inputs, dout)
        theirs = in_torch(row, inputs, dout, torch.float64)
        for o, t in zip(map(np.asarray, jax.tree.leaves(ours)), theirs, strict=True):
            np.testing.assert_array_equal(kinds(o), kinds(t), str(special))


@pytest.mark.parametrize("dtype", NARROW)
@each_row
def test_larger_images_in_16_bits_within_three_times_pytorchs_error(row, dtype):
    """Of sums over many more positions than the rows have."""
    inputs = [*row.draw(np.random.default_rng(0), (8, 8))]
    x = inputs[-1]
    if is_real(x) and "size" not in row.static:
        shape = (8, *(16 if x.ndim < 5 else 6,) * (x.ndim - 2), x.shape[-1])
        inputs[-1] = np.random.default_rng(1).normal(size=shape)
    inputs = as_jax(tuple(inputs), dtype)
    dout = cotangent(row, inputs, 1)
    ours = run(lambda x, d: (row.op(*x, **row.static), by_hand(row, x, d)), inputs, dout)
    truth = in_torch(row, inputs, dout, torch.float64)
    theirs = in_torch(row, inputs, dout, NARROW[dtype]) or truth
    half = float(jnp.finfo(dtype).eps) / 2
    for o, t, exact in zip(jax.tree.leaves(ours), theirs, truth, strict=True):
        error, peer = (np.abs(np.asarray(v, np.float64) - exact).max() for v in (o, t))
        assert error <= 3 * max(peer, half * np.abs(exact).max()), (error, peer)
