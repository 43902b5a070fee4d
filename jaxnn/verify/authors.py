"""Tell who wrote a derivative rule, JAX or a person, and where.

This room and `oracle` alone know how each version of JAX represents a rule in a traced function.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, JaxprEqn

_JAX = str(Path(jax.__file__).parent)
# What wraps a person's function before JAX sees it: these files are not where the rule was written.
_WRAPPERS = (_JAX, *(f"{Path(_JAX).parent}/{name}" for name in ("equinox", "flax")))
# Here `custom_gradient` and `defjvps` wrap a person's functions, or JAX's own, as rules.
_DECORATORS = f"{_JAX}/_src/custom_derivatives.py"
KINDS = {
    "custom_vjp_call": "custom_vjp",
    "custom_vjp_call_jaxpr": "custom_vjp",
    "custom_jvp_call": "custom_jvp",
}


class Rule(NamedTuple):
    """A derivative rule that a person wrote, told from others by all three of these.

    Attributes:
        kind: "custom_vjp", "custom_jvp" or "hijax primitive".
        name: of the function that it decorates.
        place: the file and line of that function, as in "layers.py:12".
    """

    kind: str
    name: str
    place: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" + (f" ({self.place})" if self.place else "")


def author_of(eqn: JaxprEqn, decorated: ClosedJaxpr) -> tuple[str, int] | None:
    """Return the file and line where a person wrote a rule, or what it decorates; None for JAX's.

    A rule for `jnp.sin` is a person's, though `jnp.sin` is not; so is one that JAX wraps in a
    function of its own, as `defjvps` does.
    """
    rules = [eqn.params[key] for key in _RULES if key in eqn.params]
    for info in (_info_of(decorated), *map(_info_of, rules)):
        file, _, line = info.partition(" at ")[2].rpartition(":")
        if file and not is_of_jax(file):
            return file, int(line)
    for rule in rules:  # `functools.wraps` gives a person's function the place of another
        code = getattr(_innermost(rule), "__code__", None)
        if isinstance(code, CodeType) and not is_of_jax(code.co_filename):
            return code.co_filename, code.co_firstlineno
    if any(file_of(rule) == _DECORATORS for rule in rules):
        for function in _functions_in(rules, 0):
            if not is_of_jax(function.co_filename):
                return function.co_filename, function.co_firstlineno
    return None


# The parameters of an equation that hold its rules.
_RULES = ("fwd_jaxpr_thunk", "bwd", "jvp_jaxpr_fun", "jvp_jaxpr_thunk")
# A person's function is so many closures inside what JAX makes of a rule, at most.
_DEEPEST = 10


def _functions_in(value: Any, depth: int) -> Iterator[CodeType]:
    """The code of every function that a rule is made of."""
    if depth > _DEEPEST:
        return
    if isinstance(value, list | tuple):
        for item in value:
            yield from _functions_in(item, depth + 1)
    elif isinstance(code := getattr(value, "__code__", None), CodeType):
        yield code
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # a cell that is empty still
                yield from _functions_in(cell.cell_contents, depth + 1)
    else:
        for name in ("f", "transforms"):  # what JAX wraps functions in has these
            if (inner := getattr(value, name, None)) is not None:
                yield from _functions_in(inner, depth + 1)


def _innermost(rule: Any) -> Any:
    """The function that JAX has wrapped as a rule, as far as it keeps it at hand."""
    while (inner := getattr(rule, "f", None)) is not None:
        rule = inner
    return rule


def _info_of(value: Any) -> str:
    """A function's name, file and line, as "f at layers.py:12", where JAX keeps them."""
    jaxpr = value.jaxpr if isinstance(value, ClosedJaxpr) else value
    info = getattr(jaxpr, "debug_info", None)
    return str(getattr(info, "func_src_info", ""))


def file_of(value: Any) -> str:
    """Return the file of a function or of a traced one."""
    if isinstance(code := getattr(value, "__code__", None), CodeType):
        return code.co_filename
    return _info_of(value).partition(" at ")[2].rpartition(":")[0]


def is_of_jax(file: str) -> bool:
    """Tell whether a file is JAX's own."""
    return not file or file.startswith(_JAX)


def rule_in(eqn: JaxprEqn, decorated: ClosedJaxpr) -> Rule | None:
    """Return the rule in an equation, by the name and place of the function that a person wrote.

    None where nobody did: Equinox has guards of its own around the functions that it wraps.
    """
    if eqn.primitive.name == "call_hi_primitive" and not hasattr(eqn.params["_prim"], "traced"):
        primitive = type(eqn.params["_prim"])
        code = primitive.expand.__code__
        place = f"{Path(code.co_filename).name}:{code.co_firstlineno}"
        return Rule("hijax primitive", primitive.__name__, place)
    kind = KINDS.get(eqn.primitive.name, "custom_vjp")
    name, _, place = _info_of(decorated).partition(" at ")
    if place.startswith(_DECORATORS) or place.startswith(_WRAPPERS[1:]):
        # What is inside the wrapper says more.
        frame = next(_frames(decorated.jaxpr.eqns), None)
        if frame is None and not place.startswith(_DECORATORS):
            return None
        if frame is not None:
            name, place = frame.function_name, f"{frame.file_name}:{frame.line_num}"
    elif place.startswith(_JAX):  # a person's rule for a function of JAX's
        where = author_of(eqn, decorated)
        place = f"{where[0]}:{where[1]}" if where else ""
    return Rule(kind, name.rpartition(".")[2], Path(place).name)


def _frames(eqns: Iterable[JaxprEqn]) -> Iterator[Any]:
    """The frames of a person's code in the tracebacks of equations, innermost first."""
    here = str(Path(__file__).parent)
    for eqn in eqns:
        traceback: Any = eqn.source_info.traceback
        for frame in traceback.frames if traceback else ():
            if not frame.file_name.startswith((*_WRAPPERS, here)):
                yield frame
