"""What a layout must send, on paper: from configuration, batch, rules and sizes, with no program.

N examples of T tokens are spread over the devices of "batch" and "sequence": each has n of t.
x is (n, t, D), what enters and leaves a layer. A loop's terms are per layer, L of them.

    parameters    each gradient's sum over the devices that see other tokens, once; where a
                  parameter is kept in parts ("embed"), the whole is gathered where it is used, and
                  the gradient is summed into the parts: in each layer's turn, forward and back
    tensor        x summed after attention and feed-forward, dx before them
    vocabulary    x summed after the table; of each token largest logit, sum of exponentials and
                  label's logit; dx summed
    sequence      k and v go round the ring, forward and back, and on the way back dk and dv, home
    experts       as tensor; of each expert two sums over all tokens, for the balance
    loss          one number
"""

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax

from jaxnn.ledger.layout import Layout, Rules, refuse_unknown
from jaxnn.ledger.sent import Sent
from jaxnn.models import autoencoder, cnn, mlp, rnn, transformer

WIDE = {"bf16": "f32", "f16": "f32"}  # what sums and exponentials are computed in


class Parameter(NamedTuple):
    """Of one array of a model's parameters: its path, shape, and the logical axes of that."""

    path: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]


def predicted(
    model: ModuleType,
    config: Any,
    batch: tuple[int, ...],
    mesh: dict[str, int],
    rules: Rules,
    *,
    dtype: str = "f32",
) -> list[Sent]:
    """Return what one value and gradient of a model's loss sends, in a layout.

    Args:
        model: a module of `jaxnn.models`.
        config: its configuration.
        batch: (N, T) of tokens, (N,) of a model without a sequence.
        mesh: the sizes of the mesh's axes, in order.
        rules: from logical axes to the mesh's.
        dtype: of the parameters, as XLA writes it.

    Raises:
        ValueError: a rule has a name that is unknown, or sizes do not divide.
    """
    layout = Layout(mesh, rules)
    refuse_unknown(layout)
    send = partial(_send, layout, dtype)
    lines = [*_of_parameters(parameters(model, config), layout, send, _loops(config))]
    lines += _MODELS[model](config, batch, layout, send)
    lines += send("all-reduce", layout.tokens, (), 1, False, "the loss")
    return lines


Send = Callable[..., list[Sent]]


def _send(
    layout: Layout,
    dtype: str,
    kind: str,
    axes: tuple[str, ...],
    shape: tuple[int, ...],
    times: int,
    in_loop: bool,
    why: str,
    *,
    wide: bool = False,
) -> list[Sent]:
    """A line, or none where it is one device that would send, or nothing that is sent."""
    devices = 1
    for axis in axes:
        devices *= layout.mesh[axis]
    if not axes or not times:
        return []
    kept = WIDE.get(dtype, dtype) if wide else dtype
    return [Sent(kind, axes, devices, kept, shape, times, in_loop, why)]


def parameters(model: ModuleType, config: Any) -> list[Parameter]:
    """Return a model's parameters, shapes from `init_params`, which is not run."""
    shapes = jax.eval_shape(lambda: model.init_params(jax.random.key(0), config))
    table = model.axes(config)
    return [
        Parameter(name, leaf.shape, table[name])
        for path, leaf in jax.tree.leaves_with_path(shapes)
        for name in [jax.tree_util.keystr(path, simple=True, separator=".")]
    ]


def _loops(config: Any) -> int:
    """How often the scan over layers turns; a loop of one turn is none when compiled."""
    layers: int = getattr(config, "layers", 1)
    return layers if isinstance(config, transformer.Config) else 1


def _of_parameters(of: list[Parameter], layout: Layout, send: Send, layers: int) -> Iterator[Sent]:
    """Gather what is kept in parts, and sum the gradients."""
    over = layout.axes("embed")
    for name, shape, axes in of:
        in_layer = axes[0] == "layers"
        times, kept, whole = 1, [], []
        for size, logical in zip(shape, axes, strict=True):
            if logical == "layers":
                continue
            part = size if logical is None else layout.share(size, logical)
            kept.append(part)
            whole.append(size if logical == "embed" else part)
        rest = layout.tokens
        if over and "embed" in axes:
            times = layers if in_layer else 1
            loop = in_layer and layers > 1
            again = 2 if in_layer else 1
            yield from send("all-gather", over, tuple(whole), again * times, loop, f"{name}, whole")
            yield from send("reduce-scatter", over, tuple(whole), times, loop, f"d {name}")
            rest = tuple(axis for axis in rest if axis not in over)
        if in_layer:
            kept.insert(0, layers)
        yield from send("all-reduce", rest, tuple(kept), 1, False, f"d {name}")


def _perceptron(config: Any, batch: tuple[int, ...], layout: Layout, send: Send) -> list[Sent]:
    """Nothing but parameters' gradients and the loss."""
    layout.share(batch[0], "batch")
    return []


def _cnn(config: cnn.Config, batch: tuple[int, ...], layout: Layout, send: Send) -> list[Sent]:
    """With batch normalisation: sums of each channel over all examples, forward and back."""
    layout.share(batch[0], "batch")
    if config.norm != "batch":
        return []
    lines = []
    widths = [config.channels[0]]
    widths += [c for c in config.channels for _ in range(2 * config.blocks)]
    for width in widths:
        for why in ("mean", "variance", "sum of dy", "sum of dy x_hat"):
            lines += send("all-reduce", layout.tokens, (width,), 1, False, why, wide=True)
    return lines


def _transformer(
    config: transformer.Config, batch: tuple[int, ...], layout: Layout, send: Send
) -> list[Sent]:
    n, t = (layout.share(*each) for each in zip(batch, ("batch", "sequence"), strict=True))
    layers, x = config.layers, (n, t, config.width)
    loop = layers > 1
    again = 1 if config.recompute else 0  # the layer's forward, a second time
    lines: list[Sent] = []

    def layer(
        kind: str,
        axes: tuple[str, ...],
        shape: tuple[int, ...],
        times: int,
        why: str,
        wide: bool = False,
    ) -> None:  # noqa: E501
        lines.extend(send(kind, axes, shape, times * layers, loop, why, wide=wide))

    heads = layout.axes("heads")
    units = layout.axes("experts" if config.experts else "hidden")
    # Computed again, the last sum of a layer is of no use to its backward, and XLA leaves it out.
    layer("all-reduce", heads, x, 1 + again, "attention's heads, summed")
    layer("all-reduce", heads, x, 1, "dx of q, k and v")
    layer("all-reduce", units, x, 1, "feed-forward's units, summed")
    layer("all-reduce", units, x, 1, "dx of feed-forward")
    if config.experts:
        # Of those who chose and of the probabilities, for the means over all tokens.
        layer("all-reduce", layout.tokens, (config.experts,), 2 + again, "balance", True)
    ring, steps = layout.axes("sequence"), layout.parts("sequence")
    if ring:
        kv = (n, t, layout.share(config.kv_heads or config.heads, "heads"), config.per_head)
        layer("collective-permute", ring, kv, 2 * (steps - 1) * (1 + again), "k and v, forward")
        layer("collective-permute", ring, kv, 2 * (steps - 1), "k and v, back")
        layer("collective-permute", ring, kv, 2 * steps, "dk and dv", True)
    vocabulary = layout.axes("vocab")
    lines += send("all-reduce", vocabulary, x, 1, False, "rows of the table, summed")
    for why in ("largest logit", "sum of exponentials", "label's logit"):
        lines += send("all-reduce", vocabulary, x[:2], 1, False, why, wide=True)
    lines += send("all-reduce", vocabulary, x, 1, False, "dx of the logits")
    return lines


_MODELS: dict[ModuleType, Callable[..., list[Sent]]] = {
    mlp: _perceptron,
    autoencoder: _perceptron,
    rnn: _perceptron,
    cnn: _cnn,
    transformer: _transformer,
}
