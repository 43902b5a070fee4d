"""Strip a function of its derivative rules: autodiff is asked about what a rule decorates.

`jax.grad` of a function that holds a `jax.custom_vjp` runs its rule, which would be its own judge.
`stripped(f)` is f with every rule that a person wrote replaced, at whatever depth, by the function
it decorates; the rules of JAX itself (of `jax.nn.relu`, say) stay. See `authors` for
whose is whose.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

from jaxnn.verify.authors import KINDS, Rule, author_of, file_of, is_of_jax, rule_in

Keep = Callable[[Rule], bool]


def stripped(function: Callable[..., Any], keep: Keep = lambda rule: False) -> Callable[..., Any]:
    """Return a function of the same values, in which the rules that a person wrote are no more.

    Args:
        function: of pytrees of arrays; traced at every call.
        keep: of a rule, whether it stays nevertheless.
    """

    def plain(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        leaves = jaxpr_as_fun(_without_rules(closed, [], keep))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return plain


def rules_in(closed: ClosedJaxpr) -> list[Rule]:
    """List the rules that a person wrote in a traced function, once each, in order of execution.

    Those inside the function that another one decorates are found too.
    """
    found: list[Rule] = []
    _without_rules(closed, found, lambda rule: False)
    return list(dict.fromkeys(found))


def _without_rules(closed: ClosedJaxpr, found: list[Rule], keep: Keep) -> ClosedJaxpr:
    jaxpr = _walk(closed.jaxpr, found, keep)
    return closed if jaxpr is closed.jaxpr else ClosedJaxpr(jaxpr, closed.consts)


def _walk(jaxpr: Jaxpr, found: list[Rule], keep: Keep) -> Jaxpr:
    """A jaxpr with the equations of decorated functions in the place of their rules.

    The very same where it holds none, so that what JAX has cached for it is found again.
    """
    instead: dict[Any, Any] = {}  # what stands for a variable whose equation is gone
    eqns: list[JaxprEqn] = []

    def read(v: Any) -> Any:
        return v if isinstance(v, Literal) else instead.get(v, v)

    changed = False
    for eqn in jaxpr.eqns:
        eqn = eqn.replace(invars=[read(v) for v in eqn.invars]) if instead else eqn
        decorated = _decorated(eqn)
        rule = None if decorated is None else rule_in(eqn, decorated)
        if decorated is not None and not (rule and keep(rule)):
            found += [rule] if rule else []
            inner = _without_rules(decorated, found, keep)
            instead |= _inlined(inner, eqn, eqns)
            changed = True
            continue
        if decorated is None and eqn.primitive.name not in KINDS:
            params = {name: _param(value, found, keep) for name, value in eqn.params.items()}
            if any(params[name] is not value for name, value in eqn.params.items()):
                eqn, changed = eqn.replace(params=params), True
        eqns.append(eqn)
    return jaxpr.replace(eqns=eqns, outvars=[read(v) for v in jaxpr.outvars]) if changed else jaxpr


def _param(value: Any, found: list[Rule], keep: Keep) -> Any:
    """A parameter of an equation: the bodies of loops, branches, calls and maps are walked too."""
    if isinstance(value, ClosedJaxpr):
        return _without_rules(value, found, keep)
    if isinstance(value, Jaxpr):
        return _walk(value, found, keep)
    if isinstance(value, tuple) and value:
        items = [_param(item, found, keep) for item in value]
        if any(item is not old for item, old in zip(items, value, strict=True)):
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _inlined(inner: ClosedJaxpr, call: JaxprEqn, eqns: list[JaxprEqn]) -> dict[Any, Any]:
    """Append a called function's equations; return what stands for the call's results."""
    env: dict[Any, Any] = dict(zip(inner.jaxpr.invars, call.invars, strict=True))
    for v, x in zip(inner.jaxpr.constvars, inner.consts, strict=True):
        env[v] = Literal(x, v.aval)

    def read(v: Any) -> Any:
        return v if isinstance(v, Literal) else env[v]

    for eqn in inner.jaxpr.eqns:
        outs = [Var(v.aval) for v in eqn.outvars]
        env.update(zip(eqn.outvars, outs, strict=True))
        eqns.append(eqn.replace(invars=[read(v) for v in eqn.invars], outvars=outs))
    return dict(zip(call.outvars, map(read, inner.jaxpr.outvars), strict=True))


def _decorated(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The traced function that a person's rule decorates; None where there is no such rule."""
    if eqn.primitive.name == "call_hi_primitive":
        return _of_hijax(eqn)
    inner = eqn.params.get("call_jaxpr", eqn.params.get("fun_jaxpr"))
    if eqn.primitive.name not in KINDS or not isinstance(inner, ClosedJaxpr):
        return None
    return inner if author_of(eqn, inner) else None


def _of_hijax(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """What a hijax primitive expands to, where a person wrote it."""
    primitive = eqn.params["_prim"]
    traced = getattr(primitive, "traced", None)  # a custom_vjp under jax_custom_vjp3
    own = not type(primitive).__module__.startswith("jax.")
    if traced is not None:
        own = not all(is_of_jax(file_of(f)) for f in (primitive.fwd, primitive.bwd, traced.jaxpr))
    if not own:
        return None

    def expanded(*flat: Any) -> Any:
        args = jax.tree.unflatten(primitive.in_tree, flat)
        return jax.tree.leaves(primitive.expand(*args))

    return jax.make_jaxpr(expanded)(*(v.aval for v in eqn.invars))
