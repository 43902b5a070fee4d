"""What a saved file says of itself: model, configuration, notes and versions, as JSON has them."""

import dataclasses
import importlib
import platform
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.files import listed

_SEQUENCES = (list, tuple, Sequence)
_UNKNOWN = object()


class About(NamedTuple):
    """What a file says of itself.

    Attributes:
        model: the name of the model's module.
        config: the settings of its configuration, by their names, as JSON has them.
        notes: what was noted beside them: a seed, a vocabulary, options, metrics.
        versions: of jaxnn, jax and python that wrote the file.
    """

    model: str
    config: dict[str, Any]
    notes: dict[str, Any]
    versions: dict[str, str]


def describe(model: Any, config: Any, notes: Mapping[str, Any] | None) -> About:
    """Return what a file is to say of itself.

    Raises:
        TypeError: a setting or a note is nothing that JSON has.
        ValueError: one goes too deep.
    """
    notes = {} if notes is None else notes
    if not isinstance(notes, Mapping):
        raise TypeError(f"notes is {notes!r:.50}; it must be a dict, of text to what JSON has")
    return About(
        model_name(model),
        settings(config),
        _plain("notes", notes),
        {
            "jaxnn": sys.modules["jaxnn"].__version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
    )


def model_name(model: Any) -> str:
    """Return the name of a model's module, that of its file for the script that runs."""
    name = getattr(model, "__name__", type(model).__name__)
    file = getattr(model, "__file__", None)
    return Path(file).stem if name == "__main__" and file else str(name)


def settings(config: Any) -> dict[str, Any]:
    """Return the settings of a configuration by their names, as JSON has them.

    Those of a dataclass, a NamedTuple or a mapping; {} for None, and {"config": ...} for another.

    Raises:
        TypeError: a setting is nothing that JSON has.
        ValueError: one goes too deep.
    """
    if config is None:
        return {}
    plain = _plain("config", config)
    return plain if isinstance(plain, dict) else {"config": plain}


def named_model(where: Path, name: str) -> Any:
    """Return the module of `jaxnn.models` that a file names.

    Raises:
        ValueError: it names another, which no file may have imported.
    """
    if re.fullmatch(r"jaxnn\.models\.[a-z]\w*", name):
        try:
            model = importlib.import_module(name)
        except ModuleNotFoundError:
            model = None
        if all(hasattr(model, part) for part in ("init_params", "loss", "Config")):
            return model
    raise ValueError(
        f"{where} is of the model {name!r:.80}, none of jaxnn.models; pass the module: model=..."
    )


def configuration(where: Path, about: About, model: Any, config: Any = None) -> Any:
    """Return the configuration that a file has: made anew by `model.Config`, or that given.

    Args:
        where: the file, for messages.
        about: what it says of itself.
        model: a module with the model functions.
        config: what it should be; None for whatever the file has.

    Raises:
        ValueError: the file is of another model, or another configuration (every setting that
            differs is named); or there is none that the model's `Config` takes.
    """
    if about.model != model_name(model):
        raise ValueError(
            f"{where} is of the model {about.model:.80}, not of {model_name(model)}; pass the one "
            "that it was trained with"
        )
    kind = getattr(model, "Config", None)
    if not _fields(kind):
        if config is None and about.config:
            raise ValueError(
                f"{where} has the settings {listed([*about.config], ', ')}, and {about.model} has "
                "no Config to take them; pass the configuration: config=..."
            )
        check_equal(where, "configuration", about.config, settings(config))
        return config
    try:
        theirs = _rebuilt(about.config, [kind])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where} has a configuration that {about.model} does not take ({error!s:.300}); it "
            f"was written by jaxnn {about.versions.get('jaxnn')}: use that version, or train anew"
        ) from error
    if config is None:
        return theirs
    check_equal(where, "configuration", settings(theirs), settings(config))
    return config


def check_equal(where: Path, what: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse a file whose settings, as JSON has them, are others; each is named.

    Raises:
        ValueError: one differs.
    """
    names = sorted({*theirs, *ours})
    different = [
        f"{name} is {theirs.get(name)!r:.80} in the file, {ours.get(name)!r:.80} here"
        for name in names
        # NaN is none that differs.
        if repr(theirs.get(name)) != repr(ours.get(name)) and theirs.get(name) != ours.get(name)
    ]
    if different:
        raise ValueError(
            f"{where} is of another {what}: {listed(different)}; they must be equal: pass those "
            "that it was trained with"
        )


def _plain(name: str, value: Any) -> Any:
    """A value as JSON has it; `name` is its own in messages."""
    try:
        return _as_json(name, value)
    except RecursionError:
        raise ValueError(
            f"{name} has lists or dicts too deep inside each other; a file cannot hold them: leave "
            "them out"
        ) from None


def _as_json(name: str, value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, PurePath):
        return str(value)
    fields = _fields(type(value))
    if fields:
        value = {field: getattr(value, field) for field in fields}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _as_json(f"{name}[{key!r}]", one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(f"{name}[{i}]", one) for i, one in enumerate(value)]
    concrete = isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)
    if (concrete or isinstance(value, np.ndarray | np.generic)) and any(
        jnp.issubdtype(value.dtype, kind) for kind in (np.floating, np.integer, np.bool_)
    ):
        return np.asarray(value).tolist()
    raise TypeError(
        f"{name} is {value!r:.50}; it must be what JSON has, numbers, text, lists and dicts of "
        "text to such: leave it out, or name it by a word"
    )


def _fields(kind: Any) -> tuple[str, ...]:
    """The names of what a dataclass or a NamedTuple holds, of its class; none for another."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind) if field.init)
    return tuple(getattr(kind, "_fields", ()))


def _rebuilt(value: Any, kinds: Sequence[Any]) -> Any:
    """A value of JSON as one of these types has it: objects, lists where it has them, or tuples."""
    if isinstance(value, list):
        kind = next((kind for kind in _alternatives(kinds) if _origin(kind) in _SEQUENCES), None)
        inner = typing.get_args(kind) or kinds
        return (list if _origin(kind) is list else tuple)(_rebuilt(one, inner) for one in value)
    if not isinstance(value, dict):
        return value
    records = [record for kind in kinds for record in _records(kind)]
    for record in records:
        if value.keys() <= {*_fields(record)}:
            hints = _hints(record)
            return record(**{name: _rebuilt(one, [hints[name]]) for name, one in value.items()})
    known = [name for record in records for name in _fields(record)]
    if known:
        unknown = [name for name in value if name not in known]
        raise ValueError(f"{listed(unknown, ', ')} is not one of {', '.join(known)}")
    if _UNKNOWN in kinds:
        raise ValueError(
            f"of {listed([*value], ', ')} the type has a name that is imported for type checkers "
            "alone; import it for the program too"
        )
    return value


def _hints(record: Any) -> dict[str, Any]:
    """The type of each field; of none it is known where one has a name for type checkers alone."""
    try:
        return typing.get_type_hints(record)
    except NameError:
        return dict.fromkeys(_fields(record), _UNKNOWN)


def _origin(kind: Any) -> Any:
    return typing.get_origin(kind) or kind


def _alternatives(kinds: Sequence[Any]) -> Iterator[Any]:
    """The types themselves, and in the place of a union what it is of."""
    for kind in kinds:
        union = _origin(kind) in (typing.Union, types.UnionType)
        yield from _alternatives(typing.get_args(kind)) if union else [kind]


def _records(kind: Any) -> list[Any]:
    """The dataclasses and NamedTuples that a type is, or is made of."""
    inner = [record for part in typing.get_args(kind) for record in _records(part)]
    return [kind, *inner] if _fields(kind) else inner
