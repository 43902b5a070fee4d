"""Verify every op and every model in a module, a package or a file.

    python -m jaxnn.verify                          the whole library
    python -m jaxnn.verify jaxnn.ops.losses         one module
    python -m jaxnn.verify my_layers.py             a file of your own

In a target every `Op` is verified on its example under each of its settings, and a module with
the model functions under each of its EXAMPLE_CONFIGS (or, without those, its default Config()):

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
import importlib
import importlib.util
import pkgutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxnn import verify
from jaxnn.op import Op
from jaxnn.verify.checks import MODEL_FUNCTIONS
from jaxnn.verify.report import Report, details, to_html, to_json

LIBRARY = ("jaxnn.ops", "jaxnn.models")


class UsageError(Exception):
    """A mistake on the command line; the message names it, the rule and the fix."""


def main(argv: list[str] | None = None) -> int:
    """Verify what the command line names; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxnn.verify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help="a dotted module or package, or a .py file"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the reports as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the reports as a page")
    parser.add_argument("--seed", type=int, default=0, help="of every model's parameters and batch")
    options = parser.parse_args(argv)
    started = time.perf_counter()
    try:
        targets = options.targets or LIBRARY
        checks = [check for target in targets for check in find(target, options.seed)]
        for path in filter(None, (options.json, options.html)):
            _check_writable(path)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    reports = []
    for name, check in checks:
        report = _run(name, check)
        reports.append(report)
        notes = [line for leaf in report.leaves for line in details(leaf)]
        print("\n  ".join([report.summary(), *notes]) if report else report, flush=True)
    if options.json:
        options.json.write_text(to_json(reports))
    if options.html:
        options.html.write_text(to_html(reports))
    statuses = [report.status for report in reports]
    print(
        f"{statuses.count('pass')} passed, {statuses.count('fail')} failed, "
        f"{statuses.count('inconclusive')} inconclusive in {time.perf_counter() - started:.1f} s"
    )
    return 1 if "fail" in statuses else 3 if "inconclusive" in statuses else 0


def _run(name: str, check: Callable[[], Report]) -> Report:
    """A check's report; if what it verifies raises, that is a failure, and the rest goes on."""
    started = time.perf_counter()
    try:
        return check()
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not _internal(f.filename)]
        at = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
        problem = f"it raised {type(error).__name__}{at}: {str(error).splitlines()[0]}"
        return Report(name, None, (), (problem,), time.perf_counter() - started)


def _internal(filename: str) -> bool:
    """Whether a frame is this package's or JAX's rather than the user's."""
    package = Path(filename).parent
    return package == Path(__file__).parent or "jax" in package.parts or "<" in filename


def find(target: str, seed: int = 0) -> list[tuple[str, Callable[[], Report]]]:
    """Everything to verify in a target: its name, and a function that does it.

    Raises:
        UsageError: the target cannot be imported, holds nothing to verify, or holds a part of a
            model's functions.
    """
    modules = list(_modules(target))
    checks: list[tuple[str, Callable[[], Report]]] = []
    seen: set[int] = set()
    for module in modules:
        for value in vars(module).values():
            # An op imported from elsewhere is verified where it is defined, if that is a target.
            here = isinstance(value, Op) and value.fwd.__module__ == module.__name__
            if here and id(value) not in seen:
                seen.add(id(value))
                checks += [
                    (f"op {value.name}", partial(verify.op, value, **static))
                    for static in value.settings
                ]
        missing = [name for name in MODEL_FUNCTIONS if not hasattr(module, name)]
        if not missing:
            configs: Any = getattr(module, "EXAMPLE_CONFIGS", (None,))
            checks += [
                (f"model {module.__name__}", partial(verify.model, module, config, seed))
                for config in configs
            ]
        elif hasattr(module, "manual_grad") or hasattr(module, "manual_value_and_grad"):
            raise UsageError(
                f"{target} has some of the model functions but lacks {', '.join(missing)}; "
                f"a model has all of {', '.join(MODEL_FUNCTIONS)}: define them, or rename what is "
                "not meant as a model and call verify.assert_gradient on it"
            )
    if not checks:
        raise UsageError(
            f"{target} holds nothing to verify; there must be an `Op(fwd, bwd, example=...)` at "
            f"its top level, or all of the model functions {', '.join(MODEL_FUNCTIONS)}"
        )
    return checks


def _modules(target: str) -> Iterator[ModuleType]:
    """The module that a target names and, if it is a package, those below it."""
    try:
        if target.endswith(".py"):
            yield _import_file(Path(target))
            return
        if Path(target).is_dir() and not target.isidentifier():
            raise UsageError(f"{target} is a folder; name one .py file in it, or a dotted package")
        module = importlib.import_module(target)
        yield module
        for info in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{target}."):
            if not info.name.endswith(".__main__"):
                yield importlib.import_module(info.name)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and target.startswith(f"{error.name}"):
            raise UsageError(
                f"there is no module {error.name}; name a dotted module that Python can import, or "
                "the path of a .py file"
            ) from error
        own = "".join(traceback.format_exception(error, limit=-1)).rstrip()
        raise UsageError(f"importing {target} failed; mend this first\n{own}") from error


def _import_file(path: Path) -> ModuleType:
    """Import a file by its path, with its folder importable as when Python runs it."""
    if not path.is_file():
        raise UsageError(f"{path} is not a file; name a .py file that exists")
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file that can be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _check_writable(path: Path) -> None:
    """Refuse a report path now rather than after all the work."""
    try:
        path.open("a").close()
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}); name a file in a folder that exists"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
