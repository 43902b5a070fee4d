"""What there is to verify in a module, a package or a file."""

import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax

from jaxnn.op import Op
from jaxnn.verify.modules import MODEL_FUNCTIONS, model
from jaxnn.verify.ops import op as verify_op
from jaxnn.verify.report import Report


class UsageError(Exception):
    """A mistake on the command line; the message names it, the rule and the fix."""


class Check(NamedTuple):
    """One verification: its name, the target it was found in, and a function that does it."""

    name: str
    target: str
    run: Callable[[], Report]


def find(target: str, seed: int = 0) -> list[Check]:
    """Everything to verify in a target.

    Raises:
        UsageError: the target cannot be imported, holds nothing to verify, or holds a part of a
            model's functions.
    """
    modules = list(_modules(target))
    checks: list[Check] = []
    seen: set[Op[..., Any]] = set()
    for module in modules:
        for op in _own_ops(module, seen):
            for static in op.settings:
                settings = "".join(f", {name}={value!r}" for name, value in static.items())
                run = partial(_on_example, op, seed, static)
                checks.append(Check(f"op {op.name}{settings}", target, run))
        missing = [name for name in MODEL_FUNCTIONS if not hasattr(module, name)]
        if not missing:
            for config in _configs(module):
                run = partial(model, module, config, seed)
                checks.append(Check(f"model {module.__name__}, {config}", target, run))
        elif hasattr(module, "manual_grad") or hasattr(module, "manual_value_and_grad"):
            raise UsageError(
                f"{target} has some of the model functions but lacks {', '.join(missing)}; "
                f"a model has all of {', '.join(MODEL_FUNCTIONS)}: define them, or rename what is "
                "not meant as a model and call verify.assert_gradient on it"
            )
    if not checks:
        raise UsageError(
            f"{target} holds nothing to verify; there must be an `Op(fwd, bwd, example=...)` at "
            "its top level (or in a dict, list or tuple there), or all of the model functions "
            f"{', '.join(MODEL_FUNCTIONS)}{''.join(map(_instead, modules))}"
        )
    return checks


def find_ops(target: str) -> list[Op[..., Any]]:
    """The ops that `find` would verify.

    Raises:
        UsageError: the target cannot be imported.
    """
    seen: set[Op[..., Any]] = set()
    return [op for module in _modules(target) for op in _own_ops(module, seen)]


def _own_ops(module: ModuleType, seen: set[Op[..., Any]]) -> Iterator[Op[..., Any]]:
    """The ops that are at home in a module and were not seen; now they are."""
    for op in _ops(module):
        if op not in seen and _home(op, module) is module:
            seen.add(op)
            yield op


def _ops(module: ModuleType) -> Iterator[Op[..., Any]]:
    """The ops at a module's top level, and in its dicts, lists and tuples."""
    for value in vars(module).values():
        inside = value.values() if isinstance(value, dict) else value
        inside = inside if isinstance(value, dict | list | tuple) else (value,)
        yield from (item for item in inside if isinstance(item, Op))


def _home(op: Op[..., Any], module: ModuleType) -> ModuleType:
    """Where an op found in a module is verified: where it was imported from, if it was."""
    origin = sys.modules.get(getattr(op.fwd, "__module__", ""), module)
    return origin if any(op is other for other in _ops(origin)) else module


def _on_example(op: Op[..., Any], seed: int, static: Mapping[str, Any]) -> Report:
    inputs = op.example(jax.random.key(seed)) if callable(op.example) else ()
    # Without inputs it draws its own, and says what is wrong with the example.
    return verify_op(op, *(inputs if type(inputs) is tuple else ()), **static)


def _configs(module: ModuleType) -> Sequence[Any]:
    """The configurations to verify a model under."""
    if hasattr(module, "EXAMPLE_CONFIGS"):
        return tuple(module.EXAMPLE_CONFIGS)
    try:
        return (module.Config(),)
    except Exception as error:
        raise UsageError(
            f"{module.__name__}.Config() raised {described(error)}; give every field a default, "
            "or list configurations in EXAMPLE_CONFIGS"
        ) from error


def _instead(module: ModuleType) -> str:
    """What a module without anything to verify does hold, and what to do with that."""
    found = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
    ]
    backwards = ", ".join(n for n in found if n.endswith(("bwd", "backward")))
    gradients = ", ".join(n for n in found if "grad" in n.lower())
    imported = ", ".join(f"{_home(op, module).__name__} for {op.name}" for op in _ops(module))
    lines = (
        ("found {}: bind each with its forward, name = Op(name_fwd, name_bwd, ...)", backwards),
        ("found {}: call verify.assert_gradient(loss, gradient, params, ...) in a test", gradients),
        ("found ops imported from elsewhere: name {}", imported),
    )
    return "".join(f"\n  {line.format(names)}" for line, names in lines if names)


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
        absent = isinstance(error, ModuleNotFoundError) and error.name
        if absent and not target.endswith(".py") and f"{target}.".startswith(f"{absent}."):
            raise UsageError(
                f"there is no module {absent}; name a dotted module that Python can import, or "
                "the path of a .py file"
            ) from error
        lines = traceback.format_list(own_frames(error)[-3:])
        lines += traceback.format_exception_only(error)
        own = "".join(lines).rstrip()
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


def described(error: BaseException, at: str = "") -> str:
    """An error's type and the first line of its message."""
    return f"{type(error).__name__}{at}: {error}".partition("\n")[0]


def own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of an error that are the user's: not of Python's importing, JAX's or ours."""
    foreign = [Path(str(module.__file__)).parent for module in (jax, importlib)]
    foreign.append(Path(__file__).parent)
    return [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")
        and not any(folder in Path(frame.filename).parents for folder in foreign)
    ]
