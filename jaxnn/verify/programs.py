"""Compile functions as fast as can be; find them again by all that their results depend on."""

import functools
from collections import OrderedDict
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple, TypeVar

import jax
from jax.extend.core import jaxpr_as_fun

from jaxnn.verify.trace import EPSILON, Trace, rounded_to, traced_as

Kept = TypeVar("Kept")


class Program(NamedTuple):
    """A compiled function, and the narrowest dtype that something inside it is rounded to."""

    run: Callable[..., Any]
    rounded_to: str

    @property
    def epsilon(self) -> float:
        """The spacing at 1 of the narrowest dtype that something is rounded to."""
        return EPSILON[self.rounded_to]


# A process may map only so much memory, and every program takes some: so many entries are kept.
MOST_KEPT = 32
# Up to so many numbers, what optimization saves is less than what it costs.
HASTE = 1_000_000
# The compiler options that save the most time then, as this jaxlib knows them.
QUICK: dict[str, str | bool] = {
    "xla_backend_optimization_level": "0",
    "xla_cpu_parallel_codegen_split_count": "1",
    **(
        {"xla_cpu_use_fusion_emitters": False}
        if [int(part) for part in version("jaxlib").split(".")[:2]] < [0, 11]
        else {"xla_cpu_experimental_ynn_fusion_type": ""}
    ),
}
_programs: OrderedDict[Any, Program] = OrderedDict()
_collections: OrderedDict[Any, "Programs"] = OrderedDict()


class Programs:
    """The compiled programs of one problem, by name.

    Tracing and lowering cost more than running. `found` traces the problem once, in the dtype
    that is given, and returns the programs made when the trace said the same before: whatever
    else has been derived from the same two functions of the same arrays is still there.
    """

    def __init__(self, operations: int = 0, long: bool = False) -> None:
        """Start with none, of a trace of so many operations.

        Where that is `long`, every program made here runs operation by operation.
        """
        self._named: dict[str, Program] = {}
        self.operations, self.long = operations, long

    def get(
        self,
        name: str,
        function: Callable[..., Any],
        *arrays: Any,
        hastily: bool = True,
        trace: "Trace | None" = None,
    ) -> Program:
        """Return the program of this name, made of `function`, or its trace, if there is none."""
        if name not in self._named:
            trace = trace or traced_as(function, arrays)
            self._named[name] = built(trace, arrays, hastily, self.long or trace.long)
        return self._named[name]

    @staticmethod
    def found(trace: "Trace", arrays: Any, also: Any) -> "Programs":
        """Return the collection made for a function of the same trace, of such arrays.

        `also` is what else must be the same: a trace is in one dtype, and functions may branch on
        it.
        """
        operations = len(trace.jaxpr.eqns)
        if not trace.text:
            return Programs(operations, trace.long)
        settings = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
        key = (trace[1:], _signature(arrays), settings, also)
        try:
            return _recall(_collections, key, lambda: Programs(operations))
        except TypeError:  # a function that cannot be hashed cannot be found again
            return Programs(operations)


def _recall(cache: OrderedDict[Any, Kept], key: Any, make: Callable[[], Kept]) -> Kept:
    """The cache's value for a key, made if there is none; the least recently used is dropped."""
    if key not in cache:
        cache[key] = make()
        if len(cache) > MOST_KEPT:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]


def compiled(function: Callable[..., Any], *arrays: Any, hastily: bool = True) -> Program:
    """Compile `function` for these arrays, or find an equal program compiled before.

    Hastily, compilation takes a third as long, and small arrays do not suffer; what is to be judged
    by its rounding must be compiled as its user would.

    The function is traced at every call and the program looked up by what the trace says, not by
    the function's identity: a helper redefined since (in a notebook, say) is seen.

    Raises:
        NotTraceable: it looks at the values of its arrays.
    """
    trace = traced_as(function, arrays)
    return built(trace, arrays, hastily, trace.long)


def built(trace: Trace, arrays: Any, hastily: bool, one_by_one: bool) -> Program:
    """Return what was traced as a program, which may run operation by operation.

    A compiler takes a time for every operation; one by one, alike ones are compiled once.
    """
    width = rounded_to(trace.jaxpr)
    if one_by_one:
        function = jaxpr_as_fun(trace.jaxpr)

        def run(*args: Any) -> Any:
            return jax.tree.unflatten(trace.results, function(*jax.tree.leaves(args)))

        return Program(run, width)
    lowered = trace.stage.lower()
    text = lowered.as_text()
    small = sum(leaf.size for leaf in jax.tree.leaves(arrays)) <= HASTE
    options = _hasty_options() if hastily and small else None

    def make() -> Program:
        return Program(lowered.compile(options), width)

    if "callback" in text:
        return make()
    key = text, str(options), *map(_signature, (arrays, lowered.out_info))
    return _recall(_programs, key, make)


@functools.cache
def _hasty_options() -> dict[str, str | bool]:
    """`QUICK`, as far as the backend knows it."""
    accepted: dict[str, str | bool] = {}
    for name, value in QUICK.items():
        try:
            jax.jit(lambda: 0).lower().compile({name: value})
        except jax.errors.JaxRuntimeError:
            continue
        accepted[name] = value
    return accepted


def quick_flags() -> str:
    """`QUICK` for a whole process that runs many small programs, as XLA_FLAGS has them."""
    options = {**QUICK, "xla_cpu_multi_thread_eigen": False}
    return " ".join(f"--{name}={str(value).lower()}" for name, value in options.items())


def _signature(tree: Any) -> Any:
    """What a program's text does not say of arrays: containers, widths, key types, placement."""
    leaves = jax.tree.leaves(tree)
    return jax.tree.structure(tree), tuple(
        (str(leaf.dtype), leaf.shape, getattr(leaf, "sharding", None)) for leaf in leaves
    )
