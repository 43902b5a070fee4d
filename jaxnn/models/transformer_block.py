"""One layer of `jaxnn.models.transformer`: two branches that add to what passes them by.

    x = x + dropout(attention(norm(x)))
    x = x + dropout(feed_forward(norm(x)))

    feed_forward    gelu(x up) down,  (silu(x gate) * (x up)) down,  or a mixture of experts

with a bias in every projection or in none.

What one pass over an array gives back is not saved, because to stack it among the residuals of all
layers costs more passes than that: what enters a branch is y again of what its norm saved, and what
enters `down` the activation of what it saved.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnn.models.transformer_config import Config
from jaxnn.op import Op
from jaxnn.ops.dropout import drop_bwd, drop_fwd
from jaxnn.ops.experts import Experts, experts
from jaxnn.ops.gated import gelu, swiglu
from jaxnn.ops.linear import Linear, LinearResiduals, linear
from jaxnn.ops.multi_head import MultiHead, multi_head
from jaxnn.ops.normalisation import Scale, layer_norm, rms_norm

NORMS: dict[str, Op[..., Array]] = {"layer": layer_norm, "rms": rms_norm}
Attend = Callable[[MultiHead, Array], tuple[Array, Any]]


class FeedForward(NamedTuple):
    """Parameters: `up` and `gate` (D, F), `down` (F, D); biases (outputs,) or None.

    The gate is "swiglu"'s only.
    """

    up: Array
    down: Array
    gate: Array | None = None
    bup: Array | None = None
    bdown: Array | None = None
    bgate: Array | None = None


class Block(NamedTuple):
    """Parameters of one layer, or of all, stacked along a first axis."""

    attention_norm: Scale
    attention: MultiHead
    feed_forward_norm: Scale
    feed_forward: FeedForward | Experts


def feed_forward_fwd(
    params: FeedForward | Experts, x: Array, config: Config
) -> tuple[tuple[Array, Array], Any]:
    """(y (N, T, D), load-balancing loss; 0 without experts), residuals, but for x."""
    if isinstance(params, Experts):
        out, residuals = experts.fwd(params, x, k=config.experts_per_token)
        return out, residuals._replace(x=None)
    h, _ = linear.fwd(Linear(params.up, params.bup), x)
    if params.gate is None:
        h, activation = gelu.fwd(h, approximate=True)
    else:
        g, _ = linear.fwd(Linear(params.gate, params.bgate), x)
        h, activation = swiglu.fwd(g, h)
    y, _ = linear.fwd(Linear(params.down, params.bdown), h)
    return (y, jnp.zeros((), y.dtype)), (params, activation)


def feed_forward_bwd(
    residuals: Any, x: Array, dout: tuple[Array, Array], config: Config
) -> tuple[FeedForward | Experts, Array]:
    """From y and the load-balancing loss back to the parameters and x, which is given again."""
    if config.experts:
        dexperts, dx = experts.bwd(residuals._replace(x=x), dout, k=config.experts_per_token)
        return dexperts, dx
    params, activation = residuals
    up, down = Linear(params.up, params.bup), Linear(params.down, params.bdown)
    dy, _ = dout
    if params.gate is None:
        h, _ = gelu.fwd(activation, approximate=True)
        (ddown, dbdown), dh = linear.bwd(LinearResiduals(down, h), dy)
        (dh,) = gelu.bwd(activation, dh, approximate=True)
        (dup, dbup), dx = linear.bwd(LinearResiduals(up, x), dh)
        return FeedForward(dup, ddown, None, dbup, dbdown), dx
    h, _ = swiglu.fwd(*activation)
    (ddown, dbdown), dh = linear.bwd(LinearResiduals(down, h), dy)
    dg, dh = swiglu.bwd(activation, dh)
    gate = Linear(params.gate, params.bgate)
    (dgate, dbgate), dx_gate = linear.bwd(LinearResiduals(gate, x), dg)
    (dup, dbup), dx_up = linear.bwd(LinearResiduals(up, x), dh)
    return FeedForward(dup, ddown, dgate, dbup, dbdown, dbgate), dx_gate + dx_up


def block_fwd(
    block: Block, x: Array, keys: Array | None, attend: Attend, config: Config
) -> tuple[tuple[Array, Array], Any]:
    """One layer: (x (N, T, D), load-balancing loss), residuals.

    `keys` are two for dropout, or None. `attend(parameters, x)` is the attention: its result, and
    what it saved for `multi_head.bwd`, but for x.
    """
    k_attention, k_feed_forward = (None, None) if keys is None else keys
    a, attention_norm = NORMS[config.norm].fwd(block.attention_norm, x, eps=config.eps)
    a, attention = attend(block.attention, a)
    a, attention_kept = drop_fwd(a, k_attention, config.dropout)
    x = x + a
    f, feed_norm = NORMS[config.norm].fwd(block.feed_forward_norm, x, eps=config.eps)
    (f, balance), feed = feed_forward_fwd(block.feed_forward, f, config)
    f, feed_kept = drop_fwd(f, k_feed_forward, config.dropout)
    saved = (attention_norm, attention, attention_kept, feed_norm, feed, feed_kept)
    return (x + f, balance), saved


def block_bwd(residuals: Any, dout: tuple[Array, Array], config: Config) -> tuple[Block, Array]:
    """The same layer from its end: gradients of the parameters and of x.

    What a branch sends back is added to what passes it by.
    """
    attention_norm, attention, attention_kept, feed_norm, feed, feed_kept = residuals
    dx, dbalance = dout
    df = drop_bwd(feed_kept, dx, config.dropout)
    dfeed_forward, df = feed_forward_bwd(feed, feed_norm.y, (df, dbalance), config)
    dfeed_forward_norm, df = NORMS[config.norm].bwd(feed_norm, df, eps=config.eps)
    dx = dx + df
    da = drop_bwd(attention_kept, dx, config.dropout)
    attention = attention._replace(x=attention_norm.y)
    dattention, da, _, _ = multi_head.bwd(attention, da, **_attention_settings(config))
    dattention_norm, da = NORMS[config.norm].bwd(attention_norm, da, eps=config.eps)
    return Block(dattention_norm, dattention, dfeed_forward_norm, dfeed_forward), dx + da


def self_attention(positions: Array, config: Config) -> Attend:
    """The attention of training: every token to those before it, at these positions (T,)."""

    def attend(params: MultiHead, x: Array) -> tuple[Array, Any]:
        saved: Any
        z, saved = multi_head.fwd(params, x, positions, None, **_attention_settings(config))
        return z, saved._replace(x=None)

    return attend


def _attention_settings(config: Config) -> dict[str, Any]:
    return {
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "causal": True,
        "window": config.window,
        "block": config.block,
        "rotary_base": config.rotary_base if config.position == "rotary" else None,
    }
