"""Our side of a sample: the op called, its backward by hand, and `jax.vjp`, in PyTorch's layout."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import torch

from jaxnn.verify.programs import compiled

from .tensors import as_jax, as_torch, filled, is_real_tensor, tensors

# Hundreds of samples of one op ask for the same program; a process may hold only so many.
MOST_KEPT = 256
_programs: dict[Any, Any] = {}


def program(function, key, *arrays):
    """The compiled function, found again by a key and the shapes, or made."""
    leaves, structure = jax.tree.flatten(arrays)
    key = (*key, structure, tuple((x.shape, str(x.dtype)) for x in leaves))
    if key not in _programs:
        if len(_programs) == MOST_KEPT:
            _programs.clear()
        _programs[key] = compiled(function, *arrays)
    return _programs[key].run(*arrays)


def run_ours(call, inputs, douts, autodiff=False):
    """Our result called, our backward by hand, and `jax.vjp` of the op, in one program; or autodiff
    of the forward in their place."""
    op, settings = call.op, call.settings

    def plain(inputs, dout):
        out, pull = jax.vjp(lambda *x: op.fwd(*x, **settings)[0], *inputs)
        return out, pull(dout), without_integers(pull(dout))

    def everything(inputs, dout):
        _, residuals = op.fwd(*inputs, **settings)
        hand = op.bwd(residuals, dout, **settings)
        out, pull = jax.vjp(lambda *x: op(*x, **settings), *inputs)
        return out, hand, without_integers(pull(dout))

    key = (op.name, repr(settings), autodiff)
    return program(plain if autodiff else everything, key, inputs, douts)


def without_integers(cotangents):
    return [d for d in jax.tree.leaves(cotangents) if d.dtype != jax.dtypes.float0]


def ours_of(call, dtype, leaves, douts, autodiff=False):
    """Our results and our gradients, twice, in PyTorch's layout, as float64."""
    inputs = as_jax(call.inputs, dtype)
    # A person's call: refused before anything is compiled.
    placed, static = call.op.arranged(inputs, call.settings)
    call.op.admit(placed, static)
    out = jax.eval_shape(lambda *x: call.op.fwd(*x, **call.settings)[0], *inputs)
    shown = jax.tree.map(
        lambda o: torch.zeros(o.shape, dtype=torch.float64, requires_grad=True), out
    )
    tops = tensors(call.back(shown))
    ours = tensors(shown)
    dours = filled(torch.autograd.grad(tops, ours, douts[: len(tops)], allow_unused=True), ours)
    dout = jax.tree.unflatten(
        jax.tree.structure(out),
        [jnp.asarray(d.numpy(), o.dtype) for d, o in zip(dours, jax.tree.leaves(out), strict=True)],
    )
    called, hand, auto = run_ours(call, inputs, dout, autodiff)
    called = [call.back(jax.tree.map(as_torch, called))]
    if call.step:
        step = functools.partial(call.step, **call.settings)
        steps = program(step, (call.step, repr(call.settings)), *inputs)
        called.append(call.back(as_torch(steps)))
    results = [o.detach().double() for o in tensors(called)]
    hand = hand[: len(inputs)]  # inputs left out have cotangents too
    hand = jax.tree.map(_or_zero, inputs, hand, is_leaf=lambda x: x is None)
    real = [t for t in jax.tree.leaves(call.inputs) if is_real_tensor(t)]
    hand = [d for d in jax.tree.leaves(hand) if jnp.issubdtype(d.dtype, jnp.floating)]
    return results, *(pulled_back(real, leaves, grads) for grads in (hand, auto))


def _or_zero(x, cotangent):
    return cotangent if x is None or cotangent is not None else jnp.zeros_like(x)


def pulled_back(real, leaves, grads):
    """Our gradients at the sample's own tensors."""
    pairs = [(t, as_torch(g)) for t, g in zip(real, grads, strict=True) if t.requires_grad]
    grads = [None] * len(leaves)
    if pairs and leaves:
        tops, into = zip(*pairs, strict=True)
        grads = torch.autograd.grad(tops, leaves, into, allow_unused=True, retain_graph=True)
    return filled(grads, leaves)
