"""An operation as two plain functions: a forward and the backward written for it by hand.

    out, residuals = fwd(*inputs, **static)
    cotangents     = bwd(residuals, dout, **static)    one per input, in input order

These are the conventions of `jax.custom_vjp`: `fwd` returns, next to its result, all that `bwd`
will need; `bwd` sees only that, the cotangent of the result (`dout`, of the result's shape) and
the static settings. The cotangent of an integer input is None (or of dtype float0); None for a
floating input says that it is zero.
"""

import contextlib
import functools
import inspect
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
# Names that tell nothing of what is computed: a better one is looked for.
NAMELESS = ("", "<lambda>", "_", "f", "fwd", "forward", "fun", "fn", "op")


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
        """The variable it is bound to beside its forward; else the forward's name, less `_fwd`."""
        fwd = vars(self)["fwd"]  # whoever watches
        fwd = inspect.unwrap(getattr(fwd, "func", fwd))
        own = str(getattr(fwd, "__name__", "")).removesuffix("_fwd")
        beside = getattr(fwd, "__globals__", {})
        bound = [name for name, value in beside.items() if value is self and name not in NAMELESS]
        return bound[0] if bound else own or "op"

    @functools.cached_property
    def inputs(self) -> Mapping[str, Any]:
        """The names of its inputs, with their defaults (`inspect.Parameter.empty` for none).

        They are what `fwd` takes by position, unless `bwd` takes it by name: then it is a setting.
        """
        fwd, bwd = _parameters(vars(self)["fwd"]), _parameters(vars(self)["bwd"])[2:]
        named = {p.name for p in bwd}
        any_name = any(p.kind is p.VAR_KEYWORD for p in bwd)
        return {
            p.name: p.default
            for p in fwd
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
            and p.name not in named
            and not (any_name and p.default is not p.empty)
        }

    def arranged(
        self, inputs: tuple[Any, ...], static: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call as inputs by position, and settings by name.

        Raises:
            TypeError: an input is given twice, or one before those given by name is not.
        """
        by_name = [name for name in static if name in self.inputs]
        if not by_name:
            return inputs, dict(static)
        names, placed = list(self.inputs), list(inputs)
        for position, name in enumerate(names[: 1 + max(map(names.index, by_name))]):
            if position < len(inputs):
                if name in static:
                    raise TypeError(f"op {self.name} was given {name} by position and by name")
            elif name in static or self.inputs[name] is not inspect.Parameter.empty:
                placed.append(static.get(name, self.inputs[name]))
            else:
                raise TypeError(
                    f"op {self.name} was given {by_name[-1]} but not {name}; its inputs are "
                    f"{', '.join(names)}"
                )
        return tuple(placed), {k: v for k, v in static.items() if k not in by_name}

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattribute__(self, name: str) -> Any:
            value = object.__getattribute__(self, name)
            watch = _watch.get() if name in ("fwd", "bwd") else None
            return value if watch is None else watch(self, name, value)

    def __call__(self, *inputs: Inputs.args, **static: Inputs.kwargs) -> Out:
        """The forward's result; its derivative is the hand-written rule.

        Raises:
            TypeError: `fwd` or `bwd` has not the form that an op's has: as `call_fwd`, `call_bwd`.
        """
        fwd, bwd = vars(self)["fwd"], vars(self)["bwd"]  # the plain ones, whoever watches
        placed, static_ = self.arranged(inputs, static)
        # A scalar of NumPy's would widen bfloat16; Python's does not.
        settings = {k: v.item() if isinstance(v, np.generic) else v for k, v in static_.items()}

        def primal(*args: Any) -> Out:
            out: Out = call_fwd(self, fwd, args, settings)[0]
            return out

        def forward(*args: Any) -> tuple[Out, Any]:
            out, residuals = call_fwd(self, fwd, args, settings)
            return out, (residuals, _Avals(jax.tree.map(_aval, args)))

        def backward(residuals: Any, dout: Any) -> tuple[Any, ...]:
            residuals, avals = residuals
            cotangents = call_bwd(self, bwd, residuals, dout, settings, len(avals.inputs))
            return tuple(
                _cast(self, i, cotangent, like)
                for i, (cotangent, like) in enumerate(zip(cotangents, avals.inputs, strict=True))
            )

        # In what JAX says of the program, this is the forward, at its line; by position only.
        named: Any = primal
        named.__wrapped__, named.__signature__ = fwd, _BY_POSITION
        named.__name__ = getattr(fwd, "__name__", "op")
        rule: Any = jax.custom_vjp(primal)
        rule.defvjp(forward, backward)
        out: Out = rule(*placed)
        return out

    def __repr__(self) -> str:
        return f"Op({self.name})"


def call_fwd(
    op: Op[..., Any], fwd: Callable[..., Any], inputs: tuple[Any, ...], static: Mapping[str, Any]
) -> tuple[Any, Any]:
    """What an op's forward (as it is, or watched) returns, `(out, residuals)`.

    Raises:
        TypeError: it does not take these, hands a traced array to NumPy, returns no such tuple, or
            has something among the residuals that is no array.
    """
    returned = _call(op, "fwd", fwd, inputs, static)
    _check_tuple(op, "fwd", returned, "(out, residuals)", 2)
    for leaf in jax.tree.leaves(returned[1]):
        if not _is_array(leaf):
            raise TypeError(
                f"fwd of op {op.name} returns {leaf!r:.100} among the residuals, which must be "
                "arrays: give what is none as a setting, by keyword"
            )
    out, residuals = returned
    return out, residuals


def call_bwd(
    op: Op[..., Any],
    bwd: Callable[..., Any],
    residuals: Any,
    dout: Any,
    static: Mapping[str, Any],
    count: int,
) -> tuple[Any, ...]:
    """What an op's backward (as it is, or watched) returns, a cotangent for each of its inputs.

    Raises:
        TypeError: it does not take these, hands a traced array to NumPy, or returns no such tuple.
    """
    cotangents: tuple[Any, ...] = _call(op, "bwd", bwd, (residuals, dout), static)
    _check_tuple(op, "bwd", cotangents, "(dinput, ...), one per input", count)
    return cotangents


def _call(
    op: Op[..., Any],
    role: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    static: Mapping[str, Any],
) -> Any:
    """What a function of an op returns; or in words why it cannot be called so."""
    try:
        return function(*args, **static)
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(
            f"{role} of op {op.name} hands a traced array to NumPy; an op is traced by JAX: write "
            "it in jax.numpy"
        ) from error
    except TypeError:  # its own, or Python's of the call
        try:
            signature = inspect.signature(vars(op)[role])
        except ValueError:  # a callable that has none
            signature = inspect.Signature(_ANYTHING)
        try:
            signature.bind(*args, **static)
        except TypeError as misfit:
            unknown = [n for n in static if n not in signature.parameters and n in str(misfit)]
            wrong = f"no setting {unknown[0]}" if unknown else f"other arguments ({misfit})"
            raise TypeError(
                f"{role} of op {op.name} takes {wrong}: it is {role}{signature}; fwd takes the "
                "inputs, bwd (residuals, dout), and both every setting by its name"
            ) from None
        raise


def _check_tuple(op: Op[..., Any], role: str, value: Any, form: str, length: int) -> None:
    """Refuse what a function of an op returned if it is no tuple of this length."""
    if type(value) is not tuple or len(value) != length:
        got = type(value).__name__ + (f" of {len(value)}" if isinstance(value, tuple) else "")
        got = "bare array" if isinstance(value, jax.Array) else got
        raise TypeError(f"{role} of op {op.name} returns a {got}; it must return a tuple {form}")


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """What a function takes; nothing if it cannot be looked at."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []


def _is_array(leaf: Any) -> bool:
    """Whether JAX can trace this: an array or a number."""
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind not in "OSUMm"
    return isinstance(leaf, jax.Array | bool | int | float | complex) or hasattr(leaf, "aval")


_ANYTHING = (
    inspect.Parameter("inputs", inspect.Parameter.VAR_POSITIONAL),
    inspect.Parameter("static", inspect.Parameter.VAR_KEYWORD),
)
_BY_POSITION = inspect.Signature(_ANYTHING[:1])


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Avals:
    """The shapes and dtypes of an op's inputs, kept beside the residuals though no arrays."""

    inputs: tuple[Any, ...]


def _aval(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))


def _cast(op: Op[..., Any], place: int, cotangent: Any, like: Any) -> Any:
    """An input's cotangent in its dtype, which JAX expects and does not see to itself.

    Raises:
        TypeError: it is not shaped like the input.
    """

    def cast(d: Any, x: Any) -> Any:
        if d is None or jnp.result_type(d) == jax.dtypes.float0:
            return None
        if jnp.shape(d) != x.shape:
            raise ValueError
        return jnp.asarray(d).astype(x.dtype)

    try:
        return jax.tree.map(cast, cotangent, like, is_leaf=lambda d: d is None)
    except (TypeError, ValueError):
        got, wanted = (jax.tree.map(_kind, tree) for tree in (cotangent, like))
        which = ", ".join([*op.inputs][place : place + 1]) or f"number {place}"
        raise TypeError(
            f"bwd of op {op.name} returns {got} for its input {which}; a cotangent must be shaped "
            f"like its input, {wanted}"
        ) from None


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else repr(leaf)
