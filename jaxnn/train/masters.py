"""Weights of 16 bits that an optimizer moves in 32: small steps are added up, and not rounded away.

bfloat16 has 8 bits of a number: a step of less than 1/512 of a weight leaves it as it was. So the
optimizer has a copy of float32, its master, which every step is added to, and the weights are that
rounded (Micikevicius et al., 2018, "Mixed precision training", section 3.1).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxnn.train.doors import check_optimizer


class MastersState(NamedTuple):
    """The weights in float32 or wider, and the state of the optimizer that moves them."""

    masters: Any
    inner: Any


def with_masters(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the optimizer, with masters in float32 of weights that are narrower.

    With params w of 16 bits and masters m: m <- m + update(dw, m), w <- m rounded, where gradients
    and the optimizer's own state are of the masters' dtype. Of wider weights it does what the
    optimizer does.

    Args:
        optimizer: any optax optimizer.

    Raises:
        TypeError: it is none of optax's.
        ValueError: from `update`, there are no params to move.
    """
    check_optimizer(optimizer)

    def init(params: Any) -> MastersState:
        masters = jax.tree.map(_wide, params)
        return MastersState(masters, optimizer.init(masters))

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, MastersState]:
        if params is None:
            raise ValueError(
                "with_masters: params is None; they must be the weights that the masters are of: "
                "call update(grads, state, params)"
            )
        wide = jax.tree.map(_wide, grads)
        updates, inner = optimizer.update(wide, state.inner, state.masters)
        masters = optax.apply_updates(state.masters, updates)
        moves = jax.tree.map(lambda m, p: m - p.astype(m.dtype), masters, params)
        return moves, MastersState(masters, inner)

    return optax.GradientTransformation(init, update)


def _wide(x: Array) -> Array:
    """An array in float32, or as it is where it is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
