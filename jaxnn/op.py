"""An operation as two plain functions: a forward and the backward written for it by hand.

    out, residuals = fwd(*inputs, **static)
    cotangents     = bwd(residuals, dout, **static)    one per input, in input order

These are the conventions of `jax.custom_vjp`: `fwd` returns, next to its result, all that `bwd`
will need; `bwd` sees only that, the cotangent of the result (`dout`, of the result's shape) and
the static settings. The cotangent of an integer input is None.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

import jax

Inputs = ParamSpec("Inputs")
Out = TypeVar("Out")


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

    def __call__(self, *inputs: Inputs.args, **static: Inputs.kwargs) -> Out:
        """The forward's result; its derivative is the hand-written rule."""

        def primal(*args: Any) -> Out:
            return self.fwd(*args, **static)[0]

        rule: Any = jax.custom_vjp(primal)
        rule.defvjp(partial(self.fwd, **static), partial(self.bwd, **static))
        out: Out = rule(*inputs)
        return out

    def __repr__(self) -> str:
        return f"Op({self.name})"
