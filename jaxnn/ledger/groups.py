"""Which devices take part in a collective together, in every way that XLA writes it.

    {{0,1},{2,3}}                           their numbers, group by group; {} for all in one
    [2,4]<=[4,2]T(1,0)                      0 .. 7 as (4, 2), transposed, as 2 groups of 4
    mesh['a'=2,'b'=4] {'b'}                 along axes of a mesh, whose names may be XLA's own
    mesh['a'=8] {'a':(2)4}                  along a part of one: of 8 as (2, 4, 1), the 4
    mesh[...], device_ids=([4,2]T(1,0)) {...}   of devices in an order like that above
    source_target_pairs={{0,1},{1,0}}       from whom to whom

Devices are numbered along the mesh, its last axis first.
"""

import itertools
import math
import re

Groups = list[tuple[int, ...]]

_NAMED = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}")


def devices_of(line: str, mesh: dict[str, int]) -> tuple[tuple[str, ...], int]:
    """Return the axes over which an instruction sends, and how many devices take part together.

    Args:
        line: the instruction.
        mesh: the size of each axis, in order.

    Returns:
        axes, those whose devices take part, () if not all along them do; a number of devices.

    Raises:
        ValueError: the devices are written in another way than above.
    """
    count = math.prod(mesh.values())
    if named := _NAMED.search(line):
        sizes, counted, order, axes = named.groups()
        numbers = _numbers(counted or str(count), order)
        groups = [tuple(numbers[i] for i in group) for group in _along(sizes, axes, count)]
    elif listed := _COUNTED.search(line):
        shape, counted, order = listed.groups()
        numbers, per = _numbers(counted, order), int(shape.split(",")[1])
        groups = [tuple(numbers[i : i + per]) for i in range(0, count, per)]
    elif listed := _LISTED.search(line):
        found = re.findall(r"\{([\d,]+)\}", listed[1])
        groups = [tuple(map(int, g.split(","))) for g in found] or [tuple(range(count))]
    else:
        raise ValueError(
            f"a collective names its devices in a way that is not known: {line.strip()!r:.300}; it "
            "must be one of those in jaxnn.ledger.groups: add it there"
        )
    over = _axes(groups, mesh)
    together = math.prod(mesh[axis] for axis in over)
    if "source_target_pairs" in line:  # two of those that pass on to each other
        return over, together
    return over if together == len(groups[0]) else (), len(groups[0])


def _along(sizes: str, axes: str, count: int) -> Groups:
    """The groups along axes of a mesh, or parts of them: numbers alike in all other digits."""
    of = [(name, int(size)) for name, size in re.findall(r"'([^']*)'=(\d+)", sizes)]
    digits = []  # of a number: what it is divided by, and how many values it has then
    for name, before, size in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", axes):
        place = [n for n, _ in of].index(name)
        inner, whole = math.prod(n for _, n in of[place + 1 :]), of[place][1]
        part = int(size or whole)
        digits.append((inner * (whole // (int(before or 1) * part)), part))
    groups: dict[int, list[int]] = {}
    for number in range(count):
        first = number - sum(number // by % size * by for by, size in digits)
        groups.setdefault(first, []).append(number)
    return [tuple(group) for group in groups.values()]


def _numbers(counted: str, order: str | None) -> list[int]:
    """The numbers 0, 1, ... as an array of these sizes has them, transposed, one after another."""
    sizes = [int(n) for n in counted.split(",")]
    axes = range(len(sizes)) if order is None else [int(n) for n in order.split(",")]
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    places = itertools.product(*(range(sizes[axis]) for axis in axes))
    return [sum(i * strides[axis] for i, axis in zip(place, axes, strict=True)) for place in places]


def _axes(groups: Groups, mesh: dict[str, int]) -> tuple[str, ...]:
    """Return the axes of the mesh along which the devices of a group differ."""
    sizes = list(mesh.values())
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]

    def place(number: int) -> tuple[int, ...]:
        return tuple(number // s % n for s, n in zip(strides, sizes, strict=True))

    moved = {
        axis
        for group in groups
        for a, b in itertools.pairwise(group)
        for axis, i, j in zip(mesh, place(a), place(b), strict=True)
        if i != j
    }
    return tuple(axis for axis in mesh if axis in moved)
