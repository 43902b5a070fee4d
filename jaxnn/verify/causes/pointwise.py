"""Find what was written for the derivative of an elementwise function, where it is another.

    a = f'(x) dout,  m = q(x) dout   ->  the two slopes f'(x) and q(x), entry by entry

Both programs are run at other inputs and cotangents: f is what it does, whatever it is made of.
"""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jaxnn.verify.causes.evidence import Gradients, Numbers
from jaxnn.verify.causes.one_leaf import closest_multiple
from jaxnn.verify.causes.slopes import ACTIVATIONS
from jaxnn.verify.findings import Diagnosis, Leaf
from jaxnn.verify.point import Point
from jaxnn.verify.problem import is_floating
from jaxnn.verify.values import largest

# Of more entries, the outputs are not asked for: each takes a run.
MOST_ENTRIES = 512
# A slope of fewer different values is like too many others.
FEWEST_VALUES = 4


class Pointwise:
    """A leaf whose gradients are slopes times a cotangent of its shape, at any inputs."""

    def __init__(self, point: Point, path: str, found: Gradients, weights: int):
        """`weights` is the position of the cotangent among the other arrays of the call."""
        self._point, self._path, self._exact = point, path, found.exact
        self._number, self._weights = point.problem.paths.index(path), weights
        self._dout = np.asarray(point.rest[weights], np.float64)
        self._given = point.rest[weights]
        self.x = found.params[path]
        with np.errstate(divide="ignore", invalid="ignore"):
            self.right = found.autodiff[path] / self._dout
            self.written = found.manual[path] / self._dout
        self._known = np.isfinite(self.right) & np.isfinite(self.written)

    def _run(self, x: Leaf, dout: Leaf) -> tuple[float, Leaf, Leaf]:
        """The loss and both gradients of the leaf, at another value of it and of the cotangent."""
        point, i = self._point, self._number
        floats, rest = list(point.floats), list(point.rest)
        floats[i] = np.asarray(x, floats[i].dtype)
        rest[self._weights] = np.asarray(dout, self._given.dtype)
        floats, rest = ([jnp.asarray(v) for v in values] for values in (floats, rest))
        there = point.here.evaluator.at(floats, rest)
        return there.loss, there.autodiff[i], there.manual[self._path]

    def holds(self) -> bool:
        """Tell whether it is so: with another cotangent, both slopes are the same."""
        rng = np.random.default_rng(0)
        other = rng.uniform(1, 2, size=self._dout.shape)
        _, a, m = self._run(self.x, other)
        same = self.alike(a / other, self.right, m / other, self.written)
        return same and bool(self._known.any())

    def alike(self, *pairs: Leaf) -> bool:
        """Tell whether each second array is the first, where slopes are known."""
        return all(
            np.isfinite(x[self._known]).all()
            and largest((x - y)[self._known]) <= self._exact * largest(y[self._known])
            for x, y in zip(pairs[::2], pairs[1::2], strict=True)
        )

    def slopes_at(self, x: Leaf) -> tuple[Leaf, Leaf]:
        """Return the right slope and the one written, at other inputs."""
        ones = np.ones_like(self._dout)
        return self._run(x, ones)[1:]

    def outputs(self) -> Leaf:
        """Return the outputs: the loss is linear in the cotangent, whose entries weigh them."""
        zeros = np.zeros_like(self._dout)
        base = self._run(self.x, zeros)[0]
        found = np.zeros_like(zeros)
        for at in np.ndindex(zeros.shape):
            one = zeros.copy()
            one[at] = 1
            found[at] = self._run(self.x, one)[0] - base
        return found

    def masks(self) -> Iterator[Diagnosis]:
        """Yield that two slopes are exchanged, if they are."""
        low, high = np.nanmin(self.right), np.nanmax(self.right)
        s = self.right[self._known]
        two = np.minimum(np.abs(s - low), np.abs(s - high)).max() <= self._exact * largest(s)
        if two and high > low and self.alike(low + high - self.right, self.written):
            text = f"the mask is inverted: the slope is {low:.6g} where {high:.6g} is right, and "
            yield Diagnosis("mask", f"{text}the other way round")

    def causes(self, settings: Numbers) -> Iterator[Diagnosis]:
        """Yield what was taken for the derivative f'(x) of y = f(x), where that can be told."""
        for cause, words, value in self._others(settings):
            finite = np.isfinite(value[self._known])
            c = (
                closest_multiple(self.written, np.where(self._known, value, np.nan))
                if finite.all()
                else None
            )
            if c and len(np.unique(np.round(value[self._known], 12))) >= FEWEST_VALUES:
                if self.alike(value, self.written):
                    yield Diagnosis(cause, words)
                elif self.alike(c * value, self.written):
                    yield Diagnosis(cause, f"{words}, times {c:.6g}")

    def _others(self, settings: Numbers) -> Iterator[tuple[str, str, Leaf]]:
        """Cause, words, and a slope to compare with the one written."""
        s, x = self.right, self.x
        minus, _ = self.slopes_at(-x)
        yield "wrong saved value", f"the derivative is taken at -{self._path}", minus
        for n, what in settings:
            for c, words in ((n, f"{n:.15g}"), (1 / n, f"1/{n:.15g}")):
                where = f"{words} times {self._path}, and {n:.15g} is {what}"
                yield (
                    "wrong saved value",
                    f"the derivative is taken at {where}",
                    self.slopes_at(c * x)[0],
                )
        for name, slope in ACTIVATIONS.items():
            words = f"the derivative of {name} is taken for that of the function"
            value = np.asarray(slope(jnp.asarray(x)), np.float64)
            yield "wrong derivative", words, value
        with np.errstate(divide="ignore", invalid="ignore"):
            for words, value in {
                "1 - f'(x)": 1 - s,
                "f'(x)^2": s * s,
                "1 - f'(x)^2": 1 - s * s,
                "1 / f'(x)": 1 / s,
            }.items():
                yield "wrong derivative", f"{words} is taken for the derivative f'(x)", value
            for sign, words in ((1, "is not subtracted from"), (-1, "is not added to")):
                text = f"1 {words} what the derivative divides by"
                yield "missing term", text, 1 / (1 / s + sign)
        if s.size > MOST_ENTRIES:
            return
        y = self.outputs()
        words = "the value y is taken for the derivative"
        yield "wrong saved value", words, y
        for words, value in {
            "1 - y": 1 - y,
            "y (1 + y)": y * (1 + y),
            "y (1 - y)": y * (1 - y),
            "1 + y^2": 1 + y * y,
            "1 - y^2": 1 - y * y,
            "y^2": y * y,
        }.items():
            yield "wrong derivative", f"{words} is taken for the derivative, y the value", value
        at_output, written_at_output = self.slopes_at(y)
        words = "the derivative is taken at the output, not the input"
        yield "wrong saved value", words, at_output
        if self.alike(written_at_output, s):
            words = "the derivative in terms of the output is given the input"
            yield "wrong saved value", words, self.written


def pointwise(point: Point, path: str, found: Gradients) -> Diagnosis | None:
    """Explain a leaf of an elementwise function, where it is one and something does."""
    m = found.manual[path]
    for weights, d in enumerate(point.rest):
        if not is_floating(d) or d.shape != m.shape or m.size < FEWEST_VALUES:
            continue
        leaf = Pointwise(point, path, found, weights)
        if not leaf.holds():
            continue
        if mask := next(leaf.masks(), None):
            return mask
        settings = [(n, what) for n, what in point.problem.settings if n not in (0, 1)]
        return next(leaf.causes(settings), None)
    return None
