"""Why a hand-written gradient is wrong: honest mistakes, replayed in autodiff's own backward pass.

The loss is traced, and evaluated equation by equation with one mistake at a time planted in the
derivative of one equation (its value stays right):

    cut        the cotangent of one operand is left out: wholly, in the first or last step of a
               scan, at one class, or for all but one slice of what was broadcast
    saved      the derivative is taken at another value: the wrong one saved, one shifted by one
               along an axis, a transposed matrix, a flipped kernel, an inverted mask
    slope      an elementwise derivative is taken as 1, or as what is written for it in haste

If the hand-written gradient is what one of these gives, in every entry of every leaf, that is the
diagnosis, with the line of the loss where it happened. A cut explains more than itself: a gradient
is linear in each cotangent, so if the error is t times what a cut takes away, the cotangent was
multiplied by 1 - t there: a sign, a term counted twice, a forgotten 1/n.
"""

import functools
import itertools
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from jaxnn.verify.compare import EXACT
from jaxnn.verify.jaxprs import (
    bind_equation,
    inner_of,
    is_foreign,
    plain_values,
    scan_ends,
    words_of,
    work_of,
)
from jaxnn.verify.mistakes import mistaken
from jaxnn.verify.point import Point
from jaxnn.verify.problem import is_floating

# Mistakes times numbers computed in one gradient: above this, replaying takes minutes.
MOST_WORK = 2e9
# A cotangent is cut at single classes where there are at most so many of them.
MOST_CLASSES = 16
# A cotangent that is summed over several axes is cut to a slice along up to so many of them.
MOST_SUMMED = 3
# What takes one class of each row, or what the others are subtracted from.
_PICKING = {"gather", "sub", "mul"}
_BROADCASTING = {"add", "sub", "mul", "div", "max", "min"}


class Site(NamedTuple):
    """Where a mistake is made: the equation's number, inner ones last, and its words."""

    path: tuple[int, ...]
    text: str

    def operand(self, j: int, eqn: JaxprEqn) -> "Site":
        """One operand of the equation."""
        words = f"operand {j + 1} of {self.text}" if len(eqn.invars) > 1 else self.text
        return Site((*self.path, j), words)


class Mistake(NamedTuple):
    """One mistake; `cut` if any multiple of what it takes away counts."""

    cause: str
    text: str
    site: Site
    cut: bool


class Match(NamedTuple):
    """A mistake that explains the gradient; a cut one by this factor on its cotangent."""

    mistake: Mistake
    factor: float


@jax.custom_vjp
def _weigh(x: Any, weight: Any) -> Any:
    """x, whose cotangent is multiplied by a weight."""
    return x


_weigh.defvjp(lambda x, w: (x, w), lambda w, dx: (dx * w, jnp.zeros_like(w)))


def replay(point: Point, manual: dict[str, np.ndarray[Any, Any]]) -> list[Match]:
    """The mistakes that give the hand-written gradient, each by itself.

    Args:
        point: the problem, and the right gradient.
        manual: the hand-written gradient by path; leaves that are missing are not looked at.
    """
    problem, floats, rest = point.truth, point.floats, point.rest
    given = [i for i, path in enumerate(problem.paths) if path in manual]
    right = [jnp.asarray(point.here.autodiff[i]) for i in given]
    targets = [jnp.asarray(manual[problem.paths[i]]) for i in given]
    closed = jax.make_jaxpr(problem.loss)(floats, rest)
    # The maximum that a softmax subtracts changes nothing, until a mistake is made beside it.
    for stopped in (frozenset({"stop_gradient", "reduce_max"}), frozenset({"stop_gradient"})):
        rehearsal = _Replay(None, stopped)
        jax.eval_shape(lambda f, r, q=rehearsal: q.loss(closed, f, r), floats, rest)
        mistakes = list(rehearsal.mistakes)
        if not 0 < len(mistakes) * work_of(closed.jaxpr) <= MOST_WORK:
            return []
        program = point.programs_of_loss.get(
            f"replay {given} {sorted(stopped)}",
            functools.partial(_scores, closed, given, len(mistakes), stopped),
            floats,
            rest,
            right,
            targets,
        )
        base, scores = program.run(floats, rest, right, targets)
        if base <= EXACT:
            return _matches(mistakes, scores)
    return []  # a rule of its own says otherwise than the formula that was replayed


def _scores(
    closed: ClosedJaxpr,
    given: list[int],
    count: int,
    stopped: frozenset[str],
    floats: list[Any],
    rest: list[Any],
    right: list[Any],
    targets: list[Any],
) -> Any:
    """How far the replayed gradient with no mistake is off, and how well each mistake fits.

    For each: the multiple t of its effect d that is closest to the error r, how much of r that
    leaves, how much t = 1 leaves (both of r's size), and how many entries d is in.
    """
    scales = [jnp.maximum(jnp.abs(a).max(initial=0.0), 1e-300) for a in right]

    def off(gradient: list[Any]) -> Any:
        return jnp.concatenate(
            [((g - a) / s).ravel() for g, a, s in zip(gradient, right, scales, strict=True)]
        )

    def effect(number: Any) -> Any:
        chosen = (jnp.arange(count + 1) == number).astype(float)
        gradient = jax.grad(lambda f: _Replay(chosen, stopped).loss(closed, f, rest))(floats)
        return off([gradient[i] for i in given])

    r = off(targets)
    size = jnp.abs(r).max()

    def score(number: Any) -> Any:
        d = effect(number)
        t = (d @ r) / jnp.maximum(d @ d, 1e-300)
        shown = (jnp.abs(d) > 1e-6 * jnp.abs(d).max()).sum()
        left = jnp.abs(r - t * d).max() / size, jnp.abs(r - d).max() / size
        return t, *left, shown, jnp.abs(d).max()

    *fits, sizes = lax.map(score, jnp.arange(count + 1))
    return sizes[0], [fit[1:] for fit in fits]


def _matches(mistakes: list[Mistake], scores: list[Any]) -> list[Match]:
    """The mistakes that fit the whole error."""
    found = []
    for mistake, t, as_multiple, as_it_is, entries in zip(
        mistakes, *(np.asarray(x).tolist() for x in scores), strict=True
    ):
        if as_it_is <= 100 * EXACT:
            found.append(Match(mistake, 0.0))
        elif mistake.cut and as_multiple <= 100 * EXACT and entries > 1:
            found.append(Match(mistake, 1 - t))
    return found


class _Replay:
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
        """The loss, of parameters that are differentiated and arrays that are not."""
        alive = [True] * len(floats) + [False] * (len(closed.jaxpr.invars) - len(floats))
        args = jax.tree.leaves((floats, rest))
        outs, _ = self._run(closed, args, alive, Site((), ""), None)
        return outs[0]

    def _on(self, cause: str, text: str, site: Site, *, cut: bool = False) -> Any:
        """Register a mistake; 1 if it is the one to make, else 0."""
        number = self.mistakes.setdefault(Mistake(cause, text, site, cut), len(self.mistakes) + 1)
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
        uses = Counter(v for eqn in jaxpr.eqns for v in eqn.invars if not isinstance(v, Literal))
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
            if inner is None:
                for j, v in enumerate(eqn.invars):
                    if alive[j] and v not in series:
                        xs[j] = self._cut(eqn, xs[j], site.operand(j, eqn), step)
                    if alive[j] and eqn.primitive.name in _BROADCASTING:
                        xs[j] = self._one_slice(xs[j], eqn, site.operand(j, eqn))
                outs = bind_equation(eqn, xs)
                if eqn.primitive.name == "broadcast_in_dim" and alive[0]:
                    outs = [self._one_slice(xs[0], eqn, site)]
                elif any(alive) and len(outs) == 1 and eqn.primitive.name != "custom_vjp_call":

                    def on(
                        cause: str, words: str, j: int | None, s: Site = site, e: Any = eqn
                    ) -> Any:
                        return self._on(cause, words, s if j is None else s.operand(j, e))

                    outs = [mistaken(eqn, xs, alive, outs[0], plain, on)]
                outs_live = [any(alive)] * len(outs)
            elif eqn.primitive.name == "scan":
                outs, outs_live = self._scan(eqn, inner, xs, alive, site)
            else:
                foreign = is_foreign(inner.jaxpr)
                called = Site(site.path, site.text if foreign else outer.text)
                outs, outs_live = self._run(inner, xs, alive, called, step)
            env.update(zip(eqn.outvars, outs, strict=True))
            if step is None:
                words = f"the output of {site.text}"
                plain.update((v, (words, env[v])) for v in eqn.outvars)
            live |= {
                v
                for v, out, a in zip(eqn.outvars, outs, outs_live, strict=True)
                if a and is_floating(out)
            }
            if inner is None and sum(alive) == 1:
                series |= {v for v in eqn.outvars if uses[v] == 1}
        return [read(v) for v in jaxpr.outvars], [lives(v) for v in jaxpr.outvars]

    def _cut(self, eqn: JaxprEqn, x: Any, site: Site, step: Any) -> Any:
        """An operand whose cotangent may be left out, wholly or in part."""
        weight = 1.0 - self._on("missing term", "nothing flows back through", site, cut=True)
        if step is not None:
            number, length = step
            for at, when in ((0, "first"), (length - 1, "last")):
                words = f"the {when} step's cotangent is left out of"
                weight -= (number == at) * self._on("missing term", words, site)
        if eqn.primitive.name in _PICKING and x.ndim > 1 and 1 < x.shape[-1] <= MOST_CLASSES:
            for k in range(x.shape[-1]):
                on = self._on("index", f"index {k} of the last axis is left out of", site)
                weight -= on * (jnp.arange(x.shape[-1]) == k)
        return _weigh(x, jnp.broadcast_to(weight, x.shape).astype(x.dtype))

    def _scan(
        self, eqn: JaxprEqn, inner: ClosedJaxpr, xs: list[Any], alive: list[bool], site: Site
    ) -> tuple[list[Any], list[bool]]:
        """A scan, with the mistakes inside its steps and between them."""
        n, k = scan_ends(eqn)
        length = eqn.params["length"]
        # A carry that any input reaches may depend on the parameters from the second step on.
        within = [a or (any(alive) and n <= i < k) for i, a in enumerate(alive)]

        def kept(i: int, c: Any) -> Any:
            if not is_floating(c):
                return c
            words = f"nothing flows back from step to step through carry {i + 1} of"
            on = self._on("detached", words, Site((*site.path, -1 - i), site.text))
            return _weigh(c, jnp.broadcast_to(1.0 - on, c.shape).astype(c.dtype))

        def shared(c: Any, number: Any) -> Any:
            """What every step uses: its cotangent is summed over the steps, or over some."""
            weight = jnp.ones(())
            for at, when in ((0, "first"), (length - 1, "last")):
                there = number == at
                words = f"the {when} step is left out of every sum over the steps of"
                weight -= there * self._on("missing term", words, site)
                words = f"only the {when} step is kept, not the sum over the steps, of"
                weight -= ~there * self._on("not summed", words, site)
            return _weigh(c, jnp.broadcast_to(weight, c.shape).astype(c.dtype))

        def body(carry: Any, x: Any) -> Any:
            number, *given = x
            carry = [kept(i, c) for i, c in enumerate(carry)]
            consts = [
                shared(c, number) if a and is_floating(c) else c
                for c, a in zip(xs[:n], alive, strict=False)
            ]
            args = [*consts, *carry, *given]
            outs, _ = self._run(inner, args, within, Site(site.path, ""), (number, length))
            return outs[: k - n], outs[k - n :]

        carry, ys = lax.scan(
            body, xs[n:k], (jnp.arange(length), *xs[k:]), length, reverse=eqn.params["reverse"]
        )
        return [*carry, *ys], [any(alive)] * len(eqn.outvars)

    def _one_slice(self, x: Any, eqn: JaxprEqn, site: Site) -> Any:
        """What is broadcast has a cotangent that is summed over an axis: or is one slice of it."""
        shape = eqn.outvars[0].aval.shape  # type: ignore[attr-defined]
        trailing = range(len(shape) - jnp.ndim(x), len(shape))
        kept = eqn.params.get("broadcast_dimensions", trailing)
        sizes = dict(zip(kept, jnp.shape(x), strict=True))
        axes = [axis for axis, size in enumerate(shape) if sizes.get(axis, 1) < size]
        out = lax.broadcast_in_dim(x, shape, kept)
        if not axes:
            return out
        weight = jnp.ones(shape, out.dtype)
        several = [a for n in range(1, len(axes) + 1) for a in itertools.combinations(axes, n)]
        for chosen in several[: 2**MOST_SUMMED]:
            words = " and ".join(map(str, chosen))
            for which in ("first", "last"):
                on = self._on(
                    "not summed", f"only the {which} slice along axis {words} is kept of", site
                )
                for axis in chosen:
                    at = 0 if which == "first" else shape[axis] - 1
                    index = lax.broadcasted_iota(int, shape, axis)
                    weight = jnp.where((on > 0) & (index != at), 0, weight)
        return _weigh(out, weight)
