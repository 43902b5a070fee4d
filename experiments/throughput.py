"""How many trials a second one gets through: in lanes of one program, and in two loops of runs."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxnn import files, train

ROUNDS = 3
TRIALS = 32  # in a round
ALONE = 2  # of the slowest way


def measure(
    model: Any,
    build: Callable[[dict[str, Any]], tuple[Any, Any]],
    data: Any,
    static: Mapping[str, Any],
    floats: Mapping[str, tuple[float, float]],
    evaluate: Callable[[Any, Any], Any],
    *,
    lanes: int,
    epochs: int,
    batch_size: int,
) -> dict[str, float]:
    """Time the ways in turns, compilation included, and print trials per second of each.

    All train trials of one network and optimizer to the end, each with its own numbers and key:
    "lanes" in one program; "a run each" compiles `make_run` for each, as one does who has numbers
    in a configuration; "one program" compiles a lane once and calls it trial by trial.

    Args:
        model: a module with the model functions.
        build: as for `make_trials`.
        data: as for `make_trials`.
        static: the integers and categories.
        floats: of each number the range to draw it from.
        evaluate: as for `make_trials`.
        lanes: how many.
        epochs: of a trial.
        batch_size: examples per step.

    Returns:
        The median of the rounds, by way.
    """
    rng = np.random.default_rng(0)
    shared: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size}

    def drawn(n: int) -> list[dict[str, float]]:
        return [{name: rng.uniform(*ends) for name, ends in floats.items()} for _ in range(n)]

    def in_lanes(width: int, number: int) -> None:
        start, advance = train.make_trials(
            model, lambda own: build({**static, **own}), data, evaluate=evaluate, **shared
        )
        for first in range(0, number, width):
            own = drawn(width)
            settings = {name: [one[name] for one in own] for name in floats}
            keys = jax.random.split(jax.random.key(first), width)
            jax.block_until_ready(advance(start(keys, settings), settings)[1])

    def alone(own: dict[str, float], key: jax.Array) -> None:
        config, optimizer = build({**static, **own})
        run = train.make_run(
            model, config, optimizer, data, evaluate=lambda p: evaluate(p, config), **shared
        )
        jax.block_until_ready(run(train.init_state(model, config, optimizer, key))[1])

    def each_alone(number: int) -> None:
        for i, own in enumerate(drawn(number)):
            alone(own, jax.random.key(i))

    ways: dict[str, tuple[Callable[[], None], int]] = {
        f"{lanes} lanes": (lambda: in_lanes(lanes, TRIALS), TRIALS),
        "a run each, compiled for each": (lambda: each_alone(ALONE), ALONE),
        "one program, trial by trial": (lambda: in_lanes(1, TRIALS), TRIALS),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (work, number) in ways.items():
            started = time.perf_counter()
            work()
            rates[name].append(number / (time.perf_counter() - started))
    medians = {name: statistics.median(each) for name, each in rates.items()}
    first = next(iter(medians))
    print(
        f"trials of {files.counted(epochs, 'epoch')} per second, of {TRIALS} of one network, "
        f"compilation included, median of {ROUNDS} rounds:"
    )
    for name, rate in medians.items():
        ratio = "" if name == first else f"  {medians[first] / rate:5.1f} times as many in {first}"
        print(f"{name:30} {rate:8.3f}{ratio}")
    return medians
