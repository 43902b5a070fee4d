"""The settings and the parameters of `jaxnn.models.transformer`: checked, drawn, of two kinds.

`gpt2` and `llama` are the two usual choices among the settings (Radford et al., 2019, "Language
models are unsupervised multitask learners"; Touvron et al., 2023, "LLaMA").
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn.initializers import normal
from jax.sharding import PartitionSpec as P

from jaxnn.checks import check_init, check_kind
from jaxnn.op import door
from jaxnn.ops.attention_doors import check_base, check_scaling
from jaxnn.ops.collectives import ONE_DEVICE, Axes
from jaxnn.ops.experts import Experts
from jaxnn.ops.linear import Embedding
from jaxnn.ops.multi_head import MultiHead
from jaxnn.ops.normalisation import Scale
from jaxnn.ops.rotary import Scaling
from jaxnn.settings import (
    check_choice,
    check_coefficient,
    check_flag,
    check_integer,
    check_normal,
    check_number,
    check_rate,
)

NORMS = ("layer", "rms")
PLAIN = ("gelu", "gelu_exact", "silu", "relu")
GATED = ("swiglu", "geglu", "geglu_exact")
POSITIONS = ("learned", "rotary")
ATTENTION_BIASES = ("all", "qkv", "none")
# The settings that are integers, with their least values, and those of them that may be None.
COUNTS = {
    "vocabulary": 1,
    "positions": 1,
    "layers": 1,
    "width": 1,
    "heads": 1,
    "kv_heads": 1,
    "head_size": 1,
    "hidden": 1,
    "experts": 0,
    "experts_per_token": 1,
    "block": 1,
    "window": 1,
    "chunk": 1,
    "unroll": 1,
}
OPTIONAL = ("kv_heads", "head_size", "hidden", "block", "window", "chunk")


@dataclass(frozen=True)
class Config:
    """What the network is. Hashable and static: a different one is a different program.

    Attributes:
        vocabulary: V, how many tokens there are.
        positions: T at most.
        layers: how many.
        width: D, features of a token between the layers.
        heads: of queries.
        kv_heads: of keys and values; they divide the heads. None for as many.
        head_size: features of a head. None for width / heads, which the heads must divide.
        hidden: units of a feed-forward layer, or of each expert. None for 4 times the width.
        norm: "layer" or "rms".
        norm_offset: what is added to the scale of every RMS norm, see `rms_norm_fwd`: 0 or, as
            Gemma has it, 1.
        qk_norm: whether queries and keys are brought to size 1, head by head, see `multi_head_fwd`.
        feed_forward: activation(x up) down: "gelu" (its approximation by tanh, as GPT-2),
            "gelu_exact", "silu" or "relu"; or activation(x gate) (x up) down: "swiglu" (of SiLU),
            "geglu" (of GELU's approximation by tanh, as Gemma) or "geglu_exact".
        position: "learned" or "rotary".
        tied: whether the output layer is the transposed embedding table.
        scaled_embedding: whether a token's embedding is multiplied by sqrt(width), as Gemma's
            (Vaswani et al., 2017, section 3.4); the output layer of a tied model is not.
        biases: whether projections have biases and layer norms a shift. The output layer and
            experts never have one, RMS norms never a shift.
        attention_biases: "all", "qkv" for none in the last projection (Qwen2), or "none"; None for
            all or none as `biases`.
        feed_forward_biases: whether feed-forward layers have biases; None for as `biases`.
        experts: how many each feed-forward layer has, of "swiglu" only; 0 for a plain layer.
        experts_per_token: of these, how many a token uses.
        balance: coefficient of each layer's load-balancing loss, see `jaxnn.ops.experts`. JAX may
            trace it and dropout.
        dropout: probability to drop what leaves the embeddings, an attention or a feed-forward
            layer, in [0, 1).
        recompute: whether training saves no more than the input of each layer, and computes the
            layer a second time on the way back.
        block: how many queries attend at a time; None for a whole run, see `attention_fwd`.
        window: how many tokens one sees, itself and those before it; None for all.
        rotary_base: see `rotary_fwd`.
        rotary_scaling: see `jaxnn.ops.rotary.Scaling`; None for none.
        eps: of the norms.
        chunk: classes whose logits the loss holds at a time, None for what
            `linear_cross_entropy_fwd` chooses. Where the vocabulary is spread over devices each
            holds its own logits, all at once.
        unroll: how many layers one turn of the loop over them has. With all of them there is no
            loop: what a layer saves is not copied into an array for all, which a GPU has to wait
            for, and compiling takes as many times as long.
        axes: over which axes of a mesh examples, tokens, heads, units, experts and the vocabulary
            are spread, inside `jax.shard_map`; `jaxnn.mesh` sets it.

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
    head_size: int | None = None
    hidden: int | None = None
    norm: str = "layer"
    norm_offset: float = 0.0
    qk_norm: bool = False
    feed_forward: str = "gelu"
    position: str = "learned"
    tied: bool = True
    scaled_embedding: bool = False
    biases: bool = True
    attention_biases: str | None = None
    feed_forward_biases: bool | None = None
    experts: int = 0
    experts_per_token: int = 2
    balance: float = 0.01
    dropout: float = 0.0
    recompute: bool = False
    block: int | None = None
    window: int | None = None
    rotary_base: float = 10000.0
    rotary_scaling: Scaling | None = None
    eps: float = 1e-5
    chunk: int | None = None
    unroll: int = 1
    axes: Axes = ONE_DEVICE

    def __post_init__(self) -> None:
        """Check every setting once, here, so that nothing after has to."""
        for field, least in COUNTS.items():
            value = getattr(self, field)
            if not (value is None and field in OPTIONAL):
                object.__setattr__(self, field, check_integer(field, value, least))
        check_choice("norm", self.norm, NORMS)
        check_choice("feed_forward", self.feed_forward, (*PLAIN, *GATED))
        check_choice("position", self.position, POSITIONS)
        for field in ("tied", "biases", "recompute", "qk_norm", "scaled_embedding"):
            object.__setattr__(self, field, check_flag(field, getattr(self, field)))
        if self.attention_biases is not None:
            check_choice("attention_biases", self.attention_biases, ATTENTION_BIASES)
        if self.feed_forward_biases is not None:
            flag = check_flag("feed_forward_biases", self.feed_forward_biases)
            object.__setattr__(self, "feed_forward_biases", flag)
        rule, zero = "finite and at least 0", lambda v: 0 <= v < math.inf
        offset = check_number("norm_offset", self.norm_offset, rule, zero)
        object.__setattr__(self, "norm_offset", offset)
        scaling = check_scaling("rotary_scaling", self.rotary_scaling, Scaling)
        object.__setattr__(self, "rotary_scaling", scaling)
        if self.head_size is None and self.width % self.heads:
            raise ValueError(
                f"width is {self.width} for {self.heads} heads; the heads must divide the width, "
                "so that each has as many features: change one, or give a head_size"
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads is {self.kv_heads} for {self.heads} heads; the heads of keys and values "
                "must divide those of queries, so that each serves as many: change one"
            )
        if self.window is not None and self.axes.sequence:
            along = ", ".join(self.axes.sequence)
            raise ValueError(
                f"window is {self.window} with tokens spread along {along}; it must be None, for "
                "attention that goes round devices has no window: leave the rule for 'sequence' "
                "out, or choose None"
            )
        if self.position == "rotary" and self.per_head % 2:
            made = "" if self.head_size else f"width {self.width} and {self.heads} heads make "
            raise ValueError(
                f"{made}heads of size {self.per_head}; with rotary positions it must be even: "
                "change the size, or take learned positions"
            )
        if self.position != "rotary" and self.rotary_scaling is not None:
            raise ValueError(
                f"rotary_scaling is {self.rotary_scaling} with {self.position!r} positions; they "
                "must be 'rotary', for it is their turns that are slowed: choose them, or None"
            )
        if self.norm_offset and self.norm != "rms" and not self.qk_norm:
            raise ValueError(
                f"norm_offset is {self.norm_offset} with norm {self.norm!r} and no qk_norm; it "
                "must be 0, for only RMS norms have one: choose norm='rms', or 0"
            )
        if self.experts and self.feed_forward != "swiglu":
            raise ValueError(
                f"feed_forward is {self.feed_forward!r} with {self.experts} experts; experts are "
                "'swiglu': choose it, or experts=0"
            )
        if self.experts and self.feed_forward_biases:
            raise ValueError(
                f"feed_forward_biases is True with {self.experts} experts; it must be False or "
                "None, for experts have none: choose one, or experts=0"
            )
        if self.experts and self.experts_per_token > self.experts:
            raise ValueError(
                f"experts_per_token is {self.experts_per_token} of {self.experts} experts; it must "
                "be at most as many: choose fewer per token, or more experts"
            )
        object.__setattr__(self, "dropout", check_rate("dropout", self.dropout))
        object.__setattr__(self, "balance", check_coefficient("balance", self.balance))
        eps = check_normal("eps", self.eps, np.float32, ": 1e-5 is usual")
        object.__setattr__(self, "eps", eps)
        check_kind("axes", self.axes, Axes)
        base = check_base("rotary_base", self.rotary_base, np.float32)
        object.__setattr__(self, "rotary_base", base)

    @property
    def per_head(self) -> int:
        """Features of one head."""
        return self.head_size or self.width // self.heads


def gpt2(**settings: Any) -> Config:
    """Return a configuration of GPT-2's kind; sizes, or any other setting, as `Config` has them."""
    kind: dict[str, Any] = {"norm": "layer", "feed_forward": "gelu", "position": "learned"}
    return Config(**kind | {"tied": True, "biases": True} | settings)


def llama(**settings: Any) -> Config:
    """Return a configuration of Llama's kind; sizes, or any other setting, as `Config` has them."""
    kind: dict[str, Any] = {"norm": "rms", "feed_forward": "swiglu", "position": "rotary"}
    return Config(**kind | {"tied": False, "biases": False} | settings)


class FeedForward(NamedTuple):
    """Parameters: `up` and `gate` (D, F), `down` (F, D); biases (outputs,) or None.

    The gate is the gated ones' only.
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


class Params(NamedTuple):
    """The tables (V, D) and (positions, D), the stacked layers, the last norm, the output (D, V).

    `positions` is None with rotary positions, `output` in a tied model.
    """

    tokens: Embedding
    positions: Embedding | None
    blocks: Block
    norm: Scale
    output: Array | None


# The logical axes of a parameter, by the innermost field that is named here. What has more of them
# is stacked: by layers and, before a layer's own, by experts.
AXES = {
    "tokens": P("vocab", "embed"),
    "positions": P(None, "embed"),
    **dict.fromkeys(("wq", "wk", "wv"), P("embed", "heads")),
    **dict.fromkeys(("bq", "bk", "bv"), P("heads")),
    "wo": P("heads", "embed"),
    **dict.fromkeys(("up", "gate"), P("embed", "hidden")),
    **dict.fromkeys(("bup", "bgate"), P("hidden")),
    "down": P("hidden", "embed"),
    "router": P("embed", None),
    "output": P("embed", "vocab"),
    **dict.fromkeys(("scale", "shift", "bo", "bdown"), P("embed")),
    **dict.fromkeys(("q_norm", "k_norm"), P(None)),
}


@door(partial(check_init, kind=Config))
def init_params(key: Array, config: Config) -> Params:
    """Draw weights from N(0, 2 / (5 D)), smaller where they lead back to the residual stream.

    The smaller ones, `wo` and `down`, have 1 / sqrt(2 layers) of the others' deviation: so many
    such terms are added up (GPT-2). The others' is that of Nguyen and Salazar (2019, "Transformers
    without tears", section 2.2): GPT-2's own 0.02 where D is 1,000, and enough to learn from where
    it is far smaller. Biases and shifts are 0, scales 1 (less
    `norm_offset`).

    Raises:
        TypeError: the key is none of `jax.random`, or the configuration another model's.
    """
    d, h, n = config.width, config.hidden or 4 * config.width, config.layers
    queries = config.heads * config.per_head
    inner = (config.kv_heads or config.heads) * config.per_head
    keys = iter(jax.random.split(key, 11))
    std = math.sqrt(2 / (5 * d))
    of_attention = config.attention_biases or ("all" if config.biases else "none")
    of_feed_forward = config.feed_forward_biases
    of_feed_forward = config.biases if of_feed_forward is None else of_feed_forward

    def draw(*shape: int, std: float = std) -> Array:
        return normal(std)(next(keys), shape)

    def bias(there: bool, *shape: int) -> Array | None:
        return jnp.zeros(shape) if there else None

    def one(*shape: int) -> Array:
        return jnp.full(shape, 1 - config.norm_offset)

    def scale(*shape: int) -> Scale:
        if config.norm == "rms":
            return Scale(one(*shape), None)
        return Scale(jnp.ones(shape), bias(config.biases, *shape))

    back = partial(draw, std=std / math.sqrt(2 * n))
    attention = MultiHead(
        draw(n, d, queries), draw(n, d, inner), draw(n, d, inner), back(n, queries, d),
        bias(of_attention != "none", n, queries),
        bias(of_attention != "none", n, inner),
        bias(of_attention != "none", n, inner),
        bias(of_attention == "all", n, d),
        one(n, config.per_head) if config.qk_norm else None,
        one(n, config.per_head) if config.qk_norm else None,
    )  # fmt: skip
    feed_forward: FeedForward | Experts
    if config.experts:
        e = config.experts
        feed_forward = Experts(draw(n, d, e), draw(n, e, d, h), draw(n, e, d, h), back(n, e, h, d))
    else:
        up, down = draw(n, d, h), back(n, h, d)
        gate = draw(n, d, h) if config.feed_forward in GATED else None
        feed_forward = FeedForward(
            up, down, gate, bias(of_feed_forward, n, h), bias(of_feed_forward, n, d),
            bias(of_feed_forward and gate is not None, n, h),
        )  # fmt: skip
    return Params(
        Embedding(draw(config.vocabulary, d)),
        Embedding(draw(config.positions, d)) if config.position == "learned" else None,
        Block(scale(n, d), attention, scale(n, d), feed_forward),
        scale(d),
        None if config.tied else draw(d, config.vocabulary),
    )
