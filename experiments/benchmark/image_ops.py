"""Single ops of images: convolution, pooling and batch norm."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from experiments.benchmark.arms import Case, normal
from experiments.benchmark.ops import op_case
from jaxnn.op import Op
from jaxnn.ops.batch_norm import Running, batch_norm
from jaxnn.ops.convolution import Conv, conv2d
from jaxnn.ops.normalisation import Scale
from jaxnn.ops.pooling import average_pool, max_pool


def conv_case(n: int, stride: int, dtype: Any = jnp.float32) -> Case:
    """A 3x3 convolution with both its gradients."""

    def unfolded(params: Conv, x: Array) -> Array:
        taps = lax.conv_general_dilated_patches(
            x,
            (3, 3),
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # channels first, then the taps
        return taps @ params.w.transpose(2, 0, 1, 3).reshape(-1, params.w.shape[-1])

    return op_case(
        f"3x3, 32 to 64 channels, images {n}x32x32, stride {stride}",
        conv2d,
        lambda: (Conv(normal(0, 3, 3, 32, 64) / 17, None), normal(1, n, 32, 32, 32)),
        lambda torch, inputs, dout: torch.conv(*inputs, dout, stride),
        wrt=(0, 1),
        static={"stride": stride, "padding": 1},
        stronger={"unfolded": unfolded},
        dtype=dtype,
    )


def pool_case(kind: str, n: int) -> Case:
    """Windows of 2x2 side by side."""
    choices: dict[str, tuple[Any, Any, Any]] = {
        "max": (max_pool, jnp.max, lambda x: _windows(x, -jnp.inf, lax.max)),
        "average": (average_pool, jnp.mean, lambda x: _windows(x, 0.0, lax.add) / 4),
    }
    op, reduce, window = choices[kind]

    def reshaped(x: Array) -> Array:
        n, h, w, c = x.shape
        y: Array = reduce(x.reshape(n, h // 2, 2, w // 2, 2, c), axis=(2, 4))
        return y

    return op_case(
        f"2x2, images {n}x32x32x32",
        op,
        lambda: (normal(0, n, 32, 32, 32),),
        lambda torch, inputs, dout: torch.pool(kind, *inputs, dout),
        wrt=(0,),
        stronger={"reduce_window": window, "reshaped": reshaped},
    )


def _windows(x: Array, initial: float, combine: Callable[..., Array]) -> Array:
    y: Array = lax.reduce_window(x, initial, combine, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return y


def batch_norm_case(shape: tuple[int, ...]) -> Case:
    """Batch norm in training."""

    def forward(params: Scale, running: Running, x: Array) -> tuple[Array, Any]:
        (y, _), residuals = batch_norm.fwd(params, running, x, training=True)
        return y, residuals

    def backward(residuals: Any, dy: Array) -> tuple[Any, ...]:
        unused = Running(*jnp.zeros((2, shape[-1])))
        return batch_norm.bwd(residuals, (dy, unused), training=True)

    def draw() -> tuple[Scale, Running, Array]:
        c = shape[-1]
        running = Running(jnp.zeros(c), jnp.ones(c))
        return Scale(normal(0, c), normal(1, c)), running, normal(2, *shape)

    return op_case(
        f"x {shape}, training, running statistics not looked at",
        Op(forward, backward, example=batch_norm.example),
        draw,
        lambda torch, inputs, dout: torch.batch_norm(*inputs, dout),
        wrt=(0, 2),
        stronger={"checkpointed": jax.checkpoint(lambda *inputs: forward(*inputs)[0])},
    )
