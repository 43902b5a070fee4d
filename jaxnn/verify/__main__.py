"""Verify every op and every model in a module, a package or a file.

    python -m jaxnn.verify                          the whole library
    python -m jaxnn.verify jaxnn.ops.losses         one module
    python -m jaxnn.verify my_layers.py             a file of your own
    python -m jaxnn.verify --only "op softmax"      those with this in their name

In a target every `Op` at the top level of a module (or in a dict, list or tuple there) is verified
on its example under each of its settings, and a module with the model functions under each of its
EXAMPLE_CONFIGS (or, without those, its default Config()):

    init_params(key, config)                       -> params
    forward(params, inputs, config)                -> outputs
    loss(params, batch, config)                    -> a scalar
    manual_value_and_grad(params, batch, config)   -> (loss, gradient)
    manual_grad(params, batch, config)             -> gradient, shaped like params
    example_batch(key, config)                     -> batch

Any other function and its gradient: call jaxnn.verify.gradient, or assert_gradient in a test.

Exit status: 0 all pass, 1 something fails, 2 usage, 3 nothing fails but something is inconclusive.
"""

import argparse
import dataclasses
import logging
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jaxnn.verify.find import Check, UsageError, described, find, own_frames
from jaxnn.verify.page import to_html
from jaxnn.verify.report import Report, details, fold, remarks, to_json

LIBRARY = ("jaxnn.ops", "jaxnn.models")
# Seconds of one check before its progress is shown; then between lines, on a terminal and off it.
PATIENCE, REWRITE, REPEAT = 2.0, 0.5, 30.0


def main(argv: list[str] | None = None) -> int:
    """Verify what the command line names; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxnn.verify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("targets", nargs="*", metavar="TARGET", help="a dotted module or package, or a .py file")
    add("--only", action="append", metavar="NAME", help="the checks so named, or with this in it")
    add("--json", type=Path, metavar="FILE", help="write the reports as JSON")
    add("--html", type=Path, metavar="FILE", help="write the reports as a page")
    add("--seed", type=_seed, default=0, help="of the examples, the parameters and the batches")
    options = parser.parse_args(argv)
    started = time.perf_counter()
    targets = options.targets or LIBRARY
    try:
        checks = _chosen([c for t in targets for c in find(t, options.seed)], options.only or [])
        _check_outputs([path for path in (options.json, options.html) if path], targets)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    reports = []
    for number, check in enumerate(checks, 1):
        with _progress(f"{number}/{len(checks)} {check.name[:40]}"):
            report = _run(check, options.seed)
        reports.append(report)
        notes = [line for leaf in report.leaves for line in details(leaf)] + remarks(report)
        print("\n".join([report.summary(), *fold(notes)]) if report else report, flush=True)
    statuses = [report.status for report in reports]
    print(
        f"{statuses.count('pass')} passed, {statuses.count('fail')} failed, "
        f"{statuses.count('inconclusive')} inconclusive in {time.perf_counter() - started:.1f} s",
        flush=True,
    )
    status = 1 if "fail" in statuses else 3 if "inconclusive" in statuses else 0
    for path, render in ((options.json, to_json), (options.html, to_html)):
        try:
            if path:
                path.write_text(render(reports), encoding="utf-8")
        except Exception as error:  # what was found stands above; the other file may yet succeed
            print(f"error: {path} was not written: {described(error)}", file=sys.stderr)
            status = status or 2
    return status


def _seed(text: str) -> int:
    """A seed from the command line."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer from 0 to {2**32 - 1}")
    return int(text)


def _check_outputs(paths: Sequence[Path], targets: Sequence[str]) -> None:
    """Refuse a report path now rather than after all the work."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError(f"--json and --html are both {paths[0]}; name two files")
    for path in paths:
        if path.resolve() in {Path(target).resolve() for target in targets}:
            raise UsageError(f"{path} is a target and would be overwritten; name another file")
        try:
            path.open("a").close()
        except OSError as error:
            raise UsageError(
                f"{path} cannot be written ({error.strerror}); name a file in a folder that exists"
            ) from error


def _chosen(checks: list[Check], only: Sequence[str]) -> list[Check]:
    """The checks that `--only` names: each exactly, or else those whose name contains it."""
    chosen = []
    for wanted in only:
        found = [c for c in checks if c.name == wanted] or [c for c in checks if wanted in c.name]
        if not found:
            names = "".join(f"\n  {check.name}" for check in checks)
            raise UsageError(f"--only {wanted!r} matches none of these; name one of them:{names}")
        chosen += found
    return [check for check in checks if check in chosen or not only]


def _run(check: Check, seed: int) -> Report:
    """A check's report; if what it verifies raises, that is a failure, and the rest goes on."""
    started = time.perf_counter()
    try:
        report = check.run()
    except Exception as error:
        frames = own_frames(error)
        at = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
        problem = f"it raised {described(error, at)}"
        report = Report(check.name, None, (), (problem,), time.perf_counter() - started)
    words = [
        "python",
        "-m",
        "jaxnn.verify",
        check.target,
        "--seed",
        str(seed),
        "--only",
        check.name,
    ]
    return dataclasses.replace(report, name=check.name, seed=seed, command=shlex.join(words))


class _Stage(logging.Handler):
    """Keeps the last message that the verifier logged."""

    text = "starting"

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


@contextmanager
def _progress(name: str) -> Iterator[None]:
    """While a long check runs, say on stderr how far it is: on a terminal in one changing line."""
    stage, done, began = _Stage(), threading.Event(), time.perf_counter()
    terminal = sys.stderr.isatty()
    logger = logging.getLogger("jaxnn.verify")
    before = logger.level, logger.propagate

    def show() -> None:
        pause = PATIENCE if terminal else REPEAT
        while not done.wait(pause):
            line = f"{name}: {stage.text}, {time.perf_counter() - began:.0f} s"
            if terminal:
                pause = REWRITE
                line = f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}"
            print(line, end="" if terminal else "\n", file=sys.stderr, flush=True)
        if terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    logger.addHandler(stage)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False  # a handler that a user's file gave the root would print every stage
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        logger.removeHandler(stage)
        logger.level, logger.propagate = before


if __name__ == "__main__":
    sys.exit(main())
