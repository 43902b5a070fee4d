"""Training, for any module with the model functions: compiled steps and runs, over optax."""

from jaxnn.train.about import About
from jaxnn.train.batches import BatchError, make_epoch
from jaxnn.train.fit import Fit, fit
from jaxnn.train.masters import MastersState, with_masters
from jaxnn.train.parameters import Loaded, load_params, read_about, save_params
from jaxnn.train.parts import in_parts
from jaxnn.train.runs import epoch_order, make_run
from jaxnn.train.states import SavedState, load_state, save_state
from jaxnn.train.steps import (
    Augment,
    Gradient,
    History,
    State,
    init_state,
    make_step,
)
from jaxnn.train.study import Trial
from jaxnn.train.trials import make_trials
from jaxnn.train.tune import Tuned, tune

__all__ = [
    "About",
    "Augment",
    "BatchError",
    "Fit",
    "Gradient",
    "History",
    "Loaded",
    "MastersState",
    "SavedState",
    "State",
    "Trial",
    "Tuned",
    "epoch_order",
    "fit",
    "in_parts",
    "init_state",
    "load_params",
    "load_state",
    "make_epoch",
    "make_run",
    "make_step",
    "make_trials",
    "read_about",
    "save_params",
    "save_state",
    "tune",
    "with_masters",
]
