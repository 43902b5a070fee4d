"""Evaluate a traced loss, equation by equation, with one mistake planted in its derivative."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var

from jaxnn.verify.causes.cuts import (
    BROADCASTING,
    MOST_CLASSES,
    PICKING,
    Mistake,
    Site,
    cut_broadcast,
    cut_carry,
    cut_sum_over_steps,
    forward_map_applied,
    inner_left_out,
    linear_outputs,
    shadow,
    weigh,
)
from jaxnn.verify.causes.jaxprs import (
    bind_equation,
    inner_of,
    is_foreign,
    live_in,
    plain_values,
    scan_ends,
    with_mistake,
    words_of,
)
from jaxnn.verify.causes.mistakes import is_opened, mistaken, other_masks
from jaxnn.verify.causes.patterns import end_of, part_of, softmax_of, wrong_softmaxes
from jaxnn.verify.causes.reductions import ORDERING, wrong_orders
from jaxnn.verify.causes.slopes import at_input, mistaken_slopes, written_out
from jaxnn.verify.problem import is_floating


class Planted:
    """One evaluation of a traced loss, with one mistake planted.

    Every mistake that is met gets the next number, from 1. The same trace meets the same mistakes
    in the same order, so a rehearsal tells how many there are.
    """

    def __init__(self, chosen: Any, stopped: frozenset[str]):
        """`chosen` is 1 at the number of the mistake to make, 0 elsewhere; None in a rehearsal.

        Through the primitives named in `stopped` nothing flows back.
        """
        self.chosen, self.stopped = chosen, stopped
        self.mistakes: dict[Mistake, int] = {}

    def loss(self, closed: ClosedJaxpr, floats: list[Any], rest: list[Any]) -> Any:
        """Return the loss, of parameters that are differentiated and arrays that are not."""
        alive = [True] * len(floats) + [False] * (len(closed.jaxpr.invars) - len(floats))
        outs, _ = self._run(closed, jax.tree.leaves((floats, rest)), alive, Site((), ""), None)
        return outs[0]

    def _on(
        self, cause: str, text: str, site: Site, *, cut: bool = False, subtracted: bool = False
    ) -> Any:
        """Register a mistake; 1 if it is the one to make, else 0."""
        mistake = Mistake(cause, text, site, cut, subtracted)
        number = self.mistakes.setdefault(mistake, len(self.mistakes) + 1)
        if self.chosen is None:
            return jnp.zeros(())
        return lax.index_in_dim(self.chosen, number, keepdims=False)

    def _run(
        self, closed: ClosedJaxpr, args: Any, alive: list[bool], outer: Site, step: Any
    ) -> tuple[list[Any], list[bool]]:
        """The outputs of a jaxpr, and which of them depend on the parameters.

        `alive` says the same of its inputs, `step` is the number of a scan's step and of its
        steps. The words of `outer` are those of a caller whose line says more than its own.
        """
        jaxpr = closed.jaxpr
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        live = {v for v, a in zip(jaxpr.invars, alive, strict=True) if a and is_floating(env[v])}
        # In a step of a scan what comes later may be taken for what came before.
        plain = (
            plain_values(closed, args, outer.text)
            if step is not None
            else {v: (f"input {i + 1}", env[v]) for i, v in enumerate(jaxpr.invars)}
        )
        made = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
        flowing = live_in(jaxpr, live, self.stopped)
        ends, inner_inputs = written_out(jaxpr, flowing)
        users: dict[Any, list[tuple[JaxprEqn, int]]] = {}
        for eqn in jaxpr.eqns:
            for j, v in enumerate(eqn.invars):
                if isinstance(v, Var):
                    users.setdefault(v, []).append((eqn, j))
        uses = {v: len(at) for v, at in users.items()}
        for v in jaxpr.outvars:
            users.pop(v, None)
        # To cut the only use of what has one live operand is to cut that operand.
        series: set[Any] = set()

        def read(v: Any) -> Any:
            return v.val if isinstance(v, Literal) else env[v]

        def lives(v: Any) -> bool:
            return not isinstance(v, Literal) and v in live

        for number, eqn in enumerate(jaxpr.eqns):
            site = Site((*outer.path, number), words_of(eqn, outer.text))
            xs, alive = [read(v) for v in eqn.invars], [lives(v) for v in eqn.invars]
            if eqn.primitive.name in self.stopped:
                alive = [False] * len(alive)
                xs = [lax.stop_gradient(x) for x in xs]
            inner = inner_of(eqn)

            def on(cause: str, words: str, j: int | None, s: Site = site, e: Any = eqn) -> Any:
                return self._on(cause, words, s if j is None else s.operand(j, e))

            if inner is None:
                for j, v in enumerate(eqn.invars):
                    if alive[j] and sum(alive) == 1 and (u := inner_inputs.get(v)) in env:
                        words = "the inner derivative is taken as 1, of what is handed to"
                        left_out = self._on("derivative left out", words, site)
                        xs[j] = inner_left_out(xs[j], env[u], left_out)
                    if alive[j] and v not in series:
                        end = eqn, j
                        if sum(alive) == len(eqn.outvars) == 1:
                            end = end_of(eqn.outvars[0], users, flowing) or end
                        xs[j] = self._cut(eqn, xs[j], site.operand(j, eqn), step, end, made)
                    if alive[j] and eqn.primitive.name in BROADCASTING:
                        xs[j] = cut_broadcast(xs[j], eqn, site.operand(j, eqn), self._on)
                if eqn.primitive.name == "select_n" and any(alive[1:]):
                    xs[0] = with_mistake(xs[0], other_masks(xs[0], alive), on)
                outs = bind_equation(eqn, xs)
                if eqn.primitive.name == "broadcast_in_dim" and alive[0]:
                    outs = [cut_broadcast(xs[0], eqn, site, self._on)]
                if is_opened(eqn, alive):
                    outs = self._opened(eqn, xs, alive, outs, site)
                elif any(alive) and len(outs) == 1 and eqn.primitive.name != "custom_vjp_call":
                    outs = [mistaken(eqn, xs, alive, outs[0], plain, on, step)]
                    if (softmax := softmax_of(eqn, made)) and lives(softmax[1]):
                        which, u, axes = softmax
                        x, y = lax.stop_gradient((env[u], outs[0]))
                        wrong = wrong_softmaxes(which, shadow(env[u]), x, y, axes)
                        outs[0] += with_mistake(jnp.zeros_like(y), wrong, on)
                if eqn.primitive.name in ORDERING and alive[0] and sum(alive) == 1:
                    wrong = wrong_orders(eqn, shadow(xs[0]), lax.stop_gradient(xs[0]))
                    outs[0] += with_mistake(jnp.zeros_like(outs[0]), wrong, on)
                outs_live = [any(alive)] * len(outs)
            elif eqn.primitive.name == "scan":
                outs, outs_live = self._scan(eqn, inner, xs, alive, site)
            else:
                called = Site(site.path, site.text if is_foreign(inner.jaxpr) else outer.text)
                outs, outs_live = self._run(inner, xs, alive, called, step)
            env.update(zip(eqn.outvars, outs, strict=True))
            for v in eqn.outvars:
                if v in ends and lives(ends[v]):
                    x, y, slope = at_input(jaxpr, ends[v], v, env)
                    env[v] += mistaken_slopes(
                        shadow(env[ends[v]]), x, y, slope, on, step is not None
                    )
            if step is None:
                plain.update((v, (f"the output of {site.text}", env[v])) for v in eqn.outvars)
            live |= {
                v
                for v, out, a in zip(eqn.outvars, outs, outs_live, strict=True)
                if a and is_floating(out)
            }
            if inner is None and sum(alive) == 1:
                series |= {v for v in eqn.outvars if uses.get(v) == 1}
        return [read(v) for v in jaxpr.outvars], [lives(v) for v in jaxpr.outvars]

    def _cut(
        self, eqn: JaxprEqn, x: Any, site: Site, step: Any, end: tuple[JaxprEqn, int], made: Any
    ) -> Any:
        """An operand whose cotangent may be left out, wholly or in part.

        What flows through it alone meets something else at `end`, an equation and its operand.
        """
        words = f"{part_of(*end, made)}nothing flows back through"
        subtracted = end[0].primitive.name == "sub" and end[1] == 1
        on = self._on("missing term", words, site, cut=True, subtracted=subtracted)
        weight = 1.0 - on
        if step is not None:
            number, length = step
            for at, when in ((0, "first"), (length - 1, "last")):
                words = f"the {when} step's cotangent is left out of"
                weight -= (number == at) * self._on("missing term", words, site)
            # Over several steps a factor is no multiple of a cut.
            weight -= 2 * self._on("sign", "the sign is wrong of the cotangent of", site)
        if eqn.primitive.name in PICKING and x.ndim > 1 and 1 < x.shape[-1] <= MOST_CLASSES:
            for k in range(x.shape[-1]):
                on = self._on("index", f"index {k} of the last axis is left out of", site)
                weight -= on * (jnp.arange(x.shape[-1]) == k)
        return weigh(x, weight)

    def _opened(
        self, eqn: JaxprEqn, xs: list[Any], alive: list[bool], outs: list[Any], site: Site
    ) -> list[Any]:
        """An equation whose derivative takes several, with the mistakes in these."""
        values = lax.stop_gradient(xs)
        live = [i for i, (x, a) in enumerate(zip(xs, alive, strict=True)) if a and is_floating(x)]

        def derivative(*moves: Any) -> Any:
            def f(*active: Any) -> list[Any]:
                return bind_equation(
                    eqn, [active[live.index(i)] if i in live else x for i, x in enumerate(values)]
                )

            return jax.jvp(f, tuple(values[i] for i in live), moves)[1]

        tangents = [shadow(xs[i]) for i in live]
        closed = jax.make_jaxpr(derivative)(*tangents)
        inside = Site(site.path, f"the derivative of {site.text}")
        slopes, _ = self._run(closed, tangents, [True] * len(live), inside, None)
        return [
            lax.stop_gradient(out) + slope if is_floating(out) else out
            for out, slope in zip(outs, slopes, strict=True)
        ]

    def _scan(
        self, eqn: JaxprEqn, inner: ClosedJaxpr, xs: list[Any], alive: list[bool], site: Site
    ) -> tuple[list[Any], list[bool]]:
        """A scan, with the mistakes inside its steps and between them."""
        (n, k), length = scan_ends(eqn), eqn.params["length"]
        # A carry that any input reaches may depend on the parameters from the second step on.
        inside = [a or (any(alive) and n <= i < k) for i, a in enumerate(alive)]

        def body(carry: Any, x: Any) -> Any:
            number, *given = x
            turn = length - 1 - number if eqn.params["reverse"] else number
            carry = [cut_carry(c, i, (turn, length), site, self._on) for i, c in enumerate(carry)]
            consts = [
                cut_sum_over_steps(c, number, length, site, self._on) if a and is_floating(c) else c
                for c, a in zip(xs[:n], alive, strict=False)
            ]
            args = [*consts, *carry, *given]
            outs, _ = self._run(inner, args, inside, Site(site.path, ""), (number, length))
            return outs[: k - n], outs[k - n :]

        carry, ys = lax.scan(
            body, xs[n:k], (jnp.arange(length), *xs[k:]), length, reverse=eqn.params["reverse"]
        )
        for i, j in linear_outputs(eqn, alive):
            words = "the forward's own map is applied to the cotangent, time not reversed, at"
            ys[i] += forward_map_applied(eqn, xs, (k - n + i, j), self._on("flip", words, site))
        return [*carry, *ys], [any(alive)] * len(eqn.outvars)
