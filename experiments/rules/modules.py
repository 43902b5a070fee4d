"""Rules and gradients of Equinox's and Flax's modules; either package is imported when needed."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from experiments.rules.rule import Generator, Mistake, Rule, normal

SLOPE = 0.2


def filtered(mistake: Mistake) -> Any:
    """A gate of two arrays in a tuple, its rule by `eqx.filter_custom_vjp`."""
    import equinox as eqx

    @eqx.filter_custom_vjp  # type: ignore[untyped-decorator, unused-ignore]
    def f(pair: Any) -> Array:
        return jnp.tanh(pair[0]) * jax.nn.sigmoid(pair[1])

    @f.def_fwd  # type: ignore[untyped-decorator, unused-ignore]
    def f_fwd(perturbed: Any, pair: Any) -> Any:
        return f(pair), None

    @f.def_bwd  # type: ignore[untyped-decorator, unused-ignore]
    def f_bwd(_: None, dy: Array, perturbed: Any, pair: Any) -> Any:
        t, s = jnp.tanh(pair[0]), jax.nn.sigmoid(pair[1])
        slope = 1 - t if mistake == "square forgotten" else 1 - t * t
        dx, dgate = dy * s * slope, dy * t * s * (1 - s)
        if mistake == "gate left out":
            dx = dy * slope
        return (dgate, dx) if mistake == "pair swapped" else (dx, dgate)

    return f


def _pair(rng: Generator, dtype: Any) -> tuple[Any, ...]:
    return ((normal(rng, dtype, 5, 3), normal(rng, dtype, 5, 3)),)


def layers(mistake: Mistake) -> Any:
    """A loss of an Equinox MLP of one hidden layer, and its gradient by hand, as an MLP."""
    import equinox as eqx

    def loss(mlp: Any, x: Array) -> Any:
        return (jax.vmap(mlp)(x) ** 2).sum()

    def gradient(mlp: Any, x: Array) -> Any:
        first, last = mlp.layers
        z = x @ first.weight.T + first.bias
        h = jax.nn.relu(z)
        y = h @ last.weight.T + last.bias
        dy = (1 if mistake == "the 2 of the square forgotten" else 2) * y
        dz = dy @ last.weight * (1 if mistake == "mask ignored" else z > 0)
        db = dz[0] if mistake == "bias of one example" else dz.sum(0)

        def where(m: Any) -> Any:
            return m.layers[0].weight, m.layers[0].bias, m.layers[1].weight, m.layers[1].bias

        # Beside its four arrays an MLP has functions for leaves, whose gradient is None.
        arrays = eqx.filter(mlp, eqx.is_inexact_array)
        return eqx.tree_at(where, arrays, (dz.T @ x, db, dy.T @ h, dy.sum(0)))

    return loss, gradient


def _mlp_and_batch(rng: Generator, dtype: Any) -> tuple[Any, ...]:
    import equinox as eqx

    mlp = eqx.nn.MLP(3, 2, 6, 1, key=jax.random.key(int(rng.integers(100))))
    mlp = jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_array(leaf) else leaf, mlp)
    return mlp, normal(rng, dtype, 5, 3)


def _mlp_loss(mlp: Any, x: Array) -> Any:
    return (jax.vmap(mlp)(x) ** 2).sum()


def inside_nnx(mistake: Mistake) -> Any:
    """A loss of a Flax module whose activation has a rule, and its gradient by `nnx.grad`."""
    from flax import nnx

    @jax.custom_vjp
    def leaky(x: Array) -> Array:
        return jnp.where(x > 0, x, SLOPE * x)

    def leaky_fwd(x: Array) -> Any:
        return leaky(x), x

    def leaky_bwd(x: Array, dy: Array) -> Any:
        if mistake == "mask inverted":
            return (jnp.where(x > 0, SLOPE * dy, dy),)
        if mistake == "mask ignored":
            return (dy,)
        negative = -SLOPE if mistake == "slope negative" else SLOPE
        return (jnp.where(x > 0, dy, negative * dy),)

    leaky.defvjp(leaky_fwd, leaky_bwd)

    def loss(layer: Any, x: Array) -> Array:
        return (leaky(layer(x)) ** 2).mean()

    return loss, nnx.grad(loss)


def _nnx_and_batch(rng: Generator, dtype: Any) -> tuple[Any, ...]:
    from flax import nnx

    layer = nnx.Linear(3, 4, param_dtype=dtype, rngs=nnx.Rngs(int(rng.integers(100))))
    return layer, normal(rng, dtype, 5, 3)


def _nnx_loss(layer: Any, x: Array) -> Array:
    z = x @ layer.kernel[...] + layer.bias[...]
    return (jnp.where(z > 0, z, SLOPE * z) ** 2).mean()


RULES = (
    Rule(
        "Equinox, filter_custom_vjp",
        filtered,
        lambda pair: jnp.tanh(pair[0]) / (1 + jnp.exp(-pair[1])),
        _pair,
        {
            "square forgotten": "wrong saved value, wrong derivative",
            "gate left out": "derivative left out, factor",
            "pair swapped": "swapped leaves",
        },
        needs="equinox",
    ),
    Rule(
        "Equinox MLP by hand",
        layers,
        _mlp_loss,
        _mlp_and_batch,
        {
            "the 2 of the square forgotten": "factor",
            "mask ignored": "mask, derivative left out",
            "bias of one example": "not summed",
        },
        door="gradient",
        needs="equinox",
    ),
    Rule(
        "Flax module with a rule inside",
        inside_nnx,
        _nnx_loss,
        _nnx_and_batch,
        {
            "mask inverted": "mask",
            "mask ignored": "mask, derivative left out",
            "slope negative": "sign",
        },
        door="gradient",
        needs="flax",
    ),
)
