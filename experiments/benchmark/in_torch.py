"""PyTorch's arms, eager and compiled, on the device and in the dtype that JAX computes with.

What they do is in `torch_models` and `torch_ops`. Tensors are laid out as PyTorch has them (images
with channels first, and as a second arm in its "channels last" form), before anything is timed.
Import it only where `experiments.torch_peer.installed`.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from experiments import torch_peer
from experiments.benchmark.arms import (
    COMPILED,
    PYTORCH,
    Arm,
    Builds,
    LeftOutError,
    cores,
    in_a_line,
    named,
)

DEVICE = torch_peer.device()
# Seconds that torch.compile may take for one case: on a GPU every kernel is compiled and tried.
PATIENCE = 60.0 if DEVICE == "cpu" else 300.0
LAST = "channels last"
Layout = Callable[[Any], Any]


def _same(x: Any) -> Any:
    return x


class Work(NamedTuple):
    """A forward pass and what to differentiate.

    Attributes:
        forward: of the leaves, which it holds; returns a tensor, or several.
        leaves: tensors that want a gradient.
        dout: the cotangents of what the forward returns; None of a loss.
        result: the first tensor returned, in JAX's layout.
        gradient: the first leaf's gradient, in JAX's layout.
        within: what the forward is called in, compiled or not.
    """

    forward: Callable[[], Any]
    leaves: Sequence[Any]
    dout: Any = None
    result: Layout = _same
    gradient: Layout = _same
    within: Callable[[], Any] = contextlib.nullcontext


def builds(works: "dict[str, Work] | Arm") -> Builds:
    """The arms of some work by its form ("" for the plain one), or of an arm as it is.

    On the CPU each on as many threads as JAX has, and on one: for small work that is often faster.
    """
    torch.set_float32_matmul_precision("highest")  # no TF32 in products,
    torch.backends.cudnn.allow_tf32 = False  # nor in convolutions and recurrent layers
    if isinstance(works, Arm):
        arms = {PYTORCH: works}
    else:
        arms = {named(PYTORCH, form): _eager(work) for form, work in works.items()}
    builds: Builds = {name: partial(_finished, arm, cores()) for name, arm in arms.items()}
    if DEVICE == "cpu":
        builds |= {f"{name}, one thread": partial(_finished, arm, 1) for name, arm in arms.items()}
    if not isinstance(works, Arm):
        builds[COMPILED] = partial(_compiled, next(iter(works.values())))
    return builds


def _finished(arm: Arm, threads: int) -> Arm:
    """On so many of the CPU's threads; waits until the device is done."""

    def run() -> tuple[Any, Any]:
        torch.set_num_threads(threads)
        out = arm.run()
        if DEVICE != "cpu":
            torch.cuda.synchronize()
        return out

    return arm._replace(run=run, read=_read)


def _eager(work: Work) -> Arm:
    def run() -> tuple[Any, Any]:
        with work.within():
            out = work.forward()
        grads = torch.autograd.grad(out, work.leaves, work.dout)
        first = out[0] if isinstance(out, tuple) else out
        return work.result(first.detach()), work.gradient(grads[0])

    return Arm(run)


def _compiled(work: Work) -> Arm:
    """By `torch.compile`, which is given `PATIENCE`."""
    torch.compiler.reset()
    arm = _finished(_eager(work._replace(forward=torch.compile(work.forward))), cores())
    started = time.perf_counter()
    try:
        with _at_most(PATIENCE):
            arm.run()
    except Exception as error:  # whatever it is, eager PyTorch is there to compare with
        raise LeftOutError(f"torch.compile: {in_a_line(error)}") from error
    return arm._replace(compile_seconds=time.perf_counter() - started)


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"not done in {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fixed(x: Any) -> Any:
    """A copy that wants no gradient; integers as PyTorch's indices."""
    array = np.array(x)
    if array.dtype == jnp.bfloat16:  # which PyTorch does not take from NumPy
        tensor = torch.from_numpy(array.astype(np.float32)).bfloat16()
    else:
        tensor = torch.from_numpy(array)
    return (tensor if tensor.is_floating_point() else tensor.long()).to(DEVICE)


def _read(x: Any) -> Any:
    """A tensor as NumPy's array, in its dtype; what is an array already stays one."""
    if not isinstance(x, torch.Tensor):
        return np.asarray(x)
    dtype = jnp.dtype(str(x.dtype).removeprefix("torch."))
    if dtype == jnp.bfloat16:
        x = x.float()
    return x.detach().cpu().numpy().astype(dtype)


def learned(x: Any) -> Any:
    """A copy that wants a gradient."""
    return fixed(x).requires_grad_()


def module(kind: str, params: Any) -> Any:
    """A layer with the same numbers. PyTorch adds a second bias: only a GRU has a use for it."""
    w_x, w_h, b = map(fixed, (params.w_x, params.w_h, params.b))
    hidden, inputs = len(w_h), len(w_x)
    net = getattr(torch.nn, kind)(inputs, hidden, batch_first=True, device=DEVICE, dtype=b.dtype)
    with torch.no_grad():
        net.weight_ih_l0.copy_(w_x.T)
        net.weight_hh_l0.copy_(w_h.T)
        net.bias_ih_l0.copy_(b)
        net.bias_hh_l0.zero_()
        if params.b_hn is not None:
            net.bias_hh_l0[-hidden:] = fixed(params.b_hn)
    return net


def linear(x: Any, w: Any, b: Any) -> Any:
    """x w + b."""
    return F.linear(x, w.T, b)


def channels_first(x: Any, form: Any) -> Any:
    """(N, H, W, C) as (N, C, H, W), in memory as `form` says."""
    return fixed(x).permute(0, 3, 1, 2).contiguous(memory_format=form)


def channels_last(x: Any) -> Any:
    """(N, C, H, W) as (N, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def both_forms(work: Callable[[Any], Work]) -> dict[str, Work]:
    """Work of images in both layouts."""
    return {"": work(torch.contiguous_format), LAST: work(torch.channels_last)}
