"""What is right in float64 is asked again as it is used: in float32, and of large inputs."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxnn.learn.points import is_floating, lifted, named, right_of
from jaxnn.learn.result import Row
from jaxnn.learn.student import Work
from jaxnn.op import Op
from jaxnn.verify import op as verify_op


def rows(work: Work) -> list[Row]:
    """Return what is wrong with the work in float32: rows for what is, or none."""
    inputs = work.exercise.module.example(jax.random.key(0))
    return _of_large_inputs(work, inputs) or _by_verifier(work, inputs)


def pair_of(work: Work) -> Op[..., Any]:
    """Return the exercise's forward with the student's backward as an op."""
    exercise = work.exercise
    forward = exercise.module.forward

    def fwd(*inputs: Any) -> Any:
        name = f"{exercise.name}_fwd"
        own = work.functions.get(name) or exercise.function("fwd")
        return forward(*inputs), own(*inputs)[1]

    def bwd(saved: Any, dout: Any) -> Any:
        given = work.functions[f"{exercise.name}_bwd"](saved, dout)
        return tuple(given) if isinstance(given, tuple | list) else (given,)

    fwd.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    fwd.__name__ = exercise.name
    return Op(fwd, bwd)


def _by_verifier(work: Work, inputs: Any) -> list[Row]:
    report = verify_op(pair_of(work), *inputs)
    found = []
    for leaf in report.leaves:
        if leaf.status == "fail":
            name = f"d{leaf.path}"
            text = "right in float64, but not in float32: " + (
                "; ".join(leaf.messages) or "digits are lost"
            )
            found.append(
                Row(
                    name,
                    "wrong",
                    text,
                    "precision",
                    f"{name} is right as a formula, but loses digits",
                    "Which two large numbers are subtracted from each other, or what overflows?",
                )
            )
    return found


def _changed(change: Callable[[Any], Any], value: Any) -> Any:
    """Return a floating array changed, and any other as it is."""
    return change(value) if is_floating(value) else value


def _of_large_inputs(work: Work, inputs: Any) -> list[Row]:
    """Whether both stay finite, and exact, where the exercise's own forward does."""
    exercise = work.exercise
    changes: tuple[tuple[str, Callable[[Any], Any]], ...] = (
        ("times 100", lambda x: x * 100),
        ("plus 100", lambda x: x + 100),
    )
    for text, change in changes:
        moved = tuple(
            jax.tree.map(functools.partial(_changed, change), x) if i == 0 else x
            for i, x in enumerate(inputs)
        )
        out = exercise.module.forward(*moved)
        dout = jax.random.normal(jax.random.key(3), np.shape(out))
        right32 = right_of(exercise, moved, dout)
        with jax.enable_x64(True):
            right = right_of(exercise, lifted(moved), lifted(dout))
        own = work.functions.get(f"{exercise.name}_fwd") or exercise.function("fwd")
        got, saved = own(*moved)
        first = exercise.inputs[0]
        if np.isfinite(out).all() and not np.isfinite(got).all():
            return [_overflow(exercise.output, f"the forward, with {first} {text}")]
        given = work.functions[f"{exercise.name}_bwd"](saved, dout)
        given = given if isinstance(given, tuple | list) else (given,)
        values: dict[str, Any] = {}
        for i, value in zip(exercise.inputs, given, strict=False):
            values |= named(i, value)
        for name, truth in right.items():
            mine = values.get(name)
            if mine is None or not np.isfinite(right32[name]).all():
                continue
            if not np.isfinite(mine).all():
                return [_overflow(f"d{name}", f"d{name}, with {first} {text}")]
            scale = float(np.abs(truth).max(initial=0.0))
            theirs = float(np.abs(right32[name] - truth).max(initial=0.0))
            error = float(np.abs(mine - truth).max(initial=0.0))
            if error > 64 * theirs + 1e-3 * scale:
                return [
                    Row(
                        f"d{name}",
                        "wrong",
                        f"right in float64; in float32, with {first} {text}, off by {error:.1e} "
                        f"where autodiff is off by {theirs:.1e}",
                        "precision",
                        f"d{name} is right as a formula, but loses digits in float32",
                        "Which two large numbers are subtracted from each other? In a variance, "
                        "take the mean off before you square.",
                    )
                ]
    return []


def _overflow(name: str, what: str) -> Row:
    return Row(
        name,
        "wrong",
        f"{what}: NaN or infinite in float32, where the exercise's own is finite",
        "precision",
        "a formula that is right, but overflows",
        "What goes into exp, or is squared? Take the largest off first, or rearrange.",
    )
