"""Neural networks in JAX whose backward pass is written by hand and proven against `jax.grad`."""

import os
import sys

# `python -m` looks for modules in the working directory first, and what is verified there may be a
# file `jax.py`: it takes the place of no package that is imported here.
_first = sys.path[:1]
if sys.argv[:1] == ["-m"] and _first == [os.getcwd()]:
    sys.path.remove(_first[0])
try:
    from jaxnn import augment, data, mesh, models, ops, text, train, verify
    from jaxnn.models import mlp
    from jaxnn.op import Op, plain_forms
finally:
    if sys.path[:1] != _first:
        sys.path[:0] = _first

__version__ = "0.3.0.dev0"
__all__ = [
    "Op",
    "augment",
    "data",
    "mesh",
    "mlp",
    "models",
    "ops",
    "plain_forms",
    "text",
    "train",
    "verify",
]
