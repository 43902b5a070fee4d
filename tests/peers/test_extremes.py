"""Extreme values: where a result or a gradient is NaN or infinite, PyTorch's is.

Into each real input of every row that PyTorch can do, in turn, one extreme value is put; what is
NaN, what is infinite and of which sign must be the same. `KNOWN` has the exceptions, each with words
that the op's docstring must say of it.
"""

import jax
import numpy as np
import pytest
from test_ops import ROWS, as_jax, by_hand, cotangent, is_real

from jaxnn.verify.programs import compiled

torch = pytest.importorskip(
    "torch", reason="PyTorch is an optional peer: pip install -e '.[peers]'"
)

PEERS = {name: row for name, row in ROWS.items() if row.peer}
WIDTHS = {"float32": np.float32, "float64": np.float64}


def extremes(dtype):
    limits = np.finfo(dtype)
    huge = 1e30 if dtype == np.float32 else 1e300
    values = (np.inf, np.nan, limits.smallest_subnormal, 0.0, huge, limits.max)
    return [*values, *(-v for v in values if not np.isnan(v))]


# By the name of an op: which values differ (None for all), and what its docstring says of it.
KNOWN: dict[str, tuple[str, ...]] = {}


def kinds(x):
    """0 for a finite number, 1 and 2 for infinities, 3 for NaN."""
    x = np.asarray(x, np.float64)
    return np.isposinf(x) + 2 * np.isneginf(x) + 3 * np.isnan(x)


def in_torch(row, drawn, dout):
    def tensor(x):
        x = np.asarray(x)
        if x.dtype.kind in "iu":
            return torch.tensor(x, dtype=torch.int64)
        return torch.tensor(x, requires_grad=x.dtype.kind == "f")

    tensors = jax.tree.map(tensor, drawn)
    outs = jax.tree.leaves(row.peer(torch, *tensors, **row.static))
    leaves = [t for t in jax.tree.leaves(tensors) if t.requires_grad]
    douts = [torch.tensor(np.asarray(d)) for d in jax.tree.leaves(dout)]
    grads = torch.autograd.grad(outs, leaves, douts, allow_unused=True)
    return [o.detach() for o in outs], [
        torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)
    ]


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("row", PEERS.values(), ids=PEERS.keys())
def test_nan_and_infinity_are_where_pytorch_has_them(row, dtype):
    width = WIDTHS[dtype]
    drawn = row.draw(np.random.default_rng(0), (3, 4))
    leaves, structure = jax.tree.flatten(drawn)
    leaves = [x.astype(width) if is_real(x) else x for x in map(np.asarray, leaves)]
    with jax.enable_x64(dtype == "float64"):
        inputs = as_jax(drawn, dtype)
        dout = cotangent(row, inputs, 1)
        both = compiled(lambda x, d: (row.op(*x, **row.static), by_hand(row, x, d)), inputs, dout)
        different = []
        for number, leaf in enumerate(leaves):
            if not is_real(leaf):
                continue
            for value in extremes(width):
                planted = leaf.copy()
                planted.flat[planted.size // 2] = value
                inputs = structure.unflatten([*leaves[:number], planted, *leaves[number + 1 :]])
                ours = both.run(as_jax(inputs, dtype), dout)
                theirs = in_torch(row, inputs, dout)
                pairs = zip(*map(jax.tree.leaves, (ours, theirs)), strict=True)
                for part, (o, t) in enumerate(pairs):
                    if np.any(kinds(o) != kinds(t)):
                        different.append(
                            (
                                number,
                                value,
                                part,
                                np.asarray(o).ravel()[kinds(o).ravel() != kinds(t).ravel()][:3],
                                np.asarray(t).ravel()[kinds(o).ravel() != kinds(t).ravel()][:3],
                            )
                        )
    assert not different, "\n".join(map(str, different))
