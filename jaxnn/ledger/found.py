"""What a compiled program sends, read from its text.

XLA writes a program as computations, one of them the entry, others the bodies of loops with the
number of turns where it is known. Which devices a collective is among, `jaxnn.ledger.groups` reads.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jaxnn.ledger.groups import devices_of
from jaxnn.ledger.sent import BYTES, KINDS, Sent

_SHAPE = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([\w\-]+)\(")
_CALLED = re.compile(
    r"(?:body|condition|to_apply|calls|called_computation|true_computation|false_computation)"
    r"=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TURNS = re.compile(r'known_trip_count":\{"n":"(\d+)"')


def found(compiled: Any, mesh: Mapping[str, int]) -> list[Sent]:
    """Return a line for every array that a compiled program sends from device to device.

    Several arrays that XLA sends in one collective are a line each; a loop's are counted as often
    as it turns, and a branch's as if it were taken.

    Args:
        compiled: what `jax.jit(f).lower(...).compile()` returns.
        mesh: the size of each axis, in order, of the mesh that it was compiled for: its `shape`.

    Raises:
        ValueError: a loop that sends has no number of turns that is known.
    """
    text = compiled.as_text()
    bodies, entry = _computations(text)
    where = _Frames(text)
    return list(_walk(bodies, entry, _Loop(1, False), dict(mesh), where))


class _Loop(NamedTuple):
    """How often a computation runs, None where that is not known, and whether in a loop."""

    times: int | None
    inside: bool


def _walk(
    bodies: dict[str, list[str]], name: str, loop: _Loop, mesh: dict[str, int], where: "_Frames"
) -> Iterator[Sent]:
    for line in bodies[name]:
        match = _INSTRUCTION.match(line)
        if match is None or match[2].endswith(("-done", "-update")):  # counted where it starts
            continue
        result, op = match.groups()
        kind = op.removesuffix("-start")
        if kind in KINDS:
            if loop.times is None:
                raise ValueError(
                    f"a loop of the program has no number of turns that XLA knows, and {op} is in "
                    "it; how often it is sent must be known: loop with lax.scan over a fixed length"
                )
            yield from _arrays(kind, op, result, line, loop, mesh, where)
        inner = loop
        if op == "while":
            turns = _TURNS.search(line)
            known = None if turns is None or loop.times is None else loop.times * int(turns[1])
            inner = _Loop(known, True)
        called = _CALLED.findall(line)
        for group in _BRANCHES.findall(line):
            called += [branch.strip().lstrip("%") for branch in group.split(",")]
        for computation in called:
            yield from _walk(bodies, computation, inner, mesh, where)


def _arrays(
    kind: str,
    op: str,
    result: str,
    line: str,
    loop: _Loop,
    mesh: dict[str, int],
    where: "_Frames",
) -> Iterator[Sent]:
    """A line for each array that one instruction sends."""
    shapes = [
        (dtype, tuple(int(n) for n in dims.split(",") if n))
        for dtype, dims in _SHAPE.findall(result)
    ]
    if op.endswith("-start") and kind != "all-reduce":
        # What begins without waiting returns what it sends, what it receives and perhaps counters.
        whole = [shape for shape in shapes if shape != ("u32", ())]
        shapes = whole[len(whole) // 2 :]
    if not shapes:
        raise ValueError(
            f"{kind} sends {result!r:.60}, of a dtype that the ledger has no size of; it must be "
            f"one of {', '.join(BYTES)}: add it to jaxnn.ledger.sent.BYTES"
        )
    axes, devices = devices_of(line, mesh)
    if devices == 1:  # along axes of size 1 nothing is sent
        return
    if kind == "all-to-all" and len(shapes) > 1:  # the parts of one array
        ((dtype, part), *_) = shapes
        shapes = [(dtype, (len(shapes), *part))]
    for dtype, shape in shapes:
        # Of what is returned, a part: what takes part is as many times larger.
        whole_shape = (devices, *shape) if kind == "reduce-scatter" else shape
        assert loop.times is not None
        yield Sent(kind, axes, devices, dtype, whole_shape, loop.times, loop.inside, where.of(line))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Return the lines of each computation by its name, and the name of the entry."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head[2]
            bodies[name] = []
            entry = name if head[1] else entry
        elif name and line.startswith("  "):
            bodies[name].append(line)
    return bodies, entry


class _Frames:
    """Where in the source an instruction is from, from the tables at the head of the text."""

    def __init__(self, text: str) -> None:
        self.tables = {
            name: dict(re.findall(r"(\d+) (.*)\n", table))
            for name, table in re.findall(
                r"^(FileNames|FileLocations|StackFrames)\n((?:\d+ .*\n)+)", text, re.MULTILINE
            )
        }

    def of(self, line: str) -> str:
        """Return 'file:line' of the innermost call, or what the instruction says; '' for none."""
        frame = re.search(r"stack_frame_id=(\d+)", line)
        if frame and frame[1] in self.tables.get("StackFrames", {}):
            place = self._number("file_location_id", self.tables["StackFrames"][frame[1]])
            location = self.tables["FileLocations"][place]
            file = self.tables["FileNames"][self._number("file_name_id", location)].strip('"')
            return f"{'/'.join(file.split('/')[-2:])}:{self._number('line', location)}"
        if source := re.search(r'source_file="([^"]+)" source_line=(\d+)', line):
            return f"{'/'.join(source[1].split('/')[-2:])}:{source[2]}"
        name = re.search(r'op_name="([^"]*)"', line)
        return name[1] if name else ""

    @staticmethod
    def _number(key: str, text: str) -> str:
        match = re.search(rf"\b{key}=(\d+)", text)
        return match[1] if match else ""
