"""The figures as lines, as a table, as JSON and as bars to draw."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import jax
import numpy as np
from jax.extend import backend

from experiments.benchmark import machine
from experiments.benchmark.arms import AUTODIFF, BY_HAND, cores
from experiments.benchmark.measure import TRIES
from experiments.benchmark.results import AGAINST, Floors, Result, Spread, in_digits, megabytes
from jaxnn import files

PROCESSOR = Path("/proc/cpuinfo")
SETTINGS = (  # of the environment
    "XLA_FLAGS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_", "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION",
)  # fmt: skip
PACKAGES = ("jax", "jaxlib", "numpy", "flax", "equinox", "torch")
PLUGINS = (  # named where they are installed
    "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "libtpu",
)  # fmt: skip


def about() -> dict[str, str]:
    """The machine, and the versions of what runs on it."""
    versions = {}
    for package in PACKAGES + PLUGINS:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            if package in PACKAGES:
                versions[package] = "not installed"
    # One line of what the backend says of itself: "cpu", or "PJRT C API" and, say, "cuda 12090".
    platform_version = " ".join(backend.get_backend().platform_version.split())
    return {
        "cores": str(cores()),
        "machine": platform.machine(),
        "processor": _processor(),
        "device": jax.devices()[0].device_kind,
        "platform": platform_version,
        "Python": platform.python_version(),
        **versions,
        "float32 products": "in full, no TF32",
        **{name: os.environ[name] for name in SETTINGS if name in os.environ},
    }


def _processor() -> str:
    """What the processor calls itself, where the system says."""
    lines = PROCESSOR.read_text().splitlines() if PROCESSOR.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def check_file(option: str, path: Path) -> None:
    """See now, not after an hour, that a file can be written.

    Raises:
        ValueError: it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = files.target(path)
        was_there = target.exists()
        target.open("a").close()
        if not was_there:  # an empty one is no figures, if nothing follows
            target.unlink()
    except OSError as error:
        raise ValueError(
            f"{option} {path} cannot be written ({error.strerror}); name a file that can"
        ) from error


def means(results: Mapping[str, Result]) -> dict[str, float]:
    """The geometric means of the ratios over the models' training steps."""
    return {
        name: geometric_mean(ratios.values())
        for name, label in AGAINST.items()
        if (ratios := steps(results).get(label))
    }


def steps(results: Mapping[str, Result]) -> dict[str, dict[str, float]]:
    """The ratios of the models' training steps, by rival and case."""
    of = {case: result.against() for case, result in results.items() if result.case.step}
    given = {
        label: {case: ratios[name].middle for case, ratios in of.items() if name in ratios}
        for name, label in AGAINST.items()
    }
    return {label: ratios for label, ratios in given.items() if ratios}


def bars(results: Mapping[str, Result]) -> dict[str, dict[str, Spread]]:
    """The ratios to draw, by case and rival."""
    ours = {name: result for name, result in results.items() if result.case.base == BY_HAND}
    bars = {
        name: {AGAINST[rival]: ratio for rival, ratio in result.against().items()}
        for name, result in ours.items()
    }
    return {name: ratios for name, ratios in bars.items() if ratios}


def print_case(case: str, result: Result) -> None:
    """Every arm of a case, each on a line."""
    print(f"\n{case}: {result.case.what}")
    print(f"  {'':46}{'ms':>10}{'quartiles':>24}{'MB':>9}{'compile s':>11}{'ratio':>8}")
    for name, arm in result.arms.items():
        low, middle, high = (in_digits(1e3 * seconds, 4) for seconds in result.time(name))
        ratio = result.ratio(name)
        print(
            f"  {name:46}{middle:>10}{f'{low} to {high}':>24}"
            f"{megabytes(arm.temporary, 4):>9}"
            f"{_cell(arm.compile_seconds, '.2f'):>11}"
            f"{_cell(ratio and ratio.middle, '.2f'):>8}"
        )
    for name, reason in result.left_out.items():
        print(f"  {name}: {'DISAGREES' if name in result.disagree else 'left out'}, {reason}")
    if machine.is_much(result.busy):
        print(
            f"  warning: others had {result.busy:.0%} of the cores' time in the calmest of {TRIES} "
            "tries; ratios of so busy a machine say little"
        )
    if result.rate:
        dtype = np.dtype(result.case.dtype)
        print(f"  one large product of {dtype} in turn with them: {result.rate / 1e9:.0f} GFLOP/s")


def print_table(results: Mapping[str, Result], floors: Floors) -> None:
    """Every case on a line, in Markdown: by hand, and times as long as that."""
    heads = (
        "case", f"{BY_HAND}, ms", *AGAINST, "MB", f"{AUTODIFF}'s", "compile, s", f"{AUTODIFF}'s",
        "of product", "of copy",
    )  # fmt: skip
    print("\n| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for name, result in results.items():
        if result.case.base != BY_HAND or BY_HAND not in result.arms:
            continue
        ratios, arms = result.against(), [result.arms.get(arm) for arm in (BY_HAND, AUTODIFF)]
        cells = [name, in_digits(1e3 * result.time(BY_HAND).middle)]
        cells += [_cell(ratios[a].middle if a in ratios else None, ".2f") for a in AGAINST]
        bytes_ = [arm and arm.temporary for arm in arms]
        cells += map(megabytes, bytes_)
        cells += [_cell(arm and arm.compile_seconds, ".2f") for arm in arms]
        cells += [_cell(share, ".0%") for share in (result.share, result.copy_share(floors))]
        print("| " + " | ".join(cells) + " |")
    print(
        '\n"-": not measured; under "of product", the operations are not counted. Ratios are '
        "medians over the rounds, each of times in the same round\n"
    )


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def figures(
    results: Mapping[str, Result], about: dict[str, str], floors: Floors, means: dict[str, float]
) -> dict[str, Any]:
    """All figures, as JSON has them."""
    return {
        "about": about,
        "product_flops_per_second": floors.product,
        "copy_bytes_per_second": floors.copy,
        "geometric_means": means,
        "cases": {name: _figures_of(result, floors) for name, result in results.items()},
    }


def _figures_of(result: Result, floors: Floors) -> dict[str, Any]:
    arms = {
        name: {
            "seconds": result.seconds[name],
            "quartiles": result.time(name),
            "ratio": result.ratio(name),
            "temporary_bytes": arm.temporary,
            "compile_seconds": arm.compile_seconds,
        }
        for name, arm in result.arms.items()
    }
    return {
        "what": result.case.what,
        "model_step": result.case.step,
        "dtype": str(np.dtype(result.case.dtype)),
        "flops": result.case.flops,
        "product_flops_per_second": result.rate,
        "share_of_product_rate": result.share,
        "share_of_copy_rate": result.copy_share(floors),
        "busy": result.busy,
        "against": {
            name: {"arm": result.rival(name), "ratio": ratio}
            for name, ratio in result.against().items()
        },
        "arms": arms,
        "left_out": result.left_out,
        "disagree": result.disagree,
    }
