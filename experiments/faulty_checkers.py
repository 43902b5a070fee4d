"""The gradient checks that are compared, ours and its peers', each with its default tolerances.

Every checker is called as `check(loss, manual_grad, params, batch)` and returns what it said.
The peers differentiate the loss as a function of its parameters alone, whose rule is the
hand-written gradient: they are never handed the integer labels, which some cannot take.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from experiments import torch_peer
from experiments.faulty_layers import Batch, Params
from jaxnn import verify

Verdict = Literal["pass", "fail", "inconclusive", "raised"]


class Answer(NamedTuple):
    """What a checker said of a gradient.

    Attributes:
        verdict: "raised" where it broke down: of a right gradient that is a false alarm, and of a
            wrong one it has detected nothing, because it would have broken down on a right one.
        causes: the likely causes that it named, without repetition.
        error: what it broke down with.
    """

    verdict: Verdict
    causes: frozenset[str] = frozenset()
    error: str = ""


Checker = Callable[[Callable[..., Any], Callable[..., Any], Params, Batch], Answer]


def ours(
    loss: Callable[..., Any], manual_grad: Callable[..., Any], params: Params, batch: Batch
) -> Answer:
    """`jaxnn.verify.gradient`."""
    return of_report(verify.gradient(loss, manual_grad, params, batch))


def of_report(report: verify.Report) -> Answer:
    """The verdict and the causes of a report; where the cotangents begin to differ is no cause."""
    found = (leaf.diagnosis for leaf in report.leaves if leaf.status == "fail")
    causes = frozenset(d.cause for d in found if d and d.cause != "location")
    verdict: Any = report.status
    return Answer(verdict, causes)


def by_check_grads(
    loss: Callable[..., Any], manual_grad: Callable[..., Any], params: Params, batch: Batch
) -> Answer:
    """`jax.test_util.check_grads`, first order, reverse mode."""
    leaves, f = _of_leaves(loss, manual_grad, params, batch)
    check_grads(f, leaves, order=1, modes=["rev"])
    return Answer("pass")


def by_chex(
    loss: Callable[..., Any], manual_grad: Callable[..., Any], params: Params, batch: Batch
) -> Answer:
    """`chex.assert_numerical_grads`, first order; reverse mode, because forward mode is refused."""
    leaves, f = _of_leaves(loss, manual_grad, params, batch)
    chex.assert_numerical_grads(f, leaves, order=1, modes=["rev"])
    return Answer("pass")


def by_torch(
    loss: Callable[..., Any],
    manual_grad: Callable[..., Any],
    params: Params,
    batch: Batch,
    *,
    fast_mode: bool,
) -> Answer:
    """`torch.autograd.gradcheck` in float64, of a function whose two halves are compiled by JAX."""
    import torch

    _, tree = jax.tree.flatten(params)
    value, grad = _jitted(loss), _jitted(manual_grad)

    def numpy_params(tensors: Any) -> Any:
        return jax.tree.unflatten(tree, [t.detach().numpy() for t in tensors])

    class Loss(torch.autograd.Function):  # type: ignore[misc, unused-ignore]
        @staticmethod
        def forward(ctx: Any, *tensors: Any) -> Any:
            ctx.save_for_backward(*tensors)
            return torch.tensor(float(value(numpy_params(tensors), batch)), dtype=torch.float64)

        @staticmethod
        def backward(ctx: Any, dout: Any) -> Any:
            grads = jax.tree.leaves(grad(numpy_params(ctx.saved_tensors), batch))
            return tuple(dout * torch.from_numpy(np.array(g)) for g in grads)

    tensors = [torch.from_numpy(np.array(x)).requires_grad_() for x in jax.tree.leaves(params)]
    passed = torch.autograd.gradcheck(
        Loss.apply, tensors, fast_mode=fast_mode, raise_exception=False
    )
    return Answer("pass" if passed else "fail")


OURS = "verify.gradient"
CHECKERS: dict[str, Checker] = {
    OURS: ours,
    "jax check_grads": by_check_grads,
    "chex assert_numerical_grads": by_chex,
}
# PyTorch's are given float64 only: its defaults say so.
FLOAT64_ONLY: dict[str, Checker] = {}
if torch_peer.installed:
    FLOAT64_ONLY = {
        "torch gradcheck, fast": functools.partial(by_torch, fast_mode=True),
        "torch gradcheck, slow": functools.partial(by_torch, fast_mode=False),
    }


def ask(check: Callable[..., Answer], *arguments: Any) -> Answer:
    """What a checker says; that it fails by an AssertionError, or breaks down, is an answer."""
    try:
        return check(*arguments)
    except AssertionError:
        return Answer("fail")
    except Exception as error:  # whatever a checker breaks down with is a result, and is printed
        first = (str(error).splitlines() or [""])[0]
        return Answer("raised", error=f"{type(error).__name__}: {first}")


@functools.lru_cache(maxsize=8)
def _jitted(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function)


@functools.lru_cache(maxsize=8)
def _with_rule(
    loss: Callable[..., Any], manual_grad: Callable[..., Any]
) -> Callable[[Params, Batch], Any]:
    """The loss, compiled, whose reverse-mode rule is the hand-written gradient."""
    rule: Any = jax.custom_vjp(lambda params, batch: loss(params, batch))

    def fwd(params: Params, batch: Batch) -> Any:
        return loss(params, batch), (params, batch)

    def bwd(residuals: Any, dout: Any) -> Any:
        params, (x, _) = residuals
        grads = jax.tree.map(lambda g: dout * g, manual_grad(params, (x, _)))
        return grads, (jnp.zeros_like(x), None)

    rule.defvjp(fwd, bwd)
    jitted: Callable[[Params, Batch], Any] = jax.jit(rule)
    return jitted


def _of_leaves(
    loss: Callable[..., Any], manual_grad: Callable[..., Any], params: Params, batch: Batch
) -> tuple[list[Any], Callable[..., Any]]:
    """The leaves of the parameters, and the loss as a function of them."""
    leaves, tree = jax.tree.flatten(params)
    f = _with_rule(loss, manual_grad)
    return leaves, lambda *leaves: f(jax.tree.unflatten(tree, leaves), batch)
