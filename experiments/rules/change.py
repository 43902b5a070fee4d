"""How wrong a rule is: its derivative beside that of the plain function, in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.rules.rule import Mistake, Rule


def gradients(rule: Rule, mistake: Mistake, *, plain: bool = False, seed: int = 0) -> list[Any]:
    """The gradient of every floating input by a rule, or of the plain function, in float64.

    A function of more than one number is weighted by numbers drawn: some cotangent for each.
    """
    with jax.enable_x64(True):
        inputs = rule.inputs(np.random.default_rng(seed), "float64")
        made: Any = rule.plain if plain else rule.make(mistake)
        if rule.door == "gradient":
            params, *rest = inputs
            if not plain:
                return _leaves(made[1](params, *rest))
            arrays, put = _arrays(params)
            return _leaves(jax.grad(lambda arrays: made(put(arrays), *rest))(arrays))
        arrays, put = _arrays(inputs)
        rng = np.random.default_rng(seed + 1)

        def weighted(out: Any) -> Any:
            return sum((rng.normal(size=x.shape) * x).sum() for x in jax.tree.leaves(out))

        return _leaves(
            jax.grad(lambda arrays: weighted(made(*put(arrays), **rule.settings)))(arrays)
        )


def changed(found: list[Any], truth: list[Any]) -> float:
    """By how much of a leaf's scale its worst entry differs."""

    def one(a: Any, b: Any) -> float:
        worst, scale = float(np.abs(a - b).max()), float(np.abs(b).max())
        return np.inf if np.isnan(worst) else worst / scale if scale else np.inf * (worst > 0)

    return max(one(a, b) for a, b in zip(found, truth, strict=True))


def _is_float(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _leaves(tree: Any) -> list[Any]:
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree) if _is_float(leaf)]


def _arrays(tree: Any) -> tuple[list[Any], Any]:
    """The floating leaves of a tree, and what puts others in their places."""
    leaves, structure = jax.tree.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]

    def put(arrays: list[Any]) -> Any:
        others = dict(zip(places, arrays, strict=True))
        return jax.tree.unflatten(structure, [others.get(i, x) for i, x in enumerate(leaves)])

    return [leaves[i] for i in places], put
