"""What the arithmetic of all ops shares: the width of sums, division by 0, labels, draws."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Function = TypeVar("Function", bound=Callable[..., Any])
REDUCTIONS = ("mean", "sum", "none")


def widen(x: Array) -> Array:
    """Return x in float32, or in its own dtype if that is wider.

    Sums, squares and exponentials are taken of wide numbers: in 16 bits they overflow, and a sum of
    many terms stops growing.
    """
    x = jnp.asarray(x)
    return x.astype(np.promote_types(x.dtype, np.float32))


def rounded_once(function: Function) -> Function:
    """Make a function of arrays compute in float32 or wider, and round what it returns, once.

    Into the dtype of the last floating array that it is given. In 32 bits and more nothing changes.
    """

    def is_floating(x: Any) -> bool:  # a number of Python's has no width of its own
        return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)

    @functools.wraps(function)
    def computed(*inputs: Any, **settings: Any) -> Any:
        dtypes = [x.dtype for x in jax.tree.leaves(inputs) if is_floating(x)]
        if not dtypes or dtypes[-1].itemsize >= 4:
            return function(*inputs, **settings)
        wide = jax.tree.map(lambda x: widen(x) if is_floating(x) else x, inputs)
        returned = function(*wide, **settings)
        return jax.tree.map(lambda x: x.astype(dtypes[-1]) if is_floating(x) else x, returned)

    return cast(Function, computed)


def product(a: Array, b: Array) -> Array:
    """Return the matrix product of a and b, summed and left in float32 or wider.

    Of 16 bits it would be rounded before it is summed or exponentiated further.
    """
    return jnp.matmul(a, b, preferred_element_type=np.promote_types(a.dtype, np.float32))


def divide(a: Array, b: Array) -> Array:
    """Return a / b, and 0 where b is 0: a sum over nothing has a mean of 0 here, not NaN.

    The 0 is taken out of the division before it: chosen after it, its derivative would be NaN.
    """
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Return x summed over the axes along which an array of this shape broadcasts to that of x."""
    before = x.ndim - len(shape)
    spread = [before + axis for axis, size in enumerate(shape) if size == 1]
    return x.sum((*range(before), *spread)).reshape(shape)


def sum_like(like: Array | None, dx: Array) -> Array | None:
    """Return the cotangent of what was broadcast to dx's shape: summed to its own, in its dtype."""
    return None if like is None else sum_to(dx, like.shape).astype(like.dtype)


def is_traced(value: Any) -> bool:
    """Whether it is a real number that JAX traces, whose value cannot be seen, nor checked."""
    scalar = isinstance(value, jax.core.Tracer) and value.shape == ()
    return scalar and jnp.issubdtype(value.dtype, jnp.floating)


def is_zero(factor: Any) -> bool:
    """Whether a factor is 0, and what it weighs need not be computed; a traced one may be not."""
    return not is_traced(factor) and bool(factor == 0)


def in_dtype_of(factor: Any, x: Array) -> Any:
    """Return a traced factor in the dtype of x; a number has none of its own, and is left as it is.

    Of another dtype it would change that of a product.
    """
    return factor.astype(x.dtype) if is_traced(factor) else factor


def draw_kept(key: Array, rate: Any, shape: tuple[int, ...]) -> Array:
    """Draw which elements dropout keeps; `rate` is the probability to drop one, exact to 2^-32.

    By integers, and not uniform numbers of some dtype: those would be others in another dtype.
    """
    if is_traced(rate):
        bound = (widen(rate) * 2.0**32).astype(jnp.uint32)
    else:
        bound = jnp.uint32(int(rate * 2**32))
    kept: Array = jax.random.bits(key, shape, jnp.uint32) >= bound
    return kept


class Pairs(NamedTuple):
    """A key, and where in a matrix the rows (T,) and columns (S,) of a part of it are."""

    key: Array
    rows: Array
    columns: Array


def draw_kept_pairs(key: Array | Pairs, rate: Any, shape: tuple[int, ...]) -> Array:
    """Draw which elements (..., T, S) dropout keeps, those of each row and column by themselves.

    So a part of the matrix, which `Pairs` names, draws what the whole does there.
    """
    *others, t, s = shape
    key, rows, columns = key if isinstance(key, Pairs) else (key, jnp.arange(t), jnp.arange(s))
    # Of a generator whose numbers are the same in a batch of keys, which not all of JAX's are.
    base = jax.random.wrap_key_data(jax.random.bits(key, (2,), jnp.uint32), impl="threefry2x32")

    def of_pair(row: Array, column: Array) -> Array:
        own = jax.random.fold_in(jax.random.fold_in(base, row), column)
        return draw_kept(own, rate, tuple(others))

    return jax.vmap(jax.vmap(of_pair, (None, 0), -1), (0, None), -2)(rows, columns)


def valid_labels(
    labels: Array, classes: int, dtype: Any, ignore_index: int | None = None
) -> tuple[Array, Array]:
    """Return the labels, wide enough to be compared with any class, and how much each row counts.

    That is 1; 0 where the row is to be ignored; NaN where no class is meant, for a label that marks
    none would count as a certain success.
    """
    labels = labels.astype(np.int64 if labels.dtype.itemsize == 8 else np.int32)
    counts = jnp.where((labels >= 0) & (labels < classes), 1, jnp.nan)
    if ignore_index is not None:
        counts = jnp.where(labels == ignore_index, 0, counts)
    return labels, counts.astype(dtype)


def label_weights(
    label: Array, counts: Array, class_weights: Array | None, ignore_index: int | None
) -> tuple[Array | float, Array | int]:
    """Return the weight of each row, its class's or 1, and the total of the rows that count.

    The label and the counts are those of `valid_labels`.
    """
    if class_weights is None and ignore_index is None:
        return 1.0, label.size
    weights = jnp.ones_like(counts)
    if class_weights is not None:
        weights = jnp.take(class_weights.astype(counts.dtype), label, mode="clip")
    return weights, jnp.where(counts == 0, 0, weights).sum()


def reduce_fwd(losses: Array, reduction: str, total: Array | int | None = None) -> Array:
    """Return the mean of the losses, their sum or, for "none", each by itself.

    "mean"  loss = sum_i l_i / size         dl_i = dloss / size
    "sum"   loss = sum_i l_i                dl_i = dloss
    "none"  loss_i = l_i                    dl_i = dloss_i

    Of weighted losses the mean divides by their total weight, and is 0 where that is 0.
    """
    if reduction == "none":
        return losses
    total = losses.size if total is None else total
    return _share(losses.sum(), total) if reduction == "mean" else losses.sum()


def reduce_bwd(dloss: Array, total: Array | int, reduction: str) -> Array:
    """Return the cotangent of each of the losses, widened; a scalar where all have the same."""
    return _share(widen(dloss), total) if reduction == "mean" else widen(dloss)


def _share(x: Array, total: Array | int) -> Array:
    return x / total if isinstance(total, int) else divide(x, total)
