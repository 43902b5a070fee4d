"""How fast, how lean: by hand, by `jax.grad`, in Flax, Equinox and PyTorch, on the same work.

    python -m experiments.benchmark             every case; an hour
    python -m experiments.benchmark --quick     fewer and smaller; minutes
    python -m experiments.benchmark --case gpt-large lstm-b32 --rounds 21
    python -m experiments.benchmark --torch ../torch/bin/python --repeat 5 --out out/benchmark
    python -m experiments.benchmark.report out/benchmark        the spread over those five runs

The arms of a case (see `experiments.benchmark.arms`) first show that they agree: one that is off
by more than 1e-3 of the scale (`Case.agree`) is not timed, and the exit status is 1. Then they take
turns, in rounds, in an order shuffled anew each round, short ones after an untimed call; where a
case's rounds take less than ten seconds, it has more of them than asked for. A ratio is the median
over the rounds of an arm's seconds by those by hand in the same round: 2 is twice as long.
"strongest" is the fastest form for autodiff, "frameworks" the faster of Flax NNX and Equinox as
their documentation writes the model, PyTorch the fastest of its eager ones. Temporary memory is
what the compiled program says it needs beside its inputs and outputs.

PyTorch's arms take their turns in a process of their own, in the interpreter that `--torch` names:
its environment needs PyTorch and jaxnn, with whatever JAX that Python can have. Where other
programs, or other machines on the same cores, had more than 10% of their time, a case is timed
again, three times at most, and a warning says so.

Where operations are counted (`decoders.transformer_flops`), one large product of matrices in
its dtype takes its turns too: "of product" is the rate by hand as a share of its. "of copy" is what
has to be read and written once, inputs and results, per second, as a share of what one large copy
moves: where it is near 100%, no other arrangement can be faster; in the caches it can be more.

Where JAX finds a GPU, PyTorch computes there too, or is left out, and gpt2-124m is among the cases:
GPT-2 in bfloat16, for which a CPU takes minutes (`--case gpt2-124m`). JAX reserves three quarters
of a GPU's memory unless XLA_PYTHON_CLIENT_PREALLOCATE=false; PyTorch has what is left.

A compiled step asks for its temporary memory anew at every call, and Linux clears it page by page:
a fifth of a transformer's step. In large pages that are kept, both sides are faster, PyTorch least:
GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_THRESHOLD_=8000000000
MALLOC_TRIM_THRESHOLD_=8000000000.
"""

import gc
import json as json_format
import random
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import tyro

from experiments import cli, pictures
from experiments.benchmark import measure, report, show
from experiments.benchmark.arms import COMPILED, Case, in_a_line, on_accelerator
from experiments.benchmark.cases import ACCELERATOR, Sizes, cases
from experiments.benchmark.results import Floors, Result
from experiments.benchmark.worker import working
from jaxnn import data, files

QUICK_SMALL, QUICK_ROUNDS = 4, 3
QUICK = (
    "mlp-small", "cnn-small", "rnn-small", "gpt-small", "autoencoder-small", "lm-head-50k",
    "attention-t256", "lstm-b4", "conv-stride1", "max-pool", "layer-norm", "embedding-256",
    "moons", "ladder",
)  # fmt: skip
ONLY = tyro.conf.arg(
    metavar="NAME [NAME ...]",
    help=f"Only these cases, of: {', '.join(cases())}.",
    help_behavior_hint="(default: all)",
)


def main(
    case: Annotated[tuple[str, ...] | None, ONLY] = None,
    rounds: int = 11,
    repeat: int = 1,
    quick: bool = False,
    torch: Path | None = None,
    torch_compile: bool = True,
    mnist: Path | None = None,
    seed: int = 0,
    out: Path | None = None,
    plot: Path | None = None,
) -> int:
    """Time hand-written gradients beside jax.grad, Flax, Equinox and PyTorch.

    Args:
        case: Names of cases; None for all.
        rounds: Turns of every arm, at least.
        repeat: Whole runs, each a process of its own with the next seed; they need --out.
        quick: Smaller sizes, three rounds, no compiled PyTorch; unless named, a few cases.
        torch: Python of the environment that has PyTorch; by default this one, if it has.
        torch_compile: PyTorch compiled too, which may take it a minute per case.
        mnist: A folder with MNIST's four IDX files, for an epoch of its 60,000 images.
        seed: Of the order in which the arms take turns.
        out: Folder for all figures, a JSON file for each run, named by the seed.
        plot: File for a bar chart of the ratios.
    """
    cli.check_positive(rounds=rounds, repeat=repeat)
    file = out and out / f"{seed}.json"
    for option, path in (("--out", file), ("--plot", plot)):
        if path:
            show.check_file(option, path)
    if mnist:
        data.mnist(mnist)  # what is wrong with it is said now, not after an hour
    small = Sizes(QUICK_SMALL if quick else 1, mnist)
    chosen = _chosen(cases(small), case, quick)
    if repeat > 1:
        return _repeated(repeat, seed, out)
    order = random.Random(seed)
    product_size, copy_size = measure.floor_sizes(quick)
    rounds, enough = (QUICK_ROUNDS, 0.0) if quick else (rounds, measure.ENOUGH_SECONDS)

    with working(torch, small) as worker:
        about = show.about() | {"sizes": "quick" if quick else "full"}
        about |= {k: v for k, v in worker.about.items() if k in show.PACKAGES}
        print(", ".join(f"{name} {value}" for name, value in about.items()))
        results: dict[str, Result] = {}
        failed, interrupted = [], False
        floors = measure.floors(product_size, copy_size, rounds, order)
        print(
            f"one product of {product_size}x{product_size} matrices of float32: "
            f"{floors.product / 1e9:.0f} GFLOP/s; one copy of {4 * copy_size / 1e6:.0f} MB: "
            f"{floors.copy / 1e9:.1f} GB/s"
        )
        skip = () if torch_compile and not quick else (COMPILED,)
        try:
            for name, one in chosen.items():
                try:
                    results[name] = measure.measure(
                        one,
                        rounds,
                        order,
                        product_size,
                        skip=skip,
                        peers=worker.builds(name),
                        pids=worker.pids,
                        enough=enough,
                    )
                except RuntimeError as error:  # XLA's, or PyTorch's process has ended
                    failed.append(name)
                    print(f"\n{name}: FAILED, {in_a_line(error)}")
                    continue
                show.print_case(name, results[name])
                if file:  # what ends the run later loses no figures
                    _write(file, results, about, floors)
                gc.collect()
        except KeyboardInterrupt:
            interrupted = True
            print(f"interrupted: the figures are of the first {len(results)} cases")

    show.print_table(results, floors)
    means = show.means(results)
    for against, mean in means.items():
        print(f"models' steps, geometric mean against {against}: {mean:.2f}")
    if file and results:
        print(f"wrote {file}")
    if plot:
        pictures.benchmark(plot, show.bars(results))
        if steps := show.steps(results):
            slide = plot.with_stem(f"{plot.stem}-slide")
            pictures.speeds(slide, steps)
    wrong = [f"{name}: {arm}" for name, result in results.items() for arm in result.disagree]
    if wrong:
        print(f"DISAGREE, and were not timed: {'; '.join(wrong)}")
    if failed:
        print(f"FAILED: {', '.join(failed)}")
    empty = [name for name in case or () if name in results and not results[name].seconds]
    if empty:
        print(f"NOTHING was measured of {', '.join(empty)}; why is said above")
    return cli.INTERRUPTED if interrupted else 1 if wrong or failed or empty else 0


def _write(file: Path, results: dict[str, Result], about: dict[str, str], floors: Floors) -> None:
    """The figures so far, in the place of those of fewer cases."""
    figures = show.figures(results, about, floors, show.means(results))
    with files.replaced(file) as part:
        part.write_text(json_format.dumps(figures, indent=1) + "\n")


def _repeated(repeat: int, seed: int, out: Path | None) -> int:
    """So many whole runs with these options, and their spread."""
    if out is None:
        raise ValueError("--repeat is for figures that are kept; name a folder for them with --out")
    words = sys.argv[1:]
    statuses, seeds = [], range(seed, seed + repeat)
    for run in seeds:
        asked = [*words, "--repeat", "1", "--seed", str(run)]  # the last one said is meant
        status = _waited(subprocess.Popen([sys.executable, "-m", __package__, *asked]))
        statuses.append(128 - status if status < 0 else status)  # as a shell says it of a signal
        if statuses[-1] > 1:
            print(f"the run of seed {run} ended with {statuses[-1]}, and no other follows")
            break
    written = [file for run in seeds if (file := out / f"{run}.json").exists()]
    if done := report.read(written):
        print(report.report(done))
    return max(statuses)


def _waited(process: subprocess.Popen[bytes]) -> int:
    """A run's exit status; Ctrl-C reaches it too, and it writes what it has before it ends."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def _chosen(known: dict[str, Case], names: tuple[str, ...] | None, quick: bool) -> dict[str, Case]:
    """The cases asked for, or all; quickly, `QUICK`. `ACCELERATOR`'s on a CPU only if asked for.

    Raises:
        ValueError: there is no such case, or `names` is empty.
    """
    if names == ():
        raise ValueError(f"--case has no name; give one or more of {', '.join(known)}")
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"--case {' '.join(unknown)}: there are only {', '.join(known)}")
    if names is None:
        large = () if on_accelerator() else ACCELERATOR
        names = (*QUICK, *ACCELERATOR) if quick else tuple(known)
        names = tuple(name for name in names if name not in large)
    return {name: known[name] for name in names}


if __name__ == "__main__":
    cli.run(main)
