"""The exponents as a Markdown table with their reasons, as JSON, and as a picture's columns."""

from collections.abc import Sequence
from typing import Any

import jax

from experiments.benchmark import machine
from experiments.benchmark.arms import BY_HAND
from experiments.benchmark.results import in_digits
from experiments.pictures.scaling import Column, Curve
from experiments.scaling import reasons
from experiments.scaling.curves import bends, local_slopes, slope
from experiments.scaling.measured import Measured

SYMBOLS = {"layers": "L", "width": "D", "sequence": "T", "vocabulary": "V", "batch": "N"}
OF_IMAGES = {"layers": "blocks", "width": "channels", "sequence": "side of an image"}
HEADS = ("model", "grows", "form", "time", "between sizes", "on paper", "memory", "between sizes",
         "on paper", "needed / counted")  # fmt: skip


def axis_name(found: Measured) -> str:
    """Return what grows, in words of the model."""
    return OF_IMAGES.get(found.name, found.name) if found.title == "CNN" else found.name


def table(all_found: Sequence[Measured]) -> str:
    """Return the exponents as a Markdown table, a line for each form along each axis."""
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    for found in all_found:
        sizes = found.axis.sizes
        grows = f"{axis_name(found)} {sizes[0]} to {sizes[-1]}"
        for name, form in found.forms.items():
            times = ["-", "-"] if form.seconds is None else _slopes(sizes, form.seconds)
            ratio = [n / c for n, c in zip(form.temporary, form.counted, strict=True)]
            cells = (
                found.title, grows, name, *times, f"{slope(sizes, found.counted):.2f}",
                *_slopes(sizes, form.temporary), f"{slope(sizes, form.counted):.2f}",
                f"{min(ratio):.2f} to {max(ratio):.2f}",
            )  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _slopes(sizes: Sequence[float], values: Sequence[float]) -> list[str]:
    local = " ".join(f"{each:.2f}" for each in local_slopes(sizes, values))
    return [f"{slope(sizes, values):.2f}", local]


def sentences(found: Measured) -> list[str]:
    """Return what there is to say of an axis: each curve's bends, and why."""
    said = []
    for form in found.forms:
        for what, of in (("time", reasons.of_time), ("memory", reasons.of_memory)):
            said += [f"{form}, {what} {reason}" for reason in of(found, form)]
    sizes, parameters = found.axis.sizes, found.parameters
    if parameters[-1] > parameters[0]:
        shares = [p / t for p, t in zip(parameters, found.forms[BY_HAND].temporary, strict=True)]
        said.append(
            f"the parameters' own bytes grow as {SYMBOLS[found.name]}^"
            f"{slope(sizes, parameters):.2f}: from {shares[0]:.2f} to {shares[-1]:.2f} times those "
            "needed by hand"
        )
    if machine.is_much(found.busy):
        said.append(f"warning: others had {found.busy:.0%} of the cores' time; measure again")
    seconds = found.forms[BY_HAND].seconds
    if seconds:
        rates = [n / s / 1e9 for n, s in zip(found.counted, seconds, strict=True)]
        said.append(
            f"by hand, rate {in_digits(rates[0])} GFLOP/s at first, {in_digits(rates[-1])} at last"
        )
    return said


def report(all_found: Sequence[Measured]) -> str:
    """Return the table, and below it what there is to say of each axis."""
    parts = [table(all_found)]
    for found in all_found:
        base = ", ".join(
            f"{axis_name(found._replace(name=name))} {size}"
            for name, size in found.axis.base.items()
            if name != found.name
        )
        lines = "\n".join(f"- {sentence}" for sentence in sentences(found))
        parts.append(f"{found.title}, {axis_name(found)} grows; {base}:\n\n{lines}")
    return "\n\n".join(parts) + "\n"


def columns(all_found: Sequence[Measured]) -> list[Column]:
    """Return what a picture of one model shows: a column for each axis."""
    return [_column(found) for found in all_found]


def _column(found: Measured) -> Column:
    sizes, symbol = found.axis.sizes, SYMBOLS[found.name]
    time = {
        name: Curve(form.seconds, slope(sizes, form.seconds), _ringed(sizes, form.seconds))
        for name, form in found.forms.items()
        if form.seconds is not None
    }
    memory = {
        name: Curve(form.temporary, slope(sizes, form.temporary), _ringed(sizes, form.temporary))
        for name, form in found.forms.items()
    }
    bytes_ = found.forms[BY_HAND].counted
    paper = (
        Curve(found.counted, slope(sizes, found.counted), ()),
        Curve(bytes_, slope(sizes, bytes_), ()),
    )
    why = tuple(_caption(of(found)) for of in (reasons.of_time, reasons.of_memory))
    return Column(axis_name(found), symbol, sizes, time, memory, *paper, why)


def _caption(found: Sequence[reasons.Reason]) -> str:
    """What fits below a curve: its first two bends, a cause of each, or two of one."""
    if not found:
        return "by hand, no bend"
    most = 2 if len(found) == 1 else 1
    return "by hand it " + "; it ".join(reason.said(most) for reason in found[:2])


def _ringed(sizes: Sequence[int], values: Sequence[float]) -> tuple[int, ...]:
    """The places of a curve's sudden bends."""
    return tuple(list(sizes).index(int(b.at)) for b in bends(sizes, values) if b.sudden)


def figures(all_found: Sequence[Measured]) -> list[dict[str, Any]]:
    """Return all figures, as JSON has them."""
    return [
        {
            "model": found.title,
            "axis": found.name,
            "sizes": found.axis.sizes,
            "base": dict(found.axis.base),
            "operations": found.operations,
            "operations_slope": slope(found.axis.sizes, found.counted),
            "parameter_bytes": found.parameters,
            "floor_seconds": found.floor,
            "product_flops_per_second": found.products,
            "busy": found.busy,
            "forms": {name: _figures_of(found, name) for name in found.forms},
        }
        for found in all_found
    ]


def _figures_of(found: Measured, name: str) -> dict[str, Any]:
    form, sizes = found.forms[name], found.axis.sizes
    return {
        "temporary_bytes": form.temporary,
        "counted_bytes": form.held,
        "memory_slope": slope(sizes, form.temporary),
        "memory_local_slopes": local_slopes(sizes, form.temporary),
        "counted_slope": slope(sizes, form.counted),
        "seconds": form.rounds,
        "time_slope": form.seconds and slope(sizes, form.seconds),
        "time_local_slopes": form.seconds and local_slopes(sizes, form.seconds),
        "bends": {
            "time": [str(each) for each in reasons.of_time(found, name)],
            "memory": [str(each) for each in reasons.of_memory(found, name)],
        },
    }


def versions() -> str:
    """Return which JAX compiled it, where: exponents of memory are its, not the machine's."""
    return f"jax {jax.__version__} on {jax.devices()[0].device_kind}"
