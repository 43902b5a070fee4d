"""A model of Hugging Face's as a folder holds it: what it is, its tokens continued, written again.

python -m experiments.pretrained --folder Qwen3-0.6B
python -m experiments.pretrained --folder Qwen3-0.6B --tokens 9707 11 --length 20
python -m experiments.pretrained --folder Qwen3-0.6B --to mine
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli, pretrained
from jaxnn import files
from jaxnn.models import generate


def main(
    folder: Path, tokens: tuple[int, ...] = (), length: int = 20, to: Path | None = None
) -> int:
    """Say which model a folder holds, continue tokens with it, or write it again.

    Args:
        folder: With a config.json and a model.safetensors, whole or in parts by an index, of
            GPT-2, Llama, Mistral, Qwen2, Qwen3 or Gemma. Nothing is downloaded.
        tokens: To continue, each time by the likeliest; words become tokens by the model's own
            tokenizer, which is none of this library's.
        length: How many tokens to write after them.
        to: A folder to write the model into, its config.json and one model.safetensors.
    """
    cli.check_positive(length=length)
    if any(not 0 <= token < 2**31 for token in tokens):
        raise ValueError(f"--tokens are {tokens!s:.80}; each must be at least 0 and below 2^31")
    config = pretrained.config.load(folder)
    params = pretrained.load(folder, config)
    kind = files.read_json(folder / "config.json", "name a model's folder")["model_type"]
    leaves = jax.tree.leaves(params)
    print(f"{folder}: {kind}")
    print(config)
    print(
        f"{sum(leaf.size for leaf in leaves):,} parameters of {leaves[0].dtype}, "
        f"{sum(leaf.nbytes for leaf in leaves):,} bytes"
    )
    if tokens:
        start = jnp.asarray([tokens], jnp.int32)
        written = generate.generate(
            params, start, config, jax.random.key(0), length=length, temperature=0.0
        )
        print(*np.asarray(written[0]))
    if to:
        files.target(files.writable(to) / "config.json")  # before either file is written
        pretrained.save(to / "model.safetensors", params, config)
        pretrained.config.save(to, config)
        print(f"wrote {to / 'model.safetensors'} and {to / 'config.json'}")
    return 0


if __name__ == "__main__":
    cli.run(main)
