"""The devices of a run, from its command line: `--mesh data=2,model=2`."""

import math
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jaxnn import processes
from jaxnn.rules import USUAL


def join(options: Mapping[str, Any]) -> None:
    """Start the processes that a script's options or the environment name; let the first print.

    Raises:
        TypeError, ValueError: as `processes.start`; or there are others, and the script has no
            --mesh, or none was given.
    """
    if jax.distributed.is_initialized():
        return
    if "mesh" not in options:
        processes.check_started("this script has no --mesh, so start it in one process")
        return
    processes.start(options["coordinator"], options["processes"], options["process"])
    if processes.several() and options["mesh"] is None:
        raise ValueError(
            f"--mesh is missing, and this is one of {jax.process_count()} processes, which would "
            "each train alone; they must share a mesh of all devices: --mesh "
            f"data={jax.device_count()}, say"
        )
    if not processes.is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives


def sizes(words: str) -> dict[str, int]:
    """Read the axes of a mesh and their sizes, as `data=2,model=2`.

    Raises:
        ValueError: it is none, names an axis twice, or one that is for nothing.
    """
    pairs = [re.fullmatch(r"\s*(\w+)\s*=\s*([0-9]+)\s*", pair) for pair in words.split(",")]
    read = {pair[1]: int(pair[2]) for pair in pairs if pair}
    if len(read) != len(pairs) or not all(0 < size < 2**31 for size in read.values()):
        raise ValueError(
            f"--mesh is {words!r:.80}; it must be names and sizes of at least 1, each name once: "
            "data=2,model=2, say"
        )
    if unknown := [name for name in read if name not in USUAL]:
        raise ValueError(
            f"--mesh has the axis {unknown[0]!r:.80}; it must be one of {', '.join(USUAL)}: "
            "name those"
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
