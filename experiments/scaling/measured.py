"""An axis measured: every form at every size, compiled for its memory and timed in turns.

All sizes and forms of an axis take turns with each other, so that a slow moment of the machine
falls on none of them alone. With them run two things that say why a curve bends where it does: a
step of as many layers with hardly any arithmetic in it, which is what a call costs anyway, and of
each size the largest product of a layer by itself.
"""

import random
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import jax

from experiments.benchmark import machine
from experiments.benchmark.arms import BY_HAND, Arm, compiled, normal
from experiments.benchmark.measure import time_in_turns
from experiments.scaling import axes, paper
from experiments.scaling.axes import Axis, Model
from experiments.scaling.paper import Terms
from jaxnn.models import cnn, rnn, transformer
from jaxnn.ops.fast.convolution import examples_at_once
from jaxnn.ops.fast.linear_cross_entropy import classes_at_once
from jaxnn.ops.windows import placement

# A step of hardly any arithmetic: as many layers as the smallest of the axis has.
LEAST = {"width": 8, "sequence": 8, "vocabulary": 8, "batch": 2}
FLOOR, PRODUCT = "floor", "product"


class Form(NamedTuple):
    """One form along an axis, a value per size.

    Attributes:
        temporary: bytes that the compiled program needs beside inputs and results.
        held: the bytes counted on paper, by what they are of.
        seconds: median seconds of a step; None where nothing was timed.
        rounds: seconds of every round.
    """

    temporary: list[int]
    held: list[Terms]
    seconds: list[float] | None = None
    rounds: list[list[float]] | None = None

    @property
    def counted(self) -> list[float]:
        """All bytes counted on paper."""
        return [sum(terms.values()) for terms in self.held]


class Measured(NamedTuple):
    """What was measured along an axis.

    Attributes:
        title: of the model.
        name: of the axis.
        axis: its sizes, and the others.
        forms: by name.
        operations: on paper, a dict of terms per size.
        parameters: bytes of them, per size.
        notes: thresholds of the fast forms that apply, per size: runs of queries, classes
            or examples at once.
        floor: seconds of a step of hardly any arithmetic; None where nothing was timed.
        products: operations per second of a layer's largest product alone, per size; None likewise.
        busy: share of the cores' time that others had; None where unknown.
    """

    title: str
    name: str
    axis: Axis
    forms: dict[str, Form]
    operations: list[Terms]
    parameters: list[int]
    notes: list[dict[str, int]]
    floor: float | None = None
    products: list[float] | None = None
    busy: float | None = None

    @property
    def counted(self) -> list[float]:
        """All operations on paper."""
        return [sum(terms.values()) for terms in self.operations]


def measure(model: Model, name: str, axis: Axis, rounds: int, order: random.Random) -> Measured:
    """Compile and time all forms along an axis.

    Args:
        model: whose steps they are.
        name: of the axis.
        axis: its sizes and forms.
        rounds: turns of every step; 0 compiles only, for the memory.
        order: draws the order of the turns, anew in each round.
    """
    arms: dict[tuple[str, int], Arm] = {}
    held: dict[str, list[Terms]] = {form: [] for form in axis.forms}
    operations, parameters, notes = [], [], []
    for size in axis.sizes:
        sizes = axes.point(axis, name, size)
        plain = axes.program(model, sizes, BY_HAND)
        inputs = plain.draw() if rounds else plain.shapes()  # the same for all forms
        operations.append(paper.operations(plain.config, sizes))
        parameters.append(_bytes(plain.shapes()[0]))
        notes.append(_thresholds(plain.config, sizes))
        for form in axis.forms:
            step = axes.program(model, sizes, form)
            arms[form, size] = compiled(step.step, *inputs)
            held[form].append(paper.held(step, sizes, form))
    forms = {
        form: Form([arms[form, size].temporary or 0 for size in axis.sizes], held[form])
        for form in axis.forms
    }
    found = Measured(model.title, name, axis, forms, operations, parameters, notes)
    return _timed(found, model, arms, rounds, order) if rounds else found


def _timed(
    found: Measured,
    model: Model,
    arms: dict[tuple[str, int], Arm],
    rounds: int,
    order: random.Random,
) -> Measured:
    axis = found.axis
    timed = {f"{form} {size}": arm for (form, size), arm in arms.items()}
    least = axes.point(axis, found.name, axis.sizes[0]) | LEAST
    step = axes.program(model, {k: v for k, v in least.items() if k in axis.base}, BY_HAND)
    timed[FLOOR] = compiled(step.step, *step.draw())
    shapes = [_product_of(model, axes.point(axis, found.name, size)) for size in axis.sizes]
    for shape in shapes:
        if shape is not None:
            timed[f"{PRODUCT} {shape}"] = _product(shape)
    before = machine.use()
    seconds = time_in_turns(timed, rounds, order)
    busy = machine.others(before, machine.use())

    def with_times(name: str, form: Form) -> Form:
        each = [seconds[f"{name} {size}"] for size in axis.sizes]
        return form._replace(seconds=[median(one) for one in each], rounds=each)

    rates = [
        2.0 * shape[0] * shape[1] * shape[2] / median(seconds[f"{PRODUCT} {shape}"])
        for shape in shapes
        if shape is not None
    ]
    return found._replace(
        forms={name: with_times(name, form) for name, form in found.forms.items()},
        floor=median(seconds[FLOOR]),
        products=rates or None,
        busy=busy,
    )


def _product_of(model: Model, sizes: axes.Sizes) -> tuple[int, int, int] | None:
    """Rows, inputs and outputs of the largest product of a layer's weights; None for the cnn's."""
    width = sizes["width"]
    if model.module is transformer:
        return sizes["batch"] * sizes["sequence"], width, 4 * width
    if model.module is rnn:  # of one step: the next one waits for it
        return sizes["batch"], width, 4 * width
    return None


def _product(shape: tuple[int, int, int]) -> Arm:
    rows, inputs, outputs = shape
    multiply: Callable[..., Any] = lambda a, b: (a @ b, ())  # noqa: E731
    return compiled(multiply, normal(0, rows, inputs), normal(1, inputs, outputs))


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _thresholds(config: Any, sizes: axes.Sizes) -> dict[str, int]:
    """What the fast forms of a transformer and a cnn do at these sizes; an LSTM has none."""
    if isinstance(config, cnn.Config):  # of its first blocks, which have the most places
        n, side = sizes["batch"], sizes["sequence"]
        x = normal(0, n, side, side, config.channels[0])
        at = placement((side, side), (3, 3), padding=1)
        return {"examples": examples_at_once(x, x, at, n)}
    if not isinstance(config, transformer.Config):
        assert isinstance(config, rnn.Config)
        return {}
    tokens = sizes["batch"] * sizes["sequence"]
    return {
        "runs": len(paper.runs(sizes["sequence"])),
        "classes": classes_at_once(tokens, config.vocabulary, config.chunk),
    }
