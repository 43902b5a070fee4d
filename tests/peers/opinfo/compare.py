"""One sample in one dtype: our forward, our backward and `jax.vjp` of the op beside PyTorch's.

PyTorch in float64 of the same rounded inputs is the truth. In float64 all must be within 1e-9 of
the largest entry; below, the error at most three times PyTorch's own, or half a unit of the largest
entry, which nobody can help. In float32, where sums of another order differ as much, what inputs
half a unit away would change is allowed as well, and three times the error of autodiff of the same
forward, for XLA's tanh is coarser than PyTorch's. NaN and infinity must be where PyTorch has them.
"""

import functools
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

import jaxnn

from . import CannotSay
from .ours import ours_of
from .tensors import cast, filled, is_real_tensor, said, tensors

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# XLA's tanh in float32 is 5 half units off, and its slope 1 - y^2 twice that.
SLACK = 16
# Where an op is less exact than PyTorch, in which dtypes, and the words in which it says so.
DOCUMENTED = {
    "nn.functional.rms_norm": (("bfloat16", "float16"), "y and x_hat have the dtype of x"),
}
OURS = str(Path(jaxnn.__file__).parent)


class Case(NamedTuple):
    """A sample: `function(*args, **kwargs)` in PyTorch, `mapping` of the same for ours."""

    name: str
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    mapping: Any

    def __repr__(self):
        return f"{self.name}({said(self.args)[1:-1]}, {said(self.kwargs)})"


class Outcome(NamedTuple):
    """What became of a sample and why: it agrees, or differs as `documented`, is refused, cannot be
    said, or is wrong: differs, or ended in a fault."""

    kind: str
    reason: str = ""
    detail: str = ""


def in_torch(case, dtype, arguments, pick, douts=()):
    """Results and gradients in a dtype, as float64."""
    args, kwargs = cast(arguments, dtype)
    leaves = [x for x in tensors((args, kwargs)) if x.requires_grad]
    out = pick(case.function(*args, **kwargs))
    outs = tensors(out)
    pairs = [(o, d.to(o.dtype)) for o, d in zip(outs, douts, strict=False) if o.requires_grad]
    grads = [None] * len(leaves)
    if pairs and leaves:
        tops, into = zip(*pairs, strict=True)
        grads = torch.autograd.grad(tops, leaves, into, allow_unused=True)
    steps = [x for x in jax.tree.leaves(out) if isinstance(x, torch.Tensor)]
    steps = [x for x in steps if not is_real_tensor(x)]
    return [o.detach().double() for o in (*outs, *steps)], filled(grads, leaves)


def difference(ours, theirs, truth, nudged, dtype):
    """Why one array is not PyTorch's, or ''; `nudged` is the truth of inputs half a unit away."""
    if ours.shape != truth.shape:
        return f"shape {tuple(ours.shape)}, PyTorch {tuple(truth.shape)}"
    ours, theirs, truth, nudged = (x.numpy() for x in (ours, theirs, truth, nudged))
    for what, where in (("NaN", np.isnan), ("inf", np.isposinf), ("-inf", np.isneginf)):
        if not np.all((where(ours) == where(theirs)) | (where(ours) == where(truth))):
            return f"{what} elsewhere than PyTorch"
    finite = np.isfinite(ours) & np.isfinite(theirs) & np.isfinite(truth)
    error, peer, moved = (
        np.abs(np.where(finite, x - truth, 0)).max(initial=0) for x in (ours, theirs, nudged)
    )
    largest = np.abs(np.where(finite, truth, 0)).max(initial=0)
    half = float(jnp.finfo(dtype).eps) / 2
    allowed = 3 * max(peer, half * largest)
    if dtype == "float32":
        # A gradient that cancels to nothing is as far off as the cotangents' last digits.
        allowed = 3 * (peer + moved) + half * max(SLACK * largest, 1)
    if error <= (1e-9 * largest + 1e-15 if dtype == "float64" else allowed):
        return ""
    return f"error {error:.2e}, PyTorch {peer:.2e}, largest {largest:.2e}"


def nudge(arguments):
    """Every number up or down by half a unit of float32."""
    generator = torch.Generator().manual_seed(2)

    def moved(x):
        if not is_real_tensor(x):
            return x
        signs = torch.randint(0, 2, x.shape, generator=generator) * 2 - 1
        return (x * (1 + 2.0**-24 * signs)).detach().requires_grad_(x.requires_grad)

    return jax.tree.map(moved, arguments)


def likeness(case):
    """What samples have in common that differ only in their numbers."""
    try:
        call = case.mapping(*case.args, **case.kwargs)
    except CannotSay as answer:
        return repr(case), str(answer)
    inputs = [(said(x), x.requires_grad) for x in jax.tree.leaves(call.inputs) if hasattr(x, "dim")]
    shapes = said((case.args, [x for x in case.kwargs.values() if hasattr(x, "dim")]))
    return call.op.name, repr(dict(call.settings)), call.step, str(inputs), shapes


def judge(case, dtype):
    """What becomes of a sample in a dtype."""
    arguments = cast(cast((case.args, case.kwargs), DTYPES[dtype]), torch.float64)
    args, kwargs = arguments
    leaves = [x for x in tensors(arguments) if x.requires_grad]
    try:
        call = case.mapping(*args, **kwargs)
    except CannotSay as answer:
        return Outcome("cannot", answer.reason, answer.detail)
    outs, _ = in_torch(case, torch.float64, arguments, call.theirs)
    generator = torch.Generator().manual_seed(1)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    douts = [draw(o.shape).to(DTYPES[dtype]).double() for o in outs]
    truth = in_torch(case, torch.float64, arguments, call.theirs, douts)
    try:
        theirs = in_torch(case, DTYPES[dtype], arguments, call.theirs, douts)
    except (NotImplementedError, RuntimeError):  # PyTorch cannot compute in it
        theirs = truth
    nudged = truth
    if dtype == "float32":
        nudged = in_torch(case, torch.float64, nudge(arguments), call.theirs, nudge(douts))

    def ours(autodiff=False):
        with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("strict"):
            return ours_of(call, dtype, leaves, douts, autodiff)

    try:
        mine = ours()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        if isinstance(error, ValueError | TypeError) and where.startswith(OURS):
            return Outcome("refused", str(error))
        return Outcome("fault", f"{type(error).__name__}: {error!s:.300}")
    why = first_difference(mine, theirs, truth, nudged, dtype)
    if why and dtype == "float32":
        _, _, gradients = ours(autodiff=True)
        peers = [coarser(*each) for each in zip(theirs[1], gradients, truth[1], strict=True)]
        why = first_difference(mine, (theirs[0], peers), truth, nudged, dtype)
    if why and dtype in DOCUMENTED.get(case.name, ((), ""))[0]:
        return Outcome("documented", why)
    return Outcome("differs", why) if why else Outcome("agrees")


def coarser(theirs, ours, truth):
    """Of two results the one further from the truth, if ours is off by its rounding only."""
    if not truth.numel():
        return theirs
    error, peer = ((x - truth).abs().nan_to_num().amax() for x in (ours, theirs))
    return ours if peer < error < 1e-3 * truth.abs().nan_to_num().amax() else theirs


def first_difference(mine, theirs, truth, nudged, dtype):
    """The first of our results and gradients that is not PyTorch's, or ''."""
    for what, ours, part in zip(("y", "gradient by hand", "vjp"), mine, (0, 1, 1), strict=True):
        if len(ours) != len(truth[part]):
            return f"{len(ours)} results for {len(truth[part])}"
        peers = (ours, theirs[part], truth[part], nudged[part])
        for number, arrays in enumerate(zip(*peers, strict=True)):
            why = difference(*arrays, dtype)
            if why:
                return f"{what} {number}: {why}"
    return ""
