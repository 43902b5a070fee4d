"""What a layout sends: predicted on paper, found in the compiled program, and seconds it takes.

    python -m jaxnn.ledger gpt --mesh data=2,model=4
    python -m jaxnn.ledger llama --mesh data=8 --rules batch=data,embed=data --width 64
    python -m jaxnn.ledger gpt --mesh data=512,model=8 --width 1600 --heads 40 --batch 512

Without --rules the axes are for what their names say, see jaxnn.rules.USUAL: data, fsdp, model,
sequence. A rule to several axes is batch=data+model. Where the mesh has at most 64 devices, the
value and gradient are compiled for as many devices of this machine's processor, in float32, and
what is found there stands beside what is predicted; above that, there is only the paper. Bytes are
those of the arrays on one device, see jaxnn.ledger.sent; seconds those of what is predicted, on the
machine that --machine names, see jaxnn.ledger.machines.

Exit status: 0 both agree, or nothing was compiled, 1 they differ, 2 usage.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

from jax.sharding import AbstractMesh

from jaxnn.ledger.found import found
from jaxnn.ledger.machines import MACHINES, Machine, Nodes, seconds
from jaxnn.ledger.memory import memory
from jaxnn.ledger.paper import predicted
from jaxnn.ledger.program import compiled_step, processors
from jaxnn.ledger.sent import Sent, differences
from jaxnn.ledger.tables import human, ledger_table
from jaxnn.mesh import lay_out
from jaxnn.models import autoencoder, cnn, mlp, rnn, transformer

MOST = 64  # devices to compile for
SIZES = {"layers": 2, "width": 64, "heads": 4, "vocabulary": 256, "positions": 32}


class Known(NamedTuple):
    """A model of the command: its module, a configuration, and fields that options may set."""

    model: ModuleType
    config: Any
    fields: tuple[str, ...]


OF_TRANSFORMERS = (
    *("layers", "width", "heads", "kv_heads", "hidden", "experts", "vocabulary", "sequence"),
    "recompute",
)
OF_RECURRENT = ("layers", "width", "hidden", "vocabulary", "sequence")
KNOWN = {
    "gpt": Known(transformer, transformer.gpt2(**SIZES), OF_TRANSFORMERS),
    "llama": Known(transformer, transformer.llama(**SIZES), OF_TRANSFORMERS),
    "lstm": Known(rnn, rnn.Config(cell="lstm"), OF_RECURRENT),
    "gru": Known(rnn, rnn.Config(cell="gru"), OF_RECURRENT),
    "mlp": Known(mlp, mlp.Config(), ("sizes",)),
    "cnn": Known(cnn, cnn.Config(), ("channels", "norm")),
    "autoencoder": Known(autoencoder, autoencoder.Config(), ("sizes",)),
}
NUMBERS = ("layers", "width", "heads", "kv_heads", "hidden", "experts", "vocabulary", "sequence")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the ledger that the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxnn.ledger",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", choices=KNOWN)
    add("--mesh", required=True, metavar="AXIS=SIZE,...", help="the mesh's axes, outermost first")
    add("--rules", metavar="LOGICAL=AXIS,...", help="which logical axis lies along which")
    add("--batch", type=int, metavar="N", help="examples of a step; 2 for each device")
    for name in NUMBERS:
        of = "of llama's feed-forward layers" if name == "experts" else "of the configuration"
        add(f"--{name.replace('_', '-')}", type=int, metavar="N", help=of)
    add(
        "--recompute",
        action="store_true",
        default=None,
        help="layers are computed again",
    )
    add("--sizes", type=_sizes, metavar="N,N,...", help="widths of a perceptron")
    add("--channels", type=_sizes, metavar="N,...", help="of each stage of the cnn")
    add("--norm", choices=("batch", "group"), help="of the cnn")
    add("--machine", choices=MACHINES, default="h200", help="whose bandwidths to take")
    add("--inside", type=float, metavar="GB/s", help="between devices of a node or along a link")
    add("--between", type=float, metavar="GB/s", help="per device between nodes")
    add("--paper", action="store_true", help="compile nothing")
    options = parser.parse_args(argv)
    try:
        return _ledger(options)
    except (ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _ledger(options: argparse.Namespace) -> int:
    known, sizes = KNOWN[options.model], _mesh(options.mesh)
    config = _config(options, known)
    rules = None if options.rules is None else _rules(options.rules)
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    compiles = mesh.size <= MOST and not options.paper
    if compiles:
        processors(mesh.size)  # before JAX computes a key
    layout = lay_out(known.model, config, mesh, rules)
    batch: tuple[int, ...] = (options.batch or 2 * mesh.size,)
    if known.model in (transformer, rnn):
        batch += (options.sequence or SIZES["positions"],)
    machine = _machine(options)
    paper = predicted(layout, batch)
    program: list[Sent] | None = None
    if compiles:
        compiled = compiled_step(known.model, config, layout, batch)
        program = found(compiled, sizes)
    print(f"{options.model}: {_settings(config)}")
    used = [f"{name}={'+'.join(axis)}" for name, axis in layout.axes._asdict().items() if axis]
    print(f"batch {batch}, mesh {options.mesh}, rules {','.join(used) or 'none'}; {machine.name}\n")
    print(ledger_table(paper, program, sizes, machine))
    total = sum(seconds(sent, sizes, machine) for sent in paper)
    print(f"\n{total:.3g} s of sending in a step, were nothing computed meanwhile")
    held = memory(layout, batch)
    said = ", ".join(f"{name} {human(size)}" for name, size in held._asdict().items() if size)
    print(f"on each device, for an optimizer of two moments: {said}")
    if program is None:
        return 0
    temporary = compiled.memory_analysis().temp_size_in_bytes
    print(f"compiled: {human(temporary)} beside parameters, batch and results")
    different = differences(paper, program)
    print("\n".join(f"! {sentence}" for sentence in different) or "found as predicted")
    return int(bool(different))


def _mesh(text: str) -> dict[str, int]:
    """data=2,model=4 as sizes by name."""
    mesh: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if not name.isidentifier() or not size.isdecimal() or int(size) < 1 or name in mesh:
            raise ValueError(
                f"--mesh is {text!r}; it must name each axis once and its size, at least 1: "
                "data=2,model=4, say"
            )
        mesh[name] = int(size)
    return mesh


def _rules(text: str) -> dict[str, str | tuple[str, ...]]:
    """batch=data,heads=model as axes of the mesh by logical axis."""
    rules: dict[str, str | tuple[str, ...]] = {}
    for part in text.split(",") if text else ():
        logical, _, along = part.partition("=")
        if not along or logical in rules:
            raise ValueError(
                f"--rules is {text!r}; it must name each logical axis once, and an axis of the "
                "mesh or several: batch=data,embed=data+model, say"
            )
        axes = tuple(along.split("+"))
        rules[logical] = axes[0] if len(axes) == 1 else axes
    return rules


def _config(options: argparse.Namespace, known: Known) -> Any:
    """The model's configuration, with the fields that options set."""
    changed = {}
    for field in (*NUMBERS, "recompute", "sizes", "channels", "norm"):
        value = getattr(options, field)
        if value is None:
            continue
        if field not in known.fields:
            raise ValueError(
                f"--{field.replace('_', '-')} is {value}; {options.model} has no such setting, it "
                f"has {', '.join(known.fields)}: leave it out"
            )
        changed[field] = value
    length = changed.pop("sequence", None)
    if length is not None and known.model is transformer:
        changed["positions"] = length
    return dataclasses.replace(known.config, **changed)


def _settings(config: Any) -> str:
    """What a configuration has that its kind has not by default."""
    usual = type(config)()
    fields = [field.name for field in dataclasses.fields(config)]
    other = [name for name in fields if getattr(config, name) != getattr(usual, name)]
    return ", ".join(f"{name} {getattr(config, name)}" for name in other) or "as by default"


def _machine(options: argparse.Namespace) -> Machine:
    """The machine, with the bandwidths that options set."""
    machine = MACHINES[options.machine]
    if options.inside is not None:
        machine = machine._replace(inside=_positive("--inside", options.inside) * 1e9)
    if options.between is not None:
        if not isinstance(machine, Nodes):
            raise ValueError(
                f"--between is {options.between:g} on {machine.name}; it has no nodes: leave it out"
            )
        machine = machine._replace(between=_positive("--between", options.between) * 1e9)
    return machine


def _positive(name: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value:g}; it must be above 0 GB/s: 50, say")
    return value


def _sizes(text: str) -> tuple[int, ...]:
    """64,32,10 as integers."""
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} must be integers with commas: 64,32,10, say")
    return tuple(map(int, parts))


if __name__ == "__main__":
    sys.exit(main())
