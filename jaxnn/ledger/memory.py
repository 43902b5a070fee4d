"""What a device holds, on paper: parameters, gradients, optimizer state, what a forward saves.

Of a transformer's layer, with n examples of t tokens on the device, H heads of size S, G of keys,
width D and F units, in elements (where devices share heads or units, each has its part):

    both norms      2 (n t D + n t)                      x_hat and 1/sigma
    attention       n t (2 H + 2 G) S + n t H            q, y, k, v and L
    its norms       n t (H + G) (S + 1)                  with qk_norm
    feed-forward    n t F, 2 n t F with a gate           what the activation saves
    experts         n t E (2 F + 2), and n t E bytes     x gate, x up, p, w; who chose
    dropout         2 n t D bytes                        what was kept

With `recompute`: n t D alone, the layer's input. The parameters of one layer that devices keep in
parts are whole for as long as it takes, and its gradients.
"""

import math
from types import ModuleType
from typing import Any, NamedTuple

from jaxnn.ledger.layout import Layout
from jaxnn.ledger.paper import Parameter, parameters
from jaxnn.ledger.sent import BYTES
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
    model: ModuleType,
    config: Any,
    batch: tuple[int, ...],
    layout: Layout,
    *,
    dtype: str = "f32",
    moments: int = 2,
) -> Memory:
    """Return what a training step holds on one device, for an optimizer of so many moments."""
    of, size = parameters(model, config), BYTES[dtype]
    kept = sum(math.prod(_part(p, layout)) for p in of) * size
    saved = 0
    if model is transformer:
        n, t = (layout.share(*each) for each in zip(batch, ("batch", "sequence"), strict=True))
        saved = config.layers * layer_residuals(config, (n, t), layout, size)
    whole = 0
    if layout.axes("embed"):
        rules = {k: v for k, v in layout.rules.items() if k != "embed"}
        alone = layout._replace(rules=rules)
        layers = [p for p in of if p.axes[0] == "layers" and "embed" in p.axes]
        whole = 2 * sum(math.prod(_part(p, alone)[1:]) for p in layers) * size
    return Memory(kept, kept, moments * kept, saved, whole)


def _part(parameter: Parameter, layout: Layout) -> tuple[int, ...]:
    return tuple(
        size if logical in (None, "layers") else layout.share(size, logical)
        for size, logical in zip(parameter.shape, parameter.axes, strict=True)
    )


def layer_residuals(
    config: transformer.Config, tokens: tuple[int, int], layout: Layout, size: int
) -> int:
    """Return the bytes that one layer of a transformer saves of (n, t) tokens."""
    places, wide = math.prod(tokens), max(size, 4)
    if config.recompute:
        return places * config.width * size
    heads = layout.share(config.heads, "heads")
    pairs = layout.share(config.kv_heads or config.heads, "heads")
    norms = 2 * (config.width * size + wide)
    attention = 2 * (heads + pairs) * config.per_head * size + heads * wide
    if config.qk_norm:
        attention += (heads + pairs) * (config.per_head * size + wide)
    units = config.hidden or 4 * config.width
    if config.experts:
        here = layout.share(config.experts, "experts")
        feed = 2 * here * units * size + config.experts * (2 * wide + 1)
    else:
        saves = 2 if config.feed_forward in GATED else 1
        feed = saves * layout.share(units, "hidden") * size
    kept = 0 if is_zero(config.dropout) else 2 * config.width
    return places * (norms + attention + feed + kept)
