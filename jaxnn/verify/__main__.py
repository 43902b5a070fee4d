"""Verify every op, every rule and every model in a module, a package or a file.

    python -m jaxnn.verify                          the whole library
    python -m jaxnn.verify jaxnn.ops.losses         one module
    python -m jaxnn.verify my_layers.py             a file of your own
    python -m jaxnn.verify --only "op softmax"      those with this in their name

In a target every `Op` at the top level of a module (or in a dict, list or tuple there) is verified
on its example under each of its settings. So is every derivative rule, a `jax.custom_vjp` or
`jax.custom_jvp` function NAME, and any other function NAME (with rules inside), for which there is
a function beside it that draws its inputs (an Op of the same fwd or bwd will do for a rule):

    example_NAME(key)                              -> (input, ...)

And a module with the model functions under each of its EXAMPLE_CONFIGS (or, without those, its
default Config()):

    init_params(key, config)                       -> params
    forward(params, inputs, config)                -> outputs
    loss(params, batch, config)                    -> a scalar
    manual_value_and_grad(params, batch, config)   -> (loss, gradient)
    manual_grad(params, batch, config)             -> gradient, shaped like params
    example_batch(key, config)                     -> batch

Any other function and its gradient: call jaxnn.verify.gradient, or assert_gradient in a test.

What raises or exits fails, and the rest goes on. Ctrl-C ends the run: what was found so far is
reported, with exit status 130; while the cause of a failure is looked for, it ends that search.

Exit status: 0 all pass, 1 something fails, 2 usage, 3 nothing fails but something is inconclusive.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jaxnn.verify.find import Check, find
from jaxnn.verify.findings import described
from jaxnn.verify.lines import details, fold
from jaxnn.verify.report import Report, to_html, to_json
from jaxnn.verify.run import no_exit, progress, run
from jaxnn.verify.targets import UsageError

LIBRARY = ("jaxnn.ops", "jaxnn.models")
# The exit status of a run that Ctrl-C ended, as a shell has it.
INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Verify what the command line names; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxnn.verify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("targets", nargs="*", metavar="TARGET", help="a dotted module or package, or a file")
    add("--only", action="append", metavar="NAME", help="the checks so named, or with this in it")
    add("--json", type=Path, metavar="FILE", help="write the reports as JSON")
    add("--html", type=Path, metavar="FILE", help="write the reports as a page")
    add("--seed", type=_seed, default=0, help="of the examples, the parameters and the batches")
    options = parser.parse_args(argv)
    with no_exit():
        return _verify(options)


def _verify(options: argparse.Namespace) -> int:
    """Verify the targets, print and write what was found; return the exit status."""
    started = time.perf_counter()
    targets, only = options.targets or LIBRARY, options.only or []
    reports: list[Report] = []
    unverified: list[str] = []
    stopped = at = ""
    try:
        found = [find(target, options.seed) for target in targets]
        checks = _chosen([check for each in found for check in each.checks], only)
        _check_outputs([path for path in (options.json, options.html) if path], targets)
        unverified = [line for each in found for line in each.without_inputs]
        for number, check in enumerate(checks, 1):
            at = f"{number}/{len(checks)} {check.name}"
            with progress(at[:48]):
                reports.append(run(check, options.seed))
            print(_said(reports[-1]), flush=True)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        stopped = f"; interrupted at {at}" if at else "; interrupted"
    for line in unverified:
        if not only or any(wanted in line for wanted in only):
            print(line)
    statuses = [report.status for report in reports]
    print(
        f"{statuses.count('pass')} passed, {statuses.count('fail')} failed, "
        f"{statuses.count('inconclusive')} inconclusive in {time.perf_counter() - started:.1f} s"
        f"{stopped}",
        flush=True,
    )
    status = 1 if "fail" in statuses else 3 if "inconclusive" in statuses else 0
    status = INTERRUPTED if stopped else status
    for path, render in ((options.json, to_json), (options.html, to_html)):
        try:
            if path:
                path.write_text(render(reports), encoding="utf-8")
        except Exception as error:  # what was found stands above; the other file may yet succeed
            print(f"error: {path} was not written: {described(error)}", file=sys.stderr)
            status = status or 2
    return status


def _said(report: Report) -> str:
    """What the terminal shows of a report: the less, the better it is."""
    if not report:
        return str(report)
    notes = [line for leaf in report.leaves for line in details(leaf)] + report.remarks()
    return "\n".join([report.summary(), *fold(notes)])


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


if __name__ == "__main__":
    sys.exit(main())
