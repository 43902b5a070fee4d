"""A wrong cotangent, and the cause that is named for it."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxnn.learn.points import Leaf, Point, close


class Cause(NamedTuple):
    """A likely cause: its kind, in words a student understands, and what to look at next."""

    kind: str
    text: str
    look: str


class Case(NamedTuple):
    """One wrong cotangent: its name, what was given and what is right, at every point."""

    name: str
    given: list[Leaf]
    right: list[Leaf]
    points: list[Point]
    sizes: Mapping[str, int]
    returned: list[dict[str, Any]]
    numbers: tuple[float, ...] = ()  # factors and exponents that the forward has in it

    def fits(self, guesses: Iterable[Any]) -> bool:
        """Whether predictions, one for each point, are what was given."""
        for guess, given in zip(guesses, self.given, strict=True):
            if guess is None or not close(np.asarray(guess, np.float64), given):
                return False
        return True


def sizes_of(shapes: Mapping[str, str], inputs: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes of letters, from shapes in words as "(N, C)" and the arrays."""
    found: dict[str, int] = {}
    for name, text in shapes.items():
        match = re.search(r"\(([^()]*)\)", text)
        letters = [s.strip() for s in match[1].split(",") if s.strip()] if match else []
        shape = getattr(inputs.get(name), "shape", ())
        if len(letters) == len(shape):
            found |= {a: n for a, n in zip(letters, shape, strict=True) if a.isidentifier()}
    return found
