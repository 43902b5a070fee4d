"""The models' steps as people write them with other libraries of layers for JAX, where installed.

What is compiled is a function of arrays alone: a module's tree is taken apart before, so that no
walk over Python objects is in the time, as both libraries advise for small models.
"""

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmark.arms import (
    EQUINOX,
    FLAX,
    Arm,
    Builds,
    LeftOutError,
    compiled,
    named,
)

PACKAGES = {FLAX: "flax", EQUINOX: "equinox"}
SCANNED = "scanned"
FORMS = {"transformer": ("", SCANNED)}
MISSING = 'it is not installed; pip install -e ".[rules]"'


class Step(NamedTuple):
    """A model of a library with given numbers in it, and what to compile.

    Attributes:
        function: (arrays, batch) -> ((loss, other state after the step), gradient).
        arrays: the parameters, with respect to which the gradient is, and the other state.
        batch: laid out as the library has it.
        first: of a gradient, the leaf that is first in our parameters, in our layout.
    """

    function: Callable[[Any, Any], tuple[Any, Any]]
    arrays: tuple[Any, Any]
    batch: Any
    first: Callable[[Any], Any]


def frameworks(model: Any, params: Any, batch: Any, config: Any) -> Builds:
    """Return the arms of every library, which import it no earlier than they are built.

    Args:
        model: one of `jaxnn.models`; rooms beside this one have functions of its name.
        params: its parameters.
        batch: a batch of it.
        config: its configuration.
    """
    kind = model.__name__.rpartition(".")[2]
    return {
        named(library, form): partial(_arm, library, kind, form, params, batch, config)
        for library in PACKAGES
        for form in FORMS.get(kind, ("",))
    }


def step_of(library: str, kind: str, form: str, params: Any, batch: Any, config: Any) -> Step:
    """Return the step of a model with our parameters in it, by the names above.

    Raises:
        LeftOutError: the library is not installed.
    """
    package = PACKAGES[library]
    if importlib.util.find_spec(package) is None:
        raise LeftOutError(MISSING)
    room = f"{package}_transformer" if kind == "transformer" else f"in_{package}"
    make = getattr(importlib.import_module(f"experiments.benchmark.{room}"), kind)
    step: Step = make(params, batch, config, **({form: True} if form else {}))
    return step


def _arm(*which: Any) -> Arm:
    step = step_of(*which)
    arm = compiled(step.function, step.arrays, step.batch)

    def run() -> tuple[Any, Any]:
        result, gradient = arm.run()
        return result, partial(step.first, gradient)  # laid out when it is read, not in the time

    return arm._replace(run=run, read=_read)


def _read(x: Any) -> Any:
    return np.asarray(x() if callable(x) else x)
