"""The fast form of attention against the plain pair, there and back, where the program runs."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from experiments.benchmark.arms import normal, off
from jaxnn.op import plain_forms
from jaxnn.ops.attention import attention

# Of the plain form's own error in bfloat16, both against the plain form in float32 of the same
# numbers; and a rounding to bfloat16 or two, where that has none.
TIMES, ROUNDING = 3.0, 2.0**-7
NAMES = ("y", "L", "dq", "dk", "dv")
# What is asked of it: positions of queries and keys, heads of both, and the settings.
ASKED: tuple[tuple[int, int, int, int, dict[str, Any]], ...] = (
    (1024, 1024, 12, 12, {"causal": True}),
    (1024, 1024, 12, 4, {"causal": True, "window": 200}),
    (1000, 1000, 4, 4, {"causal": True, "scale": 0.3}),
    (512, 1024, 4, 2, {}),
)


def check_attention(small: int) -> Iterator[tuple[str, bool]]:
    """Of each that is asked, a line with how far it is off, and whether that is right.

    Args:
        small: what the positions are divided by; above 1 fewer than cuDNN is asked for may be left.
    """
    for t, s, heads, kv_heads, static in ASKED:
        t, s = max(2, t // small), max(2, s // small)
        inputs = [normal(seed, 2, t, heads, 64).astype(jnp.bfloat16) for seed in (0, 1)]
        kv = [normal(seed, 2, s, kv_heads, 64).astype(jnp.bfloat16) for seed in (2, 3)]
        given = (inputs[0], *kv, inputs[1])
        of = partial(_both_passes, static)
        fast = jax.jit(partial(of, form="fast"))
        kernels = "cudnn" in fast.lower(*given).as_text()
        with jax.default_matmul_precision("float32"):
            exact = jax.jit(partial(of, form="plain"))(*(x.astype(jnp.float32) for x in given))
        plain = jax.jit(partial(of, form="plain"))(*given)
        words, right = [], True
        for name, a, b, c in zip(NAMES, fast(*given), plain, exact, strict=True):
            ours, theirs = off(a, c), off(b, c)
            right &= ours <= max(TIMES * theirs, ROUNDING)
            words.append(f"{name} {ours:.1e} ({theirs:.1e})")
        by = "cuDNN" if kernels else "no cuDNN"
        asked = f"T {t}, S {s}, {heads} and {kv_heads} heads, {static}"
        verdict = "" if right else "WRONG, "
        yield f"{verdict}{asked}, {by}: off by, and the plain form, {', '.join(words)}", right


def _both_passes(static: Any, q: Array, k: Array, v: Array, dy: Array, form: str) -> Any:
    """y, L, dq, dk and dv."""

    def run() -> Any:
        y, residuals = attention.fwd(q, k, v, **static)
        return y, residuals.log_normaliser, *attention.bwd(residuals, dy, **static)[:3]

    if form == "fast":
        return run()
    with plain_forms():
        return run()
