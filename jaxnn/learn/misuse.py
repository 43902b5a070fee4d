"""Find out whether a student's function asks something else for the derivative."""

import ast
import contextlib
import functools
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxnn.learn.guard import Fault

_NAMES = (
    "grad", "value_and_grad", "vjp", "jvp", "linearize", "jacobian", "jacrev", "jacfwd", "hessian",
    "linear_transpose", "custom_vjp", "custom_jvp", "custom_gradient",
)  # fmt: skip
FORBIDDEN = {id(getattr(jax, name)): f"jax.{name}" for name in _NAMES if hasattr(jax, name)}
_GIVERS = {n: getattr(jax, n) for n in _NAMES if hasattr(jax, n) and not n.startswith("custom")}
_ROOTS = ("torch", "tensorflow", "autograd", "flax", "equinox", "optax", "keras", "mlx", "tinygrad")
_OURS = ("jaxnn.ops", "jaxnn.models", "jaxnn.verify", "jaxnn.learn", "jaxnn.op", "jaxnn")
_IMPORTERS = ("__import__", "import_module", "exec", "eval", "compile")
_asked: list[str] = []


class NotByHand(Fault):
    """Something else was asked for the derivative."""

    kind = "autodiff"

    def __init__(self, name: str, asked: str) -> None:
        """Say which function asks what."""
        super().__init__(
            f"{name} asks {asked} for the derivative; that gives the right numbers, but the "
            "exercise is to write the derivative yourself: use arithmetic alone"
        )


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Give the names of what is called inside for a derivative, in whatever way it came there.

    What JAX gives derivatives with is exchanged inside, so that a student's modules may keep it.
    """
    _asked.clear()
    for name, function in _GIVERS.items():
        setattr(jax, name, _recorded(f"jax.{name}", function))
    try:
        yield _asked
    finally:
        for name, function in _GIVERS.items():
            setattr(jax, name, function)


def _recorded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is recorded whenever it is called, and what it gives is too."""

    @functools.wraps(function)
    def run(*args: Any, **settings: Any) -> Any:
        _asked.append(name)
        result = function(*args, **settings)
        return _recorded(name, result) if callable(result) else result

    return run


def found(function: Callable[..., Any]) -> str:
    """Return what a function, or one that it calls, asks for derivatives; "" for nothing."""
    return next(_found(function, set()), "")


def _found(function: Any, seen: set[int]) -> Iterator[str]:
    function = _plain(function)
    if id(function) in seen:
        return
    seen.add(id(function))
    if name := forbidden(function):
        yield name
        return
    if not isinstance(function, types.FunctionType):
        return
    scope = {**function.__globals__, **_closed_over(function)}
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for value in defaults:
        if callable(value):
            yield from _found(value, seen)
    tree = tree_of(function)
    if tree is None:
        codes = _codes(function.__code__)
        names = {name for code in codes for name in (*code.co_names, *code.co_freevars)}
        values = [scope[name] for name in names if name in scope]
    else:
        yield from _imported(tree)
        scope |= _bound_inside(tree)
        values = [v for node in ast.walk(tree) if (v := _value(node, scope)) is not None]
    for value in values:
        if name := forbidden(value):
            yield name
        elif isinstance(_plain(value), types.FunctionType):
            inner = _plain(value)
            if inner.__module__ == function.__module__:
                yield from _found(inner, seen)


def forbidden(value: Any) -> str:
    """Return the name of what gives derivatives; "" if it does not."""
    for inner in _inward(value):
        if id(inner) in FORBIDDEN:
            return FORBIDDEN[id(inner)]
        for code in _inside(inner):
            if code in _given():
                return _given()[code]
    module = (
        value.__name__
        if isinstance(value, types.ModuleType)
        else getattr(value, "__module__", None) or type(value).__module__
    )
    module = str(module)
    if module.split(".")[0] in _ROOTS:
        return module.split(".")[0]
    if isinstance(value, types.ModuleType) and module == "jaxnn":
        return ""
    ours = any(module == root or module.startswith(f"{root}.") for root in _OURS)
    harmless = module in ("jaxnn.numerics", "jaxnn.checks", Fault.__module__)  # it holds sys.stdout
    return f"{module} (the library's own)" if ours and not harmless else ""


def _plain(function: Any) -> Any:
    *_, last = _inward(function)
    return last


def _inward(function: Any) -> Iterator[Any]:
    """A function, what it wraps, what that wraps, and so on."""
    while True:
        yield function
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            return


@functools.cache
def _given() -> dict[types.CodeType, str]:
    """The code of the functions that jax.grad and others give, which have no name to be found."""
    harmless = {code for f in (jax.vmap(abs), jax.checkpoint(abs)) for code in _inside(f)}
    return {
        code: f"jax.{name}"
        for name in ("value_and_grad", "grad", "jacfwd", "jacrev")
        for code in _inside(_GIVERS[name](abs))
        if code not in harmless
    }


def _inside(function: Any) -> list[types.CodeType]:
    """The code of a function, and of the functions that it is made of."""
    if not isinstance(function, types.FunctionType):
        return []
    parts = (function, *_closed_over(function).values())
    return [f.__code__ for f in parts if isinstance(f, types.FunctionType)]


def _closed_over(function: types.FunctionType) -> dict[str, Any]:
    values = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            values[name] = cell.cell_contents
        except ValueError:
            continue
    return values


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def tree_of(function: Callable[..., Any]) -> ast.FunctionDef | None:
    """Return the syntax tree of a function, with its file's line numbers; None without source."""
    try:
        lines, start = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):
        return None
    ast.increment_lineno(tree, max(start, 1) - 1)
    return tree.body[0] if isinstance(tree.body[0], ast.FunctionDef) else None


def _imported(tree: ast.AST) -> Iterator[str]:
    """What is imported inside, by a statement or by a call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.split(".")[0]
                if root in _ROOTS or any(alias.name == r for r in _OURS[:-1]):
                    yield alias.name
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                if module.split(".")[0] in _ROOTS or module.startswith(_OURS[:-1]):
                    yield module
                elif module.split(".")[0] == "jax" and alias.name in _NAMES:
                    yield f"jax.{alias.name}"
                elif module == "jaxnn" and f"jaxnn.{alias.name}" in _OURS:
                    yield f"jaxnn.{alias.name}"
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            texts = [c.value for c in ast.walk(node) if isinstance(c, ast.Constant)]
            if name in _IMPORTERS or name == "getattr":
                for text in texts:
                    if isinstance(text, str) and any(w in text for w in (*_NAMES, *_ROOTS, "jax")):
                        yield text
        elif isinstance(node, ast.Attribute) and node.attr in _NAMES:
            owner = node.value
            while isinstance(owner, ast.Attribute):
                owner = owner.value
            if isinstance(owner, ast.Call):
                yield node.attr


def _bound_inside(tree: ast.AST) -> dict[str, Any]:
    """What names stand for that are imported inside a function."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.split(".")[0]
                found[alias.asname or name] = sys.modules.get(name)
        elif isinstance(node, ast.ImportFrom):
            module = sys.modules.get(node.module or "")
            for alias in node.names:
                found[alias.asname or alias.name] = getattr(module, alias.name, None)
    return {name: value for name, value in found.items() if value is not None}


def _value(node: ast.AST, scope: dict[str, Any]) -> Any:
    """What a name or a chain of attributes of modules stands for; None where that is unknown."""
    if isinstance(node, ast.Name):
        return scope.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _value(node.value, scope)
        if owner is not None and not isinstance(owner, jax.Array):
            return getattr(owner, node.attr, None)
    return None
