"""What the activations refuse, and what they are tried on: their door and their example."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxnn.checks import check_floating
from jaxnn.settings import check_normal, check_number

Rule = tuple[str, Callable[[float], bool]]
# What a setting must be beyond finite: of one op, or of all.
RULES: dict[str, Rule] = {
    "celu: alpha": (
        "finite and not 0, which x is divided by",
        lambda a: math.isfinite(a) and a != 0,
    ),
    "softplus: threshold": ("finite, or None for none", math.isfinite),
    "lambd": ("finite and at least 0: what is no larger becomes 0", lambda c: 0 <= c < math.inf),
}


def check_activation(op: str, x: Any, **settings: Any) -> None:
    """Refuse what is no floating array, and settings outside their range; None is passed over.

    Raises:
        TypeError: x is no floating array, or a setting no number.
        ValueError: a setting is not finite, or not as its rule has it.
    """
    check_floating(f"{op}: x", x)
    if "beta" in settings:
        check_normal(f"{op}: beta", settings.pop("beta"), x.dtype, ": 1 is usual")
    for name, value in settings.items():
        if value is None and (op, name) == ("softplus", "threshold"):
            continue
        rule, holds = RULES.get(f"{op}: {name}", RULES.get(name, ("finite", math.isfinite)))
        check_number(f"{op}: {name}", value, rule, holds)
    low, high = settings.get("min_val", 0.0), settings.get("max_val", 1.0)
    if low >= high:
        raise ValueError(
            f"{op}: min_val is {low} and max_val {high}; min_val must be below: exchange them"
        )


def door_of(op: str) -> Callable[..., None]:
    """Return the door of an activation."""
    return partial(check_activation, op)


def example(key: Array) -> tuple[Array]:
    """Normal values with the kinks of all activations, ties, and both saturated ends."""
    x = 2 * jax.random.normal(key, (3, 1, 5))
    x = x.at[1, 0].set(jnp.array([-3.0, 3.0, 6.0, -0.5, 0.5]))
    return (x.at[0, 0].set(jnp.array([0.0, 0.0, -30.0, 30.0, 30.0])),)
