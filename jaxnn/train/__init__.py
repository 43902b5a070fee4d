"""Training, for any module with the model functions: compiled steps and runs, over optax."""

from jaxnn.train.parts import in_parts
from jaxnn.train.steps import (
    Augment,
    Gradient,
    History,
    State,
    epoch_order,
    init_state,
    make_run,
    make_step,
)

__all__ = [
    "Augment",
    "Gradient",
    "History",
    "State",
    "epoch_order",
    "in_parts",
    "init_state",
    "make_run",
    "make_step",
]
