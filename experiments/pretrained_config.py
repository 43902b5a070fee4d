"""The configuration beside a GPT-2 or Llama weight file, as Hugging Face writes it."""

import json
from pathlib import Path
from typing import Any

from jaxnn.models.transformer import Config, gpt2, llama

# Of a config.json: sizes that it must have, settings with their defaults, and what the model
# computes of the rest, where a missing entry is the first.
Table = tuple[dict[str, str], dict[str, tuple[str, Any]], dict[str, tuple[Any, ...]]]
GPT2: Table = (
    {
        "vocab_size": "vocabulary",
        "n_positions": "positions",
        "n_layer": "layers",
        "n_embd": "width",
        "n_head": "heads",
    },
    {
        "n_inner": ("hidden", None),
        "layer_norm_epsilon": ("eps", 1e-5),
        "tie_word_embeddings": ("tied", True),
    },
    {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
)
LLAMA: Table = (
    {
        "vocab_size": "vocabulary",
        "max_position_embeddings": "positions",
        "num_hidden_layers": "layers",
        "hidden_size": "width",
        "num_attention_heads": "heads",
        "intermediate_size": "hidden",
    },
    {
        "num_key_value_heads": ("kv_heads", None),
        "rms_norm_eps": ("eps", 1e-6),
        "rope_theta": ("rotary_base", 1e4),
        "tie_word_embeddings": ("tied", False),
    },
    {
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "rope_type": ("default",),
        "partial_rotary_factor": (1.0, None),
    },
)
NUMBERS = ("layer_norm_epsilon", "rms_norm_eps", "rope_theta")
MAY_BE_ABSENT = ("n_inner", "num_key_value_heads", "head_dim")


def load(path: str | Path) -> Config:
    """The configuration of a Hugging Face `config.json` of model type "gpt2" or "llama".

    Dropout is 0: the three rates in the file are training's, and ours is one.

    Raises:
        ValueError: the file is missing, is not JSON or of another model type; it lacks sizes, has
            one of a wrong kind, or asks for what the model does not compute (all are listed).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; name a model's config.json")
    try:
        theirs = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); name a model's config.json") from error
    kind = theirs.get("model_type") if isinstance(theirs, dict) else None
    if kind not in ("gpt2", "llama"):
        raise ValueError(
            f"{path} has model_type {kind!r}; it must be 'gpt2' or 'llama': only these are read"
        )
    # In newer files the base and the kind of rotary positions are in one place.
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{path} has rotary settings {rope!r}; they must be an object: repair it")
    theirs = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope} | (
        theirs
    )
    theirs["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    sizes, others, needed = GPT2 if kind == "gpt2" else LLAMA
    wrong = [f"{key} is missing" for key in sizes if key not in theirs] + [
        f"{key} is {theirs[key]!r}, not {' or '.join(map(repr, known))}"
        for key, known in needed.items()
        if key in theirs and theirs[key] not in known
    ]
    for keys, kinds, words in (
        (sizes, (int,), "an integer"),
        (MAY_BE_ABSENT, (int, type(None)), "an integer"),
        (NUMBERS, (int, float), "a number"),
        (("tie_word_embeddings",), (bool,), "true or false"),
    ):
        wrong += [
            f"{key} is {theirs[key]!r}, not {words}"
            for key in keys
            if key in theirs and type(theirs[key]) not in kinds
        ]
    settings = {ours: theirs[key] for key, ours in sizes.items() if key in theirs}
    size = theirs.get("head_dim")
    if size is not None and not wrong and size * settings["heads"] != settings["width"]:
        wrong.append(f"head_dim is {size!r}, not hidden_size / num_attention_heads")
    if wrong:
        raise ValueError(
            f"{path} describes no model that jaxnn.models.transformer computes: {'; '.join(wrong)};"
            " use weights of another model"
        )
    settings |= {ours: theirs.get(key, default) for key, (ours, default) in others.items()}
    try:
        return (gpt2 if kind == "gpt2" else llama)(**settings)
    except ValueError as error:
        raise ValueError(f"{path} describes no model: {error}") from error
