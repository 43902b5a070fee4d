"""While loops as scans of as many steps as they take: of those reverse mode has a derivative."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, jaxpr_as_fun

from jaxnn.verify.jaxprs import bind_equation, inner_of, primitives_of
from jaxnn.verify.programs import Programs

Loop = Callable[[JaxprEqn, list[Any]], list[Any]]


def unrolled(
    closed: ClosedJaxpr, floats: list[Any], rest: list[Any], programs: Programs
) -> ClosedJaxpr:
    """A traced function of the same values at these arrays, its while loops run as scans.

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
