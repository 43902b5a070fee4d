"""A step on paper: operations and bytes, term by term, from a configuration and a batch's sizes.

Operations are multiplications and additions of the products, forward once and backward twice that:

    transformer    weights of the layers, scores and averages of the attention (T^2), output layer;
                   together `experiments.benchmark.decoders.transformer_flops`
    LSTM           6 N T 4 H (I + H) of each layer, 6 N T H V of the output layer
    CNN            6 N H W k^2 I O of each convolution; of the first, which needs no dx, 4

Bytes are those that the backward needs beside parameters, batch and gradients: what the forward
saves, counted from the very functions on shapes alone, and the largest arrays of the one place
where most is held at once, which for a transformer is a layer's backward

    scores     p and dp of every run of queries, N H queries keys each; with a block p and dp of it
    units      h and dh, and dg of a gate, N T F each
    gradients  of one layer's weights, before they are put where all layers' are

or the loss's: dz, N T V, or z and dz of a chunk, and dw (D, V) where it is added to the table's.
Arrays that a compiler may fuse away are not counted: the table has what it needed beside this.
"""

import math
from typing import Any

import jax

from experiments.benchmark.arms import AUTODIFF
from experiments.benchmark.decoders import transformer_flops
from experiments.scaling.axes import Program, Sizes
from jaxnn.learn.shown import new_bytes
from jaxnn.models import cnn, rnn, transformer
from jaxnn.models.transformer_params import GATED
from jaxnn.ops.fast.attention import RUN
from jaxnn.ops.fast.linear_cross_entropy import classes_at_once

Terms = dict[str, float]
WIDE = 4  # bytes of a float32
WEIGHTS, SCORES, OUTPUT, UNITS = "layers' weights", "scores", "output layer", "units"
SAVED, LOGITS_AT_ONCE = "saved by the forward", "logits"
LAYER, TABLE = "a layer's gradients", "the table's gradient"


def operations(config: Any, sizes: Sizes) -> Terms:
    """Return the operations of a training step, by what they are of.

    Args:
        config: of the transformer, the recurrent network or the cnn.
        sizes: of the batch.

    Raises:
        TypeError: the configuration is another model's.
    """
    n, t = sizes["batch"], sizes["sequence"]
    if isinstance(config, transformer.Config):
        queries = config.heads * config.per_head
        output = 6.0 * n * t * config.width * config.vocabulary
        scores = 12.0 * n * t * config.layers * t * queries
        weights = transformer_flops(config, n, t) - output - scores
        return {WEIGHTS: weights, SCORES: scores, OUTPUT: output}
    if isinstance(config, rnn.Config):
        inputs = (config.width, *(config.hidden,) * (config.layers - 1))
        cells = sum(4 * config.hidden * (size + config.hidden) for size in inputs)
        output = 6.0 * n * t * config.hidden * config.vocabulary
        return {WEIGHTS: 6.0 * n * t * cells, OUTPUT: output}
    if isinstance(config, cnn.Config):
        return _of_convolutions(config, n)
    raise TypeError(
        f"config is a {type(config).__name__}; operations are counted of the transformer's, rnn's "
        "or cnn's: pass one"
    )


def _of_convolutions(config: cnn.Config, n: int) -> Terms:
    height, width, inputs = config.shape
    first = config.channels[0]
    stem = 4.0 * n * height * width * 9 * inputs * first
    outputs = [channels for channels in config.channels for _ in range(config.blocks)]
    blocks, inputs = 0.0, first
    for channels, stride in zip(outputs, config.strides, strict=True):
        height, width = -(-height // stride), -(-width // stride)
        shortcut = inputs if channels != inputs or stride != 1 else 0
        products = 9 * inputs * channels + 9 * channels**2 + shortcut * channels
        blocks, inputs = blocks + 6.0 * n * height * width * products, channels
    return {"first convolution": stem, "blocks": blocks, OUTPUT: 6.0 * n * inputs * config.classes}


def kept(step: Program, by_autodiff: bool) -> int:
    """Return the bytes that the forward saves beside its inputs; nothing is computed.

    Args:
        step: whose parameters and batch it is of.
        by_autodiff: of `jax.vjp` of the loss, outside jit; else of the hand-written forward.
    """
    found = 0

    def forward(params: Any, batch: Any) -> Any:
        nonlocal found
        if by_autodiff:
            value, pull = jax.vjp(lambda p: step.module.loss(p, batch, step.config), params)
            found = new_bytes((params, batch), pull)
            return value
        value, saved = step.module.loss_fwd(params, batch, step.config)
        found = new_bytes((params, batch), saved)
        return value

    jax.eval_shape(forward, *step.shapes())
    return found


def held(step: Program, sizes: Sizes, form: str) -> Terms:
    """Return the bytes that a step holds at most beside inputs and results, by what they are of."""
    config = step.config
    saved: Terms = {SAVED: float(kept(step, form == AUTODIFF))}
    if not isinstance(config, transformer.Config):
        return saved
    tokens = sizes["batch"] * sizes["sequence"]
    units = (config.hidden or 4 * config.width) * tokens
    gated = config.feed_forward in GATED
    layer: Terms = {
        SCORES: 2.0 * WIDE * sizes["batch"] * config.heads * scores(config, sizes["sequence"]),
        UNITS: float((3 if gated else 2) * WIDE * units),
        LAYER: WIDE * operations(config, sizes)[WEIGHTS] / (6 * tokens * config.layers),
    }
    classes = classes_at_once(tokens, config.vocabulary, config.chunk)
    logits = 1 if classes == config.vocabulary else 2
    loss: Terms = {LOGITS_AT_ONCE: float(logits * WIDE * tokens * classes)}
    if config.tied:
        loss[TABLE] = float(WIDE * config.width * config.vocabulary)
    return saved | max(layer, loss, key=lambda terms: sum(terms.values()))


def scores(config: transformer.Config, t: int) -> int:
    """Return how many scores of one head are held at once: of all runs, or of one block.

    Runs are those of `jaxnn.ops.fast.attention`, which the compiler lays beside one another; blocks
    are in a loop.
    """
    if config.block is not None:
        return config.block * t
    return sum(run * end for run, end in runs(t))


def runs(t: int) -> list[tuple[int, int]]:
    """Return how many queries each run of causal attention has, and how many keys."""
    size = math.ceil(t / max(1, round(math.sqrt(t / RUN))))
    return [(min(start + size, t) - start, min(start + size, t)) for start in range(0, t, size)]
