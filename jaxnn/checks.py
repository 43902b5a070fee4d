"""Doors: arrays checked where a person enters, by chex inside, in words outside.

Every message has the name and the value, the rule, and the fix. Settings are checked in
`jaxnn.settings`.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

Init = Callable[[jax.Array, Any], Any]


@contextlib.contextmanager
def said(message: str, error: type[Exception] = ValueError) -> Iterator[None]:
    """What chex finds wrong inside is raised as this error, in these words."""
    try:
        yield
    except AssertionError:
        raise error(message) from None


def as_jax(name: str, value: Any) -> Any:
    """NumPy's array or number as JAX takes it, of the dtype that it has in JAX's present width.

    Whatever else is given comes back as it is, and so do arrays of words or objects.

    Raises:
        TypeError: the array is masked.
        ValueError: a value is beyond that dtype, where JAX would wrap or lose it.
    """
    if not isinstance(value, np.ndarray | np.generic):
        return value
    dtype = _canonical(value.dtype)
    if dtype is None:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array; it must be an array of all its values: fill it with "
            "filled(0), or leave those examples out"
        )
    beyond = f"beyond {dtype}; every value must fit: scale it, or set jax_enable_x64"
    if dtype.kind in "iu" and dtype.itemsize < value.dtype.itemsize and value.size:
        limits = np.iinfo(dtype)
        for extreme in (value.min(), value.max()):
            if not limits.min <= int(extreme) <= limits.max:
                raise ValueError(f"{name} has the value {extreme}, {beyond}")
    try:
        with np.errstate(over="raise"):
            return jnp.asarray(value.astype(dtype, copy=False))
    except FloatingPointError:
        raise ValueError(f"{name} has the value {np.abs(value).max()}, {beyond}") from None


def is_iterator(value: Any) -> bool:
    """Whether this is used up as it is read, a generator say: no part of a tree."""
    return isinstance(value, Iterator)


def _canonical(dtype: Any) -> Any:
    """The dtype that JAX has for this one of NumPy's; None where it has none."""
    dtype = jax.dtypes.canonicalize_dtype(dtype.newbyteorder("="))
    numbers = dtype.kind == "b" or jnp.issubdtype(dtype, jnp.number)
    return dtype if numbers and dtype.char not in "gG" else None


def is_array(value: Any) -> bool:
    """Whether this is an array of JAX's or NumPy's, or what stands for one while JAX traces."""
    kinds = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct
    return isinstance(value, kinds) or hasattr(value, "aval")


def is_seen(value: Any) -> bool:
    """Whether the values can be looked at: they are not traced, and all of them are within reach.

    Of an array that is spread over several processes each has a part: what one refused, the others
    would wait for.
    """
    if isinstance(value, jax.core.Tracer):
        return False
    return (
        not isinstance(value, jax.Array) or value.is_fully_addressable or value.is_fully_replicated
    )


def check_array(name: str, value: Any) -> None:
    """Refuse what is no array, as lists, Python's numbers and other libraries' tensors are none.

    Raises:
        TypeError: it is no array, or of words or objects.
    """
    if not is_array(value):
        raise TypeError(
            f"{name} is a {type(value).__name__}; it must be an array: wrap it in jnp.asarray"
        )
    if isinstance(value, np.ndarray | np.generic) and _canonical(value.dtype) is None:
        raise TypeError(
            f"{name} has dtype {value.dtype}, which JAX has not; it must be of numbers: cast it, "
            "for example with astype('float32')"
        )


def check_floating(name: str, value: Any) -> None:
    """Refuse what is no array of real floating numbers.

    Raises:
        TypeError: it is not.
    """
    check_array(name, value)
    words = f"{name} has dtype {value.dtype}; it must be floating: cast it with astype(jnp.float32)"
    with said(words, TypeError):
        chex.assert_type(value, float)


def check_integers(name: str, value: Any, fix: str) -> None:
    """Refuse what is no array of integers.

    Raises:
        TypeError: it is not; `fix` ends the message.
    """
    check_array(name, value)
    with said(f"{name} has dtype {value.dtype}; it must be of integers: {fix}", TypeError):
        chex.assert_type(value, int)


def check_one_dtype(op: str, **arrays: Any) -> None:
    """Refuse what is no floating array, or not of the dtype of the others; None is passed over.

    Raises:
        TypeError: it is not.
    """
    given = {name: value for name, value in arrays.items() if value is not None}
    for name, value in given.items():
        check_floating(f"{op}: {name}", value)
    dtypes = ", ".join(f"{name} {value.dtype}" for name, value in given.items())
    words = f"{op}: the dtypes are {dtypes}; they must be one: cast with astype what differs"
    with said(words, TypeError):
        chex.assert_type([*given.values()], next(iter(given.values())).dtype)


def check_shapes(op: str, fix: str, **arrays: tuple[Any, str]) -> chex.Dimensions:
    """Refuse arrays whose shapes do not fit together.

        check_shapes("linear", "transpose w", w=(w, "IO"), b=(b, "O?"), x=(x, "...I"))

    Args:
        op: its name, which opens the message.
        fix: what to do, which ends it.
        **arrays: each array with its shape as `chex.Dimensions` writes it, a letter for each size;
            a letter that came before is the same size. "..." at the start stands for any axes
            before these, "?" at the end for an array that may be None.

    Returns:
        The sizes, by letter.

    Raises:
        TypeError: what should be an array is none.
        ValueError: a shape does not fit.
    """
    sizes = chex.Dimensions()
    for name, (x, form) in arrays.items():
        if x is None and form.endswith("?"):
            continue
        check_array(f"{op}: {name}", x)
        axes = form.removeprefix("...").removesuffix("?")
        with said(_misfit(op, fix, name, arrays)):
            more = form.startswith("...")
            sized = tuple(vars(sizes).get(axis, None) for axis in axes)
            chex.assert_shape(x, (..., *sized) if more else sized)
        sizes[axes] = x.shape[len(x.shape) - len(axes) :]
    return sizes


def _misfit(op: str, fix: str, name: str, arrays: dict[str, tuple[Any, str]]) -> str:
    """What to say of an array whose shape does not fit the others'."""

    def rule(form: str) -> str:
        axes = ", ".join(form.removeprefix("...").removesuffix("?"))
        axes = f"..., {axes}" if form.startswith("...") else axes
        return (
            f"({axes}{',' * (len(form.removesuffix('?')) == 1)}){' or None' * form.endswith('?')}"
        )

    def shape(name: str) -> str:
        return f"{name} {getattr(arrays[name][0], 'shape', None)}"

    others = ", ".join(shape(other) for other in arrays if other != name)
    rules = ", ".join(f"{name} {rule(form)}" for name, (_, form) in arrays.items())
    return (
        f"{op}: {name} has shape {arrays[name][0].shape}{', beside ' * bool(others)}{others}; the "
        f"shapes must be {rules}, one size for each letter: {fix}"
    )


def check_not_empty(name: str, value: Any, why: str) -> None:
    """Refuse an array without elements.

    Raises:
        ValueError: it has none; `why` one is needed ends the message.
    """
    if value.size == 0:
        raise ValueError(
            f"{name} has shape {value.shape}, no element; it must have some, for {why}: pass at "
            "least one example"
        )


def check_pair(op: str, reduction: str, **arrays: Any) -> None:
    """Refuse two inputs, given by name, that do not pair up element by element.

    Raises:
        TypeError: the first is no floating array or the second no array of real numbers.
        ValueError: their shapes differ (they would broadcast to a wrong mean), or hold no element
            where the reduction is "mean".
    """
    (first, a), (second, b) = arrays.items()
    check_floating(f"{op}: {first}", a)
    check_array(f"{op}: {second}", b)
    if not any(jnp.issubdtype(b.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise TypeError(
            f"{op}: {second} has dtype {b.dtype}; it must be of real numbers: cast it with "
            f"astype({str(a.dtype)!r})"
        )
    words = (
        f"{op}: {first} have shape {a.shape}, {second} {b.shape}; they must be equal: reshape "
        f"one, for example {second}[:, None]"
    )
    with said(words):
        chex.assert_equal_shape([a, b])
    if reduction == "mean":
        check_not_empty(f"{op}: {first}", a, "a mean needs a non-empty batch")


def check_range(what: str, indices: Any, bound: int, rule: str) -> None:
    """Refuse integers outside [0, bound), where their values can be seen.

    Raises:
        ValueError: there are some; `what` and the first open the message, `rule` ends it.
    """
    if not is_seen(indices):
        return
    values = np.asarray(indices)
    wrong = np.argwhere((values < 0) | (values >= bound))
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        raise ValueError(
            f"{what} {values[at]} at index {at} ({len(wrong)} in all) is outside [0, {bound}); "
            f"{rule}"
        )


def check_within(name: str, values: Any, least: float, most: float, rule: str) -> None:
    """Refuse numbers outside [least, most], where their values can be seen; NaN passes.

    Raises:
        ValueError: there are some; the message gives the first one's index, `rule` ends it.
    """
    if not is_seen(values):
        return
    seen = np.asarray(values)
    wrong = np.argwhere((seen < least) | (seen > most))
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        raise ValueError(
            f"{name}{list(at)} is {seen[at]} ({len(wrong)} such values in all); it must be within "
            f"[{least}, {most}], {rule}"
        )


def check_finite(name: str, values: Any) -> None:
    """Refuse NaN and infinities in an array whose values can be seen.

    Raises:
        ValueError: some value is not finite; the message gives the first one's index.
    """
    if not is_seen(values):
        return
    values = np.asarray(values)
    finite = np.isfinite(values)
    if not finite.all():
        at = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"{name}{list(at)} is {values[at]} ({(~finite).sum()} such values in all); every "
            "value must be finite: drop or repair those examples"
        )


def check_broadcasts(name: str, mask: Any, shape: tuple[int, ...], fix: str) -> None:
    """Refuse a mask that is no array of booleans, or does not broadcast to this shape.

    Raises:
        TypeError: it is no boolean array.
        ValueError: it does not broadcast; `fix` ends the message.
    """
    check_array(name, mask)
    with said(
        f"{name} has dtype {mask.dtype}; it must be boolean: compare, as mask > 0", TypeError
    ):
        chex.assert_type(mask, bool)
    check_broadcasting(name, mask, shape, fix)


def check_broadcasting(name: str, array: Any, shape: tuple[int, ...], fix: str) -> None:
    """Refuse an array that does not broadcast to this shape.

    Raises:
        ValueError: it does not; `fix` ends the message.
    """
    try:
        fits = np.broadcast_shapes(array.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{name} has shape {array.shape}; it must broadcast to {shape}: {fix}")


def check_key(name: str, key: Any, hint: str = "") -> None:
    """Refuse what is no single key of `jax.random`, typed or not.

    Raises:
        TypeError: it is none.
    """
    array = isinstance(key, jax.Array | np.ndarray)
    untyped = array and key.dtype == np.uint32 and key.ndim == 1
    if untyped:  # of as many words as a key of the generator in force
        untyped = key.shape == jax.eval_shape(jax.random.PRNGKey, 0).shape
    typed = array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0
    if not untyped and not typed:
        raise TypeError(
            f"{name} is {f'{key.dtype}{list(key.shape)}' if array else f'{key!r:.50}'}; it must "
            f"be a key of jax.random: pass jax.random.key(0){hint}"
        )


def check_kind(name: str, value: Any, kind: type) -> None:
    """Refuse a container that is not of this kind, as a plain tuple is not.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, kind):
        raise TypeError(
            f"{name} is a {type(value).__name__}; it must be the NamedTuple "
            f"{kind.__module__}.{kind.__name__}: wrap its parts in {kind.__name__}(...)"
        )


_ORDER = "pass the parameters, then the batch (or the inputs), then the configuration"


def parameter_shapes(init_params: Init, config: Any) -> Any:
    """Return the shapes of what a model's `init_params` makes, worked out once for a configuration.

    Of the dtypes that are JAX's default the first time.

    Raises:
        TypeError, ValueError: as `init_params`.
    """
    try:
        hash(config)
    except TypeError:  # among its settings is one that JAX traces
        return _shapes.__wrapped__(init_params, config)
    return _shapes(init_params, config)


@cache
def _shapes(init_params: Init, config: Any) -> Any:
    return jax.eval_shape(lambda key: init_params(key, config), jax.random.key(0))


def check_config(config: Any, kind: type, fix: str = _ORDER) -> None:
    """Refuse a configuration of another kind; `fix` ends the message.

    Raises:
        TypeError: it is not of this kind.
    """
    if not isinstance(config, kind):
        fix = f"call it, {kind.__name__}(...)" if config is kind else fix
        raise TypeError(
            f"config is {config!r:.50}; it must be a {kind.__module__}.{kind.__name__}: {fix}"
        )


def check_init(key: Any, config: Any, kind: type, function: str = "init_params") -> None:
    """Refuse what a model's `init_params`, or another function, cannot draw from, or with.

    Raises:
        TypeError: the key is none of `jax.random`, or the configuration not of this kind.
    """
    check_key(f"{function}: key", key)
    check_config(config, kind, f"make it with {kind.__name__}(...)")


def check_model(params: Any, config: Any, kind: type, init_params: Init) -> Any:
    """Refuse a configuration of another kind, and parameters of another configuration.

    Returns:
        The dtype of the parameters.

    Raises:
        TypeError: the configuration is not of this kind; the parameters are not of the kind that
            `init_params` makes, or not all floating arrays of one dtype.
        ValueError: an array is missing, too many, or has another shape than `init_params` makes.
    """
    check_config(config, kind)
    made = parameter_shapes(init_params, config)
    if not isinstance(params, type(made)):
        raise TypeError(
            f"params is a {type(params).__name__}; it must be the {type(made).__module__}."
            f"{type(made).__name__} that init_params makes: {_ORDER}"
        )
    found, needed = _leaves(params), _leaves(made)
    for path in needed | found:
        got, wanted = found.get(path), needed.get(path)
        if got is not None and wanted is not None:
            check_array(f"parameters{path}", got)
        words = (
            f"parameters{path} has shape {getattr(got, 'shape', None)}, the configuration needs "
            f"{getattr(wanted, 'shape', None)}; they must fit: use the configuration that the "
            "parameters came from"
        )
        if got is None or wanted is None:
            raise ValueError(words)
        with said(words):
            chex.assert_shape(got, wanted.shape)
    check_one_dtype("parameters", **found)
    return next(iter(found.values())).dtype


def check_batch(batch: Any, kind: type[NamedTuple]) -> None:
    """Refuse what is neither this NamedTuple nor a tuple or list of its parts, but the optional.

    Raises:
        TypeError: it is none, or of too few or too many parts.
    """
    most = len(kind._fields)
    least = most - len(kind._field_defaults)
    if not (isinstance(batch, tuple | list) and least <= len(batch) <= most):
        parts = f" of {len(batch)}" if type(batch) in (tuple, list) else ""
        raise TypeError(
            f"batch is a {type(batch).__name__}{parts}; it must be "
            f"the {kind.__module__}.{kind.__name__} ({', '.join(kind._fields)}) or a tuple of the "
            f"same: {_ORDER}"
        )


def check_backward(saved: Any, dloss: Any, config: Any, residuals: type, kind: type) -> None:
    """Refuse what a model's `loss_bwd` cannot walk back from.

    Raises:
        TypeError: what was saved is not of the kind `residuals`, the configuration not of `kind`,
            or the cotangent no number.
        ValueError: the cotangent has axes, where a loss, which is a scalar, has none.
    """
    order = "pass what loss_fwd saved, then the cotangent, then the configuration"
    if not isinstance(saved, residuals):
        raise TypeError(
            f"saved is a {type(saved).__name__}; it must be the {residuals.__module__}."
            f"{residuals.__name__} that loss_fwd returned: {order}"
        )
    check_config(config, kind, order)
    if not isinstance(dloss, float):
        check_floating("dloss", dloss)
    words = (
        f"dloss has shape {np.shape(dloss)}; the loss is a scalar, and its cotangent must be: pass "
        "1.0, or sum the losses first"
    )
    with said(words):
        chex.assert_shape(dloss, ())


def check_inputs(inputs: Any, dtype: Any, *shapes: tuple[int, ...]) -> None:
    """Refuse what are no examples of the parameters' dtype, each of one of these shapes.

    Raises:
        TypeError: the inputs are no floating array, or of another dtype.
        ValueError: their shape is another, or (outside jit) a value is not finite.
    """
    check_floating("inputs", inputs)
    words = (
        f"inputs have dtype {inputs.dtype}, the parameters {dtype}; they must be the same floating "
        f"dtype: cast with inputs.astype({str(dtype)!r})"
    )
    with said(words, TypeError):
        chex.assert_type(inputs, dtype)
    if inputs.ndim == 0 or inputs.shape[1:] not in shapes:
        allowed = " or ".join(f"(examples, {', '.join(map(str, shape))})" for shape in shapes)
        raise ValueError(
            f"inputs have shape {inputs.shape}; they must be {allowed}: check the size, add a "
            "batch dimension with x[None], or configure the model for it"
        )
    check_finite("inputs", inputs)


def check_tokens(name: str, tokens: Any, vocabulary: int) -> None:
    """Refuse what are no sequences of integers in [0, vocabulary).

    Raises:
        TypeError: the tokens are no array of integers.
        ValueError: their shape is not (N, T) with T at least 1, or (outside jit) one is outside.
    """
    check_integers(name, tokens, "encode the text, or cast with astype(int)")
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise ValueError(
            f"{name} has shape {tokens.shape}; it must be (sequences, steps) with at least one "
            "step: add the missing dimension with tokens[None]"
        )
    rule = "encode the text with the vocabulary that the model was made for"
    check_range(f"{name}: token", tokens, vocabulary, rule)


def check_targets(tokens: Any, targets: Any, key: Any = None, *, vocabulary: int) -> None:
    """Refuse what is no batch of a language model with these sequences (N, T), which were checked.

    Raises:
        TypeError: the targets are no array of integers, or the key is none of `jax.random`.
        ValueError: there is no token; the targets' shape is another, or (outside jit) one is
            outside [0, vocabulary).
    """
    check_not_empty("tokens", tokens, "the loss is a mean over them")
    check_integers("targets", targets, "encode the text, or cast with astype(int)")
    words = (
        f"targets have shape {targets.shape}, tokens {tokens.shape}; there must be one target for "
        "each token: check that both are of the same windows"
    )
    with said(words):
        chex.assert_shape(targets, tokens.shape)
    rule = "encode the text with the vocabulary that the model was made for"
    check_range("targets: token", targets, vocabulary, rule)
    check_batch_key(key)


def check_batch_key(key: Any) -> None:
    """Refuse a batch's key that is neither None nor a key.

    Raises:
        TypeError: it is neither.
    """
    if key is not None:
        check_key("batch: key", key, ", or None to evaluate")


def _leaves(params: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
