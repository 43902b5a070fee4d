"""Show the library's own code in a lesson, as it is, and what an op of it saves."""

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

import jaxnn
from jaxnn.op import Op


class Source(NamedTuple):
    """The source of functions or classes, and the file that it is in."""

    file: str
    text: str

    def __repr__(self) -> str:
        return f"# {self.file}\n{self.text}"

    def _repr_markdown_(self) -> str:
        return f"`{self.file}`\n\n```python\n{self.text}```\n"


def show_source(*things: Any) -> Source:
    """Return the source of functions or classes of one file, read from the library as it is."""
    above = Path(jaxnn.__file__).parents[1]
    files = {inspect.getsourcefile(inspect.unwrap(thing)) for thing in things}
    (file,) = files
    path = Path(file or "")
    name = path.relative_to(above).as_posix() if path.is_relative_to(above) else path.name
    parts = [textwrap.dedent(inspect.getsource(inspect.unwrap(thing))) for thing in things]
    return Source(name, "\n\n".join(parts))


class Saved(NamedTuple):
    """Bytes that are kept for the backward: by the hand-written rule, and by `jax.vjp`."""

    name: str
    by_hand: int
    autodiff: int

    def __repr__(self) -> str:
        return f"{self.name} saves {self.by_hand:,} bytes, jax.vjp {self.autodiff:,}"

    def _repr_markdown_(self) -> str:
        return (
            f"| `{self.name}` | bytes saved |\n|---|---|\n"
            f"| by hand | {self.by_hand:,} |\n| `jax.vjp` | {self.autodiff:,} |\n"
        )


def saved(op: Op[..., Any], *inputs: Any, **settings: Any) -> Saved:
    """Measure what an op saves for its backward, beside what `jax.vjp` saves of its forward.

    Arrays are counted once; those that are inputs are not counted, for their owner has them anyway.
    """
    forward: Callable[..., Any] = op.plain.fwd
    _, by_hand = forward(*inputs, **settings)
    _, pull = jax.vjp(lambda *given: forward(*given, **settings)[0], *inputs)
    return Saved(op.name, new_bytes(inputs, by_hand), new_bytes(inputs, pull))


def new_bytes(inputs: Any, residuals: Any) -> int:
    """Return the bytes of the arrays in `residuals` that are not among the inputs, each once."""
    known = {id(leaf) for leaf in jax.tree.leaves(inputs)}
    new = {id(x): x.nbytes for x in jax.tree.leaves(residuals) if id(x) not in known}
    return sum(new.values())
