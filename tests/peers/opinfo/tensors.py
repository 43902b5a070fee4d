"""Trees of tensors: said in words, cast, handed over to JAX and back."""

import jax
import jax.numpy as jnp
import numpy as np
import torch


def said(tree):
    """Arguments in short: a tensor as its shape."""
    if isinstance(tree, torch.Tensor):
        return f"{str(tree.dtype).removeprefix('torch.')}{list(tree.shape)}"
    if isinstance(tree, dict):
        return ", ".join(f"{k}={said(v)}" for k, v in tree.items())
    if isinstance(tree, tuple | list):
        return f"({', '.join(map(said, tree))})"
    return repr(tree)


def cast(tree, dtype):
    """Fresh leaves in a dtype, of float64 ones; those with a gradient keep it."""

    def convert(x):
        if isinstance(x, torch.dtype):
            return dtype if x.is_floating_point else x
        if not isinstance(x, torch.Tensor):
            return x
        new = x.detach().clone()
        if x.is_floating_point():
            new = new.to(dtype)
        return new.requires_grad_(x.requires_grad)

    return jax.tree.map(convert, tree)


def is_real_tensor(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def tensors(tree):
    """The floating tensors of a tree."""
    return [x for x in jax.tree.leaves(tree) if is_real_tensor(x)]


def filled(grads, leaves):
    """A gradient for each, in float64: None is 0."""
    zeros = (torch.zeros(x.shape, dtype=torch.float64) for x in leaves)
    pairs = zip(grads, zeros, strict=True)
    return [zero if g is None else g.detach().double() for g, zero in pairs]


def as_jax(tree, dtype):
    """Tensors as arrays; real numbers in the dtype, integers as JAX has them."""

    def convert(x):
        if not isinstance(x, torch.Tensor):
            return x
        x = x.detach().numpy()
        if x.dtype.kind == "f":
            x = x.astype(jnp.dtype(dtype))
        elif x.dtype.kind in "iu":
            x = x.astype(np.int64 if jax.config.jax_enable_x64 else np.int32)
        return jnp.asarray(x)

    return jax.tree.map(convert, tree)


def as_torch(x):
    return torch.from_numpy(np.array(x, np.float64))
