"""Every case that is measured, by its name."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp

from experiments.benchmark import decoders, image_ops, models, ops, recurrent_ops, runs
from experiments.benchmark.arms import Case
from jaxnn.models import cnn, mlp, rnn
from jaxnn.models.transformer import gpt2, llama

ACCELERATOR = (  # too large for a CPU, or of a dtype that it has no products for: if asked for
    "gpt2-124m", "gpt2-124m-b32", "gpt2-124m-step", "attention-bf16-t1024", "attention-bf16-t4096",
    "lm-head-bf16", "layer-norm-bf16", "embedding-bf16", "conv-bf16",
)  # fmt: skip


class Sizes(NamedTuple):
    """How large the cases are.

    Attributes:
        small: what sizes that only cost time are divided by.
        mnist: a folder with MNIST's IDX files, for the cases of its images.
    """

    small: int = 1
    mnist: Path | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """These, for a command line."""
        return str(self.small), *([str(self.mnist.absolute())] if self.mnist else [])

    @classmethod
    def of(cls, words: Sequence[str]) -> "Sizes":
        """What `words` were made of."""
        return cls(int(words[0]), *map(Path, words[1:]))


def cases(sizes: Sizes = Sizes()) -> dict[str, Case]:  # noqa: B008 - it cannot be changed
    """Every case by its name."""

    def s(size: int) -> int:
        return max(2, size // sizes.small)

    bf16 = jnp.bfloat16
    gpt2_124m = gpt2(
        vocabulary=s(50304),
        positions=s(1024),
        layers=s(12),
        width=s(12) * s(64),
        heads=s(12),
        # A GPU has the memory, and waits for what is computed or copied twice.
        chunk=s(50304),
        unroll=s(12),
    )
    return {
        "mlp-small": models.mlp_step(s(32), (64, 32, 10)),
        "mlp-large": models.mlp_step(s(128), (784, s(512), s(512), 10)),
        "cnn-small": models.cnn_step(s(32), (8, 8, 1), (32, 64)),
        "cnn-large": models.cnn_step(s(64), (32, 32, 3), (32, 64)),
        "cnn-mnist": models.cnn_step(s(32), (28, 28, 1), (16, 32, 64)),
        "rnn-small": models.rnn_step(s(16), s(64), rnn.Config(width=64, hidden=s(128))),
        "rnn-large": models.rnn_step(s(32), s(128), rnn.Config(width=128, hidden=s(256), layers=2)),
        "gpt-small": decoders.transformer_step(8, s(128), gpt2(layers=2, width=s(128))),
        "gpt-large": decoders.transformer_step(
            8, s(256), gpt2(vocabulary=256, positions=256, width=s(256))
        ),
        "llama-small": decoders.transformer_step(
            8, s(128), llama(layers=2, width=s(128), kv_heads=2)
        ),
        "llama-large": decoders.transformer_step(
            8, s(256), llama(vocabulary=256, positions=256, width=s(256), kv_heads=2)
        ),
        "gpt2-124m": decoders.gpt2_step(s(8), s(1024), gpt2_124m, block=s(256)),
        "gpt2-124m-b32": decoders.gpt2_step(s(32), s(1024), gpt2_124m, block=s(256)),
        "gpt2-124m-step": decoders.gpt2_whole_step(s(8), s(1024), gpt2_124m),
        "attention-bf16-t1024": ops.attention_case(s(8), s(1024), 12, bf16),
        "attention-bf16-t4096": ops.attention_case(2, s(4096), 12, bf16),
        "lm-head-bf16": ops.lm_head_case(s(8192), s(768), s(50304), dtype=bf16),
        "layer-norm-bf16": ops.norm_case("layer", (s(8192), s(768)), bf16),
        "embedding-bf16": ops.embedding_case(s(50304), s(768), s(8192), bf16),
        "conv-bf16": image_ops.conv_case(s(64), 1, bf16),
        "autoencoder-small": models.autoencoder_step(s(32), (64, s(256), 2)),
        "autoencoder-large": models.autoencoder_step(s(128), (784, s(512), 16)),
        "lm-head-256": ops.lm_head_case(s(1024), s(256), 256),
        "lm-head-8k": ops.lm_head_case(s(1024), s(256), s(8192)),
        "lm-head-50k": ops.lm_head_case(s(1024), s(256), s(50304)),
        "attention-t256": ops.attention_case(4, s(256)),
        "attention-t1024": ops.attention_case(4, s(1024)),
        "attention-t4096": ops.attention_case(1, s(4096)),
        "lstm-b4": recurrent_ops.recurrent_case("LSTM", s(4), s(128), 128, s(256)),
        "lstm-b32": recurrent_ops.recurrent_case("LSTM", s(32), s(128), 128, s(256)),
        "gru-b4": recurrent_ops.recurrent_case("GRU", s(4), s(128), 128, s(256)),
        "gru-b32": recurrent_ops.recurrent_case("GRU", s(32), s(128), 128, s(256)),
        "conv-stride1": image_ops.conv_case(s(64), 1),
        "conv-stride2": image_ops.conv_case(s(64), 2),
        "max-pool": image_ops.pool_case("max", s(64)),
        "average-pool": image_ops.pool_case("average", s(64)),
        "layer-norm": ops.norm_case("layer", (s(2048), 512)),
        "rms-norm": ops.norm_case("rms", (s(2048), 512)),
        "batch-norm": image_ops.batch_norm_case((s(64), 32, 32, 32)),
        "embedding-256": ops.embedding_case(256, 256, s(4096)),
        "embedding-50k": ops.embedding_case(s(50304), 256, s(4096)),
        "moons": runs.moons_run(),
        "digits": runs.digits_run(),
        "mnist-mlp": runs.mnist_run(sizes.mnist, mlp, mlp.Config(sizes=(784, s(256), 10))),
        "mnist-cnn": runs.mnist_run(
            sizes.mnist, cnn, cnn.Config(shape=(28, 28, 1), channels=(8, 16))
        ),
        "ladder": runs.ladder(),
    }
