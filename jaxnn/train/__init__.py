"""Training, for any module with the model functions: compiled steps and runs, over optax."""

from jaxnn.train.about import About
from jaxnn.train.parameters import Loaded, load_params, read_about, save_params
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
    "About",
    "Gradient",
    "History",
    "Loaded",
    "State",
    "epoch_order",
    "init_state",
    "load_params",
    "make_run",
    "make_step",
    "read_about",
    "save_params",
]
