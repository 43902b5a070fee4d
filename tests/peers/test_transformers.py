"""Models of `transformers`, tiny and random: read, run in float64, and written back.

Some of what it computes is in float32 whatever the model's dtype (RMS norms, angles of positions,
Gemma's embedding scale): as it is, 1e-6; with its float32 turned to float64, 1e-9.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close, run
from safetensors.numpy import load_file, save_file
from test_pretrained import assert_same_bytes

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip(
    "torch", reason="PyTorch is an optional peer: pip install -e '.[peers]'"
)
hugging = pytest.importorskip(
    "transformers", reason="transformers is an optional peer: pip install -e '.[peers]'"
)

from experiments import pretrained  # noqa: E402
from experiments.pretrained import config as pretrained_config  # noqa: E402
from jaxnn.models import generate, transformer  # noqa: E402

GPT2 = {"vocab_size": 11, "n_positions": 8, "n_layer": 2, "n_embd": 16, "n_head": 4}
LLAMA = {
    "vocab_size": 11, "max_position_embeddings": 8, "num_hidden_layers": 2, "hidden_size": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 6, "rope_theta": 100.0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 2.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
WINDOW = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}
CASES = {
    "gpt2": ("gpt2", {}),
    "gpt2 untied, exact": ("gpt2", UNTIED | {"activation_function": "gelu", "n_inner": 6}),
    "gpt2 relu": ("gpt2", {"activation_function": "relu"}),
    "gpt2 silu": ("gpt2", {"activation_function": "silu", "layer_norm_epsilon": 1e-3}),
    "gpt2 tanh": ("gpt2", {"activation_function": "gelu_pytorch_tanh"}),
    "llama": ("llama", {}),
    "llama of one head of keys": ("llama", {"num_key_value_heads": 1, "rms_norm_eps": 1e-3}),
    "llama tied, biases, size": (
        "llama",
        TIED | {"attention_bias": True, "mlp_bias": True, "head_dim": 6, "hidden_act": "gelu"},
    ),
    "llama linear": ("llama", {"rope_parameters": LINEAR, "hidden_act": "gelu_new"}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 8}),
    "mistral": ("mistral", {"sliding_window": 3}),
    "mistral without a window": ("mistral", {"sliding_window": None, "head_dim": 2}),
    "qwen2": ("qwen2", {}),
    "qwen2 in a window": ("qwen2", TIED | WINDOW),
    "qwen3": ("qwen3", {"head_dim": 6}),
    "qwen3 in a window": ("qwen3", TIED | WINDOW | {"attention_bias": True, "head_dim": 4}),
    "gemma": ("gemma", {"head_dim": 6}),
    "gemma untied, biases": (
        "gemma",
        UNTIED | {"attention_bias": True, "head_dim": 4, "hidden_size": 20, "hidden_act": "gelu"},
    ),
}


class InFloat64(torch.overrides.TorchFunctionMode):
    """Inside, what asks for float32 gets float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def widened(x):
            return torch.float64 if x is torch.float32 else x

        function = torch.Tensor.double if function is torch.Tensor.float else function
        kwargs = {name: widened(value) for name, value in (kwargs or {}).items()}
        return function(*map(widened, args), **kwargs)


@pytest.fixture(autouse=True)
def quiet():
    hugging.logging.set_verbosity_error()
    hugging.logging.disable_progress_bar()


def made(case):
    """A model with every parameter drawn, in float64."""
    kind, settings = CASES[case]
    config = hugging.AutoConfig.for_model(
        kind,
        **(GPT2 if kind == "gpt2" else LLAMA) | settings,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = hugging.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.tensor(rng.normal(0, 0.3, tuple(parameter.shape))))
    return model


def read(folder):
    config = pretrained_config.load(folder)
    return pretrained.load(folder, config), config


def logits_and_gradients(model, tokens, targets, folder):
    """Theirs, the gradients as a file of weights so that they are read as parameters are."""
    logits = model(torch.tensor(tokens)).logits
    model.zero_grad()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
    loss.backward()
    grads = {name: p.grad.numpy() for name, p in model.named_parameters()}
    save_file(grads, folder / "gradients.safetensors")
    config = pretrained_config.load(folder)
    return logits.detach().numpy(), pretrained.load(folder / "gradients.safetensors", config)


@pytest.mark.parametrize("case", CASES)
def test_logits_gradients_and_generation(case, tmp_path):
    model = made(case)
    model.save_pretrained(tmp_path)
    tokens, targets = np.random.default_rng(1).integers(0, 11, (2, 3, 8))
    with jax.enable_x64(True):
        params, config = read(tmp_path)
        ours = run(
            lambda p, *batch: (
                transformer.forward(p, batch[0], config),
                transformer.manual_grad(p, batch, config),
            ),
            params,
            *map(jnp.asarray, (tokens, targets)),
        )
        theirs = logits_and_gradients(model, tokens, targets, tmp_path)
        assert_leaves_close(ours, theirs, 1e-9 if "gpt2" in case else 1e-6, floor=1e-9)
        with InFloat64():
            exact = hugging.AutoModelForCausalLM.from_config(model.config, dtype=torch.float64)
            exact.load_state_dict(model.state_dict())
            exact_ones = logits_and_gradients(exact.eval(), tokens, targets, tmp_path)
        assert_leaves_close(ours, exact_ones, 1e-9, floor=1e-14)
        prompt = tokens[:, :3]
        written = generate.generate(
            params, jnp.asarray(prompt), config, jax.random.key(0), length=5, temperature=0.0
        )
    expected = model.generate(
        torch.tensor(prompt),
        attention_mask=torch.ones(prompt.shape),
        max_new_tokens=5,
        do_sample=False,
    )
    np.testing.assert_array_equal(written, expected.numpy())


@pytest.mark.parametrize(
    ("case", "size"),
    [*((case, 10**9) for case in CASES), ("gpt2", 6000), ("llama", 6000)],
)
def test_what_is_read_and_written_back_is_the_same(case, size, tmp_path):
    """Their file to ours to theirs, whole and in parts: the same bytes, the same logits."""
    model = made(case)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    (tmp_path / "ours").mkdir()
    with jax.enable_x64(True):
        params, config = read(tmp_path / "theirs")
        pretrained.save(tmp_path / "ours" / "model.safetensors", params, config, max_bytes=size)
        pretrained_config.save(tmp_path / "ours", config)
        assert pretrained_config.load(tmp_path / "ours") == config
    tensors = []
    for folder in (tmp_path / "ours", tmp_path / "theirs"):
        files = [load_file(file) for file in folder.glob("*.safetensors")]
        tensors.append({name: tensor for file in files for name, tensor in file.items()})
        assert (len(files) > 1) == (folder / "model.safetensors.index.json").exists()
        assert (len(files) > 1) == (size == 6000)
    assert_same_bytes(*tensors)
    again = hugging.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float64)
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        ours, theirs = (m.eval()(tokens).logits.numpy() for m in (again, model))
    assert_leaves_close(ours, theirs, 1e-12)
