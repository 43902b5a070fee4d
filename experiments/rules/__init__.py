"""Derivative rules as people write them, each right and with a few honest mistakes.

The second catalogue of `experiments.verifier_benchmark`: custom_vjp, custom_jvp, custom_gradient,
what Equinox and Flax wrap around them, NumPy's gradients, kernels. A mistake is a string that a
backward compares with, as in `experiments.faulty_layers`; None is the right rule.
"""

from experiments.rules import (
    activations,
    attention,
    kernels,
    linear_algebra,
    losses,
    modules,
    norms,
    numpy_nets,
    recurrences,
    selections,
    solvers,
    surrogates,
)
from experiments.rules.rule import Rule

RULES: tuple[Rule, ...] = (
    *activations.RULES,
    *norms.RULES,
    *losses.RULES,
    *attention.RULES,
    *recurrences.RULES,
    *selections.RULES,
    *linear_algebra.RULES,
    *solvers.RULES,
    *surrogates.RULES,
    *modules.RULES,
    *numpy_nets.RULES,
    *kernels.RULES,
)
