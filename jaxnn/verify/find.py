"""Find what there is to verify in a module, a package or a file."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax

from jaxnn.op import NAMELESS, Op
from jaxnn.verify.findings import described
from jaxnn.verify.gradients import MODEL_FUNCTIONS, model
from jaxnn.verify.ops import draw_inputs, listed_settings, on_example, settings_in_words
from jaxnn.verify.report import Report
from jaxnn.verify.rules import rule as verify_rule
from jaxnn.verify.targets import Target, UsageError, module_title


class Check(NamedTuple):
    """One verification: its name, the target it was found in, and a function that does it."""

    name: str
    target: str
    run: Callable[[], Report]


class ToVerify(NamedTuple):
    """What there is to verify, and the rules that cannot be: a line on each, with the fix."""

    checks: list[Check]
    without_inputs: list[str]


def find(name: str, seed: int = 0) -> ToVerify:
    """Find everything to verify in a target.

    Raises:
        UsageError: the target cannot be imported, holds nothing to verify, or holds a part of a
            model's functions.
    """
    target = Target(name)
    modules = target.modules()
    found, seen = ToVerify([], []), set[int]()
    with target.importable():
        for module in modules:
            _add(found, target, module, seed, seen)
        if not found.checks:
            raise UsageError(
                f"{name} holds nothing to verify; there must be, at its top level, an `Op(fwd, "
                "bwd, example=...)` (or in a dict, list or tuple there), a `jax.custom_vjp` or "
                "`jax.custom_jvp` rule NAME (or any function with rules inside) with a function "
                "example_NAME(key) that returns its inputs, or all of the model functions "
                f"{', '.join(MODEL_FUNCTIONS)}"
                + "".join(f"\n  {line}" for line in found.without_inputs)
                + "".join(map(_instead, modules))
            )
    return found


def find_ops(name: str) -> list[Op[..., Any]]:
    """Return the ops that `find` would verify.

    Raises:
        UsageError: the target cannot be imported.
    """
    target, seen = Target(name), set[int]()
    modules = target.modules()
    with target.importable():
        return [op for module in modules for _, op in _own(module, _is_op, seen)]


def _add(found: ToVerify, target: Target, module: ModuleType, seed: int, seen: set[int]) -> None:
    """Add what is at home in a module to what was found.

    Raises:
        UsageError: it has a part of a model's functions.
    """

    def add(name: str, run: Callable[[], Report]) -> None:
        found.checks.append(Check(name, target.name, partial(_beside, target, run)))

    for label, op in _own(module, _is_op, seen):
        for static in _settings(op):
            name = ", ".join(
                filter(None, (f"op {_name(label, op)}", settings_in_words(static or {})))
            )
            add(name, partial(on_example, op, seed, static))
    for label, rule, inputs in _rules(module, seen):
        if inputs is None:
            found.without_inputs.append(_unverified(label))
        else:
            add(f"rule {label}", partial(_on_rule, rule, *inputs, seed))
    missing = [name for name in MODEL_FUNCTIONS if not hasattr(module, name)]
    if not missing:
        for config in _configs(module):
            add(f"model {module_title(module)}, {config}", partial(model, module, config, seed))
    elif hasattr(module, "manual_grad") or hasattr(module, "manual_value_and_grad"):
        raise UsageError(
            f"{target.name} has some of the model functions but lacks {', '.join(missing)}; "
            f"a model has all of {', '.join(MODEL_FUNCTIONS)}: define them, or rename what is "
            "not meant as a model and call verify.assert_gradient on it"
        )


Predicate = Callable[[Any], bool]
Inputs = tuple[Callable[[jax.Array], Any] | None, str]


def _is_op(value: Any) -> bool:
    return isinstance(value, Op)


def _is_rule(value: Any) -> bool:
    """Whether a function carries a rule where that can be seen, JAX's or Equinox's."""
    return type(value).__name__.removeprefix("filter_") in ("custom_vjp", "custom_jvp")


def _own(module: ModuleType, wanted: Predicate, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """What is wanted, at home in a module and not seen, with its name; now it is seen."""
    for label, value in _values(module):
        if wanted(value) and id(value) not in seen and _home(value, module) is module:
            seen.add(id(value))
            yield label, value


def _values(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """What is at a module's top level, in its dicts, lists, tuples and classes, by name."""
    for name, value in vars(module).items():
        yield name, value
        if isinstance(value, dict | list | tuple):
            inside = value.items() if isinstance(value, dict) else enumerate(value)
            yield from ((f"{name}[{key!r}]", item) for key, item in inside)
        elif isinstance(value, type) and value.__module__ == module.__name__:
            yield from (
                (f"{name}.{key}", item.__func__ if isinstance(item, staticmethod) else item)
                for key, item in vars(value).items()
            )


def _home(value: Any, module: ModuleType) -> ModuleType:
    """Where what was found in a module is verified: where it was imported from, if it was."""
    function = value.fwd if isinstance(value, Op) else value
    origin = sys.modules.get(getattr(function, "__module__", None) or "", module)
    return origin if any(value is other for _, other in _values(origin)) else module


def _name(label: str, op: Op[..., Any]) -> str:
    """The name of an op found under a label: the variable it is bound to, if that says anything."""
    if label.isidentifier() and label not in NAMELESS:
        return label
    return label if op.name in NAMELESS else op.name


def _rules(module: ModuleType, seen: set[int]) -> Iterator[tuple[str, Any, Inputs | None]]:
    """The rules at home in a module, and what has an example beside it; where inputs come from."""
    beside = vars(module)
    ops = [op for _, op in _values(module) if isinstance(op, Op)]
    for label, rule in _own(module, _is_rule, seen):
        halves = [half for half in (getattr(rule, "fwd", None), getattr(rule, "bwd", None)) if half]
        of_op = [op for op in ops if any(half in op.plain for half in halves)]
        if (example := _example_of(label)) in beside:
            yield label, rule, (beside[example], example)
        elif of_op:
            yield label, rule, (of_op[0].example, f"example of op {of_op[0].name}")
        else:
            yield label, rule, None
    for name, example in list(beside.items()):
        function = beside.get(label := name.removeprefix("example_"))
        if (
            label != name not in MODEL_FUNCTIONS
            and callable(example)
            and callable(function)
            and not isinstance(function, type | Op)
            and id(function) not in seen
            and module in (_home(function, module), _home(example, module))
        ):
            seen.add(id(function))
            yield label, function, (example, name)


def _example_of(label: str) -> str:
    """The name of the function that draws inputs: of the rule f in a class A, example_A_f."""
    return f"example_{label.replace('.', '_')}"


def _unverified(label: str) -> str:
    """What to say of a rule without inputs."""
    fix = f"define {_example_of(label)}(key) that returns its inputs"
    if not label.replace(".", "").isidentifier():
        fix = "bind it to a name, NAME, and define example_NAME(key) that returns its inputs"
    return f"not verified: rule {label}: {fix}"


def _beside(target: Target, run: Callable[[], Report]) -> Report:
    with target.importable():
        return run()


def _on_rule(rule: Any, example: Any, what: str, seed: int) -> Report:
    inputs = draw_inputs(what, example, seed)
    return verify_rule(rule, *inputs, seed=seed)


def _settings(op: Op[..., Any]) -> Sequence[Mapping[str, Any] | None]:
    """The settings to verify an op under; None for what is none, which the check then says."""
    try:
        return listed_settings(op)
    except TypeError:
        return (None,)


def _configs(module: ModuleType) -> Sequence[Any]:
    """The configurations to verify a model under."""
    if hasattr(module, "EXAMPLE_CONFIGS"):
        return tuple(module.EXAMPLE_CONFIGS)
    try:
        return (module.Config(),)
    except Exception as error:
        raise UsageError(
            f"{module_title(module)}.Config() raised {described(error)}; give every field a "
            "default, or list configurations in EXAMPLE_CONFIGS"
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
    away = ", ".join(
        f"{home.__name__} for {label}"
        for label, value in _values(module)
        if (_is_op(value) or _is_rule(value)) and (home := _home(value, module)) is not module
    )
    lines = (
        ("found {}: bind each with its forward, name = Op(name_fwd, name_bwd, ...)", backwards),
        ("found {}: call verify.assert_gradient(loss, gradient, params, ...) in a test", gradients),
        ("found ops or rules imported from elsewhere: name {}", away),
    )
    return "".join(f"\n  {line.format(names)}" for line, names in lines if names)
