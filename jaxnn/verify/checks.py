"""The verification itself.

    gradient = bind, then both gradients        -> structure, shapes, dtypes; finite?
                    in float64                  -> hand-written against autodiff, every entry
                    along lines                 -> finite differences: who is wrong?
                    in the working dtype        -> is it as precise as autodiff?
                    with faults planted         -> what could not be seen?
                    where it is wrong           -> where, and why?

`op` and `model` say what to hand to `gradient`.
"""

import dataclasses
import inspect
import logging
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from jaxnn.op import Op
from jaxnn.verify import laws
from jaxnn.verify.batch import BatchLaws
from jaxnn.verify.chain import locate
from jaxnn.verify.compare import by_path, structure
from jaxnn.verify.coverage import survivors, warnings
from jaxnn.verify.diagnose import explained
from jaxnn.verify.elsewhere import elsewhere, op_elsewhere
from jaxnn.verify.lift import bind, compiled, is_floating, to_float64
from jaxnn.verify.point import Point
from jaxnn.verify.report import LeafReport, Report

log = logging.getLogger("jaxnn.verify")


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
    skip: Mapping[str, str] | None = None,
    batch_laws: BatchLaws | None = None,
    second_order: bool = False,
    seed: int = 0,
    **kwargs: Any,
) -> Report:
    """Compare a hand-written gradient with `jax.grad`, in float64, and both with the function.

    Floating arrays in `params`, `args` and `kwargs` are lifted to float64; integer arrays and
    PRNG keys are passed on; everything else (a configuration, a string, a Python number) is
    handed over untouched. Nothing is assumed about the model: any JAX function of any pytree.
    (A random draw without a dtype is another draw in float64: give it the dtype of its operand.)

    Two gradients of a leaf agree if every entry differs by at most 1e-10 of the leaf's largest,
    plus autodiff's own rounding, measured by moving every input in its last place. Finite
    differences testify for every leaf, and for the entries that differ most. In the dtype given,
    the hand-written gradient may be off by 8 times autodiff's error there, plus 8 units in the
    last place of the leaf's largest. Where the formula is wrong, its likely cause is looked for.

    Args:
        loss: `loss(params, *args, **kwargs)` -> one floating scalar.
        manual_grad: `manual_grad(params, *args, **kwargs)` -> its gradient, shaped like `params`;
            leaves that are not floating are not looked at.
        params: a pytree with at least one floating leaf; what is differentiated.
        *args: whatever else both functions take.
        skip: leaves that are not judged, by path, each with the reason.
        batch_laws: which arguments carry a batch, to hold the gradient to what a mean or a sum
            over it must obey.
        second_order: whether the hand-written gradient is to be differentiated itself, against
            autodiff's Hessian-vector product.
        seed: of the random lines, directions and permutations.
        **kwargs: the same as `args`, by name. An argument of your functions that is called like
            one of ours (skip, batch_laws, second_order, seed) must be given by position.

    Returns:
        A report; in a condition it is true only if the gradient passed.

    Raises:
        TypeError: a function cannot be called with these arguments, or a parameter is complex.
        ValueError: the loss is not a scalar, no parameter is floating, or `skip` names a leaf
            that is not there or gives no reason.
    """
    started = time.perf_counter()
    _check_options(seed, batch_laws)
    for role, function in (("loss", loss), ("manual_grad", manual_grad)):
        _check_signature(role, function, (params, *args), kwargs)
    problem = bind(loss, manual_grad, params, args, kwargs)
    skip = _check_skip(skip or {}, problem.paths)
    log.debug("both gradients")
    point = Point(problem, (loss, manual_grad))
    report = _at(point, skip, seed)
    problems = list(report.problems)
    with point.precisely():
        if batch_laws:
            log.debug("batch laws")
            problems += laws.batch_laws(batch_laws, loss, manual_grad, params, args, kwargs, seed)
        if second_order:
            log.debug("second order")
            problems += laws.second_order(problem, point.floats, point.rest, seed)
    autodiff = dict(zip(problem.paths, point.here.autodiff, strict=True))
    coverage = warnings(loss, params, args, kwargs, report.leaves, autodiff)
    return dataclasses.replace(
        report,
        name=getattr(manual_grad, "__qualname__", repr(manual_grad)),
        problems=tuple(problems),
        coverage=(*report.coverage, *coverage),
        seconds=time.perf_counter() - started,
    )


def _at(point: Point, skip: Mapping[str, str], seed: int) -> Report:
    """What there is to say of a problem at a point, whatever its functions are."""
    problem = point.problem
    problems, faults = structure(problem, point.working.out)
    leaves: list[LeafReport] = []
    for i, path in enumerate(problem.paths):
        x = problem.floats[i]
        leaf = LeafReport(path, x.shape, str(x.dtype), "fail", messages=faults[path])
        if path in skip:
            reason = f"not judged: {skip[path]}"
            leaf = dataclasses.replace(leaf, status="skipped", messages=(reason,))
        elif not leaf.messages:
            log.debug("comparing %s", path)
            leaf = point.compare(leaf, i, seed)
            if leaf.difference is not None and not leaf.wrong:
                problems += survivors(leaf, point.here, i)
        leaves.append(leaf)
    if not np.isfinite(point.here.loss):
        problems += (
            f"the loss is {point.here.loss} in float64: check the inputs, labels among them",
        )
    chain = ""
    unexplained: tuple[str, ...] = ()
    if any(leaf.status == "fail" and leaf.wrong for leaf in leaves):
        log.debug("looking for the cause")
        with point.precisely():
            leaves, unexplained = explained(leaves, point)
            chain = locate(problem, point.floats, point.rest)
    log.debug("running it in other ways")
    return Report(
        "",
        point.here.loss,
        tuple(leaves),
        problems,
        0.0,
        chain=chain,
        coverage=(*unexplained, *point.limits),
        elsewhere=elsewhere(
            problem,
            problem.floats,
            problem.rest,
            point.working,
            point.programs,
            point.within(leaves),
        ),
        seed=seed,
    )


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
    report = gradient(loss, manual_grad, inputs, dout, settings)
    called: tuple[str, ...] = ()
    if report.status != "fail":  # a wrong rule need not be called in other ways
        point = Point(bind(loss, manual_grad, inputs, (dout, settings), {}), (op.fwd, op.bwd))
        called = op_elsewhere(
            op,
            inputs,
            dout,
            static,
            point.working.out,
            point.programs,
            point.within(list(report.leaves)),
        )
    words = "".join(f", {name}={value!r}" for name, value in static.items())
    return dataclasses.replace(
        report,
        name=f"op {op.name}{words}",
        elsewhere=(*report.elsewhere, *called),
        seconds=time.perf_counter() - started,
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
    k_params, k_batch = jax.random.split(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda p: _with_noise(p, rng), module.init_params(k_params, config))
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


def _with_noise(x: Any, rng: np.random.Generator) -> Any:
    noise = np.asarray(0.1 * rng.normal(size=x.shape))
    return jax.device_put(np.asarray(x) + noise.astype(x.dtype)) if is_floating(x) else x


def _check_options(seed: Any, batch_laws: Any) -> None:
    """Refuse options of ours that are not what they must be; they may be meant for the functions.

    Raises:
        TypeError: one has another type.
        ValueError: the seed is negative.
    """
    theirs = "; to hand an argument of this name to your functions, give it by position"
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed is {seed!r}; it must be an integer{theirs}")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or more")
    if batch_laws is not None and not isinstance(batch_laws, BatchLaws):
        raise TypeError(f"batch_laws is {batch_laws!r}; it must be a verify.BatchLaws{theirs}")


def _check_skip(skip: Any, paths: list[str]) -> Mapping[str, str]:
    """Refuse leaves to skip that are not there, or have no reason.

    Raises:
        TypeError: it is no mapping.
        ValueError: a path is not a parameter's, or a reason is empty.
    """
    if not isinstance(skip, Mapping):
        raise TypeError(
            f"skip is {skip!r}; it must map paths to reasons, as in {{'{paths[0]}': 'frozen'}}"
        )
    for path, reason in skip.items():
        if path not in paths:
            raise ValueError(
                f"skip names {path!r}, which is no floating leaf of the parameters; they are "
                f"{', '.join(paths)}"
            )
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(
                f"skip gives {reason!r} for {path}; a leaf that is not judged needs a reason in "
                "words"
            )
    return skip


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
