"""Tokens drawn from logits, for the models of language, and the settings of a draw checked."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxnn.checks import check_floating, check_key
from jaxnn.op import door
from jaxnn.settings import check_integer, check_number


def draw_settings(
    length: Any, temperature: Any, top_k: Any, top_p: Any, vocabulary: int | None = None
) -> dict[str, Any]:
    """Return what `generate` takes by these names, as plain Python has it.

    Raises:
        TypeError: a setting is no number, or traced by JAX.
        ValueError: length is below 1; the temperature is negative or not finite; top_k is below 1
            or above the vocabulary's size, top_p outside (0, 1].
    """
    rule = "finite and at least 0"
    settings = {
        "length": check_integer("generate: length", length),
        "temperature": check_number(
            "generate: temperature", temperature, rule, lambda t: 0 <= t < math.inf
        ),
        "top_k": None if top_k is None else check_integer("generate: top_k", top_k),
        "top_p": None,
    }
    if top_p is not None:
        rule = "a probability in (0, 1]: pass None for all tokens"
        settings["top_p"] = check_number("generate: top_p", top_p, rule, lambda p: 0 < p <= 1)
    if top_k is not None and vocabulary is not None and top_k > vocabulary:
        raise ValueError(
            f"generate: top_k is {top_k} of {vocabulary} tokens; it must be at most as many: "
            "pass None for all"
        )
    return settings


def _check(
    logits: Array, key: Array, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    """Refuse what `sample` says it raises."""
    check_floating("sample: logits", logits)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(
            f"sample: logits have shape {logits.shape}; they must be (rows, tokens) with at least "
            "one token: add the missing dimension with logits[None]"
        )
    check_key("sample: key", key)
    draw_settings(1, temperature, top_k, top_p, logits.shape[1])


@door(_check)
def sample(
    logits: Array,
    key: Array,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Array:
    """Draw a token (N,) for each row of logits (N, V); -1 where there is nothing to draw from.

    That is where the row's softmax is NaN: a logit is NaN or inf, or all are -inf. So a token that
    is none of the vocabulary, in a text that is read under jit, does not pass for one that is.

    In float32 at least: noise and sums of as few digits as bfloat16 has would favour some tokens.

    Args:
        logits: (N, V), of any floating dtype.
        key: for the draws.
        temperature: 1 draws from the softmax of the logits; towards 0 the likeliest tokens gain,
            at 0 (or so near it that the dtype cannot tell) only the likeliest is taken.
        top_k: draw from the so many likeliest tokens only (and those as likely as the last of
            them); None for all.
        top_p: draw from the likeliest tokens only, as few as together have at least this
            probability after `top_k` (and those as likely as the last of them); None for all.
            Holtzman et al., 2020, "The curious case of neural text degeneration" (nucleus).

    Raises:
        TypeError: the logits are no floating array, the key none of `jax.random`, or a setting no
            number.
        ValueError: the logits are not (N, V), or a setting is outside its range.
    """
    logits = logits.astype(np.promote_types(logits.dtype, np.float32))
    largest = logits.max(-1, keepdims=True)
    there = jnp.isfinite(largest[:, 0])
    if temperature < np.finfo(logits.dtype).tiny:
        return jnp.where(there, logits.argmax(-1), -1)
    # The likeliest token's is 0 then, and no quotient is too large.
    logits = (logits - largest) / temperature
    if top_k is not None:
        least = lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        descending = -jnp.sort(-logits, axis=-1)
        p = jax.nn.softmax(descending, axis=-1)
        # A token belongs to the nucleus if those before it do not reach top_p; the first always.
        inside = (jnp.cumsum(p, axis=-1) - p < top_p).at[:, 0].set(True)
        least = jnp.where(inside, descending, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jnp.where(there, jax.random.categorical(key, logits), -1)


def token_dtype(prompt: Array) -> Any:
    """Return the dtype of a text after this prompt: every token of any vocabulary fits, and -1."""
    return np.int64 if prompt.dtype.itemsize == 8 else np.int32
