"""Whole states on disk, by orbax: parameters, optimizer, step and key, and whose they are.

    save_state("out/state", state, model=mlp, config=config, notes={"seed": 0})
    like = init_state(mlp, config, optimizer, jax.random.key(0))
    state, about = load_state("out/state", like, model=mlp, config=config)

Each state has a folder of its own, named by its step. The last two are kept; one that was not
written to its end does not count.

A state may be laid out over a mesh, and over several processes: all of them call these functions,
with one folder that they share. One that was saved is read onto any other mesh, any number of
processes, or one device: as `like` is laid out.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import files, together
from jaxnn.calls import path_name
from jaxnn.ending import several
from jaxnn.train import checkpoints
from jaxnn.train.about import check_equal, describe
from jaxnn.train.doors import check_state
from jaxnn.train.progress import is_sound
from jaxnn.train.steps import State


class SavedState(NamedTuple):
    """What stands beside a state.

    Attributes:
        model: the name of the model's module, "" if none was given.
        config: its settings, as JSON has them.
        notes: as JSON has them.
        versions: of jaxnn, jax and Python, where it was saved.
        best: the best parameters so far, None if none were given.
        history: for each column of a log its values, epoch by epoch, as NumPy arrays.
        ends: after which of these epochs there was a state to look at.
        watched: by which column the best is known, as `{"minimize": "val_loss"}`.
        batches: how far an iterator of batches was, as JSON has it; None where none was asked.
    """

    model: str
    config: dict[str, Any]
    notes: dict[str, Any]
    versions: dict[str, str]
    best: Any
    history: dict[str, np.ndarray[Any, Any]]
    ends: list[int]
    watched: dict[str, str]
    batches: Any = None


def save_state(
    folder: str | Path,
    state: State,
    *,
    model: Any = None,
    config: Any = None,
    notes: Mapping[str, Any] | None = None,
    best: Any = None,
    history: Mapping[str, Any] | None = None,
    ends: tuple[int, ...] | list[int] = (),
    watched: Mapping[str, str] | None = None,
    batches: Any = None,
) -> Path:
    """Save a state in `folder/STEP`, whole or not at all, and keep the one before it.

    It takes about 0.1 s, more for millions of numbers. Of several processes each writes its part,
    and process 0 the rest.

    Args:
        folder: for the states of one run; made if needed.
        state: of `init_state`, or of a later step.
        model: the model's module, whose name is kept.
        config: its configuration.
        notes: what JSON can hold, by name: a seed, options.
        best: other parameters to keep beside it, the best so far.
        history: columns of numbers to keep beside it, each (epochs,).
        ends: the epochs that ended with a state.
        watched: by which column the best is known, as `{"minimize": "val_loss"}`.
        batches: how far an iterator of batches is, what JSON can hold.

    Returns:
        The folder of the state.

    Raises:
        ModuleNotFoundError: orbax is not installed.
        TypeError: the state is no `State`, or notes or configuration are not for JSON.
        ValueError: the folder cannot be written, or holds a state of this step or a later one, or
            anything else that is named by a number; of several processes one has failed, or the
            state is not laid out over all of them.
    """
    return begin_state(
        folder,
        state,
        model=model,
        config=config,
        notes=notes,
        best=best,
        history=history,
        ends=ends,
        watched=watched,
        batches=batches,
    )()


def begin_state(
    folder: str | Path,
    state: State,
    *,
    model: Any = None,
    config: Any = None,
    notes: Mapping[str, Any] | None = None,
    best: Any = None,
    history: Mapping[str, Any] | None = None,
    ends: tuple[int, ...] | list[int] = (),
    watched: Mapping[str, str] | None = None,
    batches: Any = None,
) -> Callable[[], Path]:
    """Begin to save a state, as `save_state` does; return a function that does it to the end.

    When this returns, the state has been copied. The function may be called in another thread.
    """
    items: dict[str, Any] = {"state": state} | ({} if best is None else {"best": best})

    def described() -> dict[str, Any]:
        check_state(state, State)
        check_laid(items)
        return _describe(model, config, notes) | {
            "forms": {name: _forms(tree) for name, tree in items.items()},
            "history": {name: _to_json(np.asarray(x)) for name, x in (history or {}).items()},
            "ends": [int(end) for end in ends],
            "watched": dict(watched or {}),
            "batches": batches,
        }

    about = together.each("saving a state", described)
    folder, step = files.as_path(folder, "folder").absolute(), int(state.step)
    last = _last_step(folder)
    if last is not None and last >= step:
        raise ValueError(
            f"{folder} holds a state of step {last}; one that is saved there must be of a later "
            f"step, this is of {step}: name another folder, or remove that one"
        )
    return checkpoints.begin(folder, step, items, about)


def load_state(
    folder: str | Path,
    like: State,
    *,
    model: Any = None,
    config: Any = None,
    notes: Mapping[str, Any] | None = None,
) -> tuple[State, SavedState]:
    """Read the last state that `save_state` wrote in a folder, and what stands beside it.

    Args:
        folder: as in `save_state`.
        like: a state of the same model and optimizer, from `init_state`; what is read is laid on
            the devices that its arrays are on.
        model: as in `save_state`; it, the configuration and the notes must be the same there,
            unless they are None. Of several processes all call this.
        config: as in `save_state`.
        notes: as in `save_state`.

    Returns:
        state, about.

    Raises:
        ModuleNotFoundError: orbax is not installed.
        TypeError: `like` is no `State`.
        ValueError: there is no state in the folder; it is of another model, configuration,
            optimizer or of other notes; it is damaged, not finite, or of a newer format.
    """
    check_state(like, State)
    folder = files.as_path(folder, "folder").absolute()
    step = _last_step(folder)
    if step is None:
        raise ValueError(f"{folder} holds no state; it must be one that a run saved a state in")
    where = folder / str(step)
    about = checkpoints.read_about(where)
    likes = {"state": like} | ({"best": like.params} if "best" in about["forms"] else {})

    def check() -> None:
        ours = _describe(model, config, notes)
        if model is not None:
            check_equal(where, "model", {"model": about["model"]}, {"model": ours["model"]})
        if config is not None:
            check_equal(where, "configuration", about["config"], ours["config"])
        if notes is not None:
            check_equal(where, "run", about["notes"], ours["notes"])
        for name, tree in likes.items():
            check_equal(where, "model or optimizer", about["forms"][name], _forms(tree))

    together.each(f"reading {where}", check)
    trees = checkpoints.read(where, likes)
    if not all(map(is_sound, trees.values())):
        raise ValueError(
            f"{where} holds numbers that are not finite; remove it, to go on from the state before"
        )
    return trees["state"], SavedState(
        **{name: about[name] for name in ("model", "config", "notes", "versions")},
        best=trees.get("best"),
        history={name: _from_json(column) for name, column in about["history"].items()},
        ends=about["ends"],
        watched=about["watched"],
        batches=about.get("batches"),  # which older files have not
    )


def _last_step(folder: Path) -> int | None:
    return together.first(f"reading {folder}", partial(checkpoints.last_step, folder))


def check_laid(items: Mapping[str, Any]) -> None:
    """Refuse arrays that are one process's own, where there are several."""
    if not several():
        return
    for where, leaf in jax.tree_util.tree_leaves_with_path(items):
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
            raise ValueError(
                f"{path_name(where)} is laid out on devices of process {jax.process_index()} alone "
                f"({leaf.sharding}); of {jax.process_count()} processes that train together each "
                "must have a part: lay the state out over a mesh of all devices"
            )


def _describe(model: Any, config: Any, notes: Mapping[str, Any] | None) -> dict[str, Any]:
    about = describe(model, config, notes)._asdict()
    return about | ({"model": ""} if model is None else {})


def _forms(tree: Any) -> dict[str, str]:
    """The type of every node of a tree, and the shape and dtype of every array, by its path."""
    kinds = {}

    def seen(path: Any, part: Any) -> bool:
        kinds[path_name(path)] = type(part).__name__
        return False

    jax.tree_util.tree_leaves_with_path(tree, is_leaf=seen, is_leaf_takes_path=True)
    return kinds | leaf_forms(tree)


def leaf_forms(tree: Any) -> dict[str, str]:
    """The shape and dtype of every array in a tree, by its path."""
    return {
        path_name(path): f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _to_json(column: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"dtype": str(column.dtype), "values": column.tolist()}


def _from_json(column: Any) -> np.ndarray[Any, Any]:
    return np.asarray(column["values"], jnp.dtype(column["dtype"]))
