"""The settings of `jaxnn.models.transformer`, each checked, and its two usual kinds."""

import math
from dataclasses import dataclass
from typing import Any

from jaxnn.models.inputs import check_dropout
from jaxnn.ops.attention import check_heads
from jaxnn.settings import check_choice, check_coefficient, check_flag, check_integer, check_number

NORMS = ("layer", "rms")
FEED_FORWARDS = ("gelu", "swiglu")
POSITIONS = ("learned", "rotary")
# The settings that are integers, with their least values, and those of them that may be None.
COUNTS = {
    "vocabulary": 1,
    "positions": 1,
    "layers": 1,
    "width": 1,
    "heads": 1,
    "kv_heads": 1,
    "hidden": 1,
    "experts": 0,
    "experts_per_token": 1,
    "block": 1,
    "window": 1,
    "chunk": 1,
}
OPTIONAL = ("kv_heads", "hidden", "block", "window", "chunk")


@dataclass(frozen=True)
class Config:
    """What the network is. Hashable and static: a different one is a different program.

    Attributes:
        vocabulary: V, how many tokens there are.
        positions: T at most.
        layers: how many.
        width: D, features of a token between the layers.
        heads: of queries; they divide the width.
        kv_heads: of keys and values; they divide the heads. None for as many.
        hidden: units of a feed-forward layer, or of each expert. None for 4 times the width.
        norm: "layer" or "rms".
        feed_forward: "gelu" (its approximation by tanh, as GPT-2) or "swiglu".
        position: "learned" or "rotary".
        tied: whether the output layer is the transposed embedding table.
        biases: whether projections have biases and layer norms a shift. The output layer and
            experts never have one, RMS norms never a shift.
        experts: how many each feed-forward layer has, of "swiglu" only; 0 for a plain layer.
        experts_per_token: of these, how many a token uses.
        balance: coefficient of each layer's load-balancing loss, see `jaxnn.ops.experts`.
        dropout: probability to drop what leaves the embeddings, an attention or a feed-forward
            layer, in [0, 1).
        recompute: whether training saves no more than the input of each layer, and computes the
            layer a second time on the way back.
        block: how many queries attend at a time; None for a whole run of them, see `attention_fwd`.
        window: how many tokens one sees, itself and those before it; None for all.
        rotary_base: see `rotary_fwd`.
        eps: of the norms.
        chunk: classes whose logits the loss holds at a time, see `linear_cross_entropy_fwd`; None
            for as many as have two million logits.

    Raises:
        ValueError: a setting is outside its range; the message lists the known names.
        TypeError: a setting is of another kind than above.
    """

    vocabulary: int = 128
    positions: int = 128
    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int | None = None
    hidden: int | None = None
    norm: str = "layer"
    feed_forward: str = "gelu"
    position: str = "learned"
    tied: bool = True
    biases: bool = True
    experts: int = 0
    experts_per_token: int = 2
    balance: float = 0.01
    dropout: float = 0.0
    recompute: bool = False
    block: int | None = None
    window: int | None = None
    rotary_base: float = 10000.0
    eps: float = 1e-5
    chunk: int | None = None

    def __post_init__(self) -> None:
        """Check every setting once, here, so that nothing after has to."""
        for field, least in COUNTS.items():
            value = getattr(self, field)
            if not (value is None and field in OPTIONAL):
                object.__setattr__(self, field, check_integer(field, value, least))
        check_choice("norm", self.norm, NORMS)
        check_choice("feed_forward", self.feed_forward, FEED_FORWARDS)
        check_choice("position", self.position, POSITIONS)
        for field in ("tied", "biases", "recompute"):
            object.__setattr__(self, field, check_flag(field, getattr(self, field)))
        if self.width % self.heads:
            raise ValueError(
                f"width is {self.width} for {self.heads} heads; the heads must divide the width, "
                "so that each has as many features: change one"
            )
        check_heads(
            "transformer", self.heads, self.heads if self.kv_heads is None else self.kv_heads
        )
        if self.position == "rotary" and self.head_size % 2:
            raise ValueError(
                f"width {self.width} and {self.heads} heads make heads of size {self.head_size}; "
                "with rotary positions it must be even: change width or heads, or take learned ones"
            )
        if self.experts and self.feed_forward != "swiglu":
            raise ValueError(
                f"feed_forward is {self.feed_forward!r} with {self.experts} experts; experts are "
                "'swiglu': choose it, or experts=0"
            )
        if self.experts and self.experts_per_token > self.experts:
            raise ValueError(
                f"experts_per_token is {self.experts_per_token} of {self.experts} experts; it must "
                "be at most as many: choose fewer per token, or more experts"
            )
        object.__setattr__(self, "dropout", check_dropout(self.dropout))
        object.__setattr__(self, "balance", check_coefficient("balance", self.balance))
        for field in ("rotary_base", "eps"):
            value = check_number(
                field, getattr(self, field), "finite, above 0", lambda v: 0 < v < math.inf
            )
            object.__setattr__(self, field, value)

    @property
    def head_size(self) -> int:
        """Features of one head."""
        return self.width // self.heads


def gpt2(**settings: Any) -> Config:
    """A configuration of GPT-2's kind; sizes, or any other setting, as `Config` has them."""
    kind: dict[str, Any] = {"norm": "layer", "feed_forward": "gelu", "position": "learned"}
    return Config(**kind | {"tied": True, "biases": True} | settings)


def llama(**settings: Any) -> Config:
    """A configuration of Llama's kind; sizes, or any other setting, as `Config` has them."""
    kind: dict[str, Any] = {"norm": "rms", "feed_forward": "swiglu", "position": "rotary"}
    return Config(**kind | {"tied": False, "biases": False} | settings)
