"""The options of a run, kept beside what it saves: the defaults of what goes on from it."""

import functools
import hashlib
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import jax
import numpy as np

from jaxnn import train

Main = Callable[..., int]
# Where to read and write, and whether to look first, is no setting of a run.
_NOT_KEPT = ("resume", "predict", "sample", "out", "verify")


def recalls(**of_use: tuple[str, ...]) -> Callable[[Main], Main]:
    """Let a script's `main` take its options from an earlier run.

    Args:
        of_use: by the option that names the run ("resume", its folder; "predict" or "sample", a
            parameter file), those of the script's options that need not be as they were in it.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def recalling(*args: Any, **options: Any) -> int:
            given = inspect.signature(main).bind(*args, **options).arguments
            stored = earlier(recalling, given)
            free = _free(recalling, given)
            different = [
                f"{_option(name)} is {words(value)}, in the run {words(stored[name])}"
                for name, value in given.items()
                if name in stored and name not in free and value != stored[name]
            ]
            if different:
                raise ValueError(f"{'; '.join(different)}: leave out what the run has settled")
            return main(**{**stored, **given})

        recalling.__dict__["of_use"] = of_use
        return recalling

    return decorate


def earlier(main: Main, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the run that one of the options given names; {} where none does.

    Raises:
        ValueError: two of them do, there is no such run, or it is none of this script.
    """
    named = _named(main, given)
    if not named:
        return {}
    (name,) = named
    path = given[name]
    options = _kept(main, name, path)
    stored = {}
    for option, parameter in inspect.signature(main, eval_str=True).parameters.items():
        if option in options:
            try:
                stored[option] = _from_json(options[option], parameter.annotation)
            except TypeError:
                raise ValueError(
                    f"{path} was saved with {_option(option)} {options[option]!r:.50}, which is "
                    "none of this script's: it is damaged, or of another version"
                ) from None
    if name == "resume":  # the gradient was verified before the run's first step
        stored |= {"out": path, "verify": False}
    return stored


def notes(main: Main, options: Mapping[str, Any], data: Any, **more: Any) -> dict[str, Any]:
    """Return what a run writes beside its parameters: script, options, what tells its data, more.

    Args:
        main: the script's.
        options: by name, those that follow from others settled; other names are passed over.
        data: a pytree of arrays.
        more: what can be written as JSON.
    """
    names = [name for name in inspect.signature(main).parameters if name not in _NOT_KEPT]
    kept = {name: _as_json(options[name]) for name in names}
    if options["resume"]:  # a moved file is no other setting
        before = _kept(main, "resume", options["resume"])
        free = _free(main, options)
        kept |= {name: before[name] for name in kept if name in free and name in before}
    return {"script": _script(main), "options": kept, "data": digest(data), **more}


def digest(data: Any) -> str:
    """Return 16 hexadecimal digits that tell arrays by dtypes, shapes and values."""
    found = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(data)):
        found.update(f"{leaf.dtype}{leaf.shape}".encode())
        found.update(np.ascontiguousarray(leaf).data)
    return found.hexdigest()[:16]


def _named(main: Main, given: Mapping[str, Any]) -> list[str]:
    """Return the option given that names a run, alone in a list, or an empty one."""
    named = [name for name in getattr(main, "of_use", {}) if given.get(name) is not None]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(map(_option, named))} exclude each other; give one")
    return named


def _free(main: Main, given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options that need not be as they were in the run that is named."""
    of_use: dict[str, tuple[str, ...]] = main.__dict__["of_use"]
    return ("verify", *(option for name in _named(main, given) for option in of_use[name]))


def _kept(main: Main, name: str, path: Path) -> dict[str, Any]:
    """Return the options that a run kept, as JSON has them."""
    file = path / "params.safetensors" if name == "resume" else path
    if name == "resume" and not os.path.isfile(file):  # which takes any name, also of 5,000 letters
        raise ValueError(f"--resume {path!s:.80} holds no {file.name}; name the folder of a run")
    kept = train.read_about(file).notes
    options, script, own = kept.get("options"), kept.get("script"), _script(main)
    if not isinstance(options, dict) or not isinstance(script, str):
        raise ValueError(f"{path} names no script and options; name what {own} saved")
    if script != own:
        raise ValueError(f"{path} was saved by {script:.50}; use that, or name what {own} saved")
    return options


def _script(main: Main) -> str:
    """Return the name of a script's module, also where it runs as __main__."""
    return f"experiments.{Path(inspect.unwrap(main).__code__.co_filename).stem}"


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def words(value: Any) -> str:
    """Return a value as one types it."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "no number"
    return str(value)


def _as_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.absolute())
    return list(value) if isinstance(value, tuple) else value


def _from_json(value: Any, kind: Any) -> Any:
    """Return a value as a parameter of the annotation `kind` has it; TypeError if it is none."""
    choices = get_args(kind)
    if get_origin(kind) is Annotated:
        return _from_json(value, choices[0])
    if get_origin(kind) is Literal and value in choices:
        return value
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_from_json(one, choices[0]) for one in value)
    if choices and NoneType in choices:
        (other,) = set(choices) - {NoneType}
        return None if value is None else _from_json(value, other)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) in (int, float):
        return float(value)
    if type(value) is not kind:
        raise TypeError
    return value
