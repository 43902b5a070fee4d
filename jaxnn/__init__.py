"""Neural networks in JAX whose backward pass is written by hand and proven against `jax.grad`."""

from jaxnn import data, models, ops, train, verify
from jaxnn.models import mlp
from jaxnn.op import Op

__all__ = ["Op", "data", "mlp", "models", "ops", "train", "verify"]
