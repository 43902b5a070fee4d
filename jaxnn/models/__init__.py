"""Models, one module each; in each, `manual_grad` equals `jax.grad(loss)`."""

from jaxnn.models import (
    autoencoder,
    cnn,
    generate,
    mlp,
    rnn,
    sampling,
    transformer,
    transformer_params,
)

__all__ = [
    "autoencoder",
    "cnn",
    "generate",
    "mlp",
    "rnn",
    "sampling",
    "transformer",
    "transformer_params",
]
