"""What the weight files of GPT-2, and of Llama and those after it, call their tensors."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxnn.models.transformer_params import GATED, PLAIN


class Names(NamedTuple):
    """What a kind of file calls its tensors.

    Attributes:
        kind: the model's name.
        prefix: before every tensor but `lm_head.weight`; files of the bare network lack it.
        tensors: a tensor's name, {} for the layer's number, to the parameters that lie side by side
            in it; `.T` where the file has them transposed, as `torch.nn.Linear` (outputs, inputs).
            Of parameters that a configuration has not, a file has no tensor.
        buffers: what older files hold beside their parameters; computed anew and not read.
        settings: of a configuration, the values that such a file may stand for.
    """

    kind: str
    prefix: str
    tensors: Mapping[str, tuple[str, ...]]
    buffers: str
    settings: Mapping[str, tuple[Any, ...]]


ATTENTION, FEED_FORWARD = "blocks.attention", "blocks.feed_forward"
OUTPUT = "lm_head.weight"
GPT2 = Names(
    "GPT-2",
    "transformer.",
    {
        "wte.weight": ("tokens.table",),
        "wpe.weight": ("positions.table",),
        "h.{}.ln_1.weight": (f"{ATTENTION}_norm.scale",),
        "h.{}.ln_1.bias": (f"{ATTENTION}_norm.shift",),
        "h.{}.attn.c_attn.weight": tuple(f"{ATTENTION}.{name}" for name in ("wq", "wk", "wv")),
        "h.{}.attn.c_attn.bias": tuple(f"{ATTENTION}.{name}" for name in ("bq", "bk", "bv")),
        "h.{}.attn.c_proj.weight": (f"{ATTENTION}.wo",),
        "h.{}.attn.c_proj.bias": (f"{ATTENTION}.bo",),
        "h.{}.ln_2.weight": (f"{FEED_FORWARD}_norm.scale",),
        "h.{}.ln_2.bias": (f"{FEED_FORWARD}_norm.shift",),
        "h.{}.mlp.c_fc.weight": (f"{FEED_FORWARD}.up",),
        "h.{}.mlp.c_fc.bias": (f"{FEED_FORWARD}.bup",),
        "h.{}.mlp.c_proj.weight": (f"{FEED_FORWARD}.down",),
        "h.{}.mlp.c_proj.bias": (f"{FEED_FORWARD}.bdown",),
        "ln_f.weight": ("norm.scale",),
        "ln_f.bias": ("norm.shift",),
        OUTPUT: ("output.T",),
    },
    r"h\.\d+\.attn\.(bias|masked_bias)",
    {
        "norm": ("layer",),
        "feed_forward": PLAIN,
        "biases": (True,),
        "attention_biases": (None, "all"),
        "feed_forward_biases": (None, True),
        "experts": (0,),
        "qk_norm": (False,),
        "scaled_embedding": (False,),
    },
)
LLAMA = Names(
    "Llama",
    "model.",
    {
        "embed_tokens.weight": ("tokens.table",),
        "layers.{}.input_layernorm.weight": (f"{ATTENTION}_norm.scale",),
        "layers.{}.self_attn.q_proj.weight": (f"{ATTENTION}.wq.T",),
        "layers.{}.self_attn.k_proj.weight": (f"{ATTENTION}.wk.T",),
        "layers.{}.self_attn.v_proj.weight": (f"{ATTENTION}.wv.T",),
        "layers.{}.self_attn.o_proj.weight": (f"{ATTENTION}.wo.T",),
        "layers.{}.self_attn.q_proj.bias": (f"{ATTENTION}.bq",),
        "layers.{}.self_attn.k_proj.bias": (f"{ATTENTION}.bk",),
        "layers.{}.self_attn.v_proj.bias": (f"{ATTENTION}.bv",),
        "layers.{}.self_attn.o_proj.bias": (f"{ATTENTION}.bo",),
        "layers.{}.self_attn.q_norm.weight": (f"{ATTENTION}.q_norm",),
        "layers.{}.self_attn.k_norm.weight": (f"{ATTENTION}.k_norm",),
        "layers.{}.post_attention_layernorm.weight": (f"{FEED_FORWARD}_norm.scale",),
        "layers.{}.mlp.gate_proj.weight": (f"{FEED_FORWARD}.gate.T",),
        "layers.{}.mlp.up_proj.weight": (f"{FEED_FORWARD}.up.T",),
        "layers.{}.mlp.down_proj.weight": (f"{FEED_FORWARD}.down.T",),
        "layers.{}.mlp.gate_proj.bias": (f"{FEED_FORWARD}.bgate",),
        "layers.{}.mlp.up_proj.bias": (f"{FEED_FORWARD}.bup",),
        "layers.{}.mlp.down_proj.bias": (f"{FEED_FORWARD}.bdown",),
        "norm.weight": ("norm.scale",),
        OUTPUT: ("output.T",),
    },
    r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    {"norm": ("rms",), "feed_forward": GATED, "experts": (0,)},
)
