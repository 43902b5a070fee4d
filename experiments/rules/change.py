"""How wrong each form of a rule is, in float64: beside the derivative of the plain function."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.rules.rule import Mistake, Rule


def changes(rule: Rule, seed: int = 0) -> dict[Mistake, float]:
    """By how much of a leaf's scale each form's worst entry differs; None is the right form.

    A function of more than one number is weighted by numbers drawn: some cotangent for each.
    """
    forms = (None, *rule.wrong)
    with jax.enable_x64(True):
        inputs = rule.inputs(np.random.default_rng(seed), "float64")
        if rule.door == "gradient":
            # Some are NumPy's: run as they are.
            params, *rest = inputs
            arrays, put = _arrays(params)
            truth = jax.jit(jax.grad(lambda arrays: rule.plain(put(arrays), *rest)))(arrays)
            found = [_arrays(rule.make(form)[1](params, *rest))[0] for form in forms]
        else:
            arrays, put = _arrays(inputs)

            def weighted(made: Any, arrays: Any) -> Any:
                rng = np.random.default_rng(seed + 1)
                outs = jax.tree.leaves(made(*put(arrays), **rule.settings))
                return sum((rng.normal(size=x.shape) * x).sum() for x in outs)

            def all_of_them(arrays: Any) -> Any:
                made = [rule.plain, *map(rule.make, forms)]
                return [jax.grad(lambda arrays, f=f: weighted(f, arrays))(arrays) for f in made]

            # As one program, compiled without optimisation: that takes a tenth of the time.
            options: Any = {"xla_backend_optimization_level": 0}
            truth, *found = jax.jit(all_of_them).lower(arrays).compile(options)(arrays)
    return {form: _changed(its, truth) for form, its in zip(forms, found, strict=True)}


def _changed(found: list[Any], truth: list[Any]) -> float:
    def one(a: Any, b: Any) -> float:
        worst, scale = float(np.abs(a - b).max()), float(np.abs(b).max())
        return np.inf if np.isnan(worst) else worst / scale if scale else np.inf * (worst > 0)

    return max(one(np.asarray(a), np.asarray(b)) for a, b in zip(found, truth, strict=True))


def _arrays(tree: Any) -> tuple[list[Any], Any]:
    """The floating leaves of a tree, and what puts others in their places."""
    leaves, structure = jax.tree.flatten(tree)
    places = [
        i
        for i, leaf in enumerate(leaves)
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    ]

    def put(arrays: list[Any]) -> Any:
        others = dict(zip(places, arrays, strict=True))
        return jax.tree.unflatten(structure, [others.get(i, x) for i, x in enumerate(leaves)])

    return [leaves[i] for i in places], put
