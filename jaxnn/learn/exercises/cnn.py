"""A convolutional network: convolution, ReLU, max pool, linear layer, softmax cross-entropy.

params: kernel (KH, KW, C, O), shift (O,);  w (PH PW O, K), b (K,)
x (N, H, W, C): N images of C channels; labels (N,): integers below K
z (N, H - KH + 1, W - KW + 1, O): every place where the kernel fits, then a ReLU
pooled (N, PH, PW, O): the largest of every two by two places;  loss: one number, a mean over N
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn import ops

LESSON = "convolution"
INPUTS = {
    "params": "kernel (KH, KW, C, O), shift (O,), w (PH PW O, K), b (K,)",
    "x": "(N, H, W, C)",
    "labels": "(N,) integers",
}
OUTPUT = {"loss": "()"}
HINTS = (
    "Begin at the loss and go back part by part: cross-entropy, linear layer, pool, ReLU, "
    "convolution. A reshape goes back by the reshape to what was there before.",
    "The pool hands the cotangent of each window to the place that was its largest: compare every "
    "place with the largest of its window. The ReLU lets it through where that is above 0.",
    "Go over the kernel's places i, k: there the images x[:, i : i + rows, k : k + columns] met "
    "kernel[i, k]. Its cotangent is the sum over images and places of their product with dz; dx "
    "gets dz @ kernel[i, k].T added at those places. shift (O,) met every place of every image.",
)
GRADES = ("fused",)
BUGS = (
    (
        "jnp.where(is_largest & (a > 0), dwindows, 0)",
        "jnp.where(a > 0, dwindows, 0)",
        "Only the largest of a window was handed on, so only it has a cotangent.",
    ),
    (
        ".add(dz @",
        ".set(dz @",
        "Places of the kernel overlap on the image: what they hand back is added, not replaced.",
    ),
    (
        "dz.sum((0, 1, 2))",
        "dz.mean((0, 1, 2))",
        "The shift was added at every place of every image: its cotangent is a sum over them.",
    ),
)

Saved = tuple[dict[str, Array], Array, Array, Array, Array, Array]


def forward(params: dict[str, Array], x: Array, labels: Array) -> Array:
    """Return the mean cross-entropy."""
    return cnn_fwd(params, x, labels)[0]


def cnn_fwd(params: dict[str, Array], x: Array, labels: Array) -> tuple[Array, Saved]:
    """Return the loss, and what the backward needs."""
    kernel = params["kernel"]
    height, width, _, channels = kernel.shape
    n, rows, columns = len(x), x.shape[1] - height + 1, x.shape[2] - width + 1
    z = jnp.zeros((n, rows, columns, channels), x.dtype)
    for i in range(height):
        for k in range(width):
            z = z + x[:, i : i + rows, k : k + columns] @ kernel[i, k]
    a = jnp.maximum(z + params["shift"], 0)
    windows = a.reshape(n, rows // 2, 2, columns // 2, 2, channels)
    pooled = windows.max((2, 4), keepdims=True)
    logits = pooled.reshape(n, -1) @ params["w"] + params["b"]
    log_p = jax.nn.log_softmax(logits)
    loss = -jnp.take_along_axis(log_p, labels[:, None], -1).mean()
    return loss, (params, x, labels, a, pooled, log_p)


def cnn_bwd(saved: Saved, dloss: Array) -> tuple[dict[str, Array], Array, None]:
    """Return the cotangents of params and of x; labels have none."""
    params, x, labels, a, pooled, log_p = saved
    n, rows, columns, channels = a.shape
    q = jax.nn.one_hot(labels, log_p.shape[-1], dtype=log_p.dtype)
    dlogits = dloss * (jnp.exp(log_p) - q) / n
    dpooled = (dlogits @ params["w"].T).reshape(pooled.shape)
    by_windows = n, rows // 2, 2, columns // 2, 2, channels
    is_largest = (a.reshape(by_windows) == pooled).reshape(a.shape)
    dwindows = jnp.broadcast_to(dpooled, by_windows).reshape(a.shape)
    dz = jnp.where(is_largest & (a > 0), dwindows, 0)
    kernel = params["kernel"]
    dkernel, dx = jnp.zeros_like(kernel), jnp.zeros_like(x)
    for i in range(len(kernel)):
        for k in range(kernel.shape[1]):
            here = (slice(None), slice(i, i + rows), slice(k, k + columns))
            dkernel = dkernel.at[i, k].set(jnp.einsum("nrsc,nrso->co", x[here], dz))
            dx = dx.at[here].add(dz @ kernel[i, k].T)
    dparams = {
        "kernel": dkernel,
        "shift": dz.sum((0, 1, 2)),
        "w": pooled.reshape(n, -1).T @ dlogits,
        "b": dlogits.sum(0),
    }
    return dparams, dx, None


def example(key: Array) -> tuple[dict[str, Array], Array, Array]:
    """Draw a network and three images of six by five places and two channels."""
    shapes = {"kernel": (3, 2, 2, 5), "shift": (5,), "w": (20, 4), "b": (4,), "x": (3, 6, 5, 2)}
    keys = jax.random.split(key, len(shapes))
    drawn = {n: jax.random.normal(k, shapes[n]) for n, k in zip(shapes, keys, strict=True)}
    x = drawn.pop("x")
    params = {name: array / 2 for name, array in drawn.items()}
    return params, x, jnp.asarray([2, 0, 3])


def library(params: dict[str, Array], x: Array, labels: Array) -> Array:
    """Return the same, by the library's ops."""
    z = ops.convolution.conv2d(ops.convolution.Conv(params["kernel"], params["shift"]), x)
    pooled = ops.pooling.max_pool(ops.activations.relu(z), window=2, stride=2)
    head = ops.linear.Linear(params["w"], params["b"])
    logits = ops.linear.linear(head, pooled.reshape(len(x), -1))
    loss: Array = ops.cross_entropy.softmax_cross_entropy(logits, labels)
    return loss
