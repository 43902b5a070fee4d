"""Verify an op: its backward against autodiff of its forward, under a random cotangent."""

import dataclasses
import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from jaxnn.op import Op
from jaxnn.verify.arguments import Call, argument_names
from jaxnn.verify.door import entrance
from jaxnn.verify.draws import cotangent_rng, draw_cotangent
from jaxnn.verify.findings import described
from jaxnn.verify.judge import judge
from jaxnn.verify.other_ways import precise_enough_at, run_op_in_other_ways
from jaxnn.verify.over_devices import over_devices
from jaxnn.verify.report import Report


@entrance
def op(op: Op[..., Any], /, *inputs: Any, **static: Any) -> Report:
    """Verify an op's backward against autodiff of its forward, under a random cotangent.

    Args:
        op: what to verify.
        *inputs: its inputs; none for `op.example(jax.random.key(0))`. Over devices (a setting
            `axis`), what differs among them lies along further, first axes of size 3.
        **static: its static settings; none for each of `op.settings` in turn. (What is called as
            an input of the op's is that input.)

    Returns:
        One report. Of several settings it has the leaves of all, each with its setting in brackets.

    Raises:
        TypeError: it is no op, or has no inputs; `fwd`, `bwd` or `example` does not return a tuple
            of the right length, or does not take a setting.
        TypeError, ValueError: as `gradient`, with the inputs as the parameters.
    """
    if not isinstance(op, Op):
        raise TypeError(f"op is {op!r}; it must be a jaxnn.op.Op: bind Op(fwd, bwd, example)")
    given = bool(inputs) or not op.inputs.keys().isdisjoint(static)
    inputs, static = op.arranged(inputs, static)
    listed = [static] if static else listed_settings(op)
    return combine(
        op,
        {
            settings_in_words(s): verify_under(op, inputs if given else example_of(op, s), s)
            for s in listed
        },
    )


def example_of(op: Op[..., Any], static: Mapping[str, Any], seed: int = 0) -> tuple[Any, ...]:
    """Draw the inputs of an op's example, for all devices where a setting names axes of them.

    Raises:
        TypeError, ValueError: as `draw_inputs` and `over_devices`.
    """
    what = f"example of op {op.name}"
    return over_devices(op, static).drawn(lambda k: draw_inputs(what, op.example, k), seed)


def on_example(op: Op[..., Any], seed: int, static: Mapping[str, Any] | None) -> Report:
    """Verify an op on its example, under its first settings if none are given."""
    static = listed_settings(op)[0] if static is None else static
    return verify_under(op, example_of(op, static, seed), static)


def listed_settings(op: Op[..., Any]) -> Sequence[Mapping[str, Any]]:
    """Return the settings to verify an op under.

    Raises:
        TypeError: they are no tuple of mappings, or there is none.
    """
    listed = op.settings
    if not (isinstance(listed, tuple | list) and listed) or not all(
        isinstance(static, Mapping) for static in listed
    ):
        raise TypeError(
            f"settings of op {op.name} is {listed!r}; it must be a tuple of dictionaries, one for "
            "each way to verify the op, as in ({}, {'axis': 0})"
        )
    return listed


def draw_inputs(
    what: str, example: Callable[[jax.Array], tuple[Any, ...]] | None, seed: int = 0
) -> tuple[Any, ...]:
    """Draw the inputs that a person's `example(key)` returns.

    Args:
        what: its name in messages.
        example: a function of a key.
        seed: of the key.

    Raises:
        TypeError: it is no function of a key, or returns no tuple of inputs.
        ValueError: it raises.
    """
    form = "it must be a function of a key that returns the inputs as a tuple, (input, ...)"
    if not callable(example):
        raise TypeError(f"{what} is {example!r}; {form}: write one, or give the inputs")
    key = jax.random.key(seed)
    try:
        inspect.signature(example).bind(key)
    except TypeError as error:
        raise TypeError(f"{what} cannot be called with a key ({error}); {form}") from None
    except ValueError:  # a callable without a signature
        pass
    try:
        inputs: Any = example(key)
    except Exception as error:
        raise ValueError(f"{what} raised {described(error)}; {form}") from error
    if type(inputs) is not tuple or not inputs:
        got = "an array" if isinstance(inputs, jax.Array | np.ndarray) else f"{inputs!r:.60}"
        raise TypeError(f"{what} returns {got}; {form}")
    return inputs


@entrance
def verify_under(op: Op[..., Any], inputs: tuple[Any, ...], static: Mapping[str, Any]) -> Report:
    """Verify an op with these inputs, under these settings.

    Raises:
        TypeError, ValueError: as the function `op`.
    """
    started = time.perf_counter()
    everywhere = over_devices(op, static)
    out = jax.eval_shape(lambda *arrays: everywhere.forward(arrays, static), *inputs)

    # The oracle differentiates the forward; op(...) itself would call the rule on trial.
    def loss(inputs: Any, dout: Any, settings: Any) -> Any:
        out = everywhere.forward(inputs, vars(settings))
        return sum(jax.tree.leaves(jax.tree.map(lambda o, d: (o * d).sum(), out, dout)))

    def manual_grad(inputs: Any, dout: Any, settings: Any) -> Any:
        return everywhere.backward(inputs, dout, vars(settings))

    # Large and, where there is only one, negative, because a rule must be linear in it.
    rng = cotangent_rng(0)
    dout = jax.tree.map(lambda o: draw_cotangent(rng, o, -10), out)
    settings = SimpleNamespace(**static)  # no pytree: handed over as it is
    names = argument_names(op.fwd, len(inputs))
    report, point = judge(Call(loss, manual_grad, inputs, (dout, settings), names), {})
    called: tuple[str, ...] = ()
    apart = everywhere.disagreeing(inputs, dout, static, names)
    axes = ", ".join(repr(axis.name) for axis in everywhere.axes)
    untried = (f"how it does under jax.grad: along {axes} only its two functions were run",)
    if report.status != "fail" and not axes:  # a wrong rule need not be called in other ways
        called = run_op_in_other_ways(
            op,
            inputs,
            dout,
            static,
            point.working.out,
            point.programs,
            precise_enough_at(point, report.leaves),
            names,
        )
    return dataclasses.replace(
        report,
        problems=(*report.problems, *apart),
        coverage=(*report.coverage, *_neutral(op, len(inputs), static), *(untried if axes else ())),
        name=", ".join(filter(None, (f"op {op.name}", settings_in_words(static)))),
        elsewhere=(*report.elsewhere, *called),
        seconds=time.perf_counter() - started,
    )


def _neutral(op: Op[..., Any], given: int, static: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings at a default of 1, 0 or no axis, and never at another: what may not show."""
    changed = {name for listed in (static, *listed_settings(op)) for name in listed}
    names = (*changed, *[*op.inputs][:given])
    try:
        parameters = inspect.signature(op.fwd).parameters
    except ValueError:  # a callable without a signature
        return ()
    return tuple(
        f"the setting {name} is at its default {p.default}: what is wrong with it may not show; "
        "list another value in the op's settings"
        for name, p in parameters.items()
        if name not in names and _is_neutral(name, p.default)
    )


def _is_neutral(name: str, default: Any) -> bool:
    """Whether a setting does nothing at its default."""
    number = type(default) in (int, float) and default in (0, 1)
    return number or (name == "axis" and default == ())


def settings_in_words(static: Mapping[str, Any]) -> str:
    """Write settings as in a call; empty for none."""
    return ", ".join(f"{name}={value!r}" for name, value in static.items())


def combine(op: Op[..., Any], reports: Mapping[str, Report]) -> Report:
    """Combine the reports on an op under each of its settings; what all say is said once."""
    first_way, first = next(iter(reports.items()))
    if len(reports) == 1:
        return first

    def said(field: str) -> tuple[str, ...]:
        lines = {way: _lines(getattr(report, field)) for way, report in reports.items()}
        shared = [line for line in lines[first_way] if all(line in x for x in lines.values())]
        own = (
            f"{way or 'default settings'}: {line}"
            for way, found in lines.items()
            for line in found
            if line not in shared
        )
        return (*shared, *own)

    return Report(
        f"op {op.name}",
        None,
        tuple(
            dataclasses.replace(leaf, path=f"{leaf.path} ({way or 'default settings'})")
            for way, report in reports.items()
            for leaf in report.leaves
        ),
        said("problems"),
        sum(report.seconds for report in reports.values()),
        chain="; ".join(said("chain")),
        coverage=said("coverage"),
        elsewhere=said("elsewhere"),
        rules=said("rules"),
        seed=first.seed,
    )


def _lines(text: str | Iterable[str]) -> list[str]:
    return [text] * bool(text) if isinstance(text, str) else list(text)
