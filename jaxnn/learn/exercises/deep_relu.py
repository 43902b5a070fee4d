"""A deep stack of linear layers, with a ReLU after each but the last.

params: w_1 (I, H1), b_1 (H1,), w_2 (H1, H2), b_2 (H2,), ... as many layers as there are
x (N, I): N examples of I features;  y (N, O)

a_0 = x,   z_l = a_{l-1} w_l + b_l,   a_l = max(z_l, 0),   y = z_L
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.models import mlp
from jaxnn.ops.linear import Linear

LESSON = "initialisation"
INPUTS = {"params": "w_1 (I, H1), b_1 (H1,), w_2 (H1, H2), ...", "x": "(N, I)"}
OUTPUT = {"y": "(N, O)"}
HINTS = (
    "Go through the layers from the last to the first, in a loop, and carry one array along: the "
    "cotangent of what the layer gave.",
    "In each layer: the ReLU (which the last one has not), then the linear layer's three "
    "cotangents, of its weights, its biases and its input. That of the input is carried on.",
    "A ReLU lets a cotangent through where its output is above 0. That output is the next layer's "
    "input, which is saved: dz = jnp.where(a > 0, da, 0).",
)
GRADES = ("fused",)
BUGS = (
    (
        "jnp.where(inputs[number] > 0, da, 0)",
        "jnp.where(da > 0, da, 0)",
        "A ReLU's slope is 1 where what went forward is above 0, whatever the cotangent's sign.",
    ),
    (
        "jnp.where(inputs[number] > 0, da, 0)",
        "inputs[number] * da",
        "A ReLU lets the cotangent through as it is, or not at all: its slope is 1 or 0.",
    ),
    (
        "inputs[number - 1].T @ dz",
        "inputs[number - 1].T @ da",
        "The linear layer stands before the ReLU: its cotangents are made of dz, not of da.",
    ),
)


def forward(params: dict[str, Array], x: Array) -> Array:
    """Run all layers, first to last."""
    depth = len(params) // 2
    a = x
    for number in range(1, depth):
        a = jnp.maximum(a @ params[f"w_{number}"] + params[f"b_{number}"], 0)
    return a @ params[f"w_{depth}"] + params[f"b_{depth}"]


def deep_relu_fwd(
    params: dict[str, Array], x: Array
) -> tuple[Array, tuple[dict[str, Array], list[Array]]]:
    """Return y; saved are the parameters and the input of every layer, in order."""
    depth = len(params) // 2
    inputs = [x]
    for number in range(1, depth):
        z = inputs[-1] @ params[f"w_{number}"] + params[f"b_{number}"]
        inputs.append(jnp.maximum(z, 0))
    return inputs[-1] @ params[f"w_{depth}"] + params[f"b_{depth}"], (params, inputs)


def deep_relu_bwd(
    saved: tuple[dict[str, Array], list[Array]], dy: Array
) -> tuple[dict[str, Array], Array]:
    """Return the cotangents of params and of x."""
    params, inputs = saved
    depth = len(inputs)
    dparams = {}
    da = dy
    for number in range(depth, 0, -1):
        dz = da if number == depth else jnp.where(inputs[number] > 0, da, 0)
        dparams[f"w_{number}"] = inputs[number - 1].T @ dz
        dparams[f"b_{number}"] = dz.sum(0)
        da = dz @ params[f"w_{number}"].T
    return dparams, da


def example(key: Array) -> tuple[dict[str, Array], Array]:
    """Draw three layers of small weights, biases around 0.5, and seven examples."""
    weights = {"w_1": (5, 6), "w_2": (6, 4), "w_3": (4, 3)}
    shapes = {"x": (7, 5), **weights, "b_1": (6,), "b_2": (4,), "b_3": (3,)}
    keys = jax.random.split(key, len(shapes))
    drawn = {n: jax.random.normal(k, shapes[n]) for n, k in zip(shapes, keys, strict=True)}
    x = drawn.pop("x")
    for name, array in drawn.items():
        weight = name in weights
        drawn[name] = 0.7 * len(array) ** -0.5 * array if weight else 0.3 * array + 0.5
    return drawn, x


def library(params: dict[str, Array], x: Array) -> Array:
    """Return the same, by the library's model."""
    numbers = range(1, len(params) // 2 + 1)
    layers = tuple(Linear(params[f"w_{n}"], params[f"b_{n}"]) for n in numbers)
    sizes = (x.shape[1], *(layer.w.shape[1] for layer in layers))
    return mlp.forward(mlp.Params(layers), x, mlp.Config(sizes=sizes))
