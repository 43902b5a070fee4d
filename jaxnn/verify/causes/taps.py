"""Keep every number computed on the way by a traced function, each with what it was made from."""

from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Literal

from jaxnn.verify.causes.jaxprs import bind_equation, inner_of, is_foreign, words_of
from jaxnn.verify.problem import is_floating


class Tap(NamedTuple):
    """A variable of the loss: which equation made it, in words, and from which other taps."""

    words: str
    sources: tuple[int, ...]


class Tapped:
    """An evaluation of a traced function that gives every floating number computed on the way.

    To each is added a number of `steps`, whose derivatives are the cotangents. Calls are walked
    into; a loop is one equation.
    """

    def __init__(self, steps: Any = None) -> None:
        """Without steps, nothing is added."""
        self.steps, self.taps = steps, list[Tap]()
        self.values: list[Any] = []

    def tap(self, words: str, sources: set[int], value: Any) -> tuple[Any, set[int]]:
        """Return the value with its step added, and its number."""
        if self.steps is not None:
            value = value + self.steps[len(self.taps)]
        self.taps.append(Tap(words, tuple(sorted(sources))))
        self.values.append(value)
        return value, {len(self.taps) - 1}

    def run(self, closed: ClosedJaxpr, args: Any, origins: Any, outer: str) -> Any:
        """Evaluate a jaxpr: its outputs, each with the taps that it comes from."""
        jaxpr = closed.jaxpr
        env = dict(zip(jaxpr.constvars, [(c, set[int]()) for c in closed.consts], strict=True))
        env.update(zip(jaxpr.invars, zip(args, origins, strict=True), strict=True))

        def read(v: Any) -> Any:
            return (v.val, set()) if isinstance(v, Literal) else env[v]

        for eqn in jaxpr.eqns:
            xs, sources = zip(*map(read, eqn.invars), strict=True) if eqn.invars else ((), ())
            inner = inner_of(eqn)
            if inner is not None and eqn.primitive.name != "scan":
                words = words_of(eqn, outer) if is_foreign(inner.jaxpr) else outer
                outs = self.run(inner, xs, sources, words)
            else:
                union, words = set[int]().union(*sources), words_of(eqn, outer)
                outs = [
                    self.tap(words, union, x) if is_floating(x) else (x, set[int]())
                    for x in bind_equation(eqn, xs)
                ]
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]


def backwards(taps: list[Tap], last: set[int]) -> list[int]:
    """Return the taps that the loss comes from, in backward order."""
    found, todo = set(last), list(last)
    while todo:
        new = set(taps[todo.pop()].sources) - found
        found |= new
        todo += new
    return sorted(found, key=lambda n: (taps[n].words != "", n), reverse=True)


def needed_by(number: int, taps: list[Tap], last: int, leaves: list[int]) -> bool:
    """Tell whether every way from the loss back to each of the leaves passes through a tap."""
    if number == last:
        return True
    found, todo = {last}, [last]
    while todo:
        new = set(taps[todo.pop()].sources) - found - {number}
        found |= new
        todo += new
    return not found & set(leaves)
