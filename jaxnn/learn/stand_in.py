"""NumPy in the place of `jnp`, `jax.nn` and `lax`: a changed backward runs uncompiled."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, nn, tree


class Array(np.ndarray[Any, Any]):
    """An array that has `.at`, as JAX's have."""

    @property
    def at(self) -> "_At":
        """Return what is indexed to set or add."""
        return _At(self)


class _At:
    def __init__(self, array: Array, index: Any = None) -> None:
        self.array, self.index = array, index

    def __getitem__(self, index: Any) -> "_At":
        return _At(self.array, index)

    def set(self, value: Any) -> Any:
        new = self.array.copy()
        new[self.index] = value
        return new

    def add(self, value: Any) -> Any:
        new = self.array.copy()
        np.add.at(new, self.index, np.asarray(value))
        return new


def as_array(value: Any) -> Any:
    """Return arrays as NumPy's, with `.at`."""
    return np.asarray(value).view(Array) if isinstance(value, np.ndarray | jax.Array) else value


def _softmax(x: Any, axis: Any = -1) -> Any:
    e = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    top = np.max(x, axis=axis, keepdims=True)
    found = np.log(np.exp(x - top).sum(axis=axis, keepdims=True)) + top
    return found if keepdims else np.squeeze(found, axis)


def _sigmoid(x: Any) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _one_hot(labels: Any, number: int, *, dtype: Any = float, axis: int = -1) -> Any:
    return (np.asarray(labels)[..., None] == np.arange(number)).astype(dtype)


_FUNCTIONS: dict[str, Any] = {
    "softmax": _softmax,
    "log_softmax": lambda x, axis=-1: x - _logsumexp(x, axis, True),
    "logsumexp": _logsumexp,
    "sigmoid": _sigmoid,
    "logistic": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "relu": lambda x: np.maximum(x, 0),
    "softplus": lambda x: np.logaddexp(x, 0),
    "one_hot": _one_hot,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "stop_gradient": lambda x: x,
    "array": np.array,
}
_STAND_INS = {id(jnp): "numpy", id(nn): "nn", id(lax): "lax", id(jax): "jax"}


class _Module:
    """A module whose functions give arrays with `.at`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Any:
        if self.name == "jax":
            inner = {"numpy": jnp, "nn": nn, "lax": lax}
            return _Module(name) if name in inner else getattr(jax, name)
        if self.name in ("nn", "lax") and name not in _FUNCTIONS and not hasattr(np, name):
            return getattr({"nn": nn, "lax": lax}[self.name], name)
        found = _FUNCTIONS.get(name) or getattr(np, name)
        return _giving(found) if callable(found) and not isinstance(found, type) else found


def _giving(function: Any) -> Any:
    def given(*args: Any, **settings: Any) -> Any:
        return tree.map(as_array, function(*args, **settings))

    return given


def as_numpy(value: Any) -> Any:
    """Return what stands in for a value of a student's module; anything else as it is."""
    if id(value) in _STAND_INS:
        return _Module(_STAND_INS[id(value)])
    name = getattr(value, "__name__", "")
    if callable(value) and name in _FUNCTIONS and "jax" in str(getattr(value, "__module__", "")):
        return _giving(_FUNCTIONS[name])
    return value
