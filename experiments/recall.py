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

from jaxnn import files, train
from jaxnn.train import checkpoints, folder

Main = Callable[..., int]
# Where to read, compute and write, and whether to look first, is no setting of a run.
_NOT_KEPT = (
    *("resume", "predict", "sample", "out", "verify"),
    *("mesh", "coordinator", "processes", "process"),
)


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
            return main(**completed(recalling, lambda defaults: given))

        recalling.__dict__["of_use"] = of_use
        return recalling

    return decorate


def completed(
    main: Main, parse: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the options given and, where one of them names an earlier run, that run's others.

    Args:
        main: the script's.
        parse: returns the options given, by name, among them any of these defaults.

    Raises:
        ValueError: two of them name a run, there is no such run, it is none of this script, or one
            given is another there.
    """
    given = parse({})
    named = _named(main, given)
    if not named:
        return dict(given)
    (name,) = named
    stored = _stored(main, name, given[name])
    given = parse(stored)
    free = _free(main, given)
    different = [
        f"{_option(name)} is {words(value)}, in the run {words(stored[name])}"
        for name, value in given.items()
        if name in stored and _contradicts(value, stored[name], name in free)
    ]
    if different:
        raise ValueError(f"{'; '.join(different)}: leave out what the run has settled")
    return {**stored, **given}


def settled(main: Main) -> Main:
    """Return a script's `main` as it takes `completed` options, and recalls none."""
    inner: Main = main.__dict__["__wrapped__"] if "of_use" in main.__dict__ else main
    return inner


def _contradicts(given: Any, stored: Any, free: bool) -> bool:
    """Whether an option is another than in the run, and may not be."""
    if isinstance(given, Path) and isinstance(stored, Path):
        return not free and os.path.realpath(given) != os.path.realpath(stored)
    # A file may have moved; where the run had none, it is other data.
    return given != stored and (not free or isinstance(given, Path))


def _stored(main: Main, name: str, path: Path) -> dict[str, Any]:
    """Return the options of the run that the option of this name and path names."""
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
    kept = {name: _absolute(options[name]) for name in names}
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
    kept = _state_notes(path) if name == "resume" else train.read_about(path).notes
    options, script, own = kept.get("options"), kept.get("script"), _script(main)
    if isinstance(script, str) and script != own:
        raise ValueError(
            f"{path} was saved by {script:.50}; name what {own} saved, or read its parameters in "
            "Python, by jaxnn.train.load_params"
        )
    if not isinstance(options, dict) or not isinstance(script, str):
        raise ValueError(f"{path} names no script and options; name what {own} saved")
    return options


def _state_notes(run: Path) -> dict[str, Any]:
    """Return what a run's last state says of it: the parameters beside it may be damaged."""
    states = files.as_path(run / folder.STATE, "--resume")
    step = checkpoints.last_step(states)
    if step is None:
        raise ValueError(f"--resume {run} holds no run to resume; name the folder of one")
    return dict(checkpoints.read_about(states / str(step))["notes"])


def _script(main: Main) -> str:
    """Return the name of a script's module, also where it runs as __main__."""
    return f"experiments.{Path(inspect.unwrap(main).__code__.co_filename).stem}"


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def words(value: Any) -> str:
    """Return a value as one types it."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "no number"
    return "none" if value is None else str(value)


def _absolute(value: Any) -> Any:
    """A path that means the same in any folder; any other value as it is."""
    return value.absolute() if isinstance(value, Path) else value


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
