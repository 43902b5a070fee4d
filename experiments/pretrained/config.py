"""The configuration beside a weight file, Hugging Face's `config.json`: read and written.

    config = pretrained.config.load(Path("Qwen3-0.6B"))
    pretrained.config.save(Path("mine"), config)

Of model types there are those of `KINDS`. What a model of one of them may ask for that
`jaxnn.models.transformer` does not compute (other kinds of rotary positions, a window in some of
its layers only) is refused.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.pretrained.parts import MOST_PARTS, write_json
from jaxnn import files
from jaxnn.checks import check_config
from jaxnn.files import listed
from jaxnn.models.transformer import Config
from jaxnn.ops.rotary import Scaling


class Kind(NamedTuple):
    """A model type.

    Attributes:
        architecture: the class of `transformers` with its output layer.
        sizes: entries that must be there, to our settings.
        others: entries to our settings, with what a missing one stands for.
        fixed: our settings that every such model has.
        activation: the entry of the feed-forward's activation, the first of `activations` if it is
            missing.
        activations: what may be there, to ours.
        needed: entries that must have one of these values, the first if they are missing.
        window: the entries that say whether tokens see a window only: none, "sliding_window", or
            that and "use_sliding_window", by layers.
    """

    architecture: str
    sizes: Mapping[str, str]
    others: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, Any]
    activation: str
    activations: dict[str, str]
    needed: Mapping[str, tuple[Any, ...]]
    window: tuple[str, ...] = ()


TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh")
PLAIN = dict.fromkeys(TANH, "gelu") | {"gelu": "gelu_exact", "gelu_python": "gelu_exact"}
PLAIN |= {"silu": "silu", "swish": "silu", "relu": "relu"}
GATED = {"silu": "swiglu", "swish": "swiglu"} | dict.fromkeys(TANH, "geglu")
GATED |= {"gelu": "geglu_exact", "gelu_python": "geglu_exact"}
ROTARY_SIZES = {
    "vocab_size": "vocabulary",
    "max_position_embeddings": "positions",
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "intermediate_size": "hidden",
}


def _rotary(
    architecture: str,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    tied: bool = False,
    biases: tuple[str, ...] = (),
    activations: dict[str, str] = GATED,
    needed: Mapping[str, tuple[Any, ...]] | None = None,
    window: tuple[str, ...] = (),
    **fixed: Any,
) -> Kind:
    """A kind with rotary positions and RMS norms."""
    others = {
        "num_key_value_heads": ("kv_heads", kv_heads),
        "head_dim": ("head_size", head_dim),
        "rms_norm_eps": ("eps", 1e-6),
        "tie_word_embeddings": ("tied", tied),
    }
    places = {"attention_bias": "attention_biases", "mlp_bias": "feed_forward_biases"}
    others |= {name: (places[name], False) for name in biases}
    fixed |= {"norm": "rms", "position": "rotary", "biases": False}
    needed = {"partial_rotary_factor": (1.0, None)} | dict(needed or {})
    return Kind(
        architecture, ROTARY_SIZES, others, fixed, "hidden_act", activations, needed, window
    )


KINDS = {
    "gpt2": Kind(
        "GPT2LMHeadModel",
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
        {"norm": "layer", "position": "learned", "biases": True},
        "activation_function",
        PLAIN,
        {
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
    ),
    "llama": _rotary("LlamaForCausalLM", biases=("attention_bias", "mlp_bias")),
    "mistral": _rotary("MistralForCausalLM", kv_heads=8, window=("sliding_window",)),
    "qwen2": _rotary(
        "Qwen2ForCausalLM",
        kv_heads=32,
        window=("sliding_window", "use_sliding_window"),
        attention_biases="qkv",
    ),
    "qwen3": _rotary(
        "Qwen3ForCausalLM",
        kv_heads=32,
        head_dim=128,
        biases=("attention_bias",),
        window=("sliding_window", "use_sliding_window"),
        qk_norm=True,
    ),
    "gemma": _rotary(
        "GemmaForCausalLM",
        kv_heads=16,
        head_dim=256,
        tied=True,
        biases=("attention_bias",),
        # Its first files say "gelu" where the approximation is meant, and is computed.
        activations={"gelu_pytorch_tanh": "geglu"} | GATED | {"gelu": "geglu"},
        needed={"use_bidirectional_attention": (None, False)},
        norm_offset=1.0,
        scaled_embedding=True,
    ),
}
FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
NUMBERS = ("layer_norm_epsilon", "rms_norm_eps")
MAY_BE_NONE = ("n_inner", "num_key_value_heads", "head_dim", "sliding_window")
# Of ours, what such a file says nothing of.
OURS_ALONE = ("dropout", "recompute", "block", "chunk", "balance", "experts_per_token")
# Of thousands of times what any has.
MOST_BYTES = 2**20
WINDOW_LAYERS = ("full_attention", "sliding_attention")


def load(path: str | Path) -> Config:
    """The configuration of a `config.json`, or of the one in a folder.

    Dropout is 0: the three rates in the file are training's, and ours is one. Of `kv_heads`,
    `head_size` and `hidden`, a size that None stands for is None.

    Raises:
        TypeError: the path is neither text nor a Path.
        ValueError: the file is missing, is not JSON or of another model type; it lacks sizes, has
            one of a wrong kind, or asks for what the model does not compute (all are listed).
    """
    path = _file(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; name a model's config.json")
    return _config(path, files.read_json(path, "name a model's config.json", MOST_BYTES))


def save(path: str | Path, config: Config) -> None:
    """Write what `load` reads, for `transformers` too; a folder is given a `config.json`.

    Raises:
        TypeError: the path is neither text nor a Path, or the configuration another model's.
        ValueError: no model type computes what this configuration does; the message lists what
            differs from the nearest. The folder is missing, or the file cannot be written.
    """
    check_config(config, Config)
    path = _file(path)
    files.target(path)
    theirs = _entries(config)
    again = _config(path, theirs)
    same = {name: getattr(again, name) for name in OURS_ALONE}
    ours = _settled(dataclasses.replace(config, **same))
    wrong = [
        f"{name} is {ours[name]!r}, not {value!r}"
        for name, value in _settled(again).items()
        if ours[name] != value
    ]
    if wrong:
        raise ValueError(
            f"no model type computes this configuration; {theirs['model_type']!r}, the nearest, "
            f"differs: {listed(wrong)}; change the settings, or save the parameters without"
        )
    write_json(path, theirs)


def _file(path: str | Path) -> Path:
    """The file that a path names, or that is in the folder."""
    path = files.as_path(path)
    return path / "config.json" if path.is_dir() else path


def _config(path: Path, theirs: Any) -> Config:
    """The configuration of a file's contents."""
    name = theirs.get("model_type") if isinstance(theirs, dict) else None
    if not isinstance(name, str) or name not in KINDS:
        known = ", ".join(map(repr, KINDS))
        raise ValueError(
            f"{path} has model_type {name!r:.50}; it must be one of {known}: only these are read"
        )
    kind = KINDS[name]
    needed = dict(kind.needed) | {kind.activation: tuple(kind.activations)}
    wrong = [f"{key} is missing" for key in kind.sizes if key not in theirs] + [
        f"{key} is {theirs[key]!r:.50}, not {' or '.join(map(repr, known))}"
        for key, known in needed.items()
        if key in theirs and theirs[key] not in known
    ]
    if theirs.get("head_dim", 0) is None and kind.others.get("head_dim", ("", None))[1]:
        wrong.append("head_dim is None, not an integer, of a model type whose heads have a size")
    for keys, kinds, words in (
        (kind.sizes, (int,), "an integer"),
        (MAY_BE_NONE, (int, type(None)), "an integer"),
        (NUMBERS, (int, float), "a number"),
        (FLAGS, (bool,), "true or false"),
    ):
        wrong += [
            f"{key} is {theirs[key]!r:.50}, not {words}"
            for key in keys
            if key in theirs and type(theirs[key]) not in kinds
        ]
    settings: dict[str, Any] = {ours: theirs.get(key) for key, ours in kind.sizes.items()}
    if type(settings["layers"]) is int and settings["layers"] > MOST_PARTS:
        (key,) = [key for key, ours in kind.sizes.items() if ours == "layers"]
        wrong.append(f"{key} is {settings['layers']!r:.50}, not at most {MOST_PARTS}")
    settings |= {ours: theirs.get(key, default) for key, (ours, default) in kind.others.items()}
    act = theirs.get(kind.activation, next(iter(kind.activations)))
    settings |= {"feed_forward": kind.activations.get(str(act)), **kind.fixed}
    if kind.fixed["position"] == "rotary":
        of_turns, more = _turns(theirs)
        of_window, others = _window(theirs, kind)
        settings |= {"rotary_base": of_turns[0], "rotary_scaling": of_turns[1]}
        settings["window"] = of_window
        wrong += more + others
    if wrong:
        raise ValueError(
            f"{path} describes no model that jaxnn.models.transformer computes: {listed(wrong)};"
            " use weights of another model"
        )
    meant = {"kv_heads": settings["heads"], "hidden": 4 * settings["width"]}
    if settings.get("head_size") and settings["head_size"] * settings["heads"] == settings["width"]:
        meant["head_size"] = settings["head_size"]
    settings |= {ours: None for ours, size in meant.items() if settings.get(ours) == size}
    of_attention: Any = settings.get("attention_biases")
    settings["attention_biases"] = {True: "all", False: None}.get(of_attention, of_attention)
    settings["feed_forward_biases"] = settings.get("feed_forward_biases") or None
    try:
        return Config(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} describes no model: {error}") from error


def _turns(theirs: dict[str, Any]) -> tuple[tuple[Any, Scaling | None], list[str]]:
    """The base and scaling of rotary positions, and what is wrong with them."""
    # In newer files all of them are in one place, `rope_parameters`.
    rope = theirs.get("rope_scaling") or theirs.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        return (None, None), [f"rotary settings are {rope!r:.50}, not an object"]
    if any(isinstance(value, dict) for value in rope.values()):
        return (None, None), [f"rotary settings are by layer, {listed([*rope], ', ')}, not of all"]
    kind = rope.get("rope_type", rope.get("type", "default"))
    base = rope.get("rope_theta", theirs.get("rope_theta", 1e4))
    numbers = {"rope_theta": base}
    wrong = []
    if rope.get("partial_rotary_factor") not in (1.0, None):
        wrong.append(f"partial_rotary_factor is {rope['partial_rotary_factor']!r}, not 1.0")
    if kind == "linear":
        numbers["factor"] = rope.get("factor")
    elif kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        numbers |= {name: rope.get(name) for name in names}
        original = "original_max_position_embeddings"
        found = theirs.get(original, rope.get(original, theirs.get("max_position_embeddings")))
        if type(found) is not int:
            wrong.append(f"{original} is {found!r:.50}, not an integer")
        numbers[original] = found if type(found) is int else 0
    elif kind != "default":
        wrong.append(f"rope_type is {kind!r:.50}, not 'default' or 'linear' or 'llama3'")
    wrong += [
        f"{name} is {value!r:.50}, not a number"
        for name, value in numbers.items()
        if type(value) not in (int, float)
    ]
    _, *parts = numbers.values()
    return (base, Scaling(*parts) if parts and not wrong else None), wrong


def _window(theirs: dict[str, Any], kind: Kind) -> tuple[int | None, list[str]]:
    """How many tokens each sees, in all layers alike, and what is wrong with it."""
    width, layers = theirs.get("sliding_window", 4096), theirs.get("num_hidden_layers")
    if "sliding_window" not in kind.window or width is None:
        width = None
    if "use_sliding_window" in kind.window:
        width = width if theirs.get("use_sliding_window", False) else None
        first = theirs.get("max_window_layers", 28)
        if type(first) is not int:
            return None, [f"max_window_layers is {first!r:.50}, not an integer"]
        if type(layers) is int and 0 < layers <= MOST_PARTS:
            full = layers if width is None else min(max(first, 0), layers)
            default = [WINDOW_LAYERS[number >= full] for number in range(layers)]
            found = theirs.get("layer_types") or default
            whole = isinstance(found, list) and len(found) == layers
            if not whole or any(one not in WINDOW_LAYERS for one in found):
                rule = f"{' or '.join(map(repr, WINDOW_LAYERS))} for each of {layers} layers"
                return None, [f"layer_types is {found!r:.100}, not {rule}"]
            if len(set(found)) > 1:
                count = found.count(WINDOW_LAYERS[1])
                return None, [
                    f"{count} of {layers} layers see a window of {width}, not all or none of them"
                ]
            width = width if WINDOW_LAYERS[1] in found else None
    return width, []


def _entries(config: Config) -> dict[str, Any]:
    """The contents of a file of the model type that is nearest to a configuration."""
    if config.position == "learned":
        name = "gpt2"
    elif config.norm_offset:
        name = "gemma"
    elif config.qk_norm:
        name = "qwen3"
    elif config.attention_biases == "qkv":
        name = "qwen2"
    else:
        name = "mistral" if config.window else "llama"
    kind, ours = KINDS[name], _settled(config)
    theirs: dict[str, Any] = {"architectures": [kind.architecture], "model_type": name}
    theirs |= {key: ours[setting] for key, setting in kind.sizes.items()}
    theirs |= {key: ours[setting] for key, (setting, _) in kind.others.items()}
    if name == "gpt2":  # 4 times the width has no number in its files
        theirs["n_inner"] = config.hidden
    if "attention_bias" in theirs:
        theirs["attention_bias"] = ours["attention_biases"] == "all"
    # The first of several names is the one that is in use.
    names = {setting: key for key, setting in reversed(kind.activations.items())}
    theirs[kind.activation] = names.get(config.feed_forward, next(iter(kind.activations)))
    if config.position == "rotary":
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rotary_base}
        if config.rotary_scaling is not None:
            parts = config.rotary_scaling
            rope |= {"rope_type": "linear", "factor": parts.factor}
            if parts.positions is not None:
                rope |= {
                    "rope_type": "llama3",
                    "low_freq_factor": parts.low,
                    "high_freq_factor": parts.high,
                    "original_max_position_embeddings": parts.positions,
                }
        theirs["rope_parameters"] = rope
    if kind.window:
        theirs["sliding_window"] = config.window
    if "use_sliding_window" in kind.window:
        theirs |= {"use_sliding_window": config.window is not None, "max_window_layers": 0}
    return theirs


def _settled(config: Config) -> dict[str, Any]:
    """Its settings, with what each None stands for where that is another setting."""
    ours = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    meant = {
        "kv_heads": config.heads,
        "head_size": config.per_head,
        "hidden": 4 * config.width,
        "attention_biases": "all" if config.biases else "none",
        "feed_forward_biases": config.biases,
    }
    return ours | {name: value for name, value in meant.items() if ours[name] is None}
