"""Check what a verification is given: called outside of JAX's transformations, its options right.

NumPy arrays that a function holds are converted anew in each width. JAX keeps what it makes of such
an array for as long as a trace with it lives, and takes it again under another `jax_enable_x64`: a
loss over float64 data would meet its own float32 constants when it is lifted, and float64 ones when
it is used after.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.batch import BatchLaws

Given = ParamSpec("Given")
Result = TypeVar("Result")


def entrance(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Make a function that looks at numbers and compiles the entrance of a verification.

    Called inside `jax.jit` and the like it refuses, in words; `jax.disable_jit` is lifted, and so
    is the search for NaN of `jax.debug_nans`: what is not finite is evidence here.

    Raises:
        TypeError: an argument is traced, or everything is.
    """

    @functools.wraps(function)
    def entered(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        if _is_traced((args, kwargs)):
            raise TypeError(
                f"verify.{function.__name__} is called inside jax.jit, or inside jax.vmap, grad or "
                "scan, where arrays have no values to look at: call it outside of the function "
                "that is transformed, on plain arrays"
            )
        convert_by_width()
        with jax.disable_jit(False), jax.debug_nans(False), jax.debug_infs(False):
            return function(*args, **kwargs)

    return entered


def _is_traced(arguments: Any) -> bool:
    """Whether an array among the arguments is traced, or any array made here would be."""
    leaves = [*jax.tree.leaves(arguments), jnp.zeros(())]
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


@functools.cache
def convert_by_width() -> None:
    """Have JAX convert NumPy arrays by the width that is set, and not by one remembered."""
    try:
        from jax._src import dtypes, literals  # no public name registers a conversion

        handlers = dtypes.canonicalize_value_handlers

        def converted(x: np.ndarray) -> np.ndarray:
            return literals.TypedNdArray(np.asarray(x, dtypes.canonicalize_dtype(x.dtype)))

        converted(np.zeros(1))
    except (ImportError, AttributeError):  # a JAX that has none of this remembers nothing
        return
    handlers[np.ndarray] = converted


class Declared(NamedTuple):
    """A relative tolerance that a person declared for a leaf, and the reason in words."""

    relative: float
    reason: str

    def __str__(self) -> str:
        return f"declared tolerance {self.relative:g}: {self.reason}"


def check_options(seed: Any, batch_laws: Any = None, has_aux: Any = False) -> None:
    """Refuse options of ours that are not what they must be; they may be meant for the functions.

    Raises:
        TypeError: one has another type.
        ValueError: the seed is negative.
    """
    theirs = "; to hand an argument of this name to your functions, give it by position"
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed is {seed!r}; it must be an integer{theirs}")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or more")
    if batch_laws is not None and not isinstance(batch_laws, BatchLaws):
        raise TypeError(f"batch_laws is {batch_laws!r}; it must be a verify.BatchLaws{theirs}")
    if not isinstance(has_aux, bool):
        raise TypeError(f"has_aux is {has_aux!r}; it must be True or False{theirs}")


def check_skip(skip: Any, paths: list[str]) -> Mapping[str, str]:
    """Refuse leaves to skip that are not there, or have no reason.

    Raises:
        TypeError: it is no mapping.
        ValueError: a path is not a parameter's, or a reason is empty.
    """
    if not isinstance(skip, Mapping):
        raise TypeError(
            f"skip is {skip!r}; it must map paths to reasons, as in {{'{paths[0]}': 'frozen'}}"
        )
    for path, reason in skip.items():
        _check_path("skip", path, paths)
        _check_reason("skip", reason, f" for {path}", "a leaf that is not judged")
    return skip


def check_tolerance(tolerance: Any, paths: list[str]) -> dict[str, Declared]:
    """Return the tolerances declared, refusing leaves that are not there, and what has no reason.

    Raises:
        TypeError: it is no mapping to pairs of a number and words.
        ValueError: a path is not a parameter's, a tolerance not between 0 and 1, a reason empty.
    """
    form = f"{{'{paths[0]}': (1e-6, 'the solver stops there')}}"
    if not isinstance(tolerance, Mapping):
        raise TypeError(
            f"tolerance is {tolerance!r}; it must map leaves to a relative tolerance and its "
            f"reason, as in {form}"
        )
    declared = {}
    for path, pair in tolerance.items():
        _check_path("tolerance", path, paths)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(
                f"tolerance gives {pair!r} for {path}; it must be a tuple (relative tolerance, "
                f"'reason'), as in {form}"
            )
        relative, reason = pair
        if isinstance(relative, bool) or not isinstance(relative, float | int | np.floating):
            raise TypeError(
                f"tolerance gives {relative!r} for {path}; it must be a number, a fraction of the "
                f"leaf's largest entry, as in {form}"
            )
        if not 0 < relative < 1:
            raise ValueError(
                f"tolerance gives {relative!r} for {path}; it must be above 0 and below 1, a "
                "fraction of the leaf's largest entry"
            )
        _check_reason("tolerance", reason, f" for {path}", "a tolerance")
        declared[path] = Declared(float(relative), reason)
    return declared


def check_surrogate(surrogate: Any) -> tuple[Callable[..., Any], str]:
    """Return a function to be judged against instead, and the reason.

    Raises:
        TypeError: it is no pair of a function and words.
        ValueError: the reason is empty.
    """
    if not isinstance(surrogate, tuple) or len(surrogate) != 2 or not callable(surrogate[0]):
        raise TypeError(
            f"surrogate is {surrogate!r}; it must be a tuple (function, 'reason'): the function "
            "whose derivative is meant, of the same arguments, and why"
        )
    function, reason = surrogate
    _check_reason("surrogate", reason, "", "another function than the one that is run")
    return function, reason


def _check_path(option: str, path: Any, paths: list[str]) -> None:
    if path not in paths:
        raise ValueError(
            f"{option} names {path!r}, which is no floating leaf of the parameters; they are "
            f"{', '.join(paths)}"
        )


def _check_reason(option: str, reason: Any, where: str, what: str) -> None:
    if not isinstance(reason, str) or not reason.strip():
        raise ValueError(f"{option} gives {reason!r}{where}; {what} needs a reason in words")


def check_signature(
    role: str,
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    alike: str = "loss and manual_grad must both take the parameters first and then the same "
    "arguments",
) -> None:
    """Refuse what is no function, or cannot take the arguments.

    Raises:
        TypeError: it is; `alike` says how functions must agree.
    """
    if not callable(function):
        raise TypeError(f"{role} is {function!r}; it must be a function; {alike}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in callables have none to look at
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        given = f"{len(args)} positional arguments" + "".join(f", {name}=..." for name in kwargs)
        raise TypeError(f"{role}{signature} cannot take {given} ({error}); {alike}") from None
