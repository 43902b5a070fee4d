"""Draw an exercise's example by NumPy: JAX would compile a program for each shape, for seconds."""

import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Shape = tuple[int, ...]


class _Drawn:
    """What an example asks of `jax.random`, by NumPy; a key is a tuple of numbers."""

    def __init__(self) -> None:
        self.Array = jax.Array

    def key(self, seed: int) -> tuple[int, ...]:
        return (seed,)

    def split(self, key: tuple[int, ...], num: int = 2) -> list[tuple[int, ...]]:
        return [(*key, i) for i in range(num)]

    def fold_in(self, key: tuple[int, ...], data: int) -> tuple[int, ...]:
        return (*key, 1000 + data)

    def normal(self, key: tuple[int, ...], shape: Shape = (), dtype: Any = None) -> jax.Array:
        return _array(_of(key).standard_normal(shape), dtype)

    def uniform(
        self,
        key: tuple[int, ...],
        shape: Shape = (),
        dtype: Any = None,
        minval: float = 0.0,
        maxval: float = 1.0,
    ) -> jax.Array:
        return _array(_of(key).uniform(minval, maxval, shape), dtype)

    def bernoulli(self, key: tuple[int, ...], p: float = 0.5, shape: Shape = ()) -> jax.Array:
        return jnp.asarray(_of(key).uniform(size=shape) < p)

    def randint(self, key: tuple[int, ...], shape: Shape, minval: int, maxval: int) -> jax.Array:
        return jnp.asarray(_of(key).integers(minval, maxval, shape), jnp.int32)

    def permutation(self, key: tuple[int, ...], x: Any) -> jax.Array:
        return jnp.asarray(_of(key).permutation(np.asarray(x)))


class _Jax:
    """JAX with another `random`."""

    random = _Drawn()

    def __getattr__(self, name: str) -> Any:
        return getattr(jax, name)


def _of(key: tuple[int, ...]) -> np.random.Generator:
    return np.random.default_rng(key)


def _array(value: Any, dtype: Any) -> jax.Array:
    return jnp.asarray(value, dtype or jnp.float32)


def example(function: Callable[..., Any], seed: int) -> tuple[Any, ...]:
    """Return what an exercise's `example` draws, floating arrays in float32.

    An example that asks for more than is here is drawn by JAX itself.
    """
    scope = {**function.__globals__, "jax": _Jax()}
    drawn: Any = types.FunctionType(
        function.__code__, scope, None, function.__defaults__, function.__closure__
    )
    try:
        return tuple(drawn(_Jax.random.key(seed)))
    except (AttributeError, TypeError):
        return tuple(function(jax.random.key(seed)))
