"""What an entry of the catalogue of rules is, and what its rooms share."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

Mistake = str | None
Generator = np.random.Generator
Door = Literal["rule", "against", "gradient"]


class Rule(NamedTuple):
    """A derivative rule as somebody writes it, right or with one of a few mistakes.

    Attributes:
        name: for people.
        make: `make(mistake)` is the function with its rule; at the door "gradient" it is a loss
            and its gradient. None makes no mistake.
        plain: what it computes, or for a surrogate what its derivative is meant to be that of,
            in plain JAX; at the door "gradient", the loss.
        inputs: `inputs(rng, dtype)` draws its positional arguments, no dimension twice.
        wrong: its mistakes, each with the causes that would be true of it, between commas.
        settings: what it is given by keyword.
        declared: what has to be said of it to the verifier: a tolerance or a surrogate, each with
            its reason.
        door: how it is asked about: by itself, beside `plain`, or a gradient beside a loss.
        forward: whether it is a rule of forward mode.
        exact: how near its right form is to the derivative of `plain`, as a part of each leaf's
            largest entry, in float64.
        narrow: whether it takes bfloat16.
        needs: the package that it is written with, where that is an extra.
    """

    name: str
    make: Callable[[Mistake], Any]
    plain: Callable[..., Any]
    inputs: Callable[[Generator, Any], tuple[Any, ...]]
    wrong: Mapping[str, str]
    settings: Mapping[str, Any] = {}
    declared: Mapping[str, Any] = {}
    door: Door = "rule"
    forward: bool = False
    exact: float = 1e-9
    narrow: bool = True
    needs: str = ""


def normals(*shapes: tuple[int, ...]) -> Callable[[Generator, Any], tuple[Array, ...]]:
    """Inputs that are all normal numbers, of these shapes."""

    def inputs(rng: Generator, dtype: Any) -> tuple[Array, ...]:
        return tuple(normal(rng, dtype, *shape) for shape in shapes)

    return inputs


def normal(rng: Generator, dtype: Any, *shape: int) -> Array:
    """Normal numbers."""
    return jnp.asarray(rng.normal(size=shape), dtype)


def wide(x: Array) -> Array:
    """In float32 at least: what sums and exponentials are computed in."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
