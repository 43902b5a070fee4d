"""An operation as two plain functions: a forward and the backward written for it by hand.

    out, residuals = fwd(*inputs, **settings)
    cotangents     = bwd(residuals, dout, **settings)    one per input, in input order

These are the conventions of `jax.custom_vjp`: `fwd` returns, next to its result, all that `bwd`
will need; `bwd` sees only that, the cotangent of the result (`dout`, of the result's shape) and
the settings, which are keyword arguments. The cotangent of an integer input is None (or of dtype
float0); None for a floating input says that it is zero.

An op may have a door, `check`, which refuses bad arguments in words. It is run where a person
enters: `op(...)`, `op.fwd(...)`, and, through `door`, a model's public functions, inside which no
other door is. It may have a fast form, the same two functions rearranged for machines.
"""

import contextlib
import functools
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar, cast

import jax
import numpy as np

from jaxnn import calls
from jaxnn.checks import as_jax, is_iterator
from jaxnn.explicit import automatic, automatic_gradient
from jaxnn.numerics import is_traced
from jaxnn.settings import MOST

Inputs = ParamSpec("Inputs")
Out = TypeVar("Out")
Function = TypeVar("Function", bound=Callable[..., Any])

# Names that tell nothing of what is computed: a better one is looked for.
NAMELESS = ("", "<lambda>", "_", "f", "fwd", "forward", "fun", "fn", "op")

Watch = Callable[["Op[..., Any]", str, Callable[..., Any]], Callable[..., Any]]
_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)
_plain: ContextVar[bool] = ContextVar("plain", default=False)
_inside: ContextVar[bool] = ContextVar("inside", default=False)


class Pair(NamedTuple):
    """A forward and its backward."""

    fwd: Callable[..., tuple[Any, Any]]
    bwd: Callable[..., tuple[Any, ...]]


class Op(Generic[Inputs, Out]):
    """A forward and its hand-written backward, bound together.

    Called, it is an ordinary JAX function whose reverse-mode derivative is `bwd`: it works under
    jit, vmap, scan and `jax.grad`, inside any model. (Like every `jax.custom_vjp` function it
    refuses forward mode, `jax.jvp`.) Models written by hand chain `op.fwd` and `op.bwd` themselves.

    An oracle must differentiate `fwd(...)[0]`, which is plain JAX, and never the op itself: that
    would check the rule against itself.

    Attributes:
        plain: the pair as the formula has it.
        fast: the same rearranged for machines, or `plain` where there is none.
        check: the door: `check(*inputs, **settings)`, all settings given, raises TypeError or
            ValueError; None for none.
        example: `example(key) -> inputs`, small and awkward on purpose (odd sizes, no two
            dimensions alike, values at kinks): what the verifier and the tests draw.
        settings: settings to verify the op under.
        varies: of an op for the devices of a mesh, by the setting that names axes: which of its
            inputs, and whether its result, differ from device to device, as in {"axis": ((True,),
            False)}; what does not is one value, with one cotangent. Each may be a pytree of these.
        inputs: the names of its inputs, with their defaults (`inspect.Parameter.empty` for none):
            what `fwd` takes by position, unless `bwd` takes it by name, for then it is a setting.
    """

    def __init__(
        self,
        fwd: Callable[Inputs, tuple[Out, Any]],
        bwd: Callable[..., tuple[Any, ...]],
        example: Callable[[jax.Array], tuple[Any, ...]] | None = None,
        settings: tuple[Mapping[str, Any], ...] = ({},),
        *,
        check: Callable[..., None] | None = None,
        fast: str | None = None,
        varies: Mapping[str, tuple[tuple[Any, ...], Any]] | None = None,
    ) -> None:
        """Bind the two.

        Args:
            fwd: `fwd(*inputs, **settings) -> (out, residuals)`, differentiable by JAX.
            bwd: `bwd(residuals, dout, **settings) -> cotangents`, a tuple with one per input.
            example: as the attribute, as are `settings` and `check`.
            settings: see there.
            check: see there.
            fast: the module that has the fast form, under the same two names. It is imported when
                first used.
            varies: as the attribute.
        """
        self.plain = Pair(fwd, bwd)
        self.example, self.settings, self.check = example, settings, check
        self.varies = varies
        self.inputs = calls.inputs(fwd, bwd)
        self._fast_module = fast
        self._entrances = Pair(*(_entrance(self, role) for role in Pair._fields))
        # What `help` and `inspect.signature` say of it is what they say of the forward; its result
        # is the first of what that returns.
        form = calls.signature(fwd)
        returned = getattr(form.return_annotation, "__args__", (form.return_annotation,))
        self.__signature__ = form.replace(return_annotation=returned[0])
        self.__doc__ = f"{self.__signature__}\n\n{inspect.getdoc(fwd) or ''}"

    @functools.cached_property
    def fast(self) -> Pair:
        """The form rearranged for machines, or the plain one."""
        if self._fast_module is None:
            return self.plain
        module = importlib.import_module(self._fast_module)
        return Pair(*(getattr(module, function.__name__) for function in self.plain))

    @property
    def form(self) -> Pair:
        """The form in force: the fast one, or within `plain_forms` the plain one."""
        return self.plain if _plain.get() else self.fast

    @property
    def fwd(self) -> Callable[Inputs, tuple[Out, Any]]:
        """The forward, with the door before it except inside a model."""
        return self._handed_out("fwd")

    @property
    def bwd(self) -> Callable[..., tuple[Any, ...]]:
        """The backward."""
        return self._handed_out("bwd")

    def _handed_out(self, role: str) -> Callable[..., Any]:
        function = getattr(self.form if _inside.get() else self._entrances, role)
        watch = _watch.get()
        return function if watch is None else watch(self, role, function)

    @property
    def name(self) -> str:
        """The variable it is bound to beside its forward; else the forward's name, less `_fwd`."""
        fwd: Any = self.plain.fwd
        fwd = inspect.unwrap(getattr(fwd, "func", fwd))
        own = str(getattr(fwd, "__name__", "")).removesuffix("_fwd")
        beside = getattr(fwd, "__globals__", {})
        same = [name for name, value in beside.items() if value is self and name not in NAMELESS]
        return same[0] if same else own or "op"

    def replace(self, **changes: Any) -> "Op[..., Any]":
        """The op with other arguments of `Op` for its own; of a changed pair there is one form."""
        kept = self._arguments()
        if changes.keys() & {"fwd", "bwd"}:
            kept |= self.form._asdict() | {"fast": None}
        return Op(**kept | changes)

    def _arguments(self) -> dict[str, Any]:
        rest = {name: getattr(self, name) for name in ("example", "settings", "check", "varies")}
        return self.plain._asdict() | rest | {"fast": self._fast_module}

    def __reduce__(self) -> Any:
        """Where it is bound beside its forward it is found by name, as a function is; else anew."""
        module = str(getattr(self.plain.fwd, "__module__", ""))
        beside = vars(sys.modules[module]) if module in sys.modules else {}
        for name in (name for name, value in beside.items() if value is self):
            return _found, (module, name)
        return functools.partial(Op, **self._arguments()), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Op[Inputs, Out]":
        """The op itself, as of a function: what holds one can be copied."""
        return self

    def arranged(
        self, inputs: tuple[Any, ...], settings: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call as all inputs by position, and settings by name.

        Raises:
            TypeError: an input is given twice, or one before those given by name is not.
        """
        placed, static = calls.arranged(self.name, self.inputs, inputs, settings)
        left_out = [*self.inputs.values()][len(placed) :]
        if inspect.Parameter.empty not in left_out:
            placed += tuple(left_out)
        return placed, static

    def admit(self, inputs: tuple[Any, ...], settings: Mapping[str, Any]) -> None:
        """Run the door alone; of the inputs it may be given the shapes and dtypes only.

        Raises:
            TypeError, ValueError: as `check`.
        """
        if self.check is not None:
            given = calls.bound(f"fwd of op {self.name}", self.plain.fwd, inputs, settings)
            self.check(*given.args, **given.kwargs)

    def _entered(
        self, inputs: tuple[Any, ...], settings: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs in their places as JAX's arrays, the settings by name as Python's numbers."""
        placed, static = self.arranged(inputs, settings)
        if not _inside.get():
            static = _as_python(static)
            names = [*self.inputs, *map(str, range(len(self.inputs), len(placed)))]
            placed = tuple(map(_as_arrays, [f"{self.name}: {n}" for n in names], placed))
            self.admit(placed, static)
            static = _in_range(static)
            calls.check_leaves(self.name, [*self.inputs], placed)
        return placed, static

    def __call__(self, *inputs: Inputs.args, **settings: Inputs.kwargs) -> Out:
        """The forward's result; its derivative is the hand-written rule.

        Settings that JAX may trace (`jaxnn.settings.check_factor`) have a derivative of NaN.

        Raises:
            TypeError: `fwd` or `bwd` has not the form that an op's has, or a cotangent not the
                shape and dtype of its input.
            TypeError, ValueError: as `check`.
        """
        form, plain, (placed, static) = self.form, _plain.get(), self._entered(inputs, settings)
        avals = jax.tree.map(jax.typeof, placed)
        # Closed over, what is traced would be out of reach of a backward that is run outside.
        traced = {name: value for name, value in static.items() if is_traced(value)}
        n = len(placed)

        def primal(*args: Any) -> Out:
            out: Out = forward(*args)[0]
            return out

        def forward(*args: Any) -> tuple[Out, Any]:
            handed = dict(zip(traced, args[n:], strict=True))
            with _behind_door_of(self):
                out, saved = calls.call_fwd(self.name, form.fwd, args[:n], static | handed)
            return out, (saved, handed)

        def backward(residuals: Any, dout: Any) -> tuple[Any, ...]:
            saved, handed = residuals
            with _behind_door_of(self), _as(_plain, plain):
                of_bwd = calls.call_bwd(self.name, form.bwd, saved, dout, static | handed, n)
            of_inputs = calls.check_cotangents(self.name, [*self.inputs], of_bwd, avals)
            # The rule has none for a setting: not 0, which would pass for one.
            return (*of_inputs, *(jax.numpy.full_like(x, math.nan) for x in handed.values()))

        # In what JAX says of the program, this is the forward, at its line; by position only.
        named: Any = primal
        named.__wrapped__, named.__signature__ = form.fwd, calls.BY_POSITION
        named.__name__ = getattr(form.fwd, "__name__", "op")
        rule: Any = jax.custom_vjp(primal)
        rule.defvjp(forward, backward)
        out: Out = automatic(rule)(*placed, *traced.values())
        return out

    def __repr__(self) -> str:
        return f"Op({self.name})"


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """Inside, in this thread, every op runs the form that one reads, and not the fast one.

    The choice is made when a program is traced: what `jax.jit` compiled before stays as it was.
    What a fast forward saved is for the fast backward: call both inside, or both outside.
    """
    with _as(_plain, True):
        yield


@contextlib.contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Inside, every `op.fwd` and `op.bwd` is what `watch(op, "fwd" or "bwd", function)` returns.

    In this thread only. What was taken from an op before (`f = op.fwd`, a partial of it) stays the
    function it was, and so does what a call of the op itself, `op(x)`, runs.
    """
    with _as(_watch, watch):
        yield


def door(check: Callable[..., Any] | None = None) -> Callable[[Function], Function]:
    """Make a model's function check its arguments where a person enters, and nothing deeper.

    `check` takes the function's arguments, all of them given, and raises TypeError or ValueError;
    None checks nothing. It, and the function, see NumPy's arrays as JAX's. Inside, no op's and no
    other function's door is run again. The function's attribute `check` is for those who enter by
    another door.
    """

    def with_door(function: Function) -> Function:
        form = calls.signature(function)

        @functools.wraps(function)
        def entered(*args: Any, **kwargs: Any) -> Any:
            if _inside.get():
                return function(*args, **kwargs)
            try:
                given = form.bind(*args, **kwargs)
            except TypeError:  # the same, in words
                given = calls.bound(function.__name__, function, args, kwargs)
            given.apply_defaults()
            for name, value in given.arguments.items():
                number = isinstance(value, np.generic)
                value = value.item() if number else value
                given.arguments[name] = _as_arrays(f"{function.__name__}: {name}", value)
            if check is not None:
                check(*given.args, **given.kwargs)
            with _as(_inside, True):
                return automatic(function)(*given.args, **given.kwargs)

        entered.__dict__["check"] = check
        return cast(Function, entered)

    return with_door


@contextlib.contextmanager
def _as(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def _entrance(op: Op[..., Any], role: str) -> Callable[..., Any]:
    """What a person calls: the form in force, after the door."""

    @functools.wraps(getattr(op.plain, role))
    def entered(*args: Any, **settings: Any) -> Any:
        if role == "fwd":
            args, settings = op._entered(args, settings)
        else:
            args = _as_arrays(f"{op.name}.bwd", args)
            settings = _in_range(_as_python(settings))
        with _behind_door_of(op):
            inside = automatic if role == "fwd" else automatic_gradient
            return inside(getattr(op.form, role))(*args, **settings)

    return entered


def _behind_door_of(op: Op[..., Any]) -> contextlib.AbstractContextManager[None]:
    """Where an op has a door, the ops that it is made of run none."""
    return contextlib.nullcontext() if op.check is None else _as(_inside, True)


def _found(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _as_arrays(name: str, tree: Any) -> Any:
    """NumPy's arrays as JAX's: they have no `at`, and add up in another width."""
    return jax.tree.map(lambda leaf: as_jax(name, leaf), tree, is_leaf=is_iterator)


def _in_range(settings: dict[str, Any]) -> dict[str, Any]:
    """Integers that JAX cannot take as the floats that they passed the door for."""

    def ranged(value: Any) -> Any:
        if isinstance(value, int) and abs(value) >= MOST:
            big = abs(value) > sys.float_info.max
            return math.copysign(math.inf, value) if big else float(value)
        return value

    return {name: ranged(value) for name, value in settings.items()}


def _as_python(settings: Mapping[str, Any]) -> dict[str, Any]:
    """NumPy's numbers as Python's: theirs would widen bfloat16."""
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in settings.items()}
