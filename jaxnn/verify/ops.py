"""Verify an op: its backward against autodiff of its forward, under a random cotangent."""

import dataclasses
import time
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from jaxnn.op import Op
from jaxnn.verify.arguments import argument_names
from jaxnn.verify.elsewhere import op_elsewhere
from jaxnn.verify.judge import judge
from jaxnn.verify.outside import outside
from jaxnn.verify.positions import Call
from jaxnn.verify.report import Report


@outside
def op(op: Op[..., Any], /, *inputs: Any, **static: Any) -> Report:
    """Verify an op's backward against autodiff of its forward, under a random cotangent.

    Args:
        op: what to verify.
        *inputs: its inputs; none for `op.example(jax.random.key(0))`.
        **static: its static settings.

    Raises:
        TypeError: it is no op, or has no inputs; `fwd`, `bwd` or `example` does not return a tuple
            of the right length.
        TypeError, ValueError: as `gradient`, with the inputs as the parameters.
    """
    started = time.perf_counter()
    if not isinstance(op, Op):
        raise TypeError(f"op is {op!r}; it must be a jaxnn.op.Op: bind Op(fwd, bwd, example)")
    if not (inputs or callable(op.example)):
        raise TypeError(
            f"example of op {op.name} is {op.example!r}; it must be a function of a key that "
            "returns (input, ...): give the op one, or inputs to verify.op"
        )
    inputs = inputs or op.example(jax.random.key(0))
    _check_tuple(op, "example", inputs, "(input, ...)")
    shapes = jax.eval_shape(lambda *arrays: op.fwd(*arrays, **static), *inputs)
    _check_tuple(op, "fwd", shapes, "(out, residuals)", length=2)
    out, _ = shapes

    # The oracle differentiates the forward; op(...) itself would call the rule on trial.
    def loss(inputs: Any, dout: Any, settings: Any) -> Any:
        out, _ = op.fwd(*inputs, **vars(settings))
        return sum(jax.tree.leaves(jax.tree.map(lambda o, d: (o * d).sum(), out, dout)))

    def manual_grad(inputs: Any, dout: Any, settings: Any) -> Any:
        _, residuals = op.fwd(*inputs, **vars(settings))
        cotangents = op.bwd(residuals, dout, **vars(settings))
        _check_tuple(op, "bwd", cotangents, "(dinput, ...), one per input", length=len(inputs))
        return cotangents

    # Random, because a cotangent of ones hides what sums to zero, as in softmax; large and, where
    # there is only one, negative, because a rule must be linear in it.
    rng = np.random.default_rng(0)
    dout = jax.tree.map(
        lambda o: jax.device_put(np.asarray(-10 * rng.normal(size=o.shape)).astype(o.dtype)), out
    )
    settings = SimpleNamespace(**static)  # no pytree: handed over as it is
    names = argument_names(op.fwd, len(inputs))
    report, point = judge(Call(loss, manual_grad, inputs, (dout, settings), names), {})
    called: tuple[str, ...] = ()
    if report.status != "fail":  # a wrong rule need not be called in other ways
        called = op_elsewhere(
            op,
            inputs,
            dout,
            static,
            point.working.out,
            point.programs,
            point.within(list(report.leaves)),
            names,
        )
    words = "".join(f", {name}={value!r}" for name, value in static.items())
    return dataclasses.replace(
        report,
        name=f"op {op.name}{words}",
        elsewhere=(*report.elsewhere, *called),
        seconds=time.perf_counter() - started,
    )


def _check_tuple(
    op: Op[..., Any], role: str, value: Any, form: str, length: int | None = None
) -> None:
    """Refuse what an op's function returned if it has not the form that ops have."""
    if type(value) is not tuple or length not in (None, len(value)):
        got = type(value).__name__ + (f" of {len(value)}" if isinstance(value, tuple) else "")
        raise TypeError(f"{role} of op {op.name} returns a {got}; it must return a tuple {form}")
