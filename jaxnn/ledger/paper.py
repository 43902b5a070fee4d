"""What a layout must send, on paper: from configuration, batch and layout, with no program.

N examples of T tokens are spread over the devices of "batch" and "sequence": each has n of t.
x is (n, t, D), what enters and leaves a layer. A loop's terms are per layer, L of them.

    parameters    each gradient's sum over the devices that have other tokens, once; where a
                  parameter is kept in parts ("embed"), the whole is gathered where it is used, and
                  the gradient is summed into the parts: in each layer's turn, forward and back
    tensor        x summed after attention and feed-forward, dx before them
    vocabulary    x summed after the table; of each token largest logit, sum of exponentials and
                  label's logit; dx summed
    sequence      k and v go round the ring, forward and back, and dk and dv on the way back
    experts       as tensor, and the router's gradient; two sums over all tokens of each expert
    batch norm    four sums over all examples of each channel
    loss          one number
"""

from functools import partial
from typing import Any, NamedTuple

import jax

from jaxnn.calls import path_name
from jaxnn.ledger.sent import Sent
from jaxnn.mesh import Layout
from jaxnn.models import cnn, transformer

WIDE = {"bf16": "f32", "f16": "f32"}  # what sums and exponentials are computed in
Axis = tuple[str, ...]


class Pen(NamedTuple):
    """Writes lines of a ledger for a layout, in a dtype."""

    layout: Layout
    dtype: str
    lines: list[Sent]

    def send(
        self,
        kind: str,
        axes: Axis,
        shape: tuple[int, ...],
        why: str,
        turns: int | None = None,
        each: int = 1,
        *,
        wide: bool = False,
    ) -> None:
        """Write a line, or none where there is nobody to send to, or nothing.

        Args:
            kind: of the collective.
            axes: over which axes of the mesh, in any order.
            shape: of the array.
            why: it is sent.
            turns: of the loop that it is in; None for no loop. Compiled, one turn is no loop.
            each: how often, or how often in each turn.
            wide: whether in float32 or wider.
        """
        sizes = self.layout.mesh.shape
        axes = tuple(axis for axis in sizes if axis in axes and sizes[axis] > 1)
        if axes and each:
            dtype = WIDE.get(self.dtype, self.dtype) if wide else self.dtype
            in_loop, times = turns is not None and turns > 1, each * (turns or 1)
            devices = self.layout.devices(axes)
            self.lines.append(Sent(kind, axes, devices, dtype, shape, times, in_loop, why))


def predicted(layout: Layout, batch: tuple[int, ...], *, dtype: str = "f32") -> list[Sent]:
    """Return what one value and gradient of a model's loss sends.

    Args:
        layout: of `jaxnn.mesh.lay_out`; the mesh may be an abstract one.
        batch: (N, T) of tokens, (N,) of a model without a sequence.
        dtype: of the parameters, as XLA writes it.

    Raises:
        ValueError: the devices do not divide the batch.
    """
    pen = Pen(layout, dtype, [])
    local = local_batch(layout, batch)
    for parameter in parameters(layout):
        _of_parameter(parameter, pen)
    if isinstance(layout.config, cnn.Config):
        _of_batch_norm(layout.config, pen)
    if isinstance(layout.config, transformer.Config):
        _of_transformer(layout.config, local[0], local[1], pen)
    pen.send("all-reduce", layout.tokens, (), "the loss")
    return pen.lines


def local_batch(layout: Layout, batch: tuple[int, ...]) -> tuple[int, ...]:
    """Return the part of a batch's sizes that one device has.

    Raises:
        ValueError: the devices do not divide them.
    """
    parts = []
    for name, size in zip(("batch", "sequence"), batch, strict=False):
        devices = layout.devices(getattr(layout.axes, name))
        if size % devices:
            raise ValueError(
                f"{name} is {size} for {devices} devices; they must divide it: change the batch or "
                "the mesh"
            )
        parts.append(size // devices)
    return tuple(parts)


class Parameter(NamedTuple):
    """Of one array of a model's parameters: its path, its shape, and the logical axes of that."""

    path: str
    shape: tuple[int, ...]
    names: tuple[str | None, ...]

    def part(self, layout: Layout, *, whole: bool = False) -> tuple[int, ...]:
        """Return the shape of what one device has, or uses: `whole` along "embed"."""
        return tuple(
            size // layout.devices(getattr(layout.axes, name or "", ()))
            if not (whole and name == "embed")
            else size
            for size, name in zip(self.shape, self.names, strict=True)
        )


def parameters(layout: Layout) -> list[Parameter]:
    """Return a model's parameters."""
    shapes = jax.tree.leaves_with_path(layout.shapes)
    names = jax.tree.leaves(layout.names)
    return [
        Parameter(path_name(path), leaf.shape, tuple(axes))
        for (path, leaf), axes in zip(shapes, names, strict=True)
    ]


def _of_parameter(parameter: Parameter, pen: Pen) -> None:
    """Gather what is kept in parts, and sum the gradient."""
    layout, (path, _, names) = pen.layout, parameter
    last = path.rpartition(".")[2]
    rest, embed = layout.tokens, layout.axes.embed
    if embed and "embed" in names:
        shape, again, turns = parameter.part(layout, whole=True), 1, None
        if names[0] == "layers":
            turns, shape = shape[0], shape[1:]
            # The bias of what is added to x has no part in the way back: only where the layer is
            # computed again, x in its middle needs attention's. Of one layer, which is no loop, XLA
            # sees that it has been gathered.
            back = last != "bdown" and (last != "bo" or layout.config.recompute)
            again += back and turns > 1
        pen.send("all-gather", embed, shape, f"{path}, whole", turns, again)
        pen.send("reduce-scatter", embed, shape, f"d {path}", turns)
        rest = tuple(axis for axis in rest if axis not in embed)
    if last in ("q_norm", "k_norm"):
        layers, *each = parameter.part(layout)
        why = f"d {path}: one for all heads, of which each device has its own"
        pen.send("all-reduce", layout.axes.heads, tuple(each), why, layers)
    if not _is_of_batch_norm(parameter, layout.config):  # which has summed them already, for dx
        pen.send("all-reduce", rest, parameter.part(layout), f"d {path}")


def _is_of_batch_norm(parameter: Parameter, config: Any) -> bool:
    """Whether a parameter is a scale, a shift or a statistic of batch normalisation."""
    last = parameter.path.rpartition(".")[2]
    is_norm = last in ("scale", "shift", "mean", "variance")
    return isinstance(config, cnn.Config) and config.norm == "batch" and is_norm


def _of_batch_norm(config: cnn.Config, pen: Pen) -> None:
    """Sums of each channel over all examples, forward and back, of all norms."""
    if config.norm != "batch":
        return
    inner = [width for width in config.channels for _ in range(2 * config.blocks)]
    for width in (config.channels[0], *inner):
        for why in ("mean", "variance", "sum of dy", "sum of dy x_hat"):
            pen.send("all-reduce", config.axes.batch, (width,), why, wide=True)


def _of_transformer(config: transformer.Config, n: int, t: int, pen: Pen) -> None:
    axes, x = config.axes, (n, t, config.width)
    # A layer's forward a second time; its last sum is then of no use, and XLA leaves it out. Where
    # there is one layer, which is no loop, XLA leaves all of it out.
    again = int(config.recompute and config.layers > 1)

    layer = partial(pen.send, turns=config.layers)
    layer("all-reduce", axes.heads, x, "the heads' z", each=1 + again)
    layer("all-reduce", axes.heads, x, "dx of q, k and v")
    if config.experts:
        tokens, each = pen.layout.tokens, (config.experts,)
        units = axes.experts + axes.hidden
        layer("all-reduce", units, x, "the experts' y")
        layer("all-reduce", units, x, "dx of the experts")
        layer("all-reduce", units, (config.width, *each), "d router")
        layer("all-reduce", tokens, each, "who is chosen", each=1 + again, wide=True)
        layer("all-reduce", tokens, each, "mean probability", wide=True)
        pen.send("all-reduce", tokens, (), "d balance")
    else:
        layer("all-reduce", axes.hidden, x, "the units' y")
        layer("all-reduce", axes.hidden, x, "dx of the units")
    ring, turns = axes.sequence, pen.layout.devices(axes.sequence) - 1
    pairs = (config.kv_heads or config.heads) // pen.layout.devices(axes.heads)
    kv = (n, t, pairs, config.per_head)
    layer("collective-permute", ring, kv, "k and v, forward", each=2 * turns * (1 + again))
    # Of two devices each is before and after the other: what was computed again has just come.
    back = 0 if turns == 1 and (again or config.layers == 1) else 2 * turns
    layer("collective-permute", ring, kv, "k and v, back", each=back)
    layer("collective-permute", ring, kv, "dk and dv", each=2 * turns, wide=True)
    pen.send("all-reduce", axes.vocab, x, "rows of the table")
    for why in ("largest logit", "sum of exponentials", "label's logit"):
        pen.send("all-reduce", axes.vocab, (n, t), why, wide=True)
    pen.send("all-reduce", axes.vocab, x, "dx of the logits")
