"""What a function does with arrays, as JAX traces it: two of equal traces do the same."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# A function of more equations runs operation by operation.
MOST_COMPILED = 2_500


class Trace(NamedTuple):
    """What a function does with arrays: two of equal text, constants and results do the same.

    Attributes:
        stage: what JAX traced.
        text: the trace in words, which do not say what its constants are; empty where it is too
            long to be worth comparing, or does not say which Python function is called back.
        constants: a digest of these.
        results: the containers of what it returns, with their names.
    """

    stage: Any
    text: str
    constants: str
    results: Any

    @property
    def jaxpr(self) -> ClosedJaxpr:
        """The traced function."""
        closed: ClosedJaxpr = self.stage.jaxpr
        return closed

    @property
    def long(self) -> bool:
        """Whether it takes less time to run it operation by operation than to compile it."""
        return count_of(self.jaxpr.jaxpr) > MOST_COMPILED


def traced_as(function: Callable[..., Any], arrays: Any) -> Trace:
    """What a function does with arrays such as these.

    Raises:
        NotTraceable: it looks at their values.
    """
    with _in_words():
        stage: Any = jax.jit(lambda *a: function(*a)).trace(*arrays)
    results = jax.tree.structure(stage.out_info)
    if count_of(stage.jaxpr.jaxpr) > MOST_COMPILED:
        return Trace(stage, "", "", results)
    text = str(stage.jaxpr)
    return Trace(stage, "" if "callback" in text else text, _digest(stage.jaxpr), results)


class NotTraceable(TypeError):  # noqa: N818 (a TypeError of the caller's, told from others)
    """A function that looks at the values of its arrays, and cannot be traced."""


def _digest(closed: ClosedJaxpr) -> str:
    """A hash of every constant in a trace, which its text does not show."""
    digest = hashlib.blake2b()

    def walk(jaxpr: Jaxpr) -> None:
        for eqn in jaxpr.eqns:
            for operand in eqn.invars:
                if isinstance(operand, Literal):
                    add(operand.val)
            for value in jax.tree.leaves(
                list(eqn.params.values()), is_leaf=lambda v: isinstance(v, ClosedJaxpr | Jaxpr)
            ):
                if isinstance(value, ClosedJaxpr):
                    enter(value)
                elif isinstance(value, Jaxpr):
                    walk(value)

    def add(value: Any) -> None:
        if jnp.issubdtype(jnp.result_type(value), jax.dtypes.extended):
            value = jax.random.key_data(value)
        digest.update(np.asarray(value).tobytes())

    def enter(closed: ClosedJaxpr) -> None:
        for constant in closed.consts:
            add(constant)
        walk(closed.jaxpr)

    enter(closed)
    return digest.hexdigest()


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """What JAX raises for functions that look at values, in words."""
    try:
        yield
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        raise NotTraceable(
            "a function under verification looks at the values of its arrays (NumPy calls, `if` or "
            f"`float` on an array); it must be traceable by jax.jit: use jax.numpy, jnp.where and "
            f"lax.cond. JAX says: {str(error).splitlines()[0]}"
        ) from error


def count_of(jaxpr: Jaxpr) -> int:
    """The equations of a jaxpr, those of the functions that it calls included."""
    total = 0
    for eqn in jaxpr.eqns:
        inner = eqn.params.get("jaxpr") if eqn.primitive.name in ("jit", "pjit") else None
        total += count_of(inner.jaxpr) if isinstance(inner, ClosedJaxpr) else 1
    return total
