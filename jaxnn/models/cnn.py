"""A residual convolutional classifier of images (He et al., 2016, "Deep residual learning").

    stem      a = relu(norm(conv 3x3(images)))
    block     a = relu(norm(conv 3x3(relu(norm(conv 3x3(a))))) + a)
    head      logits = linear(dropout(mean of a over all positions))

Stages of blocks, each stage of its own width. The first block of every stage but the first halves
height and width (stride 2); a block that changes width or size carries its input past by a 1x1
convolution of the same stride. Convolutions have no bias, for the normalisation takes it away.

With batch normalisation a training batch is normalised by its own statistics; running statistics,
which normalise in evaluation, are leaves of the parameters that no gradient reaches in training.
`update_running` sets them from training data when they are wanted: the statistics of the very
parameters evaluated, not an average over those that training went through (the "precise" batch
normalisation of Wu and Johnson 2021, "Rethinking batch in BatchNorm", section 3).
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import variance_scaling
from jax.sharding import PartitionSpec as P

from jaxnn.checks import (
    check_backward,
    check_batch,
    check_batch_key,
    check_init,
    check_inputs,
    check_kind,
    check_model,
    check_not_empty,
)
from jaxnn.data import KeyedBatch
from jaxnn.explicit import automatic, automatic_gradient
from jaxnn.numerics import is_zero
from jaxnn.op import door
from jaxnn.ops.activations import dropout, relu
from jaxnn.ops.adaptive_pooling import global_average_pool
from jaxnn.ops.batch_norm import Running, batch_norm
from jaxnn.ops.collectives import ONE_DEVICE, Axes
from jaxnn.ops.collectives_doors import check_axes
from jaxnn.ops.convolution import Conv, ConvResiduals, conv2d
from jaxnn.ops.cross_entropy import CrossEntropyResiduals, softmax_cross_entropy
from jaxnn.ops.linear import Linear, LinearResiduals, linear
from jaxnn.ops.normalisation import Normalised, Scale, group_norm
from jaxnn.ops.softmax import softmax
from jaxnn.settings import check_choice, check_depth, check_integer, check_rate, check_sizes

Batch = KeyedBatch  # its key tells training: without one, running statistics normalise


@dataclass(frozen=True)
class Config:
    """What the network is. Hashable and static: a different one is a different program.

    Attributes:
        shape: height, width and channels of an image.
        channels: width of each stage, at least one.
        blocks: residual blocks per stage, at least 1.
        classes: at least 1.
        norm: "batch" or "group".
        groups: of channels under "group" normalisation, a divisor of every width.
        dropout: probability to drop a feature before the head in training, in [0, 1); JAX
            may trace it.
        axes: over which axes of a mesh the examples are spread, of whose whole batch normalisation
            then is; `jaxnn.mesh` sets it.

    Raises:
        ValueError: a setting is outside its range; the message states value, rule and fix.
        TypeError: a setting is of another kind than above.
    """

    shape: tuple[int, int, int] = (8, 8, 1)
    channels: tuple[int, ...] = (32, 64)
    blocks: int = 1
    classes: int = 10
    norm: str = "batch"
    groups: int = 8
    dropout: float = 0.0
    axes: Axes = ONE_DEVICE

    def __post_init__(self) -> None:
        """Check every setting once, here, so that nothing after has to."""
        for name in ("shape", "channels"):
            object.__setattr__(self, name, check_sizes(name, getattr(self, name)))
        for name in ("blocks", "classes", "groups"):
            object.__setattr__(self, name, check_integer(name, getattr(self, name)))
        if len(self.shape) != 3:
            raise ValueError(
                f"shape is {self.shape}; it must be (height, width, channels): (8, 8, 1), say"
            )
        if not self.channels:
            raise ValueError("channels are (); there must be at least one stage: (32, 64), say")
        check_depth("blocks", self.blocks * len(self.channels))
        check_choice("norm", self.norm, ("batch", "group"))
        if self.norm == "group" and any(width % self.groups for width in self.channels):
            raise ValueError(
                f"groups are {self.groups} but channels {self.channels}; groups must divide the "
                "width of every stage: choose a common divisor"
            )
        object.__setattr__(self, "dropout", check_rate("dropout", self.dropout))
        check_kind("axes", self.axes, Axes)

    @property
    def strides(self) -> tuple[int, ...]:
        """The stride of every block, first to last."""
        first = range(len(self.channels))
        return tuple(2 if s and not b else 1 for s in first for b in range(self.blocks))


class Norm(NamedTuple):
    """A normalisation: scale and shift (C,); running statistics (C,), None with groups."""

    affine: Scale
    running: Running | None


class Block(NamedTuple):
    """A residual block; `shortcut` is None where the input is carried past as it is."""

    conv1: Conv
    norm1: Norm
    conv2: Conv
    norm2: Norm
    shortcut: Conv | None


class Params(NamedTuple):
    """The network, first to last. `blocks` are those of all stages in a row."""

    stem: Conv
    norm: Norm
    blocks: tuple[Block, ...]
    head: Linear


# The logical axes of a parameter, by the innermost field that is named here.
AXES = {
    **dict.fromkeys(("stem", "conv1", "conv2", "shortcut"), P(None, None, None, "embed")),
    "head": P("embed", None),
    **dict.fromkeys(("scale", "shift", "mean", "variance", "b"), P(None)),
}
EXAMPLE_CONFIGS = (
    Config(shape=(3, 4, 2), channels=(4, 6), classes=3, dropout=0.3),
    Config(shape=(5, 3, 1), channels=(4,), blocks=2, classes=2, norm="group", groups=2),
)


@door(partial(check_init, kind=Config))
def init_params(key: Array, config: Config) -> Params:
    """Draw convolutions by He's rule and the head from N(0, 1/inputs).

    Scales are 1, shifts 0, statistics 0 and 1; all in JAX's default float dtype.

    Raises:
        TypeError: the key is none of `jax.random`, or the configuration another model's.
    """
    he = variance_scaling(2.0, "fan_in", "normal")
    keys = iter(jax.random.split(key, 2 + 3 * len(config.strides)))

    def conv(side: int, inputs: int, outputs: int) -> Conv:
        return Conv(he(next(keys), (side, side, inputs, outputs)), None)

    def norm(width: int) -> Norm:
        affine = Scale(jnp.ones(width), jnp.zeros(width))
        running = Running(jnp.zeros(width), jnp.ones(width)) if config.norm == "batch" else None
        return Norm(affine, running)

    width = config.channels[0]
    stem, stem_norm = conv(3, config.shape[2], width), norm(width)
    blocks = []
    outputs = [width for width in config.channels for _ in range(config.blocks)]
    for new, stride in zip(outputs, config.strides, strict=True):
        shortcut = conv(1, width, new) if new != width or stride != 1 else None
        blocks.append(Block(conv(3, width, new), norm(new), conv(3, new, new), norm(new), shortcut))
        width = new
    head = variance_scaling(1.0, "fan_in", "normal")(next(keys), (width, config.classes))
    return Params(stem, stem_norm, tuple(blocks), Linear(head, jnp.zeros(config.classes)))


def norm_fwd(
    params: Norm, x: Array, config: Config, training: bool
) -> tuple[tuple[Array, Norm], Normalised]:
    """Return the normalised x, and the parameters: after training with this batch's statistics."""
    residuals: Normalised
    if params.running is None:
        y, residuals = group_norm.fwd(params.affine, x, groups=config.groups)
        return (y, params), residuals
    (y, seen), residuals = batch_norm.fwd(
        params.affine,
        params.running,
        x,
        training=training,
        momentum=1.0,
        axis=config.axes.batch,
    )
    return (y, params._replace(running=seen)), residuals


def norm_bwd(saved: Normalised, dy: Array, config: Config, training: bool) -> tuple[Norm, Array]:
    """Return dnorm and dx. Training does not use the running statistics: their gradient is 0."""
    if config.norm == "group":
        daffine, dx = group_norm.bwd(saved, dy, groups=config.groups)
        return Norm(daffine, None), dx
    unused = jnp.zeros(dy.shape[-1], dy.dtype)
    daffine, drunning, dx = batch_norm.bwd(
        saved,
        (dy, Running(unused, unused)),
        training=training,
        momentum=1.0,
        axis=config.axes.batch,
    )
    return Norm(daffine, drunning), dx


class UnitResiduals(NamedTuple):
    """What a convolution, the norm of its result and the ReLU after it saved."""

    conv: ConvResiduals
    norm: Normalised
    relu: Array


class BlockResiduals(NamedTuple):
    """What both units saved, and the shortcut, None where the input is carried past as it is."""

    first: UnitResiduals
    second: UnitResiduals
    shortcut: ConvResiduals | None


def block_fwd(
    params: Block, x: Array, config: Config, training: bool, stride: int
) -> tuple[tuple[Array, Block], BlockResiduals]:
    """y = relu(norm2(conv2(relu(norm1(conv1(x))))) + shortcut(x)), and parameters as `norm_fwd`."""
    conv1, norm1, conv2, norm2, shortcut = params
    z1, of_conv1 = conv2d.fwd(conv1, x, stride=stride, padding=1)
    (n1, norm1), of_norm1 = norm_fwd(norm1, z1, config, training)
    a1, of_relu1 = relu.fwd(n1)
    z2, of_conv2 = conv2d.fwd(conv2, a1, padding=1)
    (n2, norm2), of_norm2 = norm_fwd(norm2, z2, config, training)
    past, of_shortcut = x, None
    if shortcut is not None:
        past, of_shortcut = conv2d.fwd(shortcut, x, stride=stride, padding=0)
    y, of_relu2 = relu.fwd(n2 + past)
    first = UnitResiduals(of_conv1, of_norm1, of_relu1)
    second = UnitResiduals(of_conv2, of_norm2, of_relu2)
    block = Block(conv1, norm1, conv2, norm2, shortcut)
    return (y, block), BlockResiduals(first, second, of_shortcut)


def block_bwd(
    saved: BlockResiduals, dy: Array, config: Config, training: bool, stride: int
) -> tuple[Block, Array]:
    """Walk the same block, last to first; the two paths' gradients meet in dx."""
    first, second, of_shortcut = saved
    (dsum,) = relu.bwd(second.relu, dy)
    dshortcut, dpast = None, dsum
    if of_shortcut is not None:
        dshortcut, dpast = conv2d.bwd(of_shortcut, dsum, stride=stride, padding=0)
    dnorm2, dz2 = norm_bwd(second.norm, dsum, config, training)
    dconv2, da1 = conv2d.bwd(second.conv, dz2, padding=1)
    (dn1,) = relu.bwd(first.relu, da1)
    dnorm1, dz1 = norm_bwd(first.norm, dn1, config, training)
    dconv1, dx = conv2d.bwd(first.conv, dz1, stride=stride, padding=1)
    return Block(dconv1, dnorm1, dconv2, dnorm2, dshortcut), dx + dpast


class NetworkResiduals(NamedTuple):
    """What each part saved, and what dropout kept of the features, None for all."""

    stem: UnitResiduals
    blocks: tuple[BlockResiduals, ...]
    pool: Array
    kept: Array | None
    head: LinearResiduals


def network_fwd(
    params: Params, inputs: Array, config: Config, key: Array | None, training: bool
) -> tuple[tuple[Array, Params], NetworkResiduals]:
    """Return logits (N, classes), and parameters as `norm_fwd`; a key drops features."""
    images = inputs.reshape(len(inputs), *config.shape)
    z, of_conv = conv2d.fwd(params.stem, images, padding=1)
    (n, stem_norm), of_norm = norm_fwd(params.norm, z, config, training)
    a, of_relu = relu.fwd(n)
    blocks, saved = [], []
    for block, stride in zip(params.blocks, config.strides, strict=True):
        (a, block), of_block = block_fwd(block, a, config, training, stride)
        blocks.append(block)
        saved.append(of_block)
    features, of_pool = global_average_pool.fwd(a)
    kept = None
    if key is not None and not is_zero(config.dropout):
        features, kept = dropout.fwd(features, key, rate=config.dropout)
    logits, of_head = linear.fwd(params.head, features)
    seen = Params(params.stem, stem_norm, tuple(blocks), params.head)
    stem = UnitResiduals(of_conv, of_norm, of_relu)
    return (logits, seen), NetworkResiduals(stem, tuple(saved), of_pool, kept, of_head)


def network_bwd(saved: NetworkResiduals, dlogits: Array, config: Config, training: bool) -> Params:
    """Walk the same network, last to first: the gradient of the parameters."""
    dhead, dfeatures = linear.bwd(saved.head, dlogits)
    if saved.kept is not None:
        dfeatures, _ = dropout.bwd(saved.kept, dfeatures, rate=config.dropout)
    (da,) = global_average_pool.bwd(saved.pool, dfeatures)
    dblocks = []
    for of_block, stride in zip(reversed(saved.blocks), reversed(config.strides), strict=True):
        dblock, da = block_bwd(of_block, da, config, training, stride)
        dblocks.append(dblock)
    (dn,) = relu.bwd(saved.stem.relu, da)
    dnorm, dz = norm_bwd(saved.stem.norm, dn, config, training)
    dstem, _ = conv2d.bwd(saved.stem.conv, dz, padding=1)
    return Params(dstem, dnorm, tuple(reversed(dblocks)), dhead)


def _check(params: Params, inputs: Array, config: Config) -> None:
    """Refuse what `forward` says it raises."""
    dtype = check_model(params, config, Config, init_params)
    check_inputs(inputs, dtype, config.shape, (math.prod(config.shape),))


def _check_variance(inputs: Array, config: Config) -> None:
    """Refuse to train on a single value per channel, which has no variance."""
    # Every stage but the first halves, rounding up; in the last a channel has the fewest values.
    height, width = (-(-side // math.prod(config.strides)) for side in config.shape[:2])
    if config.norm == "batch" and len(inputs) * height * width < 2:
        raise ValueError(
            f"inputs have shape {inputs.shape}, a single value per channel in the last block; "
            "batch normalisation in training needs at least 2 for a variance: pass a larger batch, "
            "or evaluate without a key"
        )


def _check_some(params: Params, inputs: Array, config: Config) -> None:
    """Refuse what `update_running` says it raises."""
    _check(params, inputs, config)
    check_not_empty("inputs", inputs, "the statistics are means over them")
    _check_variance(inputs, config)


def _check_labelled(params: Params, batch: Batch, config: Config) -> None:
    """Refuse what `accuracy` says it raises."""
    check_batch(batch, Batch)
    inputs, targets, _ = Batch(*batch)
    _check(params, inputs, config)
    check_not_empty("inputs", inputs, "the result is a mean over them")
    logits = jax.ShapeDtypeStruct((len(inputs), config.classes), inputs.dtype)
    softmax_cross_entropy.admit((logits, targets), {})


def _check_batch(params: Params, batch: Batch, config: Config) -> None:
    """Refuse what `loss` says it raises."""
    _check_labelled(params, batch, config)
    check_axes(config.axes)
    inputs, _, key = Batch(*batch)
    check_batch_key(key)
    if key is not None:
        _check_variance(inputs, config)


class LossResiduals(NamedTuple):
    """What the network and the loss of its logits saved, and the key, None in evaluation."""

    network: NetworkResiduals
    cross_entropy: CrossEntropyResiduals
    key: Array | None


@door(_check)
def forward(params: Params, inputs: Array, config: Config) -> Array:
    """Return logits (N, classes) in evaluation.

    Raises:
        TypeError: the inputs are not floating, or not of the dtype of the parameters; the
            configuration is none of this model's, or the parameters not of its kind, or not all of
            one floating dtype.
        ValueError: the inputs' shape is neither (N, H, W, C) nor (N, H W C); the parameters are of
            another configuration; or (outside jit) a value is not finite.
    """
    (logits, _), _ = network_fwd(params, inputs, config, None, training=False)
    return logits


@door(_check_batch)
def loss_fwd(params: Params, batch: Batch, config: Config) -> tuple[Array, LossResiduals]:
    """Return the mean cross-entropy, and residuals; raises as `loss`."""
    inputs, targets, key = Batch(*batch)
    (logits, _), network = network_fwd(params, inputs, config, key, training=key is not None)
    value, of_logits = softmax_cross_entropy.fwd(logits, targets)
    return value, LossResiduals(network, of_logits, key)


@door(partial(check_backward, residuals=LossResiduals, kind=Config))
def loss_bwd(saved: LossResiduals, dloss: Array, config: Config) -> Params:
    """Walk back through the cross-entropy, then the network."""
    dlogits, *_ = softmax_cross_entropy.bwd(saved.cross_entropy, dloss)
    return network_bwd(saved.network, dlogits, config, training=saved.key is not None)


@automatic
def loss(params: Params, batch: Batch, config: Config) -> Array:
    """Return the mean cross-entropy over the batch in nats; in training if the batch has a key.

    Plain JAX throughout: `jax.grad(loss)` is the oracle for `manual_grad`.

    Args:
        params: the network.
        batch: a Batch, or a tuple of inputs, targets and perhaps a key: the key tells training,
            without one batch normalisation uses running statistics and nothing is dropped.
        config: what it is.

    Raises:
        TypeError, ValueError: as `forward`; there is no example; the labels do not fit (see
            `jaxnn.ops.cross_entropy`); the key is none of `jax.random`; batch normalisation in
            training meets a single value.
    """
    value, _ = loss_fwd(params, batch, config)
    return value


@automatic_gradient
def manual_value_and_grad(params: Params, batch: Batch, config: Config) -> tuple[Array, Params]:
    """Return the loss and its gradient by hand, from one forward pass; raises as `loss`."""
    value, saved = loss_fwd(params, batch, config)
    return value, loss_bwd(saved, jnp.ones_like(value), config)


def manual_grad(params: Params, batch: Batch, config: Config) -> Params:
    """Return the gradient of `loss` by hand: equals `jax.grad(loss)(params, batch, config)`."""
    _, grads = manual_value_and_grad(params, batch, config)
    return grads


@door(_check_some)
def update_running(params: Params, inputs: Array, config: Config) -> Params:
    """Return the parameters with the running statistics of these inputs, thousands if there are.

    Every layer's are the mean and the unbiased variance over all the inputs at once. With group
    normalisation, the parameters as they are.

    Raises:
        TypeError, ValueError: as `forward`; or there is no example, or one value per channel.
    """
    (_, seen), _ = network_fwd(params, inputs, config, None, training=True)
    return seen


@door(_check)
def probabilities(params: Params, inputs: Array, config: Config) -> Array:
    """Return class probabilities (N, classes) in evaluation; raises as `forward`."""
    p, _ = softmax.fwd(forward(params, inputs, config))
    return p


@door(_check_labelled)
def accuracy(params: Params, batch: Batch, config: Config) -> Array:
    """Return the share of examples, in [0, 1], whose largest logit is the label's, in evaluation.

    Raises:
        TypeError, ValueError: as `loss` in evaluation.
    """
    inputs, labels, _ = Batch(*batch)
    return (forward(params, inputs, config).argmax(-1) == labels).mean()


@door(partial(check_init, kind=Config, function="example_batch"))
def example_batch(key: Array, config: Config) -> Batch:
    """Draw seven flat images in training for verification, one of them all zeros."""
    n, (k_inputs, k_targets, k_dropout) = 7, jax.random.split(key, 3)
    pixels = math.prod(config.shape)
    inputs = jax.random.normal(k_inputs, (n, pixels)).at[0].set(0.0)
    labels = jax.random.permutation(k_targets, jnp.arange(n) % config.classes)
    return Batch(inputs, labels, k_dropout)
