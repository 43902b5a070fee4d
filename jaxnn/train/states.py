"""Whole states on disk, by orbax: parameters, optimizer, step and key, and whose they are.

    save_state("out/state", state, model=mlp, config=config, notes={"seed": 0})
    like = init_state(mlp, config, optimizer, jax.random.key(0))
    state, about = load_state("out/state", like, model=mlp, config=config)

Each state has a folder of its own, named by its step. The last two are kept; one that was not
written to its end does not count.
"""

import contextlib
import logging
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import files
from jaxnn.calls import path_name
from jaxnn.train.about import check_equal, describe
from jaxnn.train.progress import is_sound
from jaxnn.train.steps import State

FORMAT = 1
KEPT = 2
_DELETED = "deleted"  # where orbax moves what is older, so that a state is whole or gone


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
    """

    model: str
    config: dict[str, Any]
    notes: dict[str, Any]
    versions: dict[str, str]
    best: Any
    history: dict[str, np.ndarray[Any, Any]]
    ends: list[int]


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
) -> Path:
    """Save a state in `folder/STEP`, whole or not at all, and keep the one before it.

    It takes about 0.1 s, more for millions of numbers.

    Args:
        folder: for the states of one run; made if needed.
        state: of `init_state`, or of a later step.
        model: the model's module, whose name is kept.
        config: its configuration.
        notes: what JSON can hold, by name: a seed, options.
        best: other parameters to keep beside it, the best so far.
        history: columns of numbers to keep beside it, each (epochs,).
        ends: the epochs that ended with a state.

    Returns:
        The folder of the state.

    Raises:
        ModuleNotFoundError: orbax is not installed.
        TypeError: the state is no `State`, or notes or configuration are not for JSON.
        ValueError: the folder cannot be written, or holds a state of this step or a later one.
    """
    check_state("state", state)
    folder, step = Path(folder).absolute(), int(state.step)
    items: dict[str, Any] = {"state": state} | ({} if best is None else {"best": best})
    about = _describe(model, config, notes) | {
        "format": FORMAT,
        "leaves": {name: leaf_forms(tree) for name, tree in items.items()},
        "crc32": {name: _crc32(tree) for name, tree in items.items()},
        "history": {name: _to_json(np.asarray(x)) for name, x in (history or {}).items()},
        "ends": [int(end) for end in ends],
    }
    with _manager(folder, f"{folder} cannot be written", "make room, or name another") as (
        ocp,
        manager,
    ):
        last = manager.latest_step()
        if last is None or last < step:
            shutil.rmtree(folder / _DELETED, ignore_errors=True)  # of a save that was killed
            saves = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
            manager.save(step, args=ocp.args.Composite(about=ocp.args.JsonSave(about), **saves))
            shutil.rmtree(folder / _DELETED, ignore_errors=True)
    if last is not None and last >= step:
        raise ValueError(
            f"{folder} holds a state of step {last}; one that is saved there must be of a later "
            f"step, this is of {step}: name another folder, or remove that one"
        )
    return folder / str(step)


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
            unless they are None.
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
    check_state("like", like)
    folder = Path(folder).absolute()
    step = last_step(folder)
    if step is None:
        raise ValueError(f"{folder} holds no state; name a folder that a run has saved one in")
    where, fix = folder / str(step), "remove it, to go on from the state before it"
    with _manager(folder, f"{where} cannot be read", fix, read_only=True) as (ocp, manager):
        about = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about
        newer = about["format"] > FORMAT
        named = {name: about["leaves"].get(name) for name in ("state", "best")}
    if newer:
        raise ValueError(
            f"{where} is of format {about['format']}, and this jaxnn reads formats up to {FORMAT}; "
            "install a newer jaxnn"
        )
    ours = _describe(model, config, notes)
    if model is not None:
        check_equal(where, "model", {"model": about["model"]}, {"model": ours["model"]})
    if config is not None:
        check_equal(where, "configuration", about["config"], ours["config"])
    if notes is not None:
        check_equal(where, "run", about["notes"], ours["notes"])
    likes = {"state": like} | ({"best": like.params} if named["best"] else {})
    for name, tree in likes.items():
        check_equal(where, "model or optimizer", named[name] or {}, leaf_forms(tree))
    with _manager(folder, f"{where} cannot be read", fix, read_only=True) as (ocp, manager):
        restores = {name: ocp.args.StandardRestore(tree) for name, tree in likes.items()}
        read = manager.restore(step, args=ocp.args.Composite(**restores))
        trees = {name: jax.tree.map(_like, read[name], tree) for name, tree in likes.items()}
        intact = {name: _crc32(tree) for name, tree in trees.items()} == about["crc32"]
        saved = SavedState(
            **{name: about[name] for name in ("model", "config", "notes", "versions")},
            best=trees.get("best"),
            history={name: _from_json(column) for name, column in about["history"].items()},
            ends=[int(end) for end in about["ends"]],
        )
    if not intact:
        raise ValueError(f"{where} is damaged: its numbers are not those that were saved; {fix}")
    if not all(map(is_sound, trees.values())):
        raise ValueError(f"{where} holds numbers that are not finite; {fix}")
    return trees["state"], saved


def last_step(folder: Path) -> int | None:
    """The step of the last state in a folder; None without one.

    Raises:
        ModuleNotFoundError: orbax is not installed.
    """
    if not folder.is_dir():
        return None
    with _manager(folder, f"{folder} cannot be read", "check the path", read_only=True) as (_, m):
        step: int | None = m.latest_step()
    return step


def check_state(name: str, state: Any) -> None:
    """Refuse what is no state.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(state, State):
        raise TypeError(
            f"{name} is a {type(state).__name__}; it must be the State that init_state, or the "
            "last step, returned"
        )


@contextlib.contextmanager
def _manager(
    folder: Path, what: str, fix: str, read_only: bool = False
) -> Iterator[tuple[Any, Any]]:
    """Orbax, and its manager of a folder, both silent; what they raise is said in words."""
    root, absl = logging.getLogger(), logging.getLogger("absl")
    handlers, level = root.handlers[:], absl.level
    try:
        absl.setLevel(logging.CRITICAL)
        ocp = files.installed("orbax.checkpoint")  # which gives the root logger a handler
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=not read_only,
            todelete_subdir=None if read_only else _DELETED,
            read_only=read_only,
        )
        with contextlib.closing(ocp.CheckpointManager(folder, options=options)) as manager:
            yield ocp, manager
    except ModuleNotFoundError:
        raise
    except Exception as error:  # orbax and tensorstore raise many kinds, each with a page of text
        raise ValueError(f"{what} ({_first_line(error)}); {fix}") from error
    finally:
        root.handlers[:] = handlers
        absl.setLevel(level)


def _first_line(error: Exception) -> str:
    return f"{str(error).strip().splitlines()[0]:.200}" if str(error).strip() else repr(error)


def _like(read: Any, like: Any) -> Any:
    """An array as it was read, with all that makes the same program of it as of `like`."""
    if getattr(like, "weak_type", False):
        return like.at[...].set(np.asarray(read))
    if getattr(like, "committed", True):
        return read
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        data = jnp.asarray(np.asarray(jax.random.key_data(read)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(read))
    return jnp.asarray(np.asarray(read))


def _describe(model: Any, config: Any, notes: Mapping[str, Any] | None) -> dict[str, Any]:
    about = describe(model, config, notes)._asdict()
    return about | ({"model": ""} if model is None else {})


def leaf_forms(tree: Any) -> dict[str, str]:
    """The shape and dtype of every array in a tree, by its path."""
    return {
        path_name(path): f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _crc32(tree: Any) -> int:
    """A checksum of all numbers in a tree."""
    crc = 0
    for leaf in jax.tree.leaves(tree):
        key = jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
        values = np.ascontiguousarray(jax.random.key_data(leaf) if key else leaf)
        crc = zlib.crc32(values.reshape(-1).view(np.uint8).data, crc)
    return crc


def _to_json(column: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"dtype": str(column.dtype), "values": column.tolist()}


def _from_json(column: Any) -> np.ndarray[Any, Any]:
    return np.asarray(column["values"], jnp.dtype(column["dtype"]))
