"""The gradient verifier: proves a hand-written gradient against autodiff, or says what is wrong.

`gradient` takes any loss and its hand-written gradient, `rule` a derivative rule as it stands
(`jax.custom_vjp` and its like), `against` an implementation and a plain reference, `op` an `Op`,
`model` a module of model functions; `assert_gradient`, `assert_rule` and `assert_against` are for
tests. Each returns a `Report`. On the command line: `python -m jaxnn.verify`. It knows no op and no
model of this library.
"""

from jaxnn.verify.batch import BatchLaws
from jaxnn.verify.gradients import GradientMismatch, assert_gradient, gradient, model
from jaxnn.verify.numerical import numerical_gradient
from jaxnn.verify.ops import op
from jaxnn.verify.reference import against, assert_against
from jaxnn.verify.report import Report
from jaxnn.verify.rules import assert_rule, rule

__all__ = [
    "BatchLaws",
    "GradientMismatch",
    "Report",
    "against",
    "assert_against",
    "assert_gradient",
    "assert_rule",
    "gradient",
    "model",
    "numerical_gradient",
    "op",
    "rule",
]
