"""Weight files of Hugging Face's kinds: loaded, saved to the same bytes, refused with words."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from experiments import pretrained
from experiments.pretrained import config as pretrained_config
from experiments.pretrained import parts as pretrained_parts
from jaxnn.models import transformer
from jaxnn.models.transformer import gpt2, llama
from jaxnn.ops.rotary import Scaling

GPT2 = gpt2(vocabulary=7, positions=6, layers=3, width=4, heads=2, hidden=5)
LLAMA = llama(vocabulary=6, positions=5, layers=2, width=8, heads=4, kv_heads=2, hidden=5)


def gpt2_shapes(config=GPT2, prefix="transformer."):
    """What GPT-2's files hold, written out: `c_attn` and the like are (inputs, outputs)."""
    d, h = config.width, config.hidden
    shapes = {"wte.weight": (config.vocabulary, d), "wpe.weight": (config.positions, d)}
    for n in range(config.layers):
        layer = {
            "ln_1.weight": (d,), "ln_1.bias": (d,), "ln_2.weight": (d,), "ln_2.bias": (d,),
            "attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,),
            "attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,),
            "mlp.c_fc.weight": (d, h), "mlp.c_fc.bias": (h,),
            "mlp.c_proj.weight": (h, d), "mlp.c_proj.bias": (d,),
        }  # fmt: skip
        shapes |= {f"h.{n}.{name}": shape for name, shape in layer.items()}
    shapes |= {"ln_f.weight": (d,), "ln_f.bias": (d,)}
    return {prefix + name: shape for name, shape in shapes.items()}


def llama_shapes(config=LLAMA, prefix="model."):
    """What Llama's files hold: every projection is (outputs, inputs)."""
    d, h, inner = config.width, config.hidden, config.kv_heads * config.per_head
    shapes = {"embed_tokens.weight": (config.vocabulary, d), "norm.weight": (d,)}
    for n in range(config.layers):
        layer = {
            "input_layernorm": (d,), "post_attention_layernorm": (d,),
            "self_attn.q_proj": (d, d), "self_attn.k_proj": (inner, d),
            "self_attn.v_proj": (inner, d), "self_attn.o_proj": (d, d),
            "mlp.gate_proj": (h, d), "mlp.up_proj": (h, d), "mlp.down_proj": (d, h),
        }  # fmt: skip
        shapes |= {f"layers.{n}.{name}.weight": shape for name, shape in layer.items()}
    output = {} if config.tied else {"lm_head.weight": (config.vocabulary, d)}
    return {prefix + name: shape for name, shape in shapes.items()} | output


def drawn(shapes, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.5, shape).astype(dtype) for name, shape in shapes.items()}


def assert_same_bytes(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape), name
        assert ours[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        (GPT2, gpt2_shapes()),
        (LLAMA, llama_shapes()),
        (dataclasses.replace(GPT2, tied=False), gpt2_shapes() | {"lm_head.weight": (7, 4)}),
        (
            dataclasses.replace(LLAMA, tied=True),
            llama_shapes(dataclasses.replace(LLAMA, tied=True)),
        ),
    ],
    ids=["gpt2", "llama", "gpt2 untied", "llama tied"],
)
def test_saved_again_every_tensor_has_the_same_bytes(config, shapes, dtype, tmp_path):
    tensors = drawn(shapes, dtype)
    first, second = next(iter(tensors.values())).reshape(-1)[:2].reshape(2, 1)
    first[...], second[...] = np.finfo(np.float16).smallest_subnormal, -0.0
    save_file(tensors, tmp_path / "theirs.safetensors")
    params = pretrained.load(tmp_path / "theirs.safetensors", config)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(dtype)}
    pretrained.save(tmp_path / "ours.safetensors", params, config)
    assert_same_bytes(load_file(tmp_path / "ours.safetensors"), tensors)
    with safe_open(tmp_path / "ours.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("config", "shapes"), [(GPT2, gpt2_shapes), (LLAMA, llama_shapes)], ids=["gpt2", "llama"]
)
def test_the_prefix_may_be_absent(config, shapes, tmp_path):
    tensors = drawn(shapes(prefix=""))
    save_file(tensors, tmp_path / "a.safetensors")
    params = pretrained.load(tmp_path / "a.safetensors", config)
    pretrained.save(tmp_path / "b.safetensors", params, config, prefix="")
    assert_same_bytes(load_file(tmp_path / "b.safetensors"), tensors)
    pretrained.save(tmp_path / "b.safetensors", params, config)
    assert load_file(tmp_path / "b.safetensors").keys() == shapes().keys()


def test_buffers_and_a_repeated_table_are_passed_over(tmp_path):
    tensors = drawn(gpt2_shapes())
    repeated = {"lm_head.weight": tensors["transformer.wte.weight"]}
    buffers = {
        "transformer.h.0.attn.bias": np.ones((1, 1, 6, 6), np.uint8),
        "transformer.h.2.attn.masked_bias": np.float32([-1e4]),
    }
    save_file(tensors | repeated | buffers, tmp_path / "a.safetensors")
    params = pretrained.load(tmp_path / "a.safetensors", GPT2)
    pretrained.save(tmp_path / "b.safetensors", params, GPT2)
    assert_same_bytes(load_file(tmp_path / "b.safetensors"), tensors)
    save_file(tensors | {"lm_head.weight": repeated["lm_head.weight"] + 1}, tmp_path / "a")
    with pytest.raises(ValueError, match=r"lm_head\.weight with other values.* set tied=False"):
        pretrained.load(tmp_path / "a", GPT2)
    eight = ml_dtypes.float8_e4m3fn
    repeated["lm_head.weight"] = repeated["lm_head.weight"].astype(eight)
    save_file(tensors | repeated, tmp_path / "a")
    with pytest.raises(ValueError, match=r"several dtypes .*F8_E4M3: lm_head\.weight"):
        pretrained.load(tmp_path / "a", GPT2)


def test_missing_extra_and_misshapen_tensors_are_listed_at_once(tmp_path):
    tensors = drawn(gpt2_shapes(dataclasses.replace(GPT2, layers=4)))
    del tensors["transformer.h.1.ln_2.bias"]
    tensors["transformer.h.0.attn.c_attn.weight"] = np.zeros((12, 4), np.float32)
    tensors["lm_head.weight"] = np.zeros((8, 4), np.float32)
    save_file(tensors, tmp_path / "a")
    with pytest.raises(ValueError, match="GPT-2 tensors") as error:
        pretrained.load(tmp_path / "a", GPT2)
    words = str(error.value)
    assert "transformer.h.1.ln_2.bias is missing, needed (4,)" in words
    assert "h.0.attn.c_attn.weight has shape (12, 4), needed (4, 12)" in words
    assert "lm_head.weight has shape (8, 4), needed (7, 4)" in words
    assert "transformer.h.3.attn.c_proj.bias (4,) is not a tensor of this" in words
    # 3 above, 12 of the layer too many: ten are named.
    assert "; and 5 more; change the configuration" in words
    assert words.count(";") == 11


def test_a_bad_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="absent is not a file"):
        pretrained.load(tmp_path / "absent", GPT2)
    (tmp_path / "text").write_text("no tensors at all")
    with pytest.raises(ValueError, match=r"text cannot be read .* must be a safetensors file"):
        pretrained.load(tmp_path / "text", GPT2)
    for dtype, words in (
        (np.float64, r"float64, which JAX would round: .*enable_x64"),
        (np.int8, "dtype I8; it must be one of float16"),
    ):
        save_file(drawn(llama_shapes(), dtype), tmp_path / "a")
        with pytest.raises(ValueError, match=words):
            pretrained.load(tmp_path / "a", LLAMA)
    tensors = drawn(llama_shapes())
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float16)
    save_file(tensors, tmp_path / "a")
    with pytest.raises(ValueError, match=r"several dtypes .*float16: model\.norm\.weight"):
        pretrained.load(tmp_path / "a", LLAMA)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (gpt2(width=8, heads=4, kv_heads=2), "GPT-2, which .*: kv_heads is 2, not 4 as the heads"),
        (gpt2(biases=False, norm="rms"), "norm is 'rms', not 'layer'; biases is False, not True"),
        (gpt2(attention_biases="qkv"), "attention_biases is 'qkv', not None or 'all'"),
        (gpt2(feed_forward_biases=False), "feed_forward_biases is False, not None or True"),
        (gpt2(qk_norm=True, scaled_embedding=True), "qk_norm is True, .*scaled_embedding is True"),
        (gpt2(layers=2 * 10**9), "layers is 2000000000, not at most 10000; use"),
        (gpt2(head_size=3), "head_size is 3, not width / heads"),
        (llama(experts=4), "Llama, which .*: experts is 4, not 0"),
        (gpt2(position="rotary"), "Llama, .*: norm is 'layer', .*is 'gelu', not 'swiglu' or"),
    ],
)
def test_what_no_file_can_hold_is_refused(config, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        pretrained.load(tmp_path / "absent", config)
    with pytest.raises(ValueError, match=words):
        pretrained.save(tmp_path / "a", None, config)


def test_parameters_of_another_configuration_are_not_saved(tmp_path):
    other = dataclasses.replace(LLAMA, hidden=9, tied=True)
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32),
        jax.eval_shape(lambda key: transformer.init_params(key, other), jax.random.key(0)),
    )
    with pytest.raises(ValueError, match="not of this configuration") as error:
        pretrained.save(tmp_path / "a", params, LLAMA)
    assert "feed_forward.up has shape (2, 8, 9), needed (2, 8, 5)" in str(error.value)
    assert "output has shape None, needed (8, 6)" in str(error.value)
    mixed = params._replace(norm=params.norm._replace(scale=np.zeros(8, np.float16)))
    with pytest.raises(ValueError, match="params has tensors of several dtypes"):
        pretrained.save(tmp_path / "a", mixed, other)
    with pytest.raises(ValueError, match="absent is not a folder"):
        pretrained.save(tmp_path / "absent" / "a", params, other)
    assert not list(tmp_path.iterdir())


WRONG = {
    "None": (None, TypeError, "path is None; it must be text or a pathlib.Path"),
    "a number": (3, TypeError, "path is 3; it must be text"),
    "null": ("a\0", ValueError, "must be one that can be opened .*null"),
    "long": ("a" * 5000, ValueError, "must be one that can be opened .*too long"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_path_that_is_none_is_refused(case):
    path, error, words = WRONG[case]
    params = transformer.init_params(jax.random.key(0), GPT2)
    for call in (
        lambda: pretrained.load(path, GPT2),
        lambda: pretrained.save(path, params, GPT2),
        lambda: pretrained_config.load(path),
        lambda: pretrained_config.save(path, GPT2),
    ):
        with pytest.raises(error, match=words) as refused:
            call()
        assert len(str(refused.value)) < 200


def test_what_is_saved_is_what_can_be_loaded(tmp_path):
    params = transformer.init_params(jax.random.key(0), GPT2)
    (tmp_path / "config.json").mkdir()
    for path in (tmp_path, "", "/"):
        with pytest.raises(ValueError, match="is a folder; it must be a file's path"):
            pretrained.save(path, params, GPT2)
    with pytest.raises(ValueError, match=r"config\.json is a folder; it must be"):
        pretrained_config.save(tmp_path, GPT2)
    with pytest.raises(ValueError, match=r"config\.json is not a file"):
        pretrained_config.load(tmp_path)
    for name in ("a.bin", "a.safetensors.index.json"):
        with pytest.raises(ValueError, match=r"must not end in .*: name it a\.safetensors"):
            pretrained.save(tmp_path / name, params, GPT2)
    for prefix in (3, "foo.", "model.", b""):
        with pytest.raises(ValueError, match=r"prefix is .* must be one of 'transformer\.', ''"):
            pretrained.save(tmp_path / "a", params, GPT2, prefix=prefix)
    for other in (None, {}, params):
        for call in (
            lambda other=other: pretrained.load(tmp_path / "a", other),
            lambda other=other: pretrained.save(tmp_path / "a", params, other),
            lambda other=other: pretrained_config.save(tmp_path / "a", other),
        ):
            with pytest.raises(TypeError, match=r"config is .* must be a jaxnn\.models"):
                call()
    for other in (None, GPT2, tuple(params)):
        with pytest.raises(TypeError, match=r"params is a .* must be the NamedTuple .*Params"):
            pretrained.save(tmp_path / "a", other, GPT2)
    with pytest.raises(TypeError, match=r"params are traced by JAX.* save outside of jit"):
        jax.jit(lambda params: pretrained.save(tmp_path / "a", params, GPT2))(params)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_what_a_layer_has_beside_llamas_is_named_as_by_qwen(tmp_path):
    config = dataclasses.replace(
        LLAMA, attention_biases="qkv", feed_forward_biases=True, qk_norm=True, head_size=6
    )
    shapes = llama_shapes(config)
    for n in range(config.layers):
        layer = {
            "self_attn.q_proj.bias": (24,), "self_attn.k_proj.bias": (12,),
            "self_attn.v_proj.bias": (12,), "self_attn.q_norm.weight": (6,),
            "self_attn.k_norm.weight": (6,), "mlp.gate_proj.bias": (5,), "mlp.up_proj.bias": (5,),
            "mlp.down_proj.bias": (8,),
        }  # fmt: skip
        shapes |= {f"model.layers.{n}.{name}": shape for name, shape in layer.items()}
        shapes |= {f"model.layers.{n}.self_attn.{name}_proj.weight": (24, 8) for name in "q"}
        shapes |= {f"model.layers.{n}.self_attn.o_proj.weight": (8, 24)}
    tensors = drawn(shapes)
    save_file(tensors, tmp_path / "a")
    params = pretrained.load(tmp_path / "a", config)
    pretrained.save(tmp_path / "b", params, config)
    assert_same_bytes(load_file(tmp_path / "b"), tensors)
    np.testing.assert_array_equal(
        params.blocks.attention.k_norm[1], tensors["model.layers.1.self_attn.k_norm.weight"]
    )
    with pytest.raises(ValueError, match=r"q_proj.bias \(24,\) is not a tensor of this"):
        pretrained.load(tmp_path / "a", dataclasses.replace(config, attention_biases=None))


def in_parts(folder):
    """GPT-2's weights in parts of at most 300 bytes, or of one tensor."""
    params = jax.tree.map(
        lambda leaf: np.arange(leaf.size, dtype=np.float32).reshape(leaf.shape),
        jax.eval_shape(lambda key: transformer.init_params(key, GPT2), jax.random.key(0)),
    )
    pretrained.save(folder / "model.safetensors", params, GPT2, max_bytes=300)
    return params, folder / "model.safetensors.index.json"


def test_a_model_in_parts_is_one_model(tmp_path):
    params, index = in_parts(tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files) - 1:05}.safetensors"
    sizes = [sum(t.nbytes for t in load_file(p).values()) for p in tmp_path.glob("*.safetensors")]
    assert max(sizes) <= 300
    assert json.loads(index.read_text())["metadata"] == {"total_size": sum(sizes)}
    for path in (index, tmp_path):
        read = pretrained.load(path, GPT2)
        assert jax.tree.all(jax.tree.map(np.array_equal, read, params))
    for wrong, error in ((0, ValueError), (True, TypeError), ("5GB", TypeError)):
        with pytest.raises(error, match=r"max_bytes is .*at least 1, or None for one file"):
            pretrained.save(tmp_path / "a", params, GPT2, max_bytes=wrong)


def test_of_an_older_model_at_the_same_path_nothing_is_left(tmp_path):
    """Larger parts, one file and parts again, each over the last; and a file beside an index."""
    params, _ = in_parts(tmp_path)
    parts = {path.name for path in tmp_path.iterdir()}
    for max_bytes, count in ((600, 5), (None, 1), (300, len(parts))):
        params = jax.tree.map(lambda leaf: leaf + 1, params)
        pretrained.save(tmp_path / "model.safetensors", params, GPT2, max_bytes=max_bytes)
        assert len([*tmp_path.iterdir()]) == count
        assert jax.tree.all(jax.tree.map(np.array_equal, pretrained.load(tmp_path, GPT2), params))
    assert {path.name for path in tmp_path.iterdir()} == parts
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has both model\.safetensors and .*; it must be one"):
        pretrained.load(tmp_path, GPT2)


@pytest.mark.parametrize("max_bytes", [None, 300])
def test_a_save_that_fails_never_mixes_two_models(max_bytes, tmp_path, monkeypatch):
    """By a full disk nothing is changed; interrupted while renaming, nothing is read."""
    older, _ = in_parts(tmp_path)
    newer = jax.tree.map(lambda leaf: leaf + 1, older)
    names = {path.name for path in tmp_path.iterdir()}
    writes = []

    def full(tensors, path, metadata):
        writes.append(path)
        if len(writes) == (6 if max_bytes else 1):
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(pretrained_parts, "save_file", full)
        with pytest.raises(ValueError, match=r"No space left.*all that was there is as it was"):
            pretrained.save(tmp_path / "model.safetensors", newer, GPT2, max_bytes=max_bytes)
    assert {path.name for path in tmp_path.iterdir()} == names
    assert jax.tree.all(jax.tree.map(np.array_equal, pretrained.load(tmp_path, GPT2), older))

    rename = Path.replace
    for stop in range(len(names) if max_bytes else 1):
        pretrained.save(tmp_path / "model.safetensors", older, GPT2, max_bytes=300)
        renamed = []

        def interrupted(path, to, stop=stop, renamed=renamed):
            if len(renamed) == stop:
                raise KeyboardInterrupt
            renamed.append(to)
            rename(path, to)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pretrained.save(tmp_path / "model.safetensors", newer, GPT2, max_bytes=max_bytes)
        with pytest.raises(ValueError, match=r"model\.safetensors is not a file"):
            pretrained.load(tmp_path, GPT2)


def test_an_index_that_lies_is_refused(tmp_path):
    _, index = in_parts(tmp_path)
    right = json.loads(index.read_text())
    (tensor, part), (_, other) = list(right["weight_map"].items())[:: len(right["weight_map"]) - 1]
    duplicate = load_file(tmp_path / other) | {tensor: np.zeros((7, 4), np.float32)}

    def refused(words, weight_map=None, **changes):
        held = right["weight_map"] | changes if weight_map is None else weight_map
        index.write_text(json.dumps(right | {"weight_map": held}))
        with pytest.raises(ValueError, match=words):
            pretrained.load(index, GPT2)

    refused(f"{tensor} is in {part}, in the index in {other}; each must be", **{tensor: other})
    refused(f"lost is in no part, in the index in {part}", lost=part)
    kept = {name: part for name, part in right["weight_map"].items() if name != tensor}
    refused(f"{tensor} is in {part}, in the index in none", kept)
    refused("parts that are not beside it: a.safetensors, b.safetensors", a="b.safetensors",
            b="a.safetensors")  # fmt: skip
    refused("has '../a.safetensors' as a part; it must be the name", a="../a.safetensors")
    refused("has 'a.bin' as a part; it must be the name of a safetensors file", a="a.bin")
    refused("has 3 as a part", a=3)
    refused("has '' as a part", a="")
    refused("parts that are not beside it: a{300}; all", a="a" * 5000)
    refused(r"has weight_map \[\]; it must be an object", [])
    save_file(duplicate, tmp_path / other)
    refused(f"{tensor} is in {part} and {other}, in the index in {part}")
    index.write_text("{")
    with pytest.raises(ValueError, match=r"index\.json is not JSON"):
        pretrained.load(index, GPT2)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model.bin.index.json"])
def test_pickled_weights_are_refused_in_those_words(name, tmp_path):
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(ValueError, match=f"{name} is pickled, .* must be safetensors: convert it"):
        pretrained.load(tmp_path / name, GPT2)
    if "index" not in name:
        with pytest.raises(ValueError, match=f"{name} is pickled"):
            pretrained.load(tmp_path, GPT2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"model\.safetensors is not a file"):
        pretrained.load(tmp_path / "empty", GPT2)


GPT2_JSON = {
    "model_type": "gpt2", "vocab_size": 7, "n_positions": 6, "n_layer": 3, "n_embd": 4, "n_head": 2,
    "n_inner": 5, "activation_function": "gelu_new", "resid_pdrop": 0.1,
}  # fmt: skip
LLAMA_JSON = {
    "model_type": "llama", "vocab_size": 6, "max_position_embeddings": 5, "num_hidden_layers": 2,
    "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 5,
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_scaling": None, "head_dim": 2,
}  # fmt: skip


LLAMA3_JSON = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
LLAMA3 = Scaling(8.0, 1.0, 4.0, 8192)
QWEN3_JSON = LLAMA_JSON | {"model_type": "qwen3", "head_dim": 4, "rms_norm_eps": 1e-6}
QWEN3 = dataclasses.replace(LLAMA, head_size=4, qk_norm=True, eps=1e-6)
GEMMA_JSON = QWEN3_JSON | {"model_type": "gemma", "hidden_act": "gelu"}
GEMMA = dataclasses.replace(
    LLAMA, head_size=4, eps=1e-6, tied=True, norm_offset=1.0, scaled_embedding=True,
    feed_forward="geglu",
)  # fmt: skip
WINDOW_JSON = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}


def read(tmp_path, theirs):
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    return pretrained_config.load(tmp_path)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (GPT2_JSON, GPT2),
        (GPT2_JSON | {"activation_function": "gelu"}, {"feed_forward": "gelu_exact"}),
        (GPT2_JSON | {"activation_function": "swish"}, {"feed_forward": "silu"}),
        (GPT2_JSON | {"activation_function": "gelu_fast"}, GPT2),
        (LLAMA_JSON, LLAMA),
        (LLAMA_JSON | {"rope_theta": 5e5}, {"rotary_base": 5e5}),
        (
            LLAMA_JSON | {"rope_theta": 1, "rope_parameters": {"rope_theta": 5e5}},
            {"rotary_base": 5e5},
        ),
        (LLAMA_JSON | {"tie_word_embeddings": True}, {"tied": True}),
        (LLAMA_JSON | {"head_dim": 4}, {"head_size": 4}),
        (
            LLAMA_JSON | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu_new"},
            {"attention_biases": "all", "feed_forward_biases": True, "feed_forward": "geglu"},
        ),
        (
            LLAMA_JSON | {"rope_scaling": {"type": "linear", "factor": 4}},
            {"rotary_scaling": Scaling(4.0)},
        ),
        (
            LLAMA_JSON | {"rope_scaling": LLAMA3_JSON},
            {"rotary_base": 5e5, "rotary_scaling": LLAMA3},
        ),
        (
            LLAMA_JSON | {"rope_scaling": dict([*LLAMA3_JSON.items()][:-1])},
            {"rotary_base": 5e5, "rotary_scaling": LLAMA3._replace(positions=5)},
        ),
        (LLAMA_JSON | {"model_type": "mistral"}, {"window": 4096}),
        (LLAMA_JSON | {"model_type": "mistral", "sliding_window": None}, LLAMA),
        (LLAMA_JSON | {"model_type": "qwen2", "sliding_window": 3}, {"attention_biases": "qkv"}),
        (QWEN3_JSON, QWEN3),
        (QWEN3_JSON | WINDOW_JSON, dataclasses.replace(QWEN3, window=3)),
        (QWEN3_JSON | WINDOW_JSON | {"max_window_layers": 2}, QWEN3),
        (
            QWEN3_JSON | WINDOW_JSON | {"layer_types": ["full_attention"] * 2},
            QWEN3,
        ),
        (GEMMA_JSON, GEMMA),
        (
            GEMMA_JSON | {"hidden_act": "silu", "attention_bias": True},
            dataclasses.replace(GEMMA, feed_forward="swiglu", attention_biases="all"),
        ),
    ],
)  # fmt: skip
def test_a_configuration_is_read_and_written(theirs, ours, tmp_path):
    if isinstance(ours, dict):
        ours = dataclasses.replace(GPT2 if "n_head" in theirs else LLAMA, **ours)
    assert read(tmp_path, theirs) == ours
    pretrained_config.save(tmp_path, ours)
    assert pretrained_config.load(tmp_path / "config.json") == ours
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] in (theirs["model_type"], "llama")


@pytest.mark.parametrize(
    "config",
    [gpt2(), llama(), llama(window=3), llama(qk_norm=True), llama(attention_biases="qkv")],
)
def test_a_size_that_is_none_is_none_again(config, tmp_path):
    pretrained_config.save(tmp_path, config)
    assert pretrained_config.load(tmp_path) == config


def test_what_is_missing_is_what_transformers_takes_it_for(tmp_path):
    sizes = {name: LLAMA_JSON[name] for name in pretrained_config.ROTARY_SIZES}
    sizes |= {"num_attention_heads": 64}
    for kind, given in (
        ("llama", {"kv_heads": None, "head_size": None, "tied": False}),
        ("mistral", {"kv_heads": 8, "window": 4096}),
        ("qwen2", {"kv_heads": 32, "window": None}),
        ("qwen3", {"kv_heads": 32, "head_size": 128, "window": None}),
        ("gemma", {"heads": 64, "kv_heads": 16, "head_size": 256, "tied": True}),
    ):
        config = read(tmp_path, sizes | {"model_type": kind, "hidden_size": 128})
        assert {name: getattr(config, name) for name in given} == given, kind
        assert (config.eps, config.rotary_base, config.rotary_scaling) == (1e-6, 1e4, None)


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ({"model_type": "bert"}, "model_type 'bert'; it must be one of 'gpt2', 'llama', 'mistral'"),
        ({"model_type": ["gpt2"]}, r"model_type \['gpt2'\]"),
        ([], "model_type None"),
        (
            {"model_type": "gpt2", "activation_function": "tanh", "n_head": 1},
            "vocab_size is missing; n_positions is missing; .*activation_function is 'tanh', not",
        ),
        (LLAMA_JSON | {"hidden_act": "x" * 9999}, "hidden_act is 'x{49}, not 'silu' or .*'; use"),
        (LLAMA_JSON | {"hidden_act": "relu"}, "hidden_act is 'relu', not 'silu' or"),
        (LLAMA_JSON | {"rope_scaling": {"rope_type": "yarn"}}, "'yarn', not 'default' or 'linear'"),
        (LLAMA_JSON | {"rope_scaling": {"type": "dynamic"}}, "rope_type is 'dynamic', not"),
        (LLAMA_JSON | {"rope_scaling": "yarn"}, "rotary settings are 'yarn', not an object"),
        (LLAMA_JSON | {"rope_scaling": {"type": "linear"}}, "factor is None, not a number"),
        (
            LLAMA_JSON | {"rope_scaling": LLAMA3_JSON | {"factor": "8", "low_freq_factor": None}},
            "factor is '8', not a number; low_freq_factor is None, not a number",
        ),
        (
            LLAMA_JSON | {"rope_scaling": LLAMA3_JSON | {"original_max_position_embeddings": 1.5}},
            "original_max_position_embeddings is 1.5, not an integer",
        ),
        (
            LLAMA_JSON | {"rope_scaling": LLAMA3_JSON | {"low_freq_factor": 4.0}},
            "describes no model: rotary_scaling: high is 4.0; it must be .*above low",
        ),
        (
            LLAMA_JSON | {"rope_parameters": {"full_attention": {}, "sliding_attention": {}}},
            "rotary settings are by layer, full_attention, sliding_attention",
        ),
        (LLAMA_JSON | {"rms_norm_eps": "1"}, "rms_norm_eps is '1', not a number"),
        (LLAMA_JSON | {"rope_theta": "1"}, "rope_theta is '1', not a number"),
        (LLAMA_JSON | {"head_dim": "4"}, "head_dim is '4', not an integer"),
        (LLAMA_JSON | {"attention_bias": 1}, "attention_bias is 1, not true or false"),
        (LLAMA_JSON | {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, not 1.0"),
        (LLAMA_JSON | {"rope_scaling": {"partial_rotary_factor": 0.5}}, "factor is 0.5, not 1.0"),
        (QWEN3_JSON | WINDOW_JSON | {"max_window_layers": 1}, "1 of 2 layers see a window of 3"),
        (QWEN3_JSON | WINDOW_JSON | {"max_window_layers": "1"}, "max_window_layers is '1'"),
        (
            QWEN3_JSON | {"layer_types": ["full_attention"]},
            r"layer_types is \['full_attention'\], not 'full_attention' or .* each of 2 layers",
        ),
        (QWEN3_JSON | {"layer_types": ["chunked", "chunked"]}, "layer_types is .*chunked"),
        (GEMMA_JSON | {"head_dim": None}, "head_dim is None, not an integer"),
        (QWEN3_JSON | {"head_dim": None}, "head_dim is None, not an integer"),
        (GEMMA_JSON | {"use_bidirectional_attention": True}, "is True, not None or False"),
        (GPT2_JSON | {"n_layer": "3"}, "config.json .* n_layer is '3', not an integer"),
        (GPT2_JSON | {"n_inner": 2.5}, "config.json .* n_inner is 2.5, not an integer"),
        (GPT2_JSON | {"tie_word_embeddings": 1}, "tie_word_embeddings is 1, not true or false"),
        (GPT2_JSON | {"n_layer": 0}, "config.json .* layers is 0"),
        (GPT2_JSON | {"n_layer": 10**30}, "n_layer is 1000.*, not at most 10000; use weights"),
        (QWEN3_JSON | {"num_hidden_layers": 2 * 10**9}, "num_hidden_layers is 2000000000, not at"),
        (
            QWEN3_JSON | {"num_hidden_layers": -5, "layer_types": []},
            "describes no model: layers is -5",
        ),
    ],
)
def test_a_configuration_that_is_not_computed_is_refused(theirs, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        read(tmp_path, theirs)


def test_a_file_that_is_no_configuration_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=re.escape("config.json is not JSON")):
        pretrained_config.load(tmp_path)
    with pytest.raises(ValueError, match="absent is not a file"):
        pretrained_config.load(tmp_path / "absent")
    for name, load in (
        ("config.json", pretrained_config.load),
        ("a.index.json", lambda path: pretrained.load(path, GPT2)),
    ):
        (tmp_path / name).write_text("[" * 100_000)
        with pytest.raises(ValueError, match=f"{name} has lists or objects too deep.*: name a"):
            load(tmp_path / name)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (llama(experts=4), "'llama', the nearest, differs: experts is 4, not 0; change"),
        (dataclasses.replace(GEMMA, qk_norm=True), "'gemma', .*qk_norm is True, not False"),
        (llama(norm="layer"), "'llama', .*norm is 'layer', not 'rms'"),
        (gpt2(window=3, scaled_embedding=True), "'gpt2', .*scaled_embedding .*window is 3"),
        (llama(feed_forward="relu"), "'llama', .*feed_forward is 'relu', not 'swiglu'"),
    ],
)
def test_a_configuration_of_no_model_type_is_not_written(config, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        pretrained_config.save(tmp_path, config)
    with pytest.raises(ValueError, match="absent is not a folder"):
        pretrained_config.save(tmp_path / "absent" / "config.json", LLAMA)
    assert not list(tmp_path.iterdir())
