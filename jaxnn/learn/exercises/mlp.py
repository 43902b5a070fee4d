"""A multilayer perceptron: two linear layers, a ReLU between them, softmax cross-entropy.

params: w_1 (I, H), b_1 (H,), w_2 (H, K), b_2 (K,)
x (N, I): N examples of I features; labels (N,): integers below K
loss: one number, the mean over the examples of -log softmax(relu(x w_1 + b_1) w_2 + b_2)[label]
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.models import mlp
from jaxnn.ops.linear import Linear

LESSON = "mlp"
INPUTS = {
    "params": "w_1 (I, H), b_1 (H,), w_2 (H, K), b_2 (K,)",
    "x": "(N, I)",
    "labels": "(N,) integers",
}
OUTPUT = {"loss": "()"}
HINTS = (
    "Begin at the loss and end at x. Each part of the network has a short backward of its own: "
    "the loss, a linear layer, the ReLU, a linear layer. What one hands back, the next one takes.",
    "The loss with its softmax hands back the probabilities minus the labels as rows with a single "
    "one, over the number of examples; and times dloss.",
    "A linear layer with input a has dw = a.T @ dz, db = dz.sum(0), da = dz @ w.T. The ReLU "
    "lets da through where a is above 0. Labels have no cotangent: return None for them.",
)
GRADES = ("fused",)
BUGS = (
    (
        "/ len(x)",
        "",
        "The loss is a mean over the examples: its gradient has a factor 1/N.",
    ),
    (
        "jnp.where(a > 0, da, 0)",
        "da",
        "The ReLU has a slope of its own: 1 where something came through, 0 elsewhere.",
    ),
    (
        "x.T @ dz",
        "x.T @ da",
        "The first layer's result goes into the ReLU: dz is what stands behind it, not da.",
    ),
)

Saved = tuple[dict[str, Array], Array, Array, Array, Array]


def forward(params: dict[str, Array], x: Array, labels: Array) -> Array:
    """Return the mean cross-entropy."""
    a = jnp.maximum(x @ params["w_1"] + params["b_1"], 0)
    logits = a @ params["w_2"] + params["b_2"]
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, labels[:, None], -1).mean()


def mlp_fwd(params: dict[str, Array], x: Array, labels: Array) -> tuple[Array, Saved]:
    """Return the loss, and what the backward needs."""
    a = jnp.maximum(x @ params["w_1"] + params["b_1"], 0)
    log_p = jax.nn.log_softmax(a @ params["w_2"] + params["b_2"])
    loss = -jnp.take_along_axis(log_p, labels[:, None], -1).mean()
    return loss, (params, x, labels, a, log_p)


def mlp_bwd(saved: Saved, dloss: Array) -> tuple[dict[str, Array], Array, None]:
    """Return the cotangents of params and of x; labels have none."""
    params, x, labels, a, log_p = saved
    q = jax.nn.one_hot(labels, log_p.shape[-1], dtype=log_p.dtype)
    dlogits = dloss * (jnp.exp(log_p) - q) / len(x)
    da = dlogits @ params["w_2"].T
    dz = jnp.where(a > 0, da, 0)
    dparams = {
        "w_1": x.T @ dz,
        "b_1": dz.sum(0),
        "w_2": a.T @ dlogits,
        "b_2": dlogits.sum(0),
    }
    return dparams, dz @ params["w_1"].T, None


def example(key: Array) -> tuple[dict[str, Array], Array, Array]:
    """Draw a network of five features, six hidden units and three classes, and seven examples."""
    shapes = {"w_1": (5, 6), "b_1": (6,), "w_2": (6, 3), "b_2": (3,), "x": (7, 5)}
    keys = jax.random.split(key, len(shapes))
    drawn = {n: jax.random.normal(k, shapes[n]) for n, k in zip(shapes, keys, strict=True)}
    x = drawn.pop("x")
    params = {name: array / 2 for name, array in drawn.items()}
    return params, x, jnp.asarray([2, 0, 1, 2, 1, 0, 2])


def library(params: dict[str, Array], x: Array, labels: Array) -> Array:
    """Return the same, by the library's model."""
    layers = Linear(params["w_1"], params["b_1"]), Linear(params["w_2"], params["b_2"])
    config = mlp.Config(sizes=(x.shape[1], len(params["b_1"]), len(params["b_2"])))
    return mlp.loss(mlp.Params(layers), mlp.Batch(x, labels, None), config)
