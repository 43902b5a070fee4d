"""Why a curve bends, from what was counted and measured beside it; where nothing says, it says so.

A step's time is its operations by the rate at which they are done, so that the slope of one is the
slope of the operations less that of the rate. Causes, in the order in which they are asked about:

    operations, bytes      what is counted bends too: the share of a term in it grows
    thresholds             the fast forms begin to take queries in runs, or classes in chunks
    a call                 a step with hardly any arithmetic takes a share of this one's time
    products               a layer's product by itself gets nearer to what the machine can do
    caches                 what is held does not fit in a cache any more
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.benchmark.arms import BY_HAND
from experiments.benchmark.results import in_digits
from experiments.scaling.axes import BOTH, point
from experiments.scaling.curves import BEND, Bend, bends, local_slopes
from experiments.scaling.measured import Form, Measured
from experiments.scaling.paper import Terms

SHARE = 0.1  # of time or operations, less than which is no cause
FASTER = 1.25  # a rate that grows by less is none
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNKNOWN = "nothing that is computed here says why"


class Reason(NamedTuple):
    """A bend of a curve, and the causes that are computed: none, one or several."""

    bend: Bend
    causes: tuple[str, ...]

    def __str__(self) -> str:
        return self.said(len(self.causes))

    def said(self, most: int) -> str:
        """Return it in words, with no more than so many of the causes."""
        at, before, after, sudden = self.bend
        where = f"at {at:g}" if sudden else "slowly"
        why = "; ".join(self.causes[:most]) or UNKNOWN
        return f"bends {where} from {before:.2f} to {after:.2f}: {why}"


def of_time(found: Measured, form: str = BY_HAND) -> list[Reason]:
    """Return the bends of the seconds of a step, with causes; none where nothing was timed."""
    of, sizes = found.forms[form], found.axis.sizes
    if of.seconds is None:
        return []
    reasons = []
    for bend in bends(sizes, of.seconds):
        first, last = _around(sizes, bend)
        causes = _of_terms(found.operations, found.counted, sizes, bend, "operations")
        causes += _of_thresholds(found, form, first, last)
        steeper = bend.after > bend.before
        causes += _of_calls(found, of, first, last, steeper)
        causes += _of_caches(of, sizes, first, last, steeper)
        reasons.append(Reason(bend, tuple(causes)))
    return reasons


def of_memory(found: Measured, form: str = BY_HAND) -> list[Reason]:
    """Return the bends of the bytes that the compiled program needs, with causes."""
    of, sizes = found.forms[form], found.axis.sizes
    reasons = []
    for bend in bends(sizes, of.temporary):
        causes = _of_terms(of.held, of.counted, sizes, bend, "bytes")
        causes += _of_thresholds(found, form, *_around(sizes, bend))
        reasons.append(Reason(bend, tuple(causes)))
    return reasons


def _around(sizes: Sequence[int], bend: Bend) -> tuple[int, int]:
    """The places of the sizes between which a bend lies."""
    if not bend.sudden:
        return 0, len(sizes) - 1
    at = list(sizes).index(int(bend.at))
    return at - 1, at + 1


def _of_terms(
    terms: Sequence[Terms], whole: Sequence[float], sizes: Sequence[int], bend: Bend, what: str
) -> list[str]:
    """What is counted bends the same way, by half as much at least: whose share changes most."""
    first, last = _around(sizes, bend)
    local = local_slopes(sizes, whole)
    before, after = local[first], local[last - 1]
    turn = bend.after - bend.before
    if (after - before) * turn <= 0 or abs(after - before) < min(abs(turn) / 2, BEND):
        return []
    low, high = terms[first], terms[last]
    shares = {
        name: (low.get(name, 0) / whole[first], high.get(name, 0) / whole[last])
        for name in {**low, **high}
    }
    # What makes a curve steeper has a larger share after; what made it steep, a smaller one.
    name = max(shares, key=lambda name: (shares[name][1] - shares[name][0]) * turn)
    said = f"so do the {what} counted, {before:.2f} to {after:.2f}"
    less, more = (f"{share:.0%}" for share in shares[name])
    if less == more:  # one term is all that there is, and bends by itself
        return [said]
    return [f"{said}: {name} {less} of them at {sizes[first]}, {more} at {sizes[last]}"]


def _of_thresholds(found: Measured, form: str, first: int, last: int) -> list[str]:
    """A fast form does otherwise from some size on, where nothing told it what to do."""
    causes, before, after = [], found.notes[first], found.notes[last]
    if form not in BOTH:
        return []
    if before.get("runs") == 1 < after["runs"]:
        causes.append(f"queries in {after['runs']} runs at {found.axis.sizes[last]}, in one before")
    axis, sizes = found.axis, found.axis.sizes
    batch = [point(axis, found.name, sizes[place])["batch"] for place in (first, last)]
    if form == BY_HAND and before.get("examples") == batch[0] and after["examples"] < batch[1]:
        causes.append(
            f"copies of {after['examples']} at a time for a kernel's gradient, not of all examples "
            "any more"
        )
    all_before = found.name == "vocabulary" and before and before["classes"] == sizes[first]
    if all_before and after["classes"] < sizes[last]:
        causes.append(f"logits of {after['classes']} classes at a time, not of all any more")
    return causes


def _of_calls(found: Measured, of: Form, first: int, last: int, steeper: bool) -> list[str]:
    """What a call costs anyway, and what a layer's product reaches.

    Where the cost of a call goes down in the rest a curve gets steeper; so it does where the rate
    of products rises less from one size to the next than before, and less so where it rises more.
    """
    causes, sizes, seconds = [], found.axis.sizes, of.seconds or []
    if steeper and found.floor and found.floor / seconds[first] >= SHARE:
        shares = found.floor / seconds[first], found.floor / seconds[last]
        causes.append(
            f"a step of hardly any arithmetic, {in_digits(1e3 * found.floor, 2)} ms, is "
            f"{shares[0]:.0%} of the time at {sizes[first]}, {shares[1]:.0%} at {sizes[last]}"
        )
    if found.products:
        low, high = (found.products[i] / 1e9 for i in (first, last))
        rates = local_slopes(sizes, found.products)
        turns = (rates[first] > rates[last - 1]) == steeper
        if turns and (high > FASTER * low or low > FASTER * high):
            causes.append(
                f"a layer's product alone makes {in_digits(low, 2)} GFLOP/s at {sizes[first]}, "
                f"{in_digits(high, 2)} at {sizes[last]}"
            )
    return causes


def _of_caches(of: Form, sizes: Sequence[int], first: int, last: int, steeper: bool) -> list[str]:
    """What is held passes the size of a cache: there a curve is steep, and no more after it."""
    first, last = (last - 1, last) if steeper else (first, first + 1)
    small, large = (in_digits(of.temporary[i] / 2**20) for i in (first, last))
    return [
        f"{large} MiB at {sizes[last]} do not fit in the {name} of {in_digits(size / 2**20)} MiB, "
        f"which the {small} at {sizes[first]} do"
        for name, size in caches().items()
        if of.temporary[first] <= size < of.temporary[last]
    ]


def caches(folder: Path = CACHES) -> dict[str, int]:
    """Return the bytes of the second and the last level's caches, by name; none if unknown."""
    found = {}
    for index in sorted(folder.glob("index*")):
        try:
            level = int((index / "level").read_text())
            size = (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        if level > 1 and size.endswith("K"):
            found[f"L{level} cache"] = int(size[:-1]) * 1024
    return found
