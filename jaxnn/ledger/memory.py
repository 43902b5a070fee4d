"""What a device holds, on paper: parameters, gradients, optimizer state, what a forward saves.

Of a transformer's layer, with n examples of t tokens on the device, H heads of size S, G of keys,
width D and F units, in elements (where devices share heads or units, each has its part):

    both norms      2 (n t D + n t)                      x_hat and 1/sigma
    attention       n t (2 H + 2 G) S + n t H            q, y, k, v and L
    its norms       n t (H + G) (S + 1)                  with qk_norm
    feed-forward    n t F, 2 n t F with a gate           what the activation saves
    experts         n t E (2 F + 2)                      x gate, x up, p, w
    dropout         2 n t D bytes                        what was kept

With `recompute`: n t D alone, the layer's input. The parameters of one layer that devices keep in
parts are whole for as long as it takes, and its gradients.
"""

import math
from typing import NamedTuple

from jaxnn.ledger.paper import local_batch, parameters
from jaxnn.ledger.sent import BYTES
from jaxnn.mesh import Layout
from jaxnn.models import transformer
from jaxnn.models.transformer_params import GATED
from jaxnn.numerics import is_zero


class Memory(NamedTuple):
    """Bytes on one device.

    Attributes:
        parameters: its part of them.
        gradients: as many.
        optimizer: its part of the optimizer's state.
        residuals: what the forward saves for the backward, all layers together.
        gathered: one layer's parameters whole, and their gradients.
    """

    parameters: int
    gradients: int
    optimizer: int
    residuals: int
    gathered: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


def memory(
    layout: Layout, batch: tuple[int, ...], *, dtype: str = "f32", moments: int = 2
) -> Memory:
    """Return what a training step holds on one device, for an optimizer of so many moments.

    Of other models than the transformer the residuals are not counted.

    Raises:
        ValueError: the devices do not divide the batch.
    """
    of, size = parameters(layout), BYTES[dtype]
    kept = sum(math.prod(each.part(layout)) for each in of) * size
    local, saved = local_batch(layout, batch), 0
    if isinstance(layout.config, transformer.Config):
        saved = layout.config.layers * layer_residuals(layout, local[0] * local[1], size)
    whole = 0
    if layout.axes.embed:
        cut = [each for each in of if each.names[0] == "layers" and "embed" in each.names]
        whole = 2 * sum(math.prod(each.part(layout, whole=True)[1:]) for each in cut) * size
    return Memory(kept, kept, moments * kept, saved, whole)


def layer_residuals(layout: Layout, tokens: int, size: int) -> int:
    """Return the bytes that one layer of a transformer saves of so many tokens on the device."""
    config, axes, wide = layout.config, layout.axes, max(size, 4)
    if config.recompute:
        saved: int = tokens * config.width * size
        return saved
    heads = config.heads // layout.devices(axes.heads)
    pairs = (config.kv_heads or config.heads) // layout.devices(axes.heads)
    norms = 2 * (config.width * size + wide)
    attention = 2 * (heads + pairs) * config.per_head * size + heads * wide
    if config.qk_norm:
        attention += (heads + pairs) * (config.per_head * size + wide)
    units = config.hidden or 4 * config.width
    if config.experts:
        here = config.experts // layout.devices(axes.experts)
        units //= layout.devices(axes.hidden)
        feed = 2 * here * units * size + 2 * config.experts * wide
    else:
        saves = 2 if config.feed_forward in GATED else 1
        feed = saves * units // layout.devices(axes.hidden) * size
    kept = 0 if is_zero(config.dropout) else 2 * config.width
    every: int = norms + attention + feed + kept
    return tokens * every
