"""Training, for any module with the model functions: compiled steps and runs, over optax."""

from jaxnn.train.steps import (
    Gradient,
    History,
    State,
    epoch_order,
    init_state,
    make_run,
    make_step,
)

__all__ = [
    "Gradient",
    "History",
    "State",
    "epoch_order",
    "init_state",
    "make_run",
    "make_step",
]
