"""Verify a hand-written gradient of a loss: any JAX function of any pytree, or a model's module."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxnn.verify.arguments import parameters_first
from jaxnn.verify.batch import BatchLaws
from jaxnn.verify.door import check_options, check_signature, check_surrogate, entrance
from jaxnn.verify.judge import judge
from jaxnn.verify.mesh import refuse_on_mesh, spread_over, whole
from jaxnn.verify.problem import bind, is_floating, to_float64
from jaxnn.verify.programs import compiled
from jaxnn.verify.report import Report
from jaxnn.verify.values import by_path


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
    """Assert that `gradient` passes, in a test.

    Raises:
        GradientMismatch: the status is not "pass".
        TypeError, ValueError: as `gradient`.
    """
    report = gradient(loss, manual_grad, params, *args, **kwargs)
    if not report:
        raise GradientMismatch(report)
    return report


@entrance
def gradient(
    loss: Callable[..., Any],
    manual_grad: Callable[..., Any],
    params: Any,
    /,
    *args: Any,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    skip: Mapping[str, str] | None = None,
    tolerance: Mapping[str, tuple[float, str]] | None = None,
    surrogate: tuple[Callable[..., Any], str] | None = None,
    batch_laws: BatchLaws | None = None,
    second_order: bool = False,
    seed: int = 0,
    mesh: Any = None,
    rules: Any = None,
    **kwargs: Any,
) -> Report:
    """Compare a hand-written gradient with `jax.grad`, in float64, and both with the function.

    Floating arrays in `params`, `args` and `kwargs` are lifted to float64; integer arrays and
    PRNG keys are passed on; everything else (a configuration, a string, a Python number) is
    handed over untouched, inside the parameters too. Nothing is assumed about the model: any JAX
    function of any pytree. (A random draw without a dtype is another draw in float64: give it the
    dtype of its operand.) A gradient that cannot be traced, as one in NumPy, is called with
    numbers. Arrays of the caller's are never changed or deleted.

    Two gradients of a leaf agree if every entry differs by at most 1e-10 of the leaf's largest,
    plus autodiff's own rounding, measured by moving every input in its last place. Finite
    differences testify for every leaf, and for the entries that differ most. In the dtype given,
    the hand-written gradient may be off by 8 times autodiff's error there, plus 8 units in the
    last place of the leaf's largest. Where the formula is wrong, its likely cause is looked for.

    Args:
        loss: `loss(params, *args, **kwargs)` -> one floating scalar.
        manual_grad: `manual_grad(params, *args, **kwargs)` -> its gradient, shaped like `params`;
            leaves that are not floating are not looked at. From (value, gradient),
            ((value, extra), gradient) and (gradient, extra) the gradient is taken.
        params: a pytree with at least one floating leaf; what is differentiated.
        *args: whatever else both functions take.
        argnums: the positions of the arguments that are differentiated, as in `jax.grad`: for
            several, the gradient is a tuple, and leaves are named by argument. Positions of
            `batch_laws` are then among the other arguments.
        has_aux: whether the loss returns (value, extra), as in `jax.grad`.
        skip: leaves that are not judged, by path, each with the reason.
        tolerance: leaves of which so much of the largest entry may be wrong, for solvers and the
            like: (relative tolerance, reason), by path.
        surrogate: (function, reason): where the gradient is on purpose not the loss's (straight-
            through, clipped, reversed), the function whose gradient it is; it takes what the loss
            takes, and returns what it returns.
        batch_laws: which arguments carry a batch, to hold the gradient to what a mean or a sum
            over it must obey.
        second_order: whether the hand-written gradient is to be differentiated itself, against
            autodiff's Hessian-vector product.
        seed: of the random lines, directions and permutations.
        mesh: where the gradient is a function for one device of many, to be run inside
            `jax.shard_map`: their mesh. The loss remains one of whole arrays, on one device.
        rules: with a mesh, a tuple: each `PartitionSpec` of the parameters, which are those of
            their gradient, and of each further argument by position; arrays given by name are
            whole on every device.
        **kwargs: the same as `args`, by name. An argument of your functions that is called like
            one of ours (argnums, has_aux, skip, tolerance, surrogate, batch_laws, second_order,
            seed, mesh, rules) must be given by position.

    Returns:
        A report; in a condition it is true only if the gradient passed.

    Raises:
        TypeError: a function cannot be called with these arguments, the loss cannot be traced, a
            parameter is complex, or the call is inside `jax.jit`.
        ValueError: the loss is not a scalar, no parameter is floating, it cannot be told what the
            gradient is in what is returned, or an option names a leaf that is not there or gives
            no reason.
    """
    check_options(seed, batch_laws, has_aux)
    functions = {"loss": loss, "manual_grad": manual_grad}
    reference, because = loss, ""
    if surrogate is not None:
        reference, because = check_surrogate(surrogate)
        functions["surrogate"] = reference
    for role, function in functions.items():
        check_signature(role, function, (params, *args), kwargs)
    spread = None
    if mesh is not None or rules is not None:
        refuse_on_mesh(batch_laws=batch_laws, second_order=second_order)
        spread = spread_over(mesh, rules, 1 + len(args))
        params, args, kwargs = whole((params, args, kwargs))
    call = parameters_first(reference, manual_grad, (params, *args), argnums)
    if spread:
        first = parameters_first(reference, manual_grad, spread.rules, argnums)
        spread = spread._replace(rules=(first.params, *first.args))
    report, _ = judge(
        call,
        kwargs,
        has_aux=has_aux,
        skip=skip,
        tolerance=tolerance,
        batch_laws=batch_laws,
        second_order=second_order,
        seed=seed,
        spread=spread,
    )
    if because:
        name = getattr(reference, "__qualname__", repr(reference))
        line = f"the loss's own derivative: judged against the surrogate {name}: {because}"
        own = bind(loss, manual_grad, params, args, kwargs, has_aux=has_aux)
        value = float(compiled(own.loss, own.floats, own.rest).run(own.floats, own.rest))
        report = dataclasses.replace(report, loss=value, coverage=(line, *report.coverage))
    return report


@entrance
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


def _value_problems(module: Any, params: Any, batch: Any, config: Any) -> list[str]:
    """`manual_value_and_grad` must return the loss, and the gradient that `manual_grad` does."""
    problem = bind(module.loss, module.manual_grad, params, (batch, config), {})
    both = problem.call(module.manual_value_and_grad)

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
