"""An operation as two plain functions: a forward and the backward written for it by hand.

    out, residuals = fwd(*inputs, **static)
    cotangents     = bwd(residuals, dout, **static)    one per input, in input order

These are the conventions of `jax.custom_vjp`: `fwd` returns, next to its result, all that `bwd`
will need; `bwd` sees only that, the cotangent of the result (`dout`, of the result's shape) and
the static settings. The cotangent of an integer input is None.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Inputs = ParamSpec("Inputs")
Out = TypeVar("Out")

Watch = Callable[["Op[..., Any]", str, Callable[..., Any]], Callable[..., Any]]
_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextlib.contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Inside, every `op.fwd` and `op.bwd` is what `watch(op, "fwd" or "bwd", function)` returns.

    In this thread only. What was taken from an op before (`f = op.fwd`, a partial of it) stays the
    plain function, and so does what a call of the op itself, `op(x)`, runs.
    """
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


@dataclass(frozen=True, eq=False)
class Op(Generic[Inputs, Out]):
    """A forward and its hand-written backward, bound together.

    Called, it is an ordinary JAX function whose reverse-mode derivative is `bwd`: it works under
    jit, vmap, scan and `jax.grad`, inside any model. (Like every `jax.custom_vjp` function it
    refuses forward mode, `jax.jvp`.) Models written by hand chain `fwd` and `bwd` themselves.

    An oracle must differentiate `fwd(...)[0]`, which is plain JAX, and never the op itself: that
    would check the rule against itself.

    Attributes:
        fwd: `fwd(*inputs, **static) -> (out, residuals)`, differentiable by JAX.
        bwd: `bwd(residuals, dout, **static) -> cotangents`, a tuple with one entry per input.
        example: `example(key) -> inputs`, small and awkward on purpose (odd sizes, no two
            dimensions alike, values at kinks): what the verifier and the tests draw.
        settings: static keyword settings to verify the op under.
    """

    fwd: Callable[Inputs, tuple[Out, Any]]
    bwd: Callable[..., tuple[Any, ...]]
    example: Callable[[jax.Array], tuple[Any, ...]]
    settings: tuple[Mapping[str, Any], ...] = ({},)

    @property
    def name(self) -> str:
        """The forward's name without its `_fwd`."""
        return str(getattr(self.fwd, "__name__", "op")).removesuffix("_fwd")

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattribute__(self, name: str) -> Any:
            value = object.__getattribute__(self, name)
            watch = _watch.get() if name in ("fwd", "bwd") else None
            return value if watch is None else watch(self, name, value)

    def __call__(self, *inputs: Inputs.args, **static: Inputs.kwargs) -> Out:
        """The forward's result; its derivative is the hand-written rule."""
        fwd, bwd = vars(self)["fwd"], vars(self)["bwd"]  # the plain ones, whoever watches
        # A scalar of NumPy's would widen bfloat16; Python's does not.
        settings = {k: v.item() if isinstance(v, np.generic) else v for k, v in static.items()}

        def primal(*args: Any) -> Out:
            out: Out = fwd(*args, **settings)[0]
            return out

        def forward(*args: Any) -> tuple[Out, Any]:
            out, residuals = fwd(*args, **settings)
            return out, (residuals, jax.tree.map(lambda x: jnp.zeros(0, x.dtype), args))

        def backward(residuals: Any, dout: Any) -> tuple[Any, ...]:
            residuals, empty = residuals
            return tuple(map(_cast, bwd(residuals, dout, **settings), empty))

        rule: Any = jax.custom_vjp(primal)
        rule.defvjp(forward, backward)
        out: Out = rule(*inputs)
        return out

    def __repr__(self) -> str:
        return f"Op({self.name})"


def _cast(cotangent: Any, like: Any) -> Any:
    """An input's cotangent in its dtype, which JAX expects and does not see to itself."""
    if cotangent is None:
        return None
    return jax.tree.map(lambda d, x: d.astype(x.dtype), cotangent, like)
