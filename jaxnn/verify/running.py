"""Running sums and products, and what goes wrong in their derivatives.

cumsum        y_t = x_1 + ... + x_t              dy_t = sum over s <= t of dx_s
cumprod       y_t = x_1 ... x_t                  dy_t = y_t sum over s <= t of dx_s / x_s
cumlogsumexp  y_t = log(e^x_1 + ... + e^x_t)     dy_t = e^-y_t sum over s <= t of e^x_s dx_s
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

On = Callable[[str, str, int | None], Any]
# What stands before the sum, and inside it: of x and y.
FACTORS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "cumsum": lambda x, y: (jnp.ones_like(x), jnp.ones_like(x)),
    "cumprod": lambda x, y: (y, 1 / x),
    "cumlogsumexp": lambda x, y: (jnp.exp(-y), jnp.exp(x)),
}


def mistaken_running(eqn: JaxprEqn, s: Any, x: Any, y: Any, on: On) -> Any:
    """What a mistake adds to the tangent of a running sum or product, of tangents s of x."""
    if eqn.primitive.name not in FACTORS:
        return 0
    axis, reverse = eqn.params["axis"], eqn.params["reverse"]
    before, inside = FACTORS[eqn.primitive.name](x, y)

    def summed(s: Any, backwards: bool) -> Any:
        return lax.cumsum(s, axis, reverse=backwards)

    def wrong() -> Iterator[tuple[str, str, Any]]:
        right = before * summed(inside * s, reverse)
        words = "time is not reversed: the cotangents are summed in the direction of"
        yield "flip", words, before * summed(inside * s, not reverse) - right
        own = before * inside * s
        yield "not summed", "each step has its own cotangent alone, not their sum, in", own - right
        yield "shifted", "each step's own cotangent is left out of the sum in", -own
        if eqn.primitive.name != "cumsum":
            words = "the factor of each step's input is left out of"
            yield "derivative left out", words, before * summed(s, reverse) - right
            words = "the factor of each step's output is left out of"
            yield "derivative left out", words, summed(inside * s, reverse) - right

    added = jnp.zeros_like(y)
    for cause, words, value in wrong():
        added = jnp.where(on(cause, words, None) > 0, value, added)
    return added
