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
from jaxnn.train.study import Trial
from jaxnn.train.trials import make_trials
from jaxnn.train.tune import Tuned, tune

__all__ = [
    "Gradient",
    "History",
    "State",
    "Trial",
    "Tuned",
    "epoch_order",
    "init_state",
    "make_run",
    "make_step",
    "make_trials",
    "tune",
]
