"""Weight files of Hugging Face's kinds: loaded, saved to the same bytes, refused with words."""

import dataclasses
import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from experiments import pretrained, pretrained_config
from jaxnn.models import transformer
from jaxnn.models.transformer import gpt2, llama

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
    first[...], second[...] = np.nan, -0.0
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
    assert "transformer.h.3.mlp.c_fc.bias (5,) is not a tensor of this" in words
    assert words.count(";") == 15  # 3 above, 12 of the layer too many: 14 between, 1 to the fix


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
        (llama(experts=4), "Llama, which .*: experts is 4, not 0"),
        (gpt2(position="rotary"), "Llama, .*feed_forward is 'gelu', not 'swiglu'; biases is True"),
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


GPT2_JSON = {
    "model_type": "gpt2", "vocab_size": 7, "n_positions": 6, "n_layer": 3, "n_embd": 4, "n_head": 2,
    "n_inner": 5, "activation_function": "gelu_new", "resid_pdrop": 0.1,
}  # fmt: skip
LLAMA_JSON = {
    "model_type": "llama", "vocab_size": 6, "max_position_embeddings": 5, "num_hidden_layers": 2,
    "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 5,
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_scaling": None, "head_dim": 2,
}  # fmt: skip


def test_a_configuration_file(tmp_path):
    path = tmp_path / "config.json"

    def read(theirs):
        path.write_text(json.dumps(theirs))
        return pretrained_config.load(str(path))

    assert read(GPT2_JSON) == GPT2
    assert read(LLAMA_JSON) == LLAMA
    assert read(LLAMA_JSON | {"rope_theta": 5e5}) == dataclasses.replace(LLAMA, rotary_base=5e5)
    newer = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    assert read(LLAMA_JSON | newer) == dataclasses.replace(LLAMA, rotary_base=5e5)
    tied = read(LLAMA_JSON | {"tie_word_embeddings": True, "rms_norm_eps": 1e-6})
    assert tied == dataclasses.replace(LLAMA, tied=True, eps=1e-6)
    for theirs, words in (
        ({"model_type": "bert"}, "model_type 'bert'; it must be 'gpt2' or 'llama'"),
        ([], "model_type None"),
        (
            {"model_type": "gpt2", "activation_function": "relu", "n_head": 1},
            "vocab_size is missing; n_positions is missing; .*activation_function is 'relu'",
        ),
        (LLAMA_JSON | {"rope_scaling": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        (LLAMA_JSON | {"rope_scaling": "yarn"}, "rotary settings 'yarn'"),
        (LLAMA_JSON | {"rms_norm_eps": "1"}, "rms_norm_eps is '1', not a number"),
        (LLAMA_JSON | {"head_dim": 4}, "head_dim is 4, not hidden_size"),
        (LLAMA_JSON | {"head_dim": "4"}, "head_dim is '4', not an integer"),
        (LLAMA_JSON | {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, not 1.0"),
        (LLAMA_JSON | {"rope_scaling": {"partial_rotary_factor": 0.5}}, "factor is 0.5, not 1.0"),
        (GPT2_JSON | {"n_layer": "3"}, "config.json .* n_layer is '3', not an integer"),
        (GPT2_JSON | {"n_inner": 2.5}, "config.json .* n_inner is 2.5, not an integer"),
        (GPT2_JSON | {"tie_word_embeddings": 1}, "tie_word_embeddings is 1, not true or false"),
        (GPT2_JSON | {"n_layer": 0}, "config.json .* layers is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            read(theirs)
    path.write_text("{")
    with pytest.raises(ValueError, match=re.escape("config.json is not JSON")):
        pretrained_config.load(path)
    with pytest.raises(ValueError, match="absent is not a file"):
        pretrained_config.load(tmp_path / "absent")
