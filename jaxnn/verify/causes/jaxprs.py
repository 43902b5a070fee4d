"""Walk traced functions equation by equation, and say where; run while loops as scans.

Of scans, of as many steps as a loop takes, reverse mode has a derivative.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

from jaxnn.verify.problem import is_floating
from jaxnn.verify.programs import Programs
from jaxnn.verify.trace import primitives_of

# Registers a mistake by its cause, words and operand; 1 if it is the one to make, else 0.
On = Callable[[str, str, int | None], Any]
# Mistakes: the cause and words of each, and what is wrong.
Wrong = Iterable[tuple[str, str, Any]]
_CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"}
_VERIFIER = str(Path(__file__).parents[1])
_JAX = str(Path(jax.__file__).parent)
# What stands around a person's functions, and is no line of theirs.
_DOORS = ("op.py", "calls.py", "explicit.py", "varying.py")
_AROUND = (
    _VERIFIER,
    *(str(Path(__file__).parents[2] / name) for name in _DOORS),
    # All that is sent is sent there: which of it, the line says that calls it.
    str(Path(__file__).parents[2] / "ops" / "collectives.py"),
    *(str(module.__file__) for module in (contextlib, functools)),
)


def with_mistake(right: Any, wrong: Wrong, on: On, operand: int | None = None) -> Any:
    """Return what is right, or the wrong one that is to be planted."""
    for cause, words, value in wrong:
        right = jnp.where(on(cause, words, operand) > 0, value, right)
    return right


def live_in(jaxpr: Jaxpr, live: set[Any], stopped: frozenset[str] = frozenset()) -> set[Any]:
    """Return the variables that depend on live ones not only through the primitives stopped."""
    found = set(live)
    for eqn in jaxpr.eqns:
        if eqn.primitive.name not in stopped and any(
            v in found for v in eqn.invars if not isinstance(v, Literal)
        ):
            found |= {v for v in eqn.outvars if is_floating(v.aval)}
    return found


def work_of(jaxpr: Jaxpr) -> float:
    """Return the numbers that a jaxpr computes, scans counted as often as they run."""
    total = 0.0
    for eqn in jaxpr.eqns:
        total += sum(math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars)
        if inner := inner_of(eqn):
            total += eqn.params.get("length", 1) * work_of(inner.jaxpr)
    return total


def plain_values(closed: ClosedJaxpr, args: Any, outer: str) -> dict[Any, tuple[str, Any]]:
    """Return for all variables what each is, in words, and its value, with no derivative."""
    jaxpr = closed.jaxpr
    given = zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args], strict=True)
    found = {v: (f"input {i + 1}", lax.stop_gradient(x)) for i, (v, x) in enumerate(given)}
    for eqn in jaxpr.eqns:
        operands = [v.val if isinstance(v, Literal) else found[v][1] for v in eqn.invars]
        words = f"the output of {words_of(eqn, outer)}"
        for v, out in zip(eqn.outvars, bind_equation(eqn, operands), strict=True):
            found[v] = words, out
    return found


def bind_equation(eqn: JaxprEqn, xs: Any) -> list[Any]:
    """Return an equation's outputs for operands that may differ where it has a variable twice."""
    operands, outs = [Var(jax.typeof(x)) for x in xs], [Var(v.aval) for v in eqn.outvars]
    alone = eqn.replace(invars=list(operands), outvars=outs)
    jaxpr = Jaxpr((), operands, outs, [alone], eqn.effects, DebugInfo("replay", "", None, None))
    return list(jaxpr_as_fun(ClosedJaxpr(jaxpr, ()))(*xs))


def inner_of(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """Return the jaxpr to walk into, where an equation holds one and its own rule is not needed."""
    name = eqn.primitive.name
    if name not in _CALLS | {"custom_jvp_call", "scan"}:
        return None
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    closed = ClosedJaxpr(inner, ()) if isinstance(inner, Jaxpr) else inner
    if not isinstance(closed, ClosedJaxpr):
        return None
    # An elementwise rule says what to do at a kink; the formula may not.
    return closed if name != "custom_jvp_call" or _reduces(closed.jaxpr) else None


def scan_ends(eqn: JaxprEqn) -> tuple[int, int]:
    """Return where among a scan's inputs its constants end, which come first, and its carry."""
    if "num_consts" in eqn.params:
        consts, carry = eqn.params["num_consts"], eqn.params["num_carry"]
    else:  # from JAX 0.11 on
        consts, carry, _ = map(len, eqn.params["ft_in"].unpack())
    return consts, consts + carry


def _reduces(jaxpr: Jaxpr) -> bool:
    """Whether a jaxpr sums over an axis anywhere."""
    inner = [inner_of(eqn) for eqn in jaxpr.eqns]
    return any(eqn.primitive.name.startswith(("reduce_", "dot_")) for eqn in jaxpr.eqns) or any(
        closed is not None and _reduces(closed.jaxpr) for closed in inner
    )


def is_foreign(jaxpr: Jaxpr) -> bool:
    """Tell whether JAX itself wrote the traced function: then its caller's line says more."""
    return _JAX in jaxpr.debug_info.func_src_info.rsplit(" at ", 1)[-1]


def name_of(eqn: JaxprEqn) -> str:
    """Name what an equation does: its primitive, or the function that JAX has a rule or jit for."""
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if eqn.primitive.name in _CALLS | {"custom_jvp_call"} and isinstance(inner, ClosedJaxpr):
        return str(inner.jaxpr.debug_info.func_src_info.split(" at ")[0].split(" ")[0])
    return str(eqn.primitive.name)


def words_of(eqn: JaxprEqn, outer: str) -> str:
    """Return an equation by its name and its line in the loss."""
    name = name_of(eqn)
    if outer:
        return f"{name} in {outer}"
    traceback: Any = eqn.source_info.traceback
    frames = [f for f in traceback.frames if not f.file_name.startswith(_JAX)] if traceback else []
    ours = [frame for frame in frames if frame.file_name.startswith(_VERIFIER)]
    if name == "mul" and ours[:1] == frames[:1] != []:
        return "the product of an output and its cotangent"
    for frame in frames:
        if not frame.file_name.startswith(_AROUND):
            return f"{name} ({Path(frame.file_name).name}:{frame.line_num})"
    return name


Loop = Callable[[JaxprEqn, list[Any]], list[Any]]


def unrolled(
    closed: ClosedJaxpr, floats: list[Any], rest: list[Any], programs: Programs
) -> ClosedJaxpr:
    """Return a traced function of the same values at these arrays, its while loops run as scans.

    Those inside scans and branches, whose number of steps may vary, are left.
    """
    if "while" not in primitives_of(closed):
        return closed

    def counted(floats: list[Any], rest: list[Any]) -> list[Any]:
        counts: list[Any] = []

        def loop(eqn: JaxprEqn, xs: list[Any]) -> list[Any]:
            count, outs = _counting(eqn, xs)
            counts.append(count)
            return outs

        _evaluate(closed, (*floats, *rest), loop)
        return counts

    lengths = programs.get("steps", counted, floats, rest).run(floats, rest)

    def as_scans(floats: list[Any], rest: list[Any]) -> Any:
        left = iter(lengths)
        return _evaluate(closed, (*floats, *rest), lambda e, xs: _scanned(e, xs, int(next(left))))

    return jax.make_jaxpr(as_scans)(floats, rest)


def _evaluate(closed: ClosedJaxpr, args: Any, loop: Loop) -> list[Any]:
    """A jaxpr's outputs, its while loops evaluated by `loop`, and those in the calls inside."""
    jaxpr = closed.jaxpr
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(v: Any) -> Any:
        return v.val if isinstance(v, Literal) else env[v]

    for eqn in jaxpr.eqns:
        xs, inner = [read(v) for v in eqn.invars], inner_of(eqn)
        if eqn.primitive.name == "while":
            outs = loop(eqn, xs)
        elif inner is None or eqn.primitive.name == "scan" or "while" not in primitives_of(inner):
            outs = bind_equation(eqn, xs)
        else:
            outs = _evaluate(inner, xs, loop)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _parts(eqn: JaxprEqn, xs: list[Any]) -> tuple[Any, Any, list[Any]]:
    """A while loop's condition and body as functions of its state, and the state at first."""
    n = eqn.params["cond_nconsts"]
    m = n + eqn.params["body_nconsts"]
    condition, body = (jaxpr_as_fun(eqn.params[name]) for name in ("cond_jaxpr", "body_jaxpr"))
    return (
        lambda state: condition(*xs[:n], *state)[0],
        lambda state: body(*xs[n:m], *state),
        xs[m:],
    )


def _counting(eqn: JaxprEqn, xs: list[Any]) -> tuple[Any, list[Any]]:
    condition, body, start = _parts(eqn, xs)
    count, state = lax.while_loop(
        lambda c: condition(c[1]), lambda c: (c[0] + 1, body(c[1])), (jnp.zeros((), int), start)
    )
    return count, state


def _scanned(eqn: JaxprEqn, xs: list[Any], length: int) -> list[Any]:
    _, body, start = _parts(eqn, xs)
    state: list[Any] = lax.scan(lambda c, _: (body(c), None), start, None, length)[0]
    return state
