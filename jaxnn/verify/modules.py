"""Verify a module that has the model functions, on its own example batch."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from jaxnn.verify.gradients import gradient
from jaxnn.verify.outside import outside
from jaxnn.verify.problem import bind, is_floating, to_float64
from jaxnn.verify.programs import compiled
from jaxnn.verify.report import Report
from jaxnn.verify.values import by_path


@outside
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
