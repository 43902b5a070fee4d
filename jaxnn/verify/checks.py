"""The verification itself.

    gradient = bind, then the working dtype     -> structure, shapes, dtypes; finite?
                    then float64                -> hand-written against autodiff, every entry
                    then lines through float64  -> finite differences: who is wrong?

`op` and `model` say what to hand to `gradient`.
"""

import dataclasses
import functools
import inspect
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.op import Op
from jaxnn.verify.compare import by_path, check_working, compare, evaluate, rounding_of, structure
from jaxnn.verify.finite_differences import Line
from jaxnn.verify.lift import bind, compiled, is_floating, to_float64
from jaxnn.verify.report import LeafReport, Report
from jaxnn.verify.witness import testify


class GradientMismatch(AssertionError):  # noqa: N818 (an assertion that failed, not an error)
    """A hand-written gradient that did not pass; the message is its report."""

    def __init__(self, report: Report):
        """Keep the report beside its text."""
        super().__init__(f"\n{report}")
        self.report = report


def assert_gradient(
    loss: Callable[..., Any],
    manual_grad: Callable[..., Any],
    params: Any,
    /,
    *args: Any,
    **kwargs: Any,
) -> Report:
    """As `gradient`, for tests.

    Raises:
        GradientMismatch: the status is not "pass".
        TypeError, ValueError: as `gradient`.
    """
    report = gradient(loss, manual_grad, params, *args, **kwargs)
    if not report:
        raise GradientMismatch(report)
    return report


def gradient(
    loss: Callable[..., Any],
    manual_grad: Callable[..., Any],
    params: Any,
    /,
    *args: Any,
    **kwargs: Any,
) -> Report:
    """Compare a hand-written gradient with `jax.grad`, in float64, and both with the function.

    Floating arrays in `params`, `args` and `kwargs` are lifted to float64; integer arrays and
    PRNG keys are passed on; everything else (a configuration, a string, a Python number) is
    handed over untouched. Nothing is assumed about the model: any JAX function of any pytree.
    (A random draw without a dtype is another draw in float64: give it the dtype of its operand.)

    Two gradients of a leaf agree if every entry differs by at most 1e-10 of the leaf's largest,
    plus autodiff's own rounding, measured by moving every input in its last place. Finite
    differences testify for every leaf, and for the entries that differ most.

    Args:
        loss: `loss(params, *args, **kwargs)` -> one floating scalar.
        manual_grad: `manual_grad(params, *args, **kwargs)` -> its gradient, shaped like `params`;
            leaves that are not floating are not looked at.
        params: a pytree with at least one floating leaf; what is differentiated.
        *args: whatever else both functions take.
        **kwargs: the same, by name.

    Returns:
        A report; in a condition it is true only if the gradient passed.

    Raises:
        TypeError: a function cannot be called with these arguments, or a parameter is complex.
        ValueError: the loss is not a scalar, or no parameter is floating.
    """
    started = time.perf_counter()
    for role, function in (("loss", loss), ("manual_grad", manual_grad)):
        _check_signature(role, function, (params, *args), kwargs)
    problem = bind(loss, manual_grad, params, args, kwargs)
    given = problem.floats, problem.rest
    out = compiled(problem.manual_grad, *given).run(*given)
    problems, faults = structure(problem, out)
    working = by_path(out)
    with jax.enable_x64(True):
        floats, rest = to_float64(problem.floats), to_float64(problem.rest)
        line = Line(problem.loss, floats, rest)
        lifted = evaluate(problem, floats, rest)
        rounding = functools.cache(lambda: rounding_of(problem, lifted, floats, rest))
        leaves = []
        for i, path in enumerate(problem.paths):
            x = problem.floats[i]
            leaf = LeafReport(path, x.shape, str(x.dtype), "fail", messages=faults[path])
            if not leaf.messages:
                leaf = compare(leaf, lifted, i, rounding)
                if leaf.difference is not None:
                    slope = functools.partial(line.slope, i)
                    leaf = testify(leaf, lifted.manual[path], lifted.autodiff[i], slope)
                leaf = check_working(leaf, working[path])
            leaves.append(leaf)
    if not np.isfinite(lifted.loss):
        problems += (f"the loss is {lifted.loss} in float64: check the inputs, labels among them",)
    name = getattr(manual_grad, "__qualname__", repr(manual_grad))
    return Report(name, lifted.loss, tuple(leaves), problems, time.perf_counter() - started)


def op(op: Op[..., Any], /, *inputs: Any, **static: Any) -> Report:
    """Verify an op's backward against autodiff of its forward, under a random cotangent.

    Args:
        op: what to verify.
        *inputs: its inputs; none for `op.example(jax.random.key(0))`.
        **static: its static settings.

    Raises:
        TypeError: `fwd`, `bwd` or `example` does not return a tuple of the right length.
        TypeError, ValueError: as `gradient`, with the inputs as the parameters.
    """
    inputs = inputs or op.example(jax.random.key(0))
    _check_tuple(op, "example", inputs, "(input, ...)")
    shapes = jax.eval_shape(lambda *arrays: op.fwd(*arrays, **static), *inputs)
    _check_tuple(op, "fwd", shapes, "(out, residuals)", length=2)
    out, _ = shapes

    # The oracle differentiates the forward; op(...) itself would call the rule on trial.
    def loss(inputs: Any, dout: Any) -> Any:
        out, _ = op.fwd(*inputs, **static)
        return sum(jax.tree.leaves(jax.tree.map(lambda o, d: (o * d).sum(), out, dout)))

    def manual_grad(inputs: Any, dout: Any) -> Any:
        _, residuals = op.fwd(*inputs, **static)
        cotangents = op.bwd(residuals, dout, **static)
        _check_tuple(op, "bwd", cotangents, "(dinput, ...), one per input", length=len(inputs))
        return cotangents

    # Random, because a cotangent of ones hides what sums to zero, as in softmax; large and, where
    # there is only one, negative, because a rule must be linear in it.
    rng = np.random.default_rng(0)
    dout = jax.tree.map(lambda o: jnp.asarray(-10 * rng.normal(size=o.shape), o.dtype), out)
    settings = "".join(f", {name}={value!r}" for name, value in static.items())
    return dataclasses.replace(
        gradient(loss, manual_grad, inputs, dout), name=f"op {op.name}{settings}"
    )


def model(module: Any, config: Any = None, seed: int = 0) -> Report:
    """Verify a module that has the model functions, on its own example batch.

    The parameters are the initial ones plus normal noise of size 0.1, because where a bias is
    exactly 0 much that is wrong cannot be seen.

    Args:
        module: has `Config`, `init_params`, `loss`, `manual_value_and_grad`, `manual_grad` and
            `example_batch`.
        config: None for `module.Config()`.
        seed: of the parameters and the batch.

    Raises:
        TypeError: a model function is missing.
        ValueError: as `gradient`.
    """
    missing = [name for name in MODEL_FUNCTIONS if not hasattr(module, name)]
    if missing:
        raise TypeError(
            f"{getattr(module, '__name__', module)} lacks {', '.join(missing)}; a model has all of "
            f"{', '.join(MODEL_FUNCTIONS)}: define them, or call verify.gradient"
        )
    started = time.perf_counter()
    config = module.Config() if config is None else config
    k_params, k_noise, k_batch = jax.random.split(jax.random.key(seed), 3)
    leaves, tree = jax.tree.flatten(module.init_params(k_params, config))
    noise = jax.random.split(k_noise, len(leaves))
    params = jax.tree.unflatten(
        tree,
        [p + 0.1 * jax.random.normal(k, p.shape, p.dtype) if is_floating(p) else p
         for p, k in zip(leaves, noise, strict=True)],
    )  # fmt: skip
    batch = module.example_batch(k_batch, config)
    report = gradient(module.loss, module.manual_grad, params, batch, config)
    return dataclasses.replace(
        report,
        name=f"model {getattr(module, '__name__', module)}, {config}",
        problems=(*report.problems, *_value_problems(module, params, batch, config)),
        seconds=time.perf_counter() - started,
    )


MODEL_FUNCTIONS = (
    "Config",
    "init_params",
    "forward",
    "loss",
    "manual_value_and_grad",
    "manual_grad",
    "example_batch",
)


def _check_signature(
    role: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Refuse a function that cannot take the arguments."""
    if not callable(function):
        raise TypeError(f"{role} is {function!r}; it must be a function of the parameters")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in callables have none to look at
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        given = f"{len(args)} positional arguments" + "".join(f", {name}=..." for name in kwargs)
        raise TypeError(
            f"{role}{signature} cannot take {given} ({error}); loss and manual_grad must both "
            "take the parameters first and then the same arguments"
        ) from None


def _check_tuple(
    op: Op[..., Any], role: str, value: Any, form: str, length: int | None = None
) -> None:
    """Refuse what an op's function returned if it has not the form that ops have."""
    if type(value) is not tuple or length not in (None, len(value)):
        got = type(value).__name__ + (f" of {len(value)}" if isinstance(value, tuple) else "")
        raise TypeError(f"{role} of op {op.name} returns a {got}; it must return a tuple {form}")


def _value_problems(module: Any, params: Any, batch: Any, config: Any) -> list[str]:
    """`manual_value_and_grad` must return the loss, and the gradient that `manual_grad` does."""
    problem = bind(module.loss, module.manual_grad, params, (batch, config), {})
    both = bind(module.loss, module.manual_value_and_grad, params, (batch, config), {}).manual_grad

    def values(floats: list[Any], rest: list[Any]) -> Any:
        return problem.loss(floats, rest), problem.manual_grad(floats, rest), both(floats, rest)

    with jax.enable_x64(True):
        floats, rest = to_float64(problem.floats), to_float64(problem.rest)
        loss, alone, (value, grads) = compiled(values, floats, rest).run(floats, rest)
    expected = by_path(alone)
    problems = []
    if not np.isclose(value, loss, rtol=1e-12, atol=0):
        problems.append(f"manual_value_and_grad returns the loss {value}, loss returns {loss}")
    for path, leaf in by_path(grads).items():
        if path not in expected or not np.allclose(leaf, expected[path], rtol=1e-12, atol=1e-300):
            problems.append(f"manual_value_and_grad and manual_grad differ at {path}")
    return problems
