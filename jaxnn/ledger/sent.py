"""A line of the ledger: one array that devices send each other, how often, and in which loop.

Bytes are those of the array that takes part, on one device:

    all-reduce            B bytes on each, before and after
    all-gather            B of the result, of which each device had B / p
    reduce-scatter        B of the operand, of which each device keeps the sum of B / p
    collective-permute    B, to the next device
    all-to-all            B, of which B / p stay

With p devices in a ring each sends, in all-reduce 2 (p-1)/p B, in all-gather, reduce-scatter and
all-to-all (p-1)/p B, in collective-permute B (Patarasuk and Yuan, 2009, "Bandwidth optimal
all-reduce algorithms for clusters of workstations", section 4). A ring's all-to-all goes through
other devices; here each device is taken to have a way to all others.
"""

import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
# An integer's bits are counted as they are in memory: pred is a byte.
BYTES = {
    **{"f64": 8, "s64": 8, "u64": 8, "c64": 8, "c128": 16, "f32": 4, "s32": 4, "u32": 4},
    **{"bf16": 2, "f16": 2, "s16": 2, "u16": 2, "pred": 1, "s8": 1, "u8": 1},
}


class Sent(NamedTuple):
    """One array in one collective.

    Attributes:
        kind: of `KINDS`.
        axes: the axes of the mesh whose devices take part together, in the mesh's order; () where
            a program does not say.
        devices: how many take part together.
        dtype: as XLA writes it: "f32".
        shape: of the array that `jaxnn.ledger.sent` counts.
        times: how often, in one run of the program.
        in_loop: whether a loop does it.
        why: found, the line of source; predicted, the reason.
    """

    kind: str
    axes: tuple[str, ...]
    devices: int
    dtype: str
    shape: tuple[int, ...]
    times: int
    in_loop: bool
    why: str

    @property
    def bytes(self) -> int:
        """Bytes of the array, times how often."""
        return self.times * BYTES[self.dtype] * math.prod(self.shape)

    @property
    def wire(self) -> float:
        """Bytes that each device sends, see above."""
        if self.kind == "collective-permute":
            return float(self.bytes)
        once = (self.devices - 1) / self.devices * self.bytes
        return 2 * once if self.kind == "all-reduce" else once


class Group(NamedTuple):
    """What is added up and compared: arrays of one kind, sent over one set of axes, in a loop."""

    kind: str
    axes: tuple[str, ...]
    in_loop: bool

    @classmethod
    def of(cls, sent: Sent) -> "Group":
        """Return the group of a line."""
        return cls(sent.kind, sent.axes, sent.in_loop)


class Total(NamedTuple):
    """Of a group: how many arrays, each as often as it is sent, and their bytes."""

    times: int
    bytes: int


def totals(ledger: Iterable[Sent]) -> dict[Group, Total]:
    """Add up a ledger by kind, axes, and in or out of a loop."""
    times: Counter[Group] = Counter()
    size: Counter[Group] = Counter()
    for sent in ledger:
        group = Group.of(sent)
        times[group] += sent.times
        size[group] += sent.bytes
    order = sorted(times, key=lambda g: (not g.in_loop, KINDS.index(g.kind), g.axes))
    return {group: Total(times[group], size[group]) for group in order}


def differences(predicted: Iterable[Sent], found: Iterable[Sent]) -> list[str]:
    """Return a sentence for every group whose number of arrays or bytes differ; [] for none."""
    ours, theirs = totals(predicted), totals(found)
    said = []
    for group in ours | theirs:
        before, after = (t.get(group, Total(0, 0)) for t in (ours, theirs))
        if before != after:
            place = "in loops" if group.in_loop else "outside loops"
            over = " x ".join(group.axes) or "axes that the program does not name"
            said.append(
                f"{group.kind} over {over}, {place}: predicted {before.times} of "
                f"{before.bytes:,} bytes, found {after.times} of {after.bytes:,}"
            )
    return said
