"""What each op's forward keeps for its backward, beside what `jax.vjp` keeps of the same forward.

    python -m experiments.residuals

Bytes per element of the op's floating inputs, on its own small example in float32. What is kept but
is an input itself costs nothing (its owner has it anyway) and is not counted. `jax.vjp` is asked
outside jit, where every array that it keeps is one that exists; under jit, XLA may drop some.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments import cli, pictures
from jaxnn import files
from jaxnn.learn.shown import new_bytes
from jaxnn.op import Op
from jaxnn.verify.find import find_ops
from jaxnn.verify.ops import draw_inputs


def kept(inputs: Any, residuals: Any) -> float:
    """Bytes of the arrays in `residuals` that are not among the inputs, per floating input element.

    An array that is kept twice is counted once.
    """
    leaves = jax.tree.leaves(inputs)
    elements = sum(leaf.size for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating))
    return float(new_bytes(inputs, residuals) / elements)


def measure(op: Op[..., Any], static: Any) -> tuple[float, float]:
    """Bytes per input element kept by the hand-written rule, and by `jax.vjp`."""
    inputs = draw_inputs(f"example of op {op.name}", op.example)
    _, by_hand = op.fwd(*inputs, **static)
    _, pull = jax.vjp(lambda *arrays: op.fwd(*arrays, **static)[0], *inputs)
    return kept(inputs, by_hand), kept(inputs, pull)


def rows(target: str, figures: dict[str, tuple[float, float]] | None = None) -> Iterator[str]:
    """The table's lines, each op and setting measured as its line is asked for.

    Args:
        target: as `main`.
        figures: where the figures of each line are put, by what it is of.
    """
    ops = find_ops(target)
    yield f"{'op':58}{'by hand':>9}{'jax.vjp':>9}   bytes per input element, float32"
    for op in ops:
        for static in op.settings:
            settings = "".join(f", {name}={value!r}" for name, value in static.items())
            by_hand, autodiff = measure(op, static)
            label = op.name + settings
            if figures is not None:
                figures[label] = by_hand, autodiff
            label = label if len(label) < 58 else label[:53] + " ..."
            yield f"{label:58}{by_hand:>9.2f}{autodiff:>9.2f}"


def main(target: str = "jaxnn.ops", out: Path = Path("out/residuals")) -> int:
    """Print the bytes that each op saves per input element, by hand and by jax.vjp.

    Args:
        target: A dotted module or package, or a .py file, with ops in it.
        out: Folder for the table and the picture.
    """
    folder = cli.folder(out)
    table, figures = "", dict[str, tuple[float, float]]()
    for row in rows(target, figures):
        print(row)
        table += row + "\n"
    with files.replaced(folder / "table.txt") as file:
        file.write_text(table)
    print(f"wrote {folder / 'table.txt'}")
    pictures.kept(folder / "residuals.png", figures)
    return 0


if __name__ == "__main__":
    cli.run(main)
