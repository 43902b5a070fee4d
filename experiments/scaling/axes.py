"""What is measured: the models, the axes that each can grow along, and the sizes along them.

Along an axis one size grows, the rest stay at a base that lets it matter: one sequence and a narrow
model where the sequence grows, so that attention's T^2 is seen beside the weights' T. Sizes are of

    layers          of a transformer or a recurrent network; residual blocks per stage of the cnn
    width           D; hidden units of a recurrent network; channels of the cnn's first stage
    sequence        T; of the cnn the side of its images
    vocabulary      V
    batch           N
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from experiments.benchmark.arms import AUTODIFF, BY_HAND, integers, named, normal
from jaxnn import data
from jaxnn.models import cnn, rnn, transformer
from jaxnn.models.transformer import gpt2, llama

BLOCK, CHUNK = 64, 512
# What the hand-written gradient can be told to save memory by.
SAVERS: dict[str, dict[str, Any]] = {
    f"block {BLOCK}": {"block": BLOCK},
    "recompute": {"recompute": True},
    f"chunk {CHUNK}": {"chunk": CHUNK},
}
BOTH = (BY_HAND, AUTODIFF)
Sizes = Mapping[str, int]


class Axis(NamedTuple):
    """One size that grows.

    Attributes:
        sizes: how large it is, from small to large.
        base: the other sizes.
        savers: of `SAVERS`, those that change an exponent along it.
    """

    sizes: tuple[int, ...]
    base: Sizes
    savers: tuple[str, ...] = ()

    @property
    def forms(self) -> tuple[str, ...]:
        """All that is measured: by hand, by `jax.grad`, and by hand with each saver."""
        return (*BOTH, *(named(BY_HAND, saver) for saver in self.savers))


class Model(NamedTuple):
    """A model and what may grow.

    Attributes:
        module: with the model functions.
        configure: a configuration from sizes.
        draw: a batch from sizes.
        axes: by name.
        title: of its picture.
    """

    module: Any
    configure: Callable[[Sizes], Any]
    draw: Callable[[Sizes], Any]
    axes: dict[str, Axis]
    title: str


class Program(NamedTuple):
    """A step to compile: (parameters, batch) -> (loss, gradient), and what it is of."""

    step: Callable[..., Any]
    module: Any
    config: Any
    draw: Callable[[], tuple[Any, Any]]

    def shapes(self) -> tuple[Any, Any]:
        """The parameters' and the batch's shapes, without any of them drawn."""
        shapes: tuple[Any, Any] = jax.eval_shape(self.draw)
        return shapes


def program(model: Model, sizes: Sizes, form: str) -> Program:
    """Return the step of one form at one point."""
    saver = form.partition(", ")[2]
    config = model.configure(sizes)
    if saver:
        config = dataclasses.replace(config, **SAVERS[saver])
    module = model.module
    if form == AUTODIFF:
        step = jax.value_and_grad(lambda params, batch: module.loss(params, batch, config))
    else:
        step = lambda params, batch: module.manual_value_and_grad(params, batch, config)  # noqa: E731

    def draw() -> tuple[Any, Any]:
        params = jax.jit(module.init_params, static_argnums=1)(jax.random.key(0), config)
        return params, model.draw(sizes)

    return Program(step, module, config, draw)


def tokens_of(sizes: Sizes) -> data.KeyedBatch:
    """Sequences of tokens, each with the next as its target."""
    tokens = integers(1, sizes["vocabulary"], sizes["batch"], sizes["sequence"] + 1)
    return data.KeyedBatch(tokens[:, :-1], tokens[:, 1:])


def _images(sizes: Sizes) -> data.KeyedBatch:
    n, side = sizes["batch"], sizes["sequence"]
    return data.KeyedBatch(normal(1, n, side, side, 3), integers(2, 10, n), jax.random.key(3))


def _of_transformer(kind: Callable[..., Any], **settings: Any) -> Callable[[Sizes], Any]:
    return lambda sizes: kind(
        vocabulary=sizes["vocabulary"],
        positions=sizes["sequence"],
        layers=sizes["layers"],
        width=sizes["width"],
        **{"heads": 4} | settings,
    )


def _lstm(sizes: Sizes) -> rnn.Config:
    return rnn.Config(
        vocabulary=sizes["vocabulary"],
        width=sizes["width"],
        hidden=sizes["width"],
        layers=sizes["layers"],
    )


def _cnn(sizes: Sizes) -> cnn.Config:
    side, width = sizes["sequence"], sizes["width"]
    return cnn.Config(shape=(side, side, 3), channels=(width, 2 * width), blocks=sizes["layers"])


def doubled(first: int, times: int) -> tuple[int, ...]:
    """So many sizes, each twice the one before."""
    return tuple(first * 2**i for i in range(times))


def _base(n: int, t: int, layers: int, width: int, vocabulary: int = 128) -> Sizes:
    sizes = {"layers": layers, "width": width, "sequence": t, "batch": n}
    return sizes | ({"vocabulary": vocabulary} if vocabulary else {})


OF_TRANSFORMERS = {
    "layers": Axis(doubled(2, 5), _base(2, 128, 2, 64), ("recompute",)),
    "width": Axis(doubled(32, 5), _base(2, 64, 2, 32)),
    "sequence": Axis(doubled(64, 6), _base(1, 64, 2, 64), (f"block {BLOCK}",)),
    "vocabulary": Axis(doubled(512, 6), _base(4, 128, 2, 64), (f"chunk {CHUNK}",)),
    "batch": Axis(doubled(1, 5), _base(1, 64, 2, 64)),
}
MODELS = {
    "gpt": Model(transformer, _of_transformer(gpt2), tokens_of, OF_TRANSFORMERS, "GPT"),
    "llama": Model(
        transformer,
        _of_transformer(llama, kv_heads=2),
        tokens_of,
        {"sequence": Axis(doubled(128, 5), _base(1, 128, 2, 64))},
        "Llama",
    ),
    "lstm": Model(
        rnn,
        _lstm,
        tokens_of,
        {
            "layers": Axis(doubled(1, 4), _base(8, 32, 1, 64)),
            "width": Axis(doubled(32, 5), _base(8, 32, 1, 32)),
            "sequence": Axis(doubled(16, 5), _base(8, 16, 1, 64)),
            "batch": Axis(doubled(1, 5), _base(1, 32, 1, 64)),
        },
        "LSTM",
    ),
    "cnn": Model(
        cnn,
        _cnn,
        _images,
        {
            "layers": Axis(doubled(1, 3), _base(8, 16, 1, 16, 0)),
            "width": Axis(doubled(8, 4), _base(8, 16, 1, 8, 0)),
            "sequence": Axis(doubled(8, 4), _base(4, 8, 1, 16, 0)),
            "batch": Axis(doubled(2, 5), _base(2, 16, 1, 16, 0)),
        },
        "CNN",
    ),
}  # fmt: skip


def point(axis: Axis, name: str, size: int) -> dict[str, int]:
    """Return all sizes of a point on an axis."""
    return {**axis.base, name: size}
