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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import variance_scaling

from jaxnn.checks import check_key
from jaxnn.models.inputs import check_dropout, check_inputs, check_params, unpack
from jaxnn.ops.activations import relu
from jaxnn.ops.batch_norm import Running, batch_norm
from jaxnn.ops.convolution import Conv, conv2d
from jaxnn.ops.cross_entropy import check_labels, softmax_cross_entropy
from jaxnn.ops.dropout import drop_bwd, drop_fwd
from jaxnn.ops.linear import Linear, linear
from jaxnn.ops.normalisation import Scale, group_norm
from jaxnn.ops.pooling import global_average_pool
from jaxnn.ops.softmax import softmax
from jaxnn.settings import check_choice, check_integer, check_sizes


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
        dropout: probability to drop a feature before the head in training, in [0, 1).

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
        check_choice("norm", self.norm, ("batch", "group"))
        if self.norm == "group" and any(width % self.groups for width in self.channels):
            raise ValueError(
                f"groups are {self.groups} but channels {self.channels}; groups must divide the "
                "width of every stage: choose a common divisor"
            )
        object.__setattr__(self, "dropout", check_dropout(self.dropout))

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


class Batch(NamedTuple):
    """Images (N, H, W, C) or flat (N, H W C), labels (N,), and in training a key for dropout.

    The key is what tells training: without one, batch normalisation uses running statistics.
    """

    inputs: Array
    targets: Array
    key: Array | None = None


EXAMPLE_CONFIGS = (
    Config(shape=(3, 4, 2), channels=(4, 6), classes=3, dropout=0.3),
    Config(shape=(5, 3, 1), channels=(4,), blocks=2, classes=2, norm="group", groups=2),
)


def init_params(key: Array, config: Config) -> Params:
    """Convolutions by He's rule, the head N(0, 1/inputs), scales 1, shifts 0, statistics 0 and 1.

    All in JAX's default float dtype.

    Raises:
        TypeError: the key is none of `jax.random`.
    """
    check_key("init_params: key", key)
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
) -> tuple[tuple[Array, Norm], Any]:
    """The normalised x, and the parameters with, after training, the statistics of this batch."""
    if params.running is None:
        y, residuals = group_norm.fwd(params.affine, x, groups=config.groups)
        return (y, params), residuals
    (y, seen), residuals = batch_norm.fwd(
        params.affine, params.running, x, training=training, momentum=1.0
    )
    return (y, params._replace(running=seen)), residuals


def norm_bwd(residuals: Any, dy: Array, config: Config, training: bool) -> tuple[Norm, Array]:
    """dnorm and dx. In training the running statistics are not used: their gradient is 0."""
    if config.norm == "group":
        daffine, dx = group_norm.bwd(residuals, dy, groups=config.groups)
        return Norm(daffine, None), dx
    unused = jnp.zeros(dy.shape[-1], dy.dtype)
    daffine, drunning, dx = batch_norm.bwd(
        residuals, (dy, Running(unused, unused)), training=training, momentum=1.0
    )
    return Norm(daffine, drunning), dx


def block_fwd(
    params: Block, x: Array, config: Config, training: bool, stride: int
) -> tuple[tuple[Array, Block], Any]:
    """y = relu(norm2(conv2(relu(norm1(conv1(x))))) + shortcut(x)), and parameters as `norm_fwd`."""
    conv1, norm1, conv2, norm2, shortcut = params
    z1, conv1_residuals = conv2d.fwd(conv1, x, stride=stride, padding=1)
    (n1, norm1), norm1_residuals = norm_fwd(norm1, z1, config, training)
    a1, relu1_residuals = relu.fwd(n1)
    z2, conv2_residuals = conv2d.fwd(conv2, a1, padding=1)
    (n2, norm2), norm2_residuals = norm_fwd(norm2, z2, config, training)
    past, shortcut_residuals = x, None
    if shortcut is not None:
        past, shortcut_residuals = conv2d.fwd(shortcut, x, stride=stride, padding=0)
    y, relu2_residuals = relu.fwd(n2 + past)
    first = conv1_residuals, norm1_residuals, relu1_residuals
    second = conv2_residuals, norm2_residuals, relu2_residuals
    return (y, Block(conv1, norm1, conv2, norm2, shortcut)), (first, second, shortcut_residuals)


def block_bwd(
    residuals: Any, dy: Array, config: Config, training: bool, stride: int
) -> tuple[Block, Array]:
    """The same block, last to first; the two paths' gradients meet in dx."""
    first, second, shortcut_residuals = residuals
    conv1_residuals, norm1_residuals, relu1_residuals = first
    conv2_residuals, norm2_residuals, relu2_residuals = second
    (dsum,) = relu.bwd(relu2_residuals, dy)
    dshortcut, dpast = None, dsum
    if shortcut_residuals is not None:
        dshortcut, dpast = conv2d.bwd(shortcut_residuals, dsum, stride=stride, padding=0)
    dnorm2, dz2 = norm_bwd(norm2_residuals, dsum, config, training)
    dconv2, da1 = conv2d.bwd(conv2_residuals, dz2, padding=1)
    (dn1,) = relu.bwd(relu1_residuals, da1)
    dnorm1, dz1 = norm_bwd(norm1_residuals, dn1, config, training)
    dconv1, dx = conv2d.bwd(conv1_residuals, dz1, stride=stride, padding=1)
    return Block(dconv1, dnorm1, dconv2, dnorm2, dshortcut), dx + dpast


def network_fwd(
    params: Params, inputs: Array, config: Config, key: Array | None, training: bool
) -> tuple[tuple[Array, Params], Any]:
    """Logits (N, classes), and parameters as `norm_fwd`; features are dropped if there is a key."""
    images = inputs.reshape(-1, *config.shape)
    z, stem_residuals = conv2d.fwd(params.stem, images, padding=1)
    (n, stem_norm), norm_residuals = norm_fwd(params.norm, z, config, training)
    a, relu_residuals = relu.fwd(n)
    blocks, saved = [], []
    for block, stride in zip(params.blocks, config.strides, strict=True):
        (a, block), block_residuals = block_fwd(block, a, config, training, stride)
        blocks.append(block)
        saved.append(block_residuals)
    features, pool_residuals = global_average_pool.fwd(a)
    features, kept = drop_fwd(features, key, config.dropout)
    logits, head_residuals = linear.fwd(params.head, features)
    seen = Params(params.stem, stem_norm, tuple(blocks), params.head)
    stem = stem_residuals, norm_residuals, relu_residuals
    head = pool_residuals, kept, head_residuals
    return (logits, seen), (stem, saved, head)


def network_bwd(residuals: Any, dlogits: Array, config: Config, training: bool) -> Params:
    """The same walk, last to first: the gradient of the parameters."""
    stem, saved, head = residuals
    stem_residuals, norm_residuals, relu_residuals = stem
    pool_residuals, kept, head_residuals = head
    dhead, dfeatures = linear.bwd(head_residuals, dlogits)
    dfeatures = drop_bwd(kept, dfeatures, config.dropout)
    (da,) = global_average_pool.bwd(pool_residuals, dfeatures)
    dblocks = []
    for block_residuals, stride in zip(reversed(saved), reversed(config.strides), strict=True):
        dblock, da = block_bwd(block_residuals, da, config, training, stride)
        dblocks.append(dblock)
    (dn,) = relu.bwd(relu_residuals, da)
    dnorm, dz = norm_bwd(norm_residuals, dn, config, training)
    dstem, _ = conv2d.bwd(stem_residuals, dz, padding=1)
    return Params(dstem, dnorm, tuple(reversed(dblocks)), dhead)


def forward(params: Params, inputs: Array, config: Config) -> Array:
    """Logits (N, classes) in evaluation.

    Raises:
        TypeError: the inputs are not floating, or not of the dtype of the parameters.
        ValueError: their shape is neither (N, H, W, C) nor (N, H W C) with N at least 1; the
            parameters are of another configuration; or (outside jit) a value is not finite.
    """
    _check(params, inputs, config)
    (logits, _), _ = network_fwd(params, inputs, config, None, training=False)
    return logits


def loss(params: Params, batch: Any, config: Config) -> Array:
    """Mean cross-entropy over the batch in nats; in training if the batch has a key.

    Plain JAX throughout: `jax.grad(loss)` is the oracle for `manual_grad`.

    Args:
        params: the network.
        batch: a Batch, or a pair of inputs and targets to evaluate on.
        config: what it is.

    Raises:
        TypeError, ValueError: as `forward`; the labels do not fit (see
            `jaxnn.ops.cross_entropy`); batch normalisation in training meets a single value.
    """
    inputs, targets, key = unpack(batch, Batch)
    _check(params, inputs, config)
    (logits, _), _ = network_fwd(params, inputs, config, key, training=key is not None)
    return softmax_cross_entropy.fwd(logits, targets)[0]


def manual_value_and_grad(params: Params, batch: Any, config: Config) -> tuple[Array, Params]:
    """The loss and its gradient by hand, from one forward pass; raises as `loss`."""
    inputs, targets, key = unpack(batch, Batch)
    _check(params, inputs, config)
    training = key is not None
    (logits, _), network_residuals = network_fwd(params, inputs, config, key, training)
    value, loss_residuals = softmax_cross_entropy.fwd(logits, targets)

    dlogits, _ = softmax_cross_entropy.bwd(loss_residuals, jnp.ones_like(value))
    return value, network_bwd(network_residuals, dlogits, config, training)


def manual_grad(params: Params, batch: Any, config: Config) -> Params:
    """The gradient of `loss` by hand: equals `jax.grad(loss)(params, batch, config)`."""
    _, grads = manual_value_and_grad(params, batch, config)
    return grads


def update_running(params: Params, inputs: Array, config: Config) -> Params:
    """The parameters with the running statistics of these inputs, thousands if there are.

    Every layer's are the mean and the unbiased variance over all the inputs at once. With group
    normalisation, the parameters as they are. Raises as `forward`.
    """
    _check(params, inputs, config)
    (_, seen), _ = network_fwd(params, inputs, config, None, training=True)
    return seen


def probabilities(params: Params, inputs: Array, config: Config) -> Array:
    """Class probabilities (N, classes) in evaluation; raises as `forward`."""
    return softmax.fwd(forward(params, inputs, config))[0]


def accuracy(params: Params, batch: Any, config: Config) -> Array:
    """Share of examples, in [0, 1], whose largest logit in evaluation is the label's.

    Raises:
        TypeError, ValueError: as `loss`.
    """
    inputs, labels, _ = unpack(batch, Batch)
    logits = forward(params, inputs, config)
    check_labels(logits, labels)
    return (logits.argmax(-1) == labels).mean()


def example_batch(key: Array, config: Config) -> Batch:
    """Seven flat images in training for verification, one of them all zeros."""
    n, (k_inputs, k_targets, k_dropout) = 7, jax.random.split(key, 3)
    pixels = math.prod(config.shape)
    inputs = jax.random.normal(k_inputs, (n, pixels)).at[0].set(0.0)
    labels = jax.random.permutation(k_targets, jnp.arange(n) % config.classes)
    return Batch(inputs, labels, k_dropout)


def _check(params: Params, inputs: Array, config: Config) -> None:
    """Refuse parameters of another configuration, and inputs that are not its images."""
    check_params(params, init_params, config)
    check_inputs(inputs, params.head.w.dtype, config.shape, (math.prod(config.shape),))
