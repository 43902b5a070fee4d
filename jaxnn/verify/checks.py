"""The verification itself.

    gradient = bind, then abstract evaluation   -> structure, shapes, dtypes
                    then the working dtype      -> finite?
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
from jaxnn.verify.finite_differences import Line
from jaxnn.verify.lift import Problem, bind, compiled, is_floating, path_name, to_float64
from jaxnn.verify.report import Disagreement, LeafReport, Report, Status

# Two correct float64 gradients agree to about 1e-15 of a leaf's scale; a wrong one does not come
# within 1e-10 of it by luck.
RELATIVE_TOLERANCE = 1e-10
# A leaf of up to this many entries is witnessed entry by entry, a larger one along random lines.
FEW_ENTRIES = 32
LINES = 2
# So many of the entries that differ most are put to the witness one by one.
WORST_ENTRIES = 16


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
    *args: Any,
    **kwargs: Any,
) -> Report:
    """Compare a hand-written gradient with `jax.grad`, in float64, and both with the function.

    Floating arrays in `params`, `args` and `kwargs` are lifted to float64; integer arrays and
    PRNG keys are passed on; everything else (a configuration, a string, a Python number) is
    handed over untouched. Nothing is assumed about the model: any JAX function of any pytree.

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
    out = compiled(problem.manual_grad, problem.floats, problem.rest)(problem.floats, problem.rest)
    problems, faults = _structure(problem, out)
    working = _by_path(out)
    with jax.enable_x64(True):
        floats, rest = to_float64(problem.floats), to_float64(problem.rest)
        line = Line(problem.loss, floats, rest)
        lifted = _evaluate(problem, floats, rest)
        rounding = functools.cache(lambda: _rounding(problem, lifted, floats, rest))
        leaves = []
        for i, path in enumerate(problem.paths):
            given = problem.floats[i]
            leaf = LeafReport(path, given.shape, str(given.dtype), "fail", messages=faults[path])
            if not leaf.messages:
                manual, autodiff = lifted.manual[path], lifted.autodiff[i]
                leaf = _compare(leaf, manual, autodiff, rounding, i)
                if leaf.difference is not None:
                    leaf = _testify(leaf, manual, autodiff, functools.partial(line.slope, i))
                leaf = _check_working(leaf, working[path])
            leaves.append(leaf)
    name = getattr(manual_grad, "__qualname__", repr(manual_grad))
    return Report(name, lifted.loss, tuple(leaves), problems, time.perf_counter() - started)


def op(op: Op[..., Any], *inputs: Any, **static: Any) -> Report:
    """Verify an op's backward against autodiff of its forward, under a random cotangent.

    Args:
        op: what to verify.
        *inputs: its inputs; none for `op.example(jax.random.key(0))`.
        **static: its static settings.

    Raises:
        TypeError, ValueError: as `gradient`, with the inputs as the parameters.
    """
    inputs = inputs or op.example(jax.random.key(0))

    # The oracle differentiates the forward; op(...) itself would call the rule on trial.
    def loss(inputs: Any, dout: Any) -> Any:
        out, _ = op.fwd(*inputs, **static)
        return sum(jax.tree.leaves(jax.tree.map(lambda o, d: (o * d).sum(), out, dout)))

    def manual_grad(inputs: Any, dout: Any) -> Any:
        _, residuals = op.fwd(*inputs, **static)
        return op.bwd(residuals, dout, **static)

    out = jax.eval_shape(lambda *arrays: op.fwd(*arrays, **static)[0], *inputs)
    # Random, because a cotangent of ones hides what sums to zero, as in softmax.
    rng = np.random.default_rng(0)
    dout = jax.tree.map(lambda o: jnp.asarray(rng.normal(size=o.shape), o.dtype), out)
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


@dataclasses.dataclass(frozen=True)
class _Values:
    """Both gradients at one point: autodiff's by position, the hand-written by path."""

    loss: float
    autodiff: list[np.ndarray[Any, Any]]
    manual: dict[str, np.ndarray[Any, Any]]


def _evaluate(problem: Problem, floats: list[Any], rest: list[Any]) -> _Values:
    """Both gradients, from one program, in the dtype of what is given."""

    def both(floats: list[Any], rest: list[Any]) -> Any:
        value, autodiff = jax.value_and_grad(problem.loss)(floats, rest)
        return value, autodiff, problem.manual_grad(floats, rest)

    value, autodiff, manual = compiled(both, floats, rest)(floats, rest)
    return _Values(
        float(value),
        [np.asarray(leaf, np.float64) for leaf in autodiff],
        {
            path: np.asarray(leaf, np.float64)
            for path, leaf in _by_path(manual).items()
            if is_floating(leaf)
        },
    )


def _by_path(tree: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


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


def _structure(problem: Problem, out: Any) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """What is wrong with the hand-written gradient before any number: as a whole, and by path."""
    expected, got = dict(zip(problem.paths, problem.floats, strict=True)), _by_path(out)
    faults: dict[str, tuple[str, ...]] = {}
    for path, leaf in expected.items():
        if path not in got:
            faults[path] = ("missing from the hand-written gradient",)
            continue
        faults[path] = tuple(
            f"the hand-written gradient has {what} {theirs}, the parameter {ours}"
            for what, theirs, ours in (
                ("shape", got[path].shape, leaf.shape),
                ("dtype", got[path].dtype, leaf.dtype),
            )
            if theirs != ours
        )
    problems = [
        f"the hand-written gradient has a leaf {path} that the parameters lack"
        for path in got
        if path not in expected and path not in problem.not_floating
    ]
    if not problems and all(path in got for path in expected):
        floating_only = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if path_name(path) in expected else None, out
        )
        theirs, ours = jax.tree.structure(floating_only), jax.tree.structure(problem.expected)
        if str(theirs) != str(ours):
            problems.append(f"the hand-written gradient is a {theirs}, the parameters a {ours}")
    return tuple(problems), faults


def _rounding(problem: Problem, here: _Values, floats: list[Any], rest: list[Any]) -> list[float]:
    """How far autodiff's gradient moves, leaf by leaf, if every input moves in its last place.

    The smaller of two random moves in opposite directions: a kink on one side is not rounding.
    Bounded by the scale of the whole problem, so that a kink on both sides excuses nothing.
    """
    rng = np.random.default_rng(0)

    def moved(sign: int) -> list[np.ndarray[Any, Any]]:
        def move(x: Any) -> Any:
            if not is_floating(x):
                return x
            return x * (1 + sign * 2.0**-51 * rng.uniform(size=x.shape))

        return _evaluate(problem, [move(x) for x in floats], [move(x) for x in rest]).autodiff

    bound = 1e-12 * max([abs(here.loss), *(_largest(g) for g in here.autodiff)])
    return [
        min(64 * min(_largest(up - g), _largest(down - g)), bound)
        for g, up, down in zip(here.autodiff, moved(1), moved(-1), strict=True)
    ]


def _largest(values: np.ndarray[Any, Any]) -> float:
    return float(np.abs(values).max(initial=0.0))


def _compare(
    leaf: LeafReport,
    manual: np.ndarray[Any, Any],
    autodiff: np.ndarray[Any, Any],
    rounding: Callable[[], list[float]],
    number: int,
) -> LeafReport:
    """The two float64 gradients of one leaf, entry by entry."""
    for side, values in (("hand-written", manual), ("autodiff", autodiff)):
        if not np.isfinite(values).all():
            at = _first(~np.isfinite(values))
            message = (
                f"the {side} gradient is not finite in float64: {values[at]} at {at}, "
                f"{(~np.isfinite(values)).sum()} such entries"
            )
            return dataclasses.replace(leaf, messages=(message,))
    difference, scale = _largest(manual - autodiff), _largest(autodiff)
    tolerance = RELATIVE_TOLERANCE * scale
    if difference > tolerance:
        tolerance += rounding()[number]
    wrong = int((np.abs(manual - autodiff) > tolerance).sum())
    return dataclasses.replace(
        leaf,
        status="fail" if wrong else "pass",
        scale=scale,
        difference=difference,
        tolerance=tolerance,
        wrong=wrong,
    )


def _first(mask: np.ndarray[Any, Any]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])


def _check_working(leaf: LeafReport, manual: Any) -> LeafReport:
    """In the dtype that was given the hand-written gradient must be finite too."""
    values = np.asarray(manual, np.float64)
    if np.isfinite(values).all():
        return leaf
    at = _first(~np.isfinite(values))
    message = f"the hand-written gradient is not finite in {leaf.dtype}: {values[at]} at {at}"
    return dataclasses.replace(leaf, status="fail", messages=(*leaf.messages, message))


def _testify(
    leaf: LeafReport,
    manual: np.ndarray[Any, Any],
    autodiff: np.ndarray[Any, Any],
    slope: Callable[[np.ndarray[Any, Any]], Any],
) -> LeafReport:
    """Ask finite differences: of the whole leaf, and of the entries that differ most."""
    if leaf.wrong:
        return _accuse(leaf, manual, autodiff, slope)
    if manual.size <= FEW_ENTRIES:
        directions = [_unit(manual.shape, i) for i in range(manual.size)]
    else:
        rng = np.random.default_rng(0)
        directions = [rng.normal(size=manual.shape) for _ in range(LINES)]
    messages, kinks, blind = [], 0, 0
    for direction in directions:
        s, value = slope(direction), float((autodiff * direction).sum())
        kinks += s.kink
        blind += not np.isfinite(s.error)
        one = np.count_nonzero(direction) == 1
        where = f"along entry {list(_first(direction != 0))}" if one else "along a random line"
        if s.kink and one and not s.admits(value):
            messages.append(
                f"{where} both gradients give {value:.10g}, outside the slopes left and right "
                f"of a kink there, {s.left:.6g} and {s.right:.6g}"
            )
        elif not s.kink and not s.agrees_with(value):
            messages.append(
                f"{where} both gradients give {value:.10g}, but finite differences "
                f"{s.centred:.10g} +- {s.error:.1g}: is there a custom derivative rule or a "
                "stop_gradient in the loss?"
            )
    status: Status = "inconclusive" if messages else "pass"
    if kinks + blind == len(directions) > 0:
        messages.append("finite differences could not testify: a kink or no finite loss all around")
    return dataclasses.replace(
        leaf, status=status, directions=len(directions), kinks=kinks, messages=tuple(messages)
    )


def _accuse(
    leaf: LeafReport,
    manual: np.ndarray[Any, Any],
    autodiff: np.ndarray[Any, Any],
    slope: Callable[[np.ndarray[Any, Any]], Any],
) -> LeafReport:
    """Of a leaf whose gradients differ: whose entries do finite differences confirm?"""
    order = np.argsort(-np.abs(manual - autodiff), axis=None)[: min(leaf.wrong, WORST_ENTRIES)]
    found = []
    for flat in order:
        at = tuple(int(i) for i in np.unravel_index(flat, manual.shape))
        s, m, a = slope(_unit(manual.shape, flat)), float(manual[at]), float(autodiff[at])
        by_manual, by_autodiff = s.agrees_with(m), s.agrees_with(a)
        if s.admits(m):
            verdict = "a kink: the hand-written value is a subgradient, as good as autodiff's"
        elif by_autodiff and not by_manual:
            verdict = "finite differences side with autodiff: the hand-written gradient is wrong"
        elif by_manual and not by_autodiff:
            verdict = "finite differences side with the hand-written gradient: autodiff is wrong"
        elif by_manual:
            verdict = "finite differences are too coarse to tell which of the two is wrong"
        elif s.kink:
            verdict = "a kink: the hand-written value is not between the slopes on its two sides"
        else:
            verdict = "finite differences confirm neither: both look wrong"
        found.append(Disagreement(at, m, a, s.centred, s.error, s.left, s.right, s.kink, verdict))
        if not s.admits(m):
            break
    only_kinks = s.admits(m) and leaf.wrong == len(found)
    return dataclasses.replace(
        leaf,
        status="inconclusive" if only_kinks else "fail",
        directions=len(found),
        kinks=sum(d.kink for d in found),
        worst=found[-1],
    )


def _unit(shape: tuple[int, ...], flat: int) -> np.ndarray[Any, Any]:
    """The direction of one entry."""
    direction = np.zeros(shape)
    direction.flat[flat] = 1.0
    return direction


def _value_problems(module: Any, params: Any, batch: Any, config: Any) -> list[str]:
    """`manual_value_and_grad` must return the loss, and the gradient that `manual_grad` does."""
    problem = bind(module.loss, module.manual_grad, params, (batch, config), {})
    both = bind(module.loss, module.manual_value_and_grad, params, (batch, config), {}).manual_grad

    def values(floats: list[Any], rest: list[Any]) -> Any:
        return problem.loss(floats, rest), problem.manual_grad(floats, rest), both(floats, rest)

    with jax.enable_x64(True):
        floats, rest = to_float64(problem.floats), to_float64(problem.rest)
        loss, alone, (value, grads) = compiled(values, floats, rest)(floats, rest)
    expected = _by_path(alone)
    problems = []
    if not np.isclose(value, loss, rtol=1e-12, atol=0):
        problems.append(f"manual_value_and_grad returns the loss {value}, loss returns {loss}")
    for path, leaf in _by_path(grads).items():
        if path not in expected or not np.allclose(leaf, expected[path], rtol=1e-12, atol=1e-300):
            problems.append(f"manual_value_and_grad and manual_grad differ at {path}")
    return problems
