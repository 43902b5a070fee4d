"""Extreme values: where a result or a gradient is NaN or infinite, so is PyTorch's.

Into each real input of every row that PyTorch can do, in turn, one extreme value is put. What is
NaN or infinite must be so in PyTorch, or (a gradient) in JAX's own derivative of the same forward.
Of elementwise ops it must be the same everywhere; `KNOWN` has the exceptions, where PyTorch's is
NaN and ours has the true limit, with the words in which the docstrings say so.
"""

import inspect

import jax
import numpy as np
import pytest
from test_ops import ROWS, as_jax, by_autodiff, by_hand, cotangent, is_real

from jaxnn.ops import activations, exponential_linear, gated, piecewise_linear, shrinkage
from jaxnn.verify.programs import compiled

torch = pytest.importorskip(
    "torch", reason="PyTorch is an optional peer: pip install -e '.[peers]'"
)

PEERS = {name: row for name, row in ROWS.items() if row.peer}
FILES = (activations, exponential_linear, gated, piecewise_linear, shrinkage)
ELEMENTWISE = {
    name: row for name, row in PEERS.items() if any(row.op in vars(f).values() for f in FILES)
}
WIDTHS = {"float32": np.float32, "float64": np.float64}
KNOWN = {
    "gelu": "Huge x of either sign give their true slope, never 0",
    "geglu": "Huge x of either sign give their true slope, never 0",
    "soft_sign": "At infinity y is NaN, as in `jax.nn`, and the slope 0, its limit.",
}


# 0 times infinity is no number, as in JAX's own functions; PyTorch leaves such products out, or
# compares with NaN, which is False.
AS_JAX = {
    "attention": "a NaN in a query that sees nothing",
    "conv1d_transpose": "zeros between the places of x",
    "conv2d_transpose": "zeros between the places of x",
    "conv3d_transpose": "zeros between the places of x",
    "experts": "the shares of experts that are not taken",
    "softmax_cross_entropy": "classes of weight infinity that are no label",
    "nll_loss": "classes of weight NaN that are no label",
    "linear_cross_entropy": "classes of weight infinity that are no label",
    "multiclass_hinge": "a NaN score is near",
    "mean_absolute_error": "the sign of NaN is NaN",
    "triplet_margin": "a NaN is no distance",
    "rnn": "the gradient 0 of a step that is padding",
    "lstm": "the gradient 0 of a step that is padding",
    "gru": "the gradient 0 of a step that is padding",
    "bidirectional": "the gradient 0 of a step that is padding",
}

OTHERS = {
    name: row
    for name, row in PEERS.items()
    if name not in ELEMENTWISE and row.op.name not in AS_JAX
}


def extremes(dtype):
    limits = np.finfo(dtype)
    huge = 1e30 if dtype == np.float32 else 1e300
    values = (np.inf, np.nan, limits.smallest_subnormal, 0.0, huge, limits.max)
    return [*values, *(-v for v in values if not np.isnan(v))]


def kinds(tree):
    """Of every number 0 if it is finite, 1 and 2 for the infinities, 3 for NaN."""
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
    return [np.isposinf(x) + 2 * np.isneginf(x) + 3 * np.isnan(x) for x in leaves]


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
    pairs = zip(grads, leaves, strict=True)
    grads = [torch.zeros_like(x) if g is None else g for g, x in pairs]
    return [x.detach() for x in (*outs, *grads)]


def planted(row, width, values):
    """The kinds of our numbers, of PyTorch's, and of JAX's derivative, for every value put in."""
    dtype = np.dtype(width).name
    drawn = row.draw(np.random.default_rng(0), (4, 5))
    leaves, structure = jax.tree.flatten(drawn)
    leaves = [x.astype(width) if is_real(x) else x for x in map(np.asarray, leaves)]
    inputs = as_jax(drawn, dtype)
    dout = cotangent(row, inputs, 1)

    def all_of(x, d):
        out = row.op(*x, **row.static)
        return (out, by_hand(row, x, d)), (out, by_autodiff(row, x, d))

    program = compiled(all_of, inputs, dout)
    for number, leaf in enumerate(leaves):
        for value in values if is_real(leaf) else ():
            changed = leaf.copy()
            changed.flat[changed.size // 2] = value
            x = structure.unflatten([*leaves[:number], changed, *leaves[number + 1 :]])
            ours, auto = program.run(as_jax(x, dtype), dout)
            try:
                theirs = in_torch(row, x, dout)
            except RuntimeError:  # no probability: PyTorch refuses it by its value
                assert not row.scalable
                continue
            yield f"{value} in input {number}", *map(kinds, (ours, theirs, auto))


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
@pytest.mark.parametrize("row", ELEMENTWISE.values(), ids=ELEMENTWISE.keys())
def test_elementwise_nan_and_infinity_are_where_pytorch_has_them(row, width):
    with jax.enable_x64(width == np.float64):
        for where, ours, theirs, auto in planted(row, width, extremes(width)):
            for part, (o, t, a) in enumerate(zip(ours, theirs, auto, strict=True)):
                same = np.array_equal(o, t) or (part > 0 and np.array_equal(o, a))
                limit = row.op.name in KNOWN and np.all((o == t) | (t > 0) & (o != 3))
                assert same or limit, f"{where}: result {part} is {o}, PyTorch's {t}"


@pytest.mark.parametrize("row", OTHERS.values(), ids=OTHERS.keys())
def test_nothing_is_nan_or_infinite_that_is_finite_in_pytorch_and_jax(row):
    for where, ours, theirs, auto in planted(row, np.float32, (np.inf, -np.inf, np.nan, 0.0)):
        for part, (o, t, a) in enumerate(zip(ours, theirs, auto, strict=True)):
            allowed = (t > 0) | (a > 0) if part else t > 0
            assert np.all((o == 0) | allowed), f"{where}: result {part} is {o}, PyTorch's {t}"


def test_the_docstrings_say_so():
    for op, words in KNOWN.items():
        module = next(f for f in FILES if hasattr(f, op))
        said = f"{module.__doc__} {inspect.getdoc(getattr(module, op).plain.fwd)}"
        assert words in " ".join(said.split()), op


@pytest.mark.parametrize("row", ELEMENTWISE.values(), ids=ELEMENTWISE.keys())
def test_views_of_other_strides_and_empty_arrays_are_taken(row):
    """A person's arrays: transposed, every second of a larger, backwards, in Fortran's order."""
    drawn = row.draw(np.random.default_rng(0), (3, 4))
    inputs = jax.tree.map(lambda x: np.asarray(x, np.float32), drawn)

    def strided(x, view):
        return {
            "transposed": x.T.copy().T,
            "sliced": np.repeat(x, 2, -1)[..., ::2] if x.ndim else x,
            "backwards": np.flip(np.flip(x).copy()),
            "fortran": np.array(x, order="F"),
        }[view]

    expected = row.op(*inputs, **row.static)
    for view in ("transposed", "sliced", "backwards", "fortran"):
        views = jax.tree.map(lambda x, view=view: strided(x, view), inputs)
        np.testing.assert_array_equal(row.op(*views, **row.static), expected)
    empty = jax.tree.map(lambda x: x[:0] if x.ndim > 1 else x, inputs)
    assert row.op(*empty, **row.static).shape == (0, *expected.shape[1:])
