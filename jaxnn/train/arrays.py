"""Arrays in a folder of their own, by orbax, which says nothing; its errors are said in words.

An array that is laid out over several processes is written by all, each its part.
"""

import asyncio
import contextlib
import gc
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import files

T = TypeVar("T")
# Seconds in which what tensorstore's threads have begun, when another of them fails, fails too.
_IN_FLIGHT = 0.3


class Writing:
    """Arrays on their way into an empty folder: copied already, so that they may be donated."""

    def __init__(self, where: Path, leaves: list[Any]) -> None:
        """Copy them, and begin to write."""
        with _orbax() as ocp:
            self._where = files.installed("etils.epath").Path(where)
            self._writer = ocp.StandardCheckpointHandler()
            wanted = ocp.args.StandardSave(_numbered(leaves))
            self._parts = _free(
                lambda: asyncio.run(self._writer.async_save(self._where, args=wanted))
            )

    def wait(self) -> None:
        """Wait until this process's part is written."""
        while self._parts:  # one that fails is let go: what it wrote is gone before more is said
            self._parts.pop(0).result()

    def merge(self) -> None:
        """Make one of all processes' parts, when they are written; for process 0."""
        self._writer.finalize(self._where)


def read(where: Path, like: list[Any]) -> list[Any]:
    """The arrays of a folder, laid as those of `like` are.

    Raises:
        ModuleNotFoundError: orbax is not installed.
        ValueError: they cannot be read.
    """
    fix = "its files are those that were written: try again"
    numbered, leaves = _numbered(like), [*like]
    with in_words(f"{where} cannot be read", fix), _orbax() as ocp:
        path, wanted = (
            files.installed("etils.epath").Path(where),
            ocp.args.StandardRestore(numbered),
        )
        reader = ocp.StandardCheckpointHandler()
        found = _free(lambda: reader.restore(path, args=wanted))
        for number, leaf in numbered.items():
            leaves[int(number)] = _like(found[number], leaf)
    return leaves


@contextlib.contextmanager
def in_words(what: str, fix: str) -> Iterator[None]:
    """Let nothing be logged; what orbax or the disk raise is said in words."""
    quiet = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in quiet]
    hook = sys.unraisablehook

    def heard(error: Any) -> None:
        # When one of tensorstore's threads fails, what it had begun calls back to nobody.
        if str(error.exc_value) != "Event loop is closed":
            hook(error)

    try:
        for logger in quiet:
            logger.setLevel(logging.CRITICAL)
        sys.unraisablehook = heard
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:  # orbax and tensorstore raise many kinds, each with a page of text
        _forget(error)
        raise ValueError(f"{what} ({_first_line(error)}); {fix}") from None
    finally:
        for logger, level in zip(quiet, levels, strict=True):
            logger.setLevel(level)
        sys.unraisablehook = hook


def _numbered(leaves: list[Any]) -> dict[str, Any]:
    """The leaves under their numbers, which orbax keeps apart; it takes none without an element."""
    return {str(i): leaf for i, leaf in enumerate(leaves) if 0 not in jnp.shape(leaf)}


def _like(read: Any, like: Any) -> Any:
    """An array as it was read, with all that makes the same program of it as of `like`."""
    if getattr(like, "weak_type", False):
        if len(like.sharding.device_set) == 1:
            return like.at[...].set(np.asarray(read))
        weak = jax.jit(lambda like, read: like.at[...].set(read), out_shardings=like.sharding)
        return weak(like, read)
    if getattr(like, "committed", True):
        return read
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        data = jnp.asarray(np.asarray(jax.random.key_data(read)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(read))
    return jnp.asarray(np.asarray(read))


def _free(function: Callable[[], T]) -> T:
    """Call what runs an event loop: in a thread where one runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(as_here(function)).result()


def as_here(function: Callable[[], T]) -> Callable[[], T]:
    """Return a function that finds, in another thread, JAX as wide as in this one."""
    wide = jax.dtypes.canonicalize_dtype("float64") == "float64"

    def called() -> T:
        with jax.enable_x64(wide):
            return function()

    return called


@contextlib.contextmanager
def _orbax() -> Iterator[Any]:
    """Orbax, which gives the root logger a handler when it is imported: that is taken away."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    try:
        yield files.installed("orbax.checkpoint")
    finally:
        root.handlers[:] = handlers


def _forget(error: BaseException | None) -> None:
    """Let what orbax was reading or writing when this was raised end, and say nothing of it."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__
        gc.collect()
        time.sleep(_IN_FLIGHT)
        gc.collect()
    finally:
        sys.unraisablehook = hook


def _first_line(error: Exception) -> str:
    return f"{str(error).strip().splitlines()[0]:.200}" if str(error).strip() else repr(error)
