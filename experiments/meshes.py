"""The devices of a run, from its command line: `--mesh data=2,model=2`."""

import math
import re
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh

from jaxnn import processes

# Which of a model's axes are laid along each of a mesh's, by the mesh axis's name.
ALONG: dict[str, tuple[str, ...]] = {
    "data": ("batch",),
    "fsdp": ("batch", "embed"),
    "model": ("heads", "hidden", "vocab", "experts"),
    "sequence": ("sequence",),
}


def sizes(words: str, axes: Sequence[str] = tuple(ALONG)) -> dict[str, int]:
    """Read the axes of a mesh and their sizes, as `data=2,model=2`.

    Raises:
        ValueError: it is none, names an axis twice, or one that is not among `axes`.
    """
    pairs = [re.fullmatch(r"\s*(\w+)\s*=\s*([0-9]+)\s*", pair) for pair in words.split(",")]
    read = {pair[1]: int(pair[2]) for pair in pairs if pair}
    if len(read) != len(pairs) or not all(0 < size < 2**31 for size in read.values()):
        raise ValueError(
            f"--mesh is {words!r:.80}; it must be names and sizes of at least 1, each name once: "
            "data=2,model=2, say"
        )
    if unknown := [name for name in read if name not in axes]:
        raise ValueError(
            f"--mesh has the axis {unknown[0]!r:.80}; it must be one of {', '.join(axes)}: name "
            "those"
        )
    return read


def make(axes: Mapping[str, int]) -> Mesh:
    """Return a mesh with these axes, of the first devices or, of several processes, of all.

    Raises:
        ValueError: there are fewer devices, or some process would be without one.
    """
    wanted, there = math.prod(axes.values()), jax.device_count()
    words = ",".join(f"{name}={size}" for name, size in axes.items())
    if wanted > there:
        more = "take a smaller mesh, or more devices or processes"
        if jax.default_backend() == "cpu":
            each = -(-wanted // jax.process_count())
            more = f"set JAX_NUM_CPU_DEVICES={each}, or take a smaller mesh"
        raise ValueError(f"--mesh {words} needs {wanted} devices, and there are {there}: {more}")
    if processes.several() and wanted < there:
        raise ValueError(
            f"--mesh {words} has {wanted} devices, and the {jax.process_count()} processes have "
            f"{there}; every one must have a part: take a mesh of {there}"
        )
    return jax.make_mesh(tuple(axes.values()), tuple(axes), devices=jax.devices()[:wanted])


def rules(axes: Mapping[str, int]) -> dict[str, str | tuple[str, ...]]:
    """Return which mesh axis, or axes, each of a model's logical axes is laid along."""
    found: dict[str, str | tuple[str, ...]] = {}
    for axis in axes:
        for logical in ALONG[axis]:
            before = found.get(logical, ())
            both = (*((before,) if isinstance(before, str) else before), axis)
            found[logical] = both if len(both) > 1 else axis
    return found
