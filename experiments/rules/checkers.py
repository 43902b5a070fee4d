"""The checkers asked about a rule, each with the least glue that it needs, and how much that is.

The verifier takes a function, a kernel or a gradient as it is. The peers take a function of
floating arrays: settings and integers are closed over, a gradient by hand is made the rule of its
loss, a module is taken apart; PyTorch's is handed a function of its own tensors besides.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from experiments import torch_peer
from experiments.faulty_checkers import Answer, of_report
from experiments.rules.rule import Rule
from jaxnn import verify

if torch_peer.installed:
    import torch


def rule(f: Any, inputs: Any, options: Any) -> Any:
    """The verifier, of a rule by itself."""
    return verify.rule(f, *inputs, **options)


def against(f: Any, reference: Any, inputs: Any, options: Any) -> Any:
    """The verifier, of a function beside a reference."""
    return verify.against(f, reference, *inputs, **options)


def gradient(loss: Any, grad: Any, inputs: Any, options: Any) -> Any:
    """The verifier, of a loss and its gradient."""
    return verify.gradient(loss, grad, *inputs, **options)


def ours(entry: Rule, made: Any, inputs: tuple[Any, ...]) -> Answer:
    """What the verifier says by the entry's door."""
    options = {**entry.settings, **entry.declared}
    if entry.door == "rule":
        report = rule(made, inputs, options)
    elif entry.door == "against":
        report = against(made, entry.plain, inputs, options)
    else:
        loss, grad = made
        report = gradient(loss, grad, inputs, options)
    return of_report(report)


def by_check_grads(f: Any, floats: Any, rest: Any, settings: Any, modes: Any) -> None:
    """`jax.test_util.check_grads`, first order."""
    check_grads(lambda *x: f(*x, *rest, **settings), floats, order=1, modes=modes)


def by_chex(f: Any, floats: Any, rest: Any, settings: Any, modes: Any) -> None:
    """`chex.assert_numerical_grads`, first order."""
    chex.assert_numerical_grads(lambda *x: f(*x, *rest, **settings), floats, order=1, modes=modes)


def by_torch(f: Any, floats: Any, rest: Any, settings: Any, modes: Any) -> None:
    """`torch.autograd.gradcheck`, of a function whose two halves are JAX's."""
    leaves, tree = jax.tree.flatten(floats)

    class Function(torch.autograd.Function):  # type: ignore[misc, unused-ignore]
        @staticmethod
        def forward(ctx: Any, *tensors: Any) -> Any:
            arrays = jax.tree.unflatten(tree, [jnp.asarray(t.numpy()) for t in tensors])
            out, ctx.pull = jax.vjp(lambda *x: f(*x, *rest, **settings), *arrays)
            outs, ctx.tree = jax.tree.flatten(out)
            return tuple(torch.from_numpy(np.array(y)) for y in outs)

        @staticmethod
        def backward(ctx: Any, *douts: Any) -> Any:
            douts = jax.tree.unflatten(ctx.tree, [jnp.asarray(d.numpy()) for d in douts])
            return tuple(torch.from_numpy(np.array(g)) for g in jax.tree.leaves(ctx.pull(douts)))

    tensors = [torch.from_numpy(np.array(x)).requires_grad_() for x in leaves]
    assert torch.autograd.gradcheck(Function.apply, tensors, raise_exception=False)


def of_gradient(made: Any, params: Any, *rest: Any) -> Any:
    """A loss whose rule is the gradient by hand, and its floating inputs."""
    loss, grad = made
    f: Any = jax.custom_vjp(lambda params: loss(params, *rest))

    def f_fwd(params: Any) -> Any:
        return loss(params, *rest), params

    def f_bwd(params: Any, dout: Any) -> Any:
        return (jax.tree.map(lambda g: dout * g, grad(params, *rest)),)

    f.defvjp(f_fwd, f_bwd)
    return f, (params,)


def of_equinox(made: Any, module: Any, *rest: Any) -> Any:
    """The same for a module of Equinox's, of whose leaves not all are arrays."""
    import equinox as eqx

    loss, grad = made
    arrays, static = eqx.partition(module, eqx.is_inexact_array)
    f: Any = jax.custom_vjp(lambda arrays: loss(eqx.combine(arrays, static), *rest))

    def f_fwd(arrays: Any) -> Any:
        return loss(eqx.combine(arrays, static), *rest), arrays

    def f_bwd(arrays: Any, dout: Any) -> Any:
        grads = grad(eqx.combine(arrays, static), *rest)
        return (jax.tree.map(lambda g: dout * g, eqx.filter(grads, eqx.is_inexact_array)),)

    f.defvjp(f_fwd, f_bwd)
    return f, (arrays,)


def of_leaves(f: Any, trees: Any) -> Any:
    """A function of the arrays in trees: what chex takes."""
    leaves, tree = jax.tree.flatten(trees)
    return lambda *leaves: f(*jax.tree.unflatten(tree, leaves)), leaves


def of_flax(made: Any, module: Any, *rest: Any) -> Any:
    """A loss as a function of a Flax module's state: the rule is inside."""
    from flax import nnx

    loss, _ = made
    graph, state = nnx.split(module)
    return lambda state: loss(nnx.merge(graph, state), *rest), (state,)


OURS, CHEX = "jaxnn.verify", "chex assert_numerical_grads"
PEERS: dict[str, Callable[..., None]] = {
    "jax check_grads": by_check_grads,
    CHEX: by_chex,
}
# PyTorch's is given float64 only: its defaults say so.
FLOAT64_ONLY: dict[str, Callable[..., None]] = (
    {"torch gradcheck": by_torch} if torch_peer.installed else {}
)
_DOORS = {"rule": rule, "against": against, "gradient": gradient}
_ADAPTED = {"": of_gradient, "equinox": of_equinox, "flax": of_flax}


def answer(checker: str, entry: Rule, made: Any, inputs: tuple[Any, ...]) -> Answer:
    """What a checker says of an entry.

    Raises:
        AssertionError: a peer finds it wrong.
        Exception: whatever a checker breaks down with.
    """
    if checker == OURS:
        return ours(entry, made, inputs)
    f, floats, rest = _split(entry, made, inputs)
    if checker == CHEX and _has_trees(entry):
        f, floats = of_leaves(f, floats)
    modes = ("fwd", "rev") if entry.forward else ("rev",)
    (PEERS | FLOAT64_ONLY)[checker](f, floats, rest, entry.settings, modes)
    return Answer("pass")


def glue(checker: str, entry: Rule) -> int:
    """The lines of code between an entry and a checker's answer."""
    if checker == OURS:
        return _lines(_DOORS[entry.door])
    adapted = _lines(_ADAPTED[entry.needs]) if entry.door == "gradient" else 0
    leaves = _lines(of_leaves) if checker == CHEX and _has_trees(entry) else 0
    return adapted + leaves + _lines((PEERS | FLOAT64_ONLY)[checker])


def _has_trees(entry: Rule) -> bool:
    inputs = entry.inputs(np.random.default_rng(0), "float32")
    return any(not jax.tree_util.all_leaves([x]) for x in inputs)


def _split(entry: Rule, made: Any, inputs: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """A function, its floating inputs, and what else it takes."""
    if entry.door == "gradient":
        return *_ADAPTED[entry.needs](made, *inputs), ()
    n = sum(all(map(_is_float, jax.tree.leaves(x))) for x in inputs)
    return made, inputs[:n], inputs[n:]


def _is_float(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def _lines(function: Any) -> int:
    """How many lines a function's body has without its docstring and blank ones."""
    source = textwrap.dedent(inspect.getsource(function))
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.FunctionDef)
    start = definition.body[1].lineno - 1  # after the docstring
    return sum(bool(line.strip()) for line in source.splitlines()[start:])
