"""Whether others used the cores while something was timed: other programs, or other machines.

Linux counts how long each core was busy, and how long the machine below it gave it to others
("steal"), in ticks of a hundredth of a second; and what each process took of that.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
IDLE = (3, 4)  # of a core's numbers: idle, and waiting for a disk
GUESTS = 8  # from here on they count again what is among the others
MUCH = 0.1  # of the cores' time: what was timed while others had more of it says little


class Use(NamedTuple):
    """Ticks so far.

    Attributes:
        passed: of all cores that this process may use.
        busy: of these, those in which anybody used them.
        own: those that the processes asked about used.
    """

    passed: int
    busy: int
    own: int


def use(pids: Iterable[int] = ()) -> Use | None:
    """How the cores were used until now, this process and `pids` being our own; None if unknown."""
    names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    try:
        lines = (PROC / "stat").read_text().splitlines()
        own = sum(_ticks(pid) for pid in (os.getpid(), *pids))
    except OSError:
        return None
    cores = [
        [int(n) for n in line.split()[1:]][:GUESTS] for line in lines if line.split()[0] in names
    ]
    passed = sum(map(sum, cores))
    return Use(passed, passed - sum(core[i] for core in cores for i in IDLE), own)


def _ticks(pid: int) -> int:
    """What a process used, in its own code and the kernel's."""
    # Its name, in brackets, may hold spaces.
    numbers = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return int(numbers[11]) + int(numbers[12])


def others(before: Use | None, after: Use | None) -> float | None:
    """The share of the cores' time between two moments that others had; None if unknown."""
    if before is None or after is None or after.passed == before.passed:
        return None
    theirs = (after.busy - before.busy) - (after.own - before.own)
    return max(theirs, 0) / (after.passed - before.passed)


def is_much(share: float | None) -> bool:
    """Whether what others had is so much that times say little; no where it is unknown."""
    return share is not None and share > MUCH
