"""A catalogue of mistakes as students make them, and of right answers of other algebra.

A mistake is a text of a solution and what stands there instead; `kinds` are the causes that may be
named for it, the planted one first, and others only if they say the same (with the reason).

    python tests/mistakes_of_students.py            the table, and the figures
    python tests/mistakes_of_students.py softmax    of some exercises
"""

import re
import sys
import time
from typing import NamedTuple

from jaxnn.learn import exercise, grade, guard, start, student
from jaxnn.learn.result import Result


class Mistake(NamedTuple):
    """A mistake: of which exercise, in words, the text replaced, and the causes that are true.

    Attributes:
        kinds: of the cause that is named; an expression over the words said where it is a fault.
        args: the cotangents that must be found wrong, separated by blanks.
        same: why a second kind says the same.
    """

    exercise: str
    what: str
    old: str
    new: str
    kinds: str
    args: str
    grade: str = "fused"
    same: str = ""


class Variant(NamedTuple):
    """A right answer of other algebra: the text replaced in the solution."""

    exercise: str
    what: str
    old: str
    new: str
    grade: str = "fused"


M, V = Mistake, Variant

ALL_MISTAKES = (
    # A matrix product and a bias.
    M("linear", "mean for sum", "dy.sum(0)", "dy.mean(0)", "factor", "db"),
    M("linear", "wrong axis", "dy.sum(0)", "dy.sum(1)", "shape axis", "db",
      same="an axis too few or too many shows as a shape"),
    M("linear", "not summed", "dy.sum(0)", "dy", "broadcast", "db"),
    M("linear", "keepdims", "dy.sum(0)", "dy.sum(0, keepdims=True)", "shape", "db"),
    M("linear", "transposed", "x.T @ dy", "dy.T @ x", "transpose", "dw"),
    M("linear", "order of returns", "return dy @ w.T, x.T @ dy, dy.sum(0)",
      "return x.T @ dy, dy @ w.T, dy.sum(0)", "swapped shape", "dx dw",
      same="two shapes exchanged"),
    M("linear", "1/N too much", "x.T @ dy", "x.T @ dy / len(x)", "factor", "dw"),
    M("linear", "the bias gets ones", "dy.sum(0)", "jnp.full(dy.shape[-1], 1.0 * len(dy))",
      "forward value", "db"),
    M("linear", "handed on", "return dy @ w.T, x.T @ dy, dy.sum(0)",
      "return dy @ w.T, x.T @ dy, dy[0]", "one", "db"),
    M("linear", "a finite difference", "return dy @ w.T",
      "def f(x):\n        return (x @ w * dy).sum()\n\n    e = 1e-5 * jnp.eye(x.size, dtype="
      "x.dtype).reshape(-1, *x.shape)\n    return jnp.stack([f(x + d) - f(x - d) for d in e])"
      ".reshape(x.shape) / 2e-5", "precision", "dx"),
    M("linear", "jax.grad itself", "return dy @ w.T, x.T @ dy, dy.sum(0)",
      "import jax\n    f = lambda x, w, b: ((x @ w + b) * dy).sum()\n"
      "    return jax.grad(f, (0, 1, 2))(x, w, dy[0])", "asks jax.grad", ""),
    M("linear", "jax.vjp from a helper", "return dy @ w.T, x.T @ dy, dy.sum(0)",
      "return pulled(x, w, dy)\n\n\ndef pulled(x, w, dy):\n    from jax import vjp as v\n"
      "    return v(lambda x, w, b: x @ w + b, x, w, dy[0])[1](dy)", "asks jax.vjp", ""),
    M("linear", "a shape that does not fit", "dy @ w.T", "dy @ w", "shapes do not fit", ""),
    M("linear", "one cotangent short", "return dy @ w.T, x.T @ dy, dy.sum(0)",
      "return dy @ w.T, x.T @ dy", "returns 2 cotangents", ""),
    # Softmax, and what hangs on its sums.
    M("softmax", "the diagonal alone", "p * (dp - inner)", "p * (1 - p) * dp",
      "slope path", "dx"),
    M("softmax", "the sum left out", "p * (dp - inner)", "p * dp", "path extra", "dx"),
    M("softmax", "wrong axis", "(dp * p).sum(-1, keepdims=True)",
      "(dp * p).sum(0, keepdims=True)", "axis", "dx"),
    M("softmax", "mean for sum", "(dp * p).sum(-1, keepdims=True)",
      "(dp * p).mean(-1, keepdims=True)", "factor mean", "dx",
      same="1/C of what comes back through the sum"),
    M("softmax", "not weighted", "(dp * p).sum(-1, keepdims=True)",
      "dp.sum(-1, keepdims=True)", "missing factor", "dx"),
    M("softmax", "sign of the sum", "dp - inner", "dp + inner", "sign", "dx"),
    M("softmax", "the forward returned", "p * (dp - inner)", "p", "forward value", "dx"),
    M("softmax", "handed on", "p * (dp - inner)", "dp", "handed on", "dx"),
    M("softmax", "the exponent forgotten", "p * (dp - inner)", "dp - inner",
      "missing factor", "dx"),
    M("softmax", "NaN", "p * (dp - inner)", "p * (dp - inner) / (p - p)", "nan", "dx"),
    M("softmax", "largest not taken off", "jnp.exp(x - x.max(-1, keepdims=True))", "jnp.exp(x)",
      "precision", "p"),
    M("softmax", "in bfloat16", "p * (dp - inner)", "(p * (dp - inner)).astype(jnp.bfloat16)",
      "dtype", "dx"),
    M("softmax", "float32 inside", "p * (dp - inner)",
      "(p * (dp - inner)).astype(jnp.float32)", "dtype", "dx"),
    # Cross-entropy.
    M("softmax_cross_entropy", "forgotten 1/N", "/ len(labels)", "", "factor", "dz"),
    M("softmax_cross_entropy", "1/K for 1/N", "/ len(labels)", "/ z.shape[-1]", "factor", "dz"),
    M("softmax_cross_entropy", "sign", "(p - q)", "(q - p)", "sign", "dz"),
    M("softmax_cross_entropy", "the label alone", "dloss * (p - q)", "-dloss * q", "path extra",
      "dz"),
    M("softmax_cross_entropy", "the softmax alone", "dloss * (p - q)", "dloss * p", "path extra",
      "dz"),
    M("softmax_cross_entropy", "dloss forgotten", "dloss * (p - q)", "(p - q)",
      "missing factor", "dz"),
    M("softmax_cross_entropy", "softmax over examples", "jax.nn.softmax(z)",
      "jax.nn.softmax(z, axis=0)", "axis", "dz"),
    M("softmax_cross_entropy", "logits for probabilities", "(p - q)", "(z - q)", "wrong value",
      "dz"),
    M("softmax_cross_entropy", "half a Jacobian", "dloss * (p - q)", "dloss * p * (p - q)",
      "too much", "dz"),
    M("softmax_cross_entropy", "the next label", "one_hot(labels,", "one_hot((labels + 1) % 3,",
      "index", "dz"),
    M("softmax_cross_entropy", "N as a number", "/ len(labels)", "/ 4", "size", "dz"),
    M("softmax_cross_entropy", "K as a number", "z.shape[-1]", "3", "right where N = 4", ""),
    # Norms.
    M("layer_norm", "the mean's path", "dx_hat - through_mean - through_variance",
      "dx_hat - through_variance", "path", "dx"),
    M("layer_norm", "the variance's path", "dx_hat - through_mean - through_variance",
      "dx_hat - through_mean", "path", "dx"),
    M("layer_norm", "both paths", "dx_hat - through_mean - through_variance", "dx_hat",
      "path", "dx"),
    M("layer_norm", "sum for mean", "dx_hat.mean(-1, keepdims=True)",
      "dx_hat.sum(-1, keepdims=True)", "factor mean", "dx",
      same="C times what comes back through the mean"),
    M("layer_norm", "sum for mean in the variance", "(dx_hat * x_hat).mean(-1, keepdims=True)",
      "(dx_hat * x_hat).sum(-1, keepdims=True)", "factor mean", "dx",
      same="C times what comes back through the variance"),
    M("layer_norm", "wrong axis", "dx_hat.mean(-1, keepdims=True)",
      "dx_hat.mean(0, keepdims=True)", "axis", "dx"),
    M("layer_norm", "scale forgotten", "dx_hat = dy * scale", "dx_hat = dy",
      "missing factor", "dx"),
    M("layer_norm", "1/sigma forgotten", "dx = rstd * (", "dx = (", "missing factor", "dx"),
    M("layer_norm", "sigma for 1/sigma", "dx = rstd * (", "dx = (1 / rstd) * (",
      "too constant wrong slope", "dx"),
    M("layer_norm", "mean for sum of scale", "(dy * x_hat).sum(0)", "(dy * x_hat).mean(0)",
      "factor", "dscale"),
    M("layer_norm", "x_hat forgotten", "(dy * x_hat).sum(0)", "dy.sum(0)",
      "missing factor", "dscale"),
    M("layer_norm", "scale and shift exchanged", "(dy * x_hat).sum(0), dy.sum(0)",
      "dy.sum(0), (dy * x_hat).sum(0)", "swapped", "dscale dshift"),
    M("layer_norm", "not summed", "(dy * x_hat).sum(0), dy.sum(0)", "dy * x_hat, dy.sum(0)",
      "broadcast", "dscale"),
    M("layer_norm", "summed over features", "(dy * x_hat).sum(0)", "(dy * x_hat).sum(-1)",
      "shape axis", "dscale"),
    M("layer_norm", "sign of a term", "- through_variance", "+ through_variance", "sign", "dx"),
    M("layer_norm", "variance as a difference",
      "lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)",
      "lax.rsqrt((x**2).mean(-1, keepdims=True) - x.mean(-1, keepdims=True)**2 + 1e-5)",
      "precision", "dx"),
    M("layer_norm", "forward without eps", "+ 1e-5", "", "forward", "y"),
    M("rms_norm", "the path through sigma", "dx_hat - x_hat * (dx_hat * x_hat).mean(-1, "
      "keepdims=True)", "dx_hat", "path", "dx"),
    M("rms_norm", "twice", "x_hat * (dx_hat * x_hat)", "2 * x_hat * (dx_hat * x_hat)",
      "factor twice constant", "dx", same="what comes back through the square is twice"),
    M("rms_norm", "sum for mean", ".mean(-1, keepdims=True))\n    return",
      ".sum(-1, keepdims=True))\n    return", "factor mean", "dx",
      same="C times what comes back through the mean"),
    M("rms_norm", "layer norm's mean", "x_hat * (dx_hat * x_hat).mean(-1, keepdims=True)",
      "dx_hat.mean(-1, keepdims=True)", "missing wrong", "dx"),
    M("rms_norm", "x for x_hat", "return dx, (dy * x_hat).sum(0)",
      "x = x_hat / rstd\n    return dx, (dy * x).sum(0)", "wrong missing", "dscale",
      same="x_hat is x with the factor rstd"),
    M("layer_norm", "batch norm's formula",
      "dx = rstd * (dx_hat - through_mean - through_variance)",
      "dx = rstd * (dx_hat - dx_hat.mean(0) - x_hat * (dx_hat * x_hat).mean(0))", "axis", "dx"),
    M("layer_norm", "N for C", "dx = rstd * (dx_hat - through_mean - through_variance)",
      "n = len(dy)\n    dx = rstd * (dx_hat - dx_hat.sum(-1, keepdims=True) / n - x_hat * "
      "(dx_hat * x_hat).sum(-1, keepdims=True) / n)", "size", "dx"),
    M("batch_norm", "layer norm's formula",
      "dx = scale * rstd * (dy - dshift / len(dy) - x_hat * dscale / len(dy))",
      "d = dy * scale\n    dx = rstd * (d - d.mean(-1, keepdims=True) - x_hat * (d * x_hat).mean("
      "-1, keepdims=True))", "axis", "dx"),
    M("embedding", "the last wins, in NumPy",
      "return jnp.zeros_like(table).at[tokens].add(dy)",
      "d = np.zeros(table.shape)\n    d[np.asarray(tokens)] += np.asarray(dy)\n    return d",
      "overwritten", "dtable"),
    M("embedding", "the last wins, in a loop",
      "return jnp.zeros_like(table).at[tokens].add(dy)",
      "d = np.zeros(table.shape)\n    for n in range(len(tokens)):\n"
      "        for t in range(tokens.shape[1]):\n            d[tokens[n, t]] = dy[n, t]\n"
      "    return d", "overwritten", "dtable"),
    M("layer_norm", "means over all", "dx = rstd * (dx_hat - through_mean - through_variance)",
      "dx = rstd * (dx_hat - dx_hat.mean() - x_hat * (dx_hat * x_hat).mean())", "axis", "dx"),
    M("huber", "another threshold", "jnp.clip(d, -0.8, 0.8)", "jnp.clip(d, -1, 1)", "constant",
      "dpredictions dtargets"),
    M("lstm", "from first to last", "for t in reversed(range(len(steps))):",
      "for t in range(len(steps)):", "time", "dparams dx"),
    M("lstm", "the slope of the forget gate", "dc * c_before * f * (1 - f)", "dc * c_before * f",
      "own factor", "dx dparams"),
    M("mse", "the sign alone", "2 * d", "2 * jnp.sign(d)", "function", "dpredictions dtargets"),
    M("rms_norm", "scale of x_hat", "(dy * x_hat).sum(0)", "(dx_hat * x_hat).sum(0)",
      "wrong value", "dscale"),
    # Recurrent steps, and through time.
    M("lstm_step", "the cell as an output", "dc_new = dc_new + dh * o", "dc_new = dh * o",
      "path", "da dc"),
    M("lstm_step", "the cell through the state", "dc_new = dc_new + dh * o * (1 - t**2)",
      "dc_new = dc_new", "path", "da dc"),
    M("lstm_step", "the cell after", "dc_new * c * f * (1 - f)", "dc_new * t * f * (1 - f)",
      "wrong value", "da"),
    M("lstm_step", "slope of tanh", "(1 - g**2)", "(1 - g)", "slope constant", "da"),
    M("lstm_step", "a sigmoid's slope for tanh", "dc_new * i * (1 - g**2)",
      "dc_new * i * g * (1 - g)", "slope too", "da"),
    M("lstm_step", "the slope of the gate left out", "dc_new * g * i * (1 - i)", "dc_new * g",
      "slope", "da"),
    M("lstm_step", "forget and input exchanged", "[da_i, da_f, da_g, da_o]",
      "[da_f, da_i, da_g, da_o]", "exchanged", "da"),
    M("lstm_step", "the forget gate left out", "dc_new * f", "dc_new", "missing factor slope",
      "dc"),
    M("lstm_step", "tanh forgotten", "dh * t * o * (1 - o)", "dh * o * (1 - o)", "too missing",
      "da"),
    M("gru_step", "sign of the update gate", "dy * (h - n)", "dy * (n - h)", "sign", "da db"),
    M("gru_step", "the reset gate left out", "[da_r, da_z, da_n * r]", "[da_r, da_z, da_n]",
      "missing factor other", "db"),
    M("gru_step", "update gate the other way", "dy * (1 - z) * (1 - n**2)",
      "dy * z * (1 - n**2)", "wrong slope", "da db"),
    M("gru_step", "the state through the gate alone", ", dy * z", ", dy", "handed missing slope",
      "dh"),
    M("gru_step", "tanh's slope of the input", "(1 - n**2)", "(1 - b_n**2)", "wrong value",
      "da db"),
    M("lstm", "no gradient through time", "dh = dy[:, t] + dh", "dh = dy[:, t]",
      "missing term", "dx dparams"),
    M("lstm", "the forget gate left out", "dc = dc * f", "dc = dc", "missing factor",
      "dx dparams"),
    M("lstm", "order of steps", "dx[::-1]", "dx", "time", "dx"),
    M("lstm", "the state after", '"w_h": h_before.T @ da', '"w_h": (o * tanh_c).T @ da',
      "wrong value time", "dparams['w_h']"),
    M("lstm", "the bias as a mean", '"b": da.sum(0)', '"b": da.mean(0)', "factor", "dparams['b']"),
    M("lstm", "only the last step", "jax.tree.map(jnp.add, dparams, here)", "here",
      "missing zero", "dparams",
      same="the first step, where the state is zero, is all that is left of it"),
    M("lstm", "begins with ones", "dh = dc = jnp.zeros_like(dy[:, 0])",
      "dh = jnp.zeros_like(dy[:, 0])\n    dc = jnp.ones_like(dh)", "start", "dx dparams"),
    M("lstm", "a transpose", 'da @ params["w_x"].T', 'da @ params["w_x"]', "shapes do not fit",
      ""),
    # Attention.
    M("attention", "plain mean in the softmax", "(p * dp).sum(-1, keepdims=True)",
      "dp.mean(-1, keepdims=True)", "weights", "dq dk"),
    M("attention", "transposed", "dz.T @ q", "dz @ q", "transpose", "dk"),
    M("attention", "the scale forgotten", " / q.shape[-1] ** 0.5\n    return dz",
      "\n    return dz", "factor", "dq dk"),
    M("attention", "no root in the scale", "/ q.shape[-1] ** 0.5\n    return dz",
      "/ q.shape[-1]\n    return dz", "factor", "dq dk"),
    M("attention", "the softmax's sum left out", "dp - (p * dp).sum(-1, keepdims=True)", "dp",
      "path extra", "dq dk"),
    M("attention", "values not transposed", "p.T @ dy", "p @ dy", "transpose", "dv"),
    M("attention", "queries and keys exchanged", "return dz @ k, dz.T @ q",
      "return dz.T @ q, dz @ k", "swapped", "dq dk"),
    M("attention", "softmax over queries", "(p * dp).sum(-1, keepdims=True)",
      "(p * dp).sum(0, keepdims=True)", "axis", "dq dk"),
    M("attention", "p forgotten", "dz = p * (dp", "dz = (dp", "missing factor", "dq dk"),
    M("online_softmax_attention", "the last block alone", "dq = dq + ds @ k_block",
      "dq = ds @ k_block", "path missing time extra twice", "dq"),
    M("online_softmax_attention", "softmax within a block",
      "p = jnp.exp(q @ k_block.T * q.shape[1] ** -0.5 - log_sum)",
      "p = jax.nn.softmax(q @ k_block.T * q.shape[1] ** -0.5, axis=1)", "slope wrong", "dv"),
    M("online_softmax_attention", "mean for sum", "(dy * y).sum(1, keepdims=True)",
      "(dy * y).mean(1, keepdims=True)", "factor mean", "dq dk"),
    # Others.
    M("linear_cross_entropy", "forgotten 1/N", "* dloss / x.shape[0]", "* dloss", "factor",
      "dx dw"),
    M("linear_cross_entropy", "the label's chunk", "== first + jnp.arange(part.shape[1])",
      "== jnp.arange(part.shape[1])", "missing time mask index", "dx dw"),
    M("linear_cross_entropy", "the last chunk alone", "dx = dx + dz @ part.T",
      "dx = dz @ part.T", "path missing extra twice", "dx"),
    M("conv", "overlap replaced", ".add(dy @ w[k].T)", ".set(dy @ w[k].T)", "overwritten", "dx"),
    M("conv", "one place too few", "    return dx, jnp",
      "    dx = jnp.zeros_like(x)\n    for k in range(len(w) - 1):\n"
      "        dx = dx.at[:, k : k + places].add(dy @ w[k].T)\n    return dx, jnp", "index", "dx"),
    M("conv", "channels for places", "places = dy.shape[1]", "places = w.shape[2]",
      "right where N = 2", ""),
    M("conv", "the bias over one axis", "dy.sum((0, 1))", "dy.sum(0)", "broadcast", "db"),
    M("conv", "the kernel flipped", "dy @ w[k].T", "dy @ w[::-1][k].T", "time", "dx"),
    M("conv", "one place late", "dx.at[:, k : k + places]",
      "dx.at[:, len(w) - 1 - k : len(w) - 1 - k + places]", "time", "dx"),
    M("dropout", "the scale forgotten", "dy / 0.7", "dy", "factor", "dx"),
    M("dropout", "scaled twice", "dy / 0.7", "dy / 0.7 / 0.7", "factor", "dx"),
    M("dropout", "the mask forgotten", "jnp.where(kept, dy / 0.7, 0), None", "dy / 0.7, None",
      "mask", "dx"),
    M("dropout", "the mask turned round", "jnp.where(kept, dy / 0.7, 0), None",
      "jnp.where(~kept, dy / 0.7, 0), None", "mask", "dx"),
    M("dropout", "a mask drawn anew", "jnp.where(kept, dy / 0.7, 0), None",
      "jnp.where(jax.random.bernoulli(jax.random.key(0), 0.7, dy.shape), dy / 0.7, 0), None",
      "mask", "dx"),
    M("embedding", "set for add", ".add(dy)", ".set(dy)", "overwritten", "dtable"),
    M("embedding", "a mean over uses", "jnp.zeros_like(table).at[tokens].add(dy)",
      "jnp.zeros_like(table).at[tokens].add(dy) / tokens.size", "factor", "dtable"),
    M("embedding", "one row off", ".at[tokens]", ".at[tokens - 1]", "time", "dtable"),
    M("rotary", "turned on", "[du * cos + dv * sin, dv * cos - du * sin]",
      "[du * cos - dv * sin, dv * cos + du * sin]", "sign", "dx"),
    M("rotary", "one position late", "jnp.outer(jnp.arange(t), 100.0 ** (-jnp.arange(0, d, 2) / d"
      "))\n    cos, sin = jnp.cos(angle).astype(dy", "jnp.outer(jnp.arange(t) + 1, 100.0 ** (-jnp."
      "arange(0, d, 2) / d))\n    cos, sin = jnp.cos(angle).astype(dy", "constant", "dx",
      same="the 1 that is added to every position"),
    M("rotary", "the halves exchanged", "[du * cos + dv * sin, dv * cos - du * sin]",
      "[dv * cos - du * sin, du * cos + dv * sin]", "exchanged", "dx"),
    M("softplus", "overflow", "jax.nn.sigmoid(x)", "(jnp.exp(x) / (1 + jnp.exp(x)))", "precision",
      "dx"),
    M("softplus", "the other side", "jax.nn.sigmoid(x)", "jax.nn.sigmoid(-x)", "slope sign", "dx"),
    M("softplus", "slope of the sigmoid", "jax.nn.sigmoid(x)",
      "jax.nn.sigmoid(x) * (1 - jax.nn.sigmoid(x))", "too", "dx"),
    M("softplus", "1/(1+e) alone", "dy * jax.nn.sigmoid(x)", "dy / (1 + jnp.exp(x))",
      "path slope missing", "dx"),
    M("swiglu", "the gate's own factor", "s + a * (1 - s)", "s * (1 - s)", "missing too path",
      "dgate"),
    M("swiglu", "the sigmoid's path", "s + a * (1 - s)", "s", "path", "dgate"),
    M("swiglu", "the sigmoid alone", "(s + a * (1 - s)), dy * a", "(s + a * (1 - s)), dy * s",
      "wrong missing", "dvalue",
      same="a = gate * s: s stands where a must, or lacks the factor gate"),
    M("swiglu", "exchanged", "return dy * value * (s + a * (1 - s)), dy * a",
      "return dy * a, dy * value * (s + a * (1 - s))", "swapped", "dgate dvalue"),
    M("residual", "the skip forgotten", "return dy + dbranch", "return dbranch", "path", "dx"),
    M("residual", "the branch forgotten", "return dy + dbranch", "return dy", "handed path", "dx"),
    M("residual", "a square transpose", "dnormed = dy @ w.T", "dnormed = dy @ w", "transpose",
      "dx dscale"),
    M("residual", "1/sigma as a constant",
      "rstd * (dx_hat - x_hat * (dx_hat * x_hat).mean(1, keepdims=True))", "rstd * dx_hat", "path",
      "dx"),
    M("transformer_block", "the skip's part", "dx_in = dx + rstd_1", "dx_in = dy + rstd_1",
      "wrong value", "dx dparams"),
    M("transformer_block", "the values' path",
      ' + dv @ params["wv"].T', "", "missing term", "dx dparams"),
    M("transformer_block", "softmax over queries", "dp - (p * dp).sum(-1, keepdims=True)",
      "dp - (p * dp).sum(-2, keepdims=True)", "axis", "dx dparams"),
    M("transformer_block", "the scores' scale", " * q.shape[-1] ** -0.5\n    dq", "\n    dq",
      "factor missing", "dx dparams"),
    # Products, sums and losses.
    M("matmul", "a transpose forgotten", "dy @ w.T", "dy @ w", "shapes do not fit", ""),
    M("matmul", "in the wrong order", "x.T @ dy", "dy.T @ x", "transpose", "dw"),
    M("matmul", "1/N too much", "x.T @ dy", "x.T @ dy / len(x)", "factor", "dw"),
    M("matmul", "rows that do not meet", "x.T @ dy", "jnp.einsum('nk,lm->km', x, dy)", "line wrong",
      "dw"),
    M("broadcast_add", "one axis summed", "dy.sum((0, 1))", "dy.sum(0)", "broadcast", "db"),
    M("broadcast_add", "a mean over sequences", "dy.sum((0, 1))", "dy.mean((0, 1))", "factor",
      "db"),
    M("broadcast_add", "keepdims forgotten", ".sum(-1, keepdims=True)", ".sum(-1)", "shape", "dp"),
    M("broadcast_add", "not summed at all", "dy.sum(0).sum(-1, keepdims=True)", "dy", "broadcast",
      "dp"),
    M("broadcast_add", "the first sequence alone", "dy.sum(0).sum(-1, keepdims=True)",
      "dy[0].sum(-1, keepdims=True)", "one", "dp"),
    M("relu", "the cotangent cut", "jnp.where(y > 0, dy, 0)", "jnp.maximum(dy, 0)", "mask wrong",
      "dx"),
    M("relu", "everything passes", "y > 0", "y >= 0", "handed mask", "dx",
      same="dy is handed on as it came"),
    M("relu", "turned round", "y > 0", "y <= 0", "mask", "dx"),
    M("relu", "times its value", "jnp.where(y > 0, dy, 0)", "y * dy", "slope", "dx"),
    M("gelu", "the formula with erf",
      "dy * (0.5 * (1 + t) + 0.5 * x * (1 - t) * (1 + t) * du)",
      "dy * (jax.scipy.stats.norm.cdf(x) + x * jax.scipy.stats.norm.pdf(x))", "slope", "dx"),
    M("gelu", "the first term alone", "0.5 * (1 + t) + 0.5 * x * (1 - t) * (1 + t) * du",
      "0.5 * (1 + t)", "path", "dx"),
    M("gelu", "the slope of a cube", "0.044715 * x**2)", "0.044715 * x)", "missing slope wrong",
      "dx", same="x for x**2: it lacks the factor x, or has another slope"),
    M("gelu", "the 3 of the cube", "1 + 3 * 0.044715", "1 + 0.044715", "factor", "dx"),
    M("gelu", "a constant cut short", "du = 0.7978845608028654", "du = 0.79788", "digits", "dx"),
    M("gelu", "tanh's slope", "(1 - t) * (1 + t)", "(1 - t)", "missing factor too slope", "dx"),
    M("gelu", "the inner slope", " * du)", ")", "slope missing", "dx"),
    M("sigmoid", "tanh's slope", "y * (1 - y)", "(1 - y**2)", "slope", "dx"),
    M("sigmoid", "taken twice", "dy * y * (1 - y)",
      "dy * jax.nn.sigmoid(y) * (1 - jax.nn.sigmoid(y))", "slope", "dx"),
    M("sigmoid", "half of it", "dy * y * (1 - y)", "dy * y", "slope", "dx"),
    M("mse", "the mean over examples", "dloss / d.size", "dloss / len(d)", "factor",
      "dpredictions dtargets"),
    M("mse", "the 2 of the square", "2 * d", "d", "factor", "dpredictions dtargets"),
    M("mse", "the sign of the targets", "dd, -dd", "dd, dd", "sign other swapped", "dtargets"),
    M("mse", "dloss forgotten", " * dloss", "", "missing factor", "dpredictions dtargets"),
    M("huber", "the sign alone outside", "jnp.clip(d, -0.8, 0.8)",
      "jnp.where(jnp.abs(d) <= 0.8, d, jnp.sign(d))", "factor",
      "dpredictions dtargets"),
    M("huber", "nothing outside", "jnp.clip(d, -0.8, 0.8)",
      "jnp.where(jnp.abs(d) <= 0.8, d, 0)", "path", "dpredictions dtargets"),
    M("huber", "the square everywhere", "jnp.clip(d, -0.8, 0.8)", "d", "mask slope missing",
      "dpredictions dtargets"),
    M("l2_penalty", "2 too much", "STRENGTH * dloss * w_1", "2 * STRENGTH * dloss * w_1", "factor",
      "dw_1"),
    M("l2_penalty", "the strength forgotten", "STRENGTH * dloss * w_2", "dloss * w_2", "factor",
      "dw_2"),
    M("l2_penalty", "exchanged", "STRENGTH * dloss * w_1, STRENGTH * dloss * w_2",
      "STRENGTH * dloss * w_2, STRENGTH * dloss * w_1", "swapped shape", "dw_1 dw_2"),
    M("l2_penalty", "an L1 penalty", "STRENGTH * dloss * w_1",
      "STRENGTH * dloss * jnp.sign(w_1)", "function slope", "dw_1"),
    # A layer spread over devices.
    M("tensor_parallel", "no sum over devices", "(dz @ w_in.mT).sum(0)", "dz @ w_in.mT",
      "broadcast shape", "dx", same="an axis too many shows as a shape"),
    M("tensor_parallel", "one device's part", "(dz @ w_in.mT).sum(0)", "(dz @ w_in.mT)[0]",
      "one of many", "dx"),
    M("tensor_parallel", "mean over devices", "(dz @ w_in.mT).sum(0)", "(dz @ w_in.mT).mean(0)",
      "factor", "dx"),
    M("tensor_parallel", "b on every device", "dy.sum(0)", "len(w_in) * dy.sum(0)", "factor", "db"),
    M("tensor_parallel", "slope of z for h", "(1 - h * h)", "h * (1 - h)", "slope", "dx dw_in"),
    # Whole networks.
    M("deep_relu", "the cotangent masked", "jnp.where(inputs[number] > 0, da, 0)",
      "jnp.where(da > 0, da, 0)", "not", "dparams dx"),
    M("deep_relu", "behind the ReLU", "inputs[number - 1].T @ dz", "inputs[number - 1].T @ da",
      "wrong value", "dparams"),
    M("deep_relu", "a mean over examples", "dz.sum(0)", "dz.mean(0)", "factor", "dparams"),
    M("mlp", "forgotten 1/N", " / len(x)", "", "factor", "dparams dx"),
    M("mlp", "the ReLU left out", "jnp.where(a > 0, da, 0)", "da", "unmasked", "dparams dx"),
    M("mlp", "behind the ReLU", "x.T @ dz", "x.T @ da", "wrong value", "dparams"),
    M("mlp", "a mean over examples", '"b_1": dz.sum(0)', '"b_1": dz.mean(0)', "factor", "dparams"),
    M("mlp", "the sign of the loss", "(jnp.exp(log_p) - q)", "(q - jnp.exp(log_p))", "sign",
      "dparams dx"),
    M("mlp", "logarithms for probabilities", "jnp.exp(log_p) - q", "log_p - q",
      "function wrong missing", "dparams dx", same="exp of it is what belongs there"),
    M("cnn", "overlap replaced", ".add(dz @", ".set(dz @", "overwritten", "dx"),
    M("cnn", "a mean over places", "dz.sum((0, 1, 2))", "dz.mean((0, 1, 2))", "factor", "dparams"),
    M("cnn", "the pool left out", "is_largest & (a > 0)", "a > 0", "unmasked", "dparams dx"),
    # Pooling, and the norm over a batch.
    M("max_pool", "a third of each", "jnp.where(taken, dy[:, :, None], 0)",
      "taken * dy[:, :, None] / 3", "factor", "dx"),
    M("max_pool", "the smallest", "windows.argmax(2", "windows.argmin(2", "extreme", "dx"),
    M("max_pool", "channels for windows",
      "windows = x.reshape(len(x), -1, 3, x.shape[-1])\n    taken",
      "windows = x.reshape(len(x), x.shape[-1], 3, x.shape[-1])\n    taken", "right where N = 2",
      ""),
    M("max_pool", "all of a window", "jnp.where(taken, dy[:, :, None], 0)",
      "jnp.where(taken | True, dy[:, :, None], 0)", "mask", "dx"),
    M("avg_pool", "forgotten 1/K", "share = dy / 3", "share = dy", "factor", "dx"),
    M("avg_pool", "overlap replaced", "dx.at[:, 2::2].add(", "dx.at[:, 2::2].set(", "overwritten",
      "dx"),
    M("avg_pool", "a place left out", "    dx = dx.at[:, 1:-1:2].add(share)\n", "", "path", "dx"),
    M("batch_norm", "the variance's path", " - x_hat * dscale / len(dy)", "", "path", "dx"),
    M("batch_norm", "the mean's path", " - dshift / len(dy)", "", "path", "dx"),
    M("batch_norm", "1/N in both", "dshift / len(dy) - x_hat * dscale / len(dy)",
      "dshift - x_hat * dscale", "factor path", "dx"),
    M("batch_norm", "over features", "dshift, dscale = dy.sum(0), (dy * x_hat).sum(0)",
      "dshift, dscale = dy.sum(1), (dy * x_hat).sum(1)", "shapes|broadcast", ""),
    M("batch_norm", "scale forgotten", "dx = scale * rstd", "dx = rstd", "missing factor", "dx"),
    # In place, in NumPy.
    M("layer_norm", "damages its argument", "dx_hat = dy * scale",
      "dy = np.multiply(dy, scale, out=dy)\n    dx_hat = dy", "in place", ""),
    M("softmax", "changes what is saved", "inner = (dp * p).sum(-1, keepdims=True)",
      "p *= np.asarray(dp)\n    inner = p.sum(-1, keepdims=True)", "in place", ""),
    # One line at a time.
    M("layer_norm", "a slope, line by line", "dvar = -0.5 * drstd * rstd**3",
      "dvar = -0.5 * drstd * rstd**2", "line", "dvar", "easy"),
    M("layer_norm", "a use left out, line by line",
      "dcentred = dx_hat * rstd + 2 * centred * dvar / x.shape[-1]", "dcentred = dx_hat * rstd",
      "path", "dcentred", "easy"),
    M("layer_norm", "sum for mean, line by line", "dx = dcentred + dmu / x.shape[-1]",
      "dx = dcentred + dmu", "factor path", "dx", "easy",
      same="C times what comes back through the mean"),
    M("layer_norm", "C as a number, line by line", "dmu / x.shape[-1]", "dmu / 3", "size", "dx",
      "easy"),
    M("layer_norm", "a sum forgotten, line by line",
      "drstd = (dx_hat * centred).sum(-1, keepdims=True)", "drstd = dx_hat * centred",
      "broadcast", "drstd", "easy"),
    M("softmax", "a minus, line by line", "dtotal = -(dp * e)", "dtotal = (dp * e)", "sign",
      "dtotal", "easy"),
    M("lstm_step", "the cell's own use, line by line", "dc_new = from_above + dt * (1 - t**2)",
      "dc_new = dt * (1 - t**2)", "path", "dc_new", "easy"),
)  # fmt: skip

ALL_VARIANTS = (
    V("linear", "einsum", "return dy @ w.T, x.T @ dy",
      'return jnp.einsum("no,io->ni", dy, w), jnp.einsum("ni,no->io", x, dy)'),
    V("linear", "broadcast products", "x.T @ dy", "(x[:, :, None] * dy[:, None, :]).sum(0)"),
    V("linear", "in NumPy", "x.T @ dy, dy.sum(0)",
      "np.tensordot(x, dy, (0, 0)), np.sum(dy, axis=0)"),
    V("linear", "ones times dy", "dy.sum(0)", "jnp.ones(len(dy), dy.dtype) @ dy"),
    V("softmax", "unfused", "(p * (dp - inner),)", "(p * dp - p * inner,)"),
    V("softmax", "the Jacobian", "(p * (dp - inner),)",
      "(jnp.einsum('nij,nj->ni', p[:, :, None] * (jnp.eye(p.shape[-1], dtype=p.dtype) "
      "- p[:, None, :]), dp),)"),
    V("softmax", "matmul of rows", "(dp * p).sum(-1, keepdims=True)",
      "(dp[:, None, :] @ p[:, :, None])[:, 0]"),
    V("softmax", "a loop over rows", "(p * (dp - inner),)",
      "(jnp.stack([p[i] * (dp[i] - p[i] @ dp[i]) for i in range(len(p))]),)"),
    V("softmax_cross_entropy", "scatter of the labels", "dloss * (p - q)",
      "dloss * p.at[jnp.arange(len(labels)), labels].add(-1)"),
    V("softmax_cross_entropy", "1/N first", "dloss * (p - q) / len(labels)",
      "(dloss / z.shape[0]) * p - (dloss / z.shape[0]) * q"),
    V("softmax_cross_entropy", "by log_softmax", "jax.nn.softmax(z)",
      "jnp.exp(jax.nn.log_softmax(z, axis=-1))"),
    V("layer_norm", "karpathy's form",
      "dx = rstd * (dx_hat - through_mean - through_variance)",
      "n = dy.shape[-1]\n    dx = rstd / n * (n * dx_hat - dx_hat.sum(-1, keepdims=True) "
      "- x_hat * (dx_hat * x_hat).sum(-1, keepdims=True))"),
    V("layer_norm", "line by line", "dx = rstd * (dx_hat - through_mean - through_variance)",
      "n = dy.shape[-1]\n    centred = x_hat / rstd\n"
      "    dvar = -0.5 * (dx_hat * centred).sum(-1, keepdims=True) * rstd**3\n"
      "    dcentred = dx_hat * rstd + 2 * centred * dvar / n\n"
      "    dx = dcentred - dcentred.mean(-1, keepdims=True)"),
    V("layer_norm", "projection", "dx = rstd * (dx_hat - through_mean - through_variance)",
      "dx = rstd * (dx_hat - through_mean - through_variance)\n"
      "    dx = dx - dx.mean(-1, keepdims=True)"),
    V("layer_norm", "einsum sums", "(dy * x_hat).sum(0), dy.sum(0)",
      "jnp.einsum('nc,nc->c', dy, x_hat), jnp.einsum('nc->c', dy)"),
    V("layer_norm", "a list", "return dx, (dy * x_hat).sum(0), dy.sum(0)",
      "return [dx, (dy * x_hat).sum(0), dy.sum(0)]"),
    V("layer_norm", "in NumPy", "dx = rstd * (dx_hat - through_mean - through_variance)",
      "dx = np.multiply(rstd, dx_hat - through_mean - through_variance)"),
    V("rms_norm", "n and sums", "rstd * (dx_hat - x_hat * (dx_hat * x_hat).mean(-1, keepdims="
      "True))", "dx_hat * rstd - rstd * x_hat * (dx_hat * x_hat).sum(-1, keepdims=True) / "
      "dy.shape[-1]"),
    V("attention", "einsum", "return dz @ k, dz.T @ q, p.T @ dy",
      'return jnp.einsum("ts,sd->td", dz, k), jnp.einsum("ts,td->sd", dz, q), jnp.einsum('
      '"ts,te->se", p, dy)'),
    V("attention", "dy . y for the sum", "(p * dp).sum(-1, keepdims=True)",
      "(dy * (p @ v)).sum(-1, keepdims=True)"),
    V("attention", "computed again", "q, k, v, p = saved",
      "q, k, v, _ = saved\n    s = q @ k.T / q.shape[-1] ** 0.5\n"
      "    s = jnp.where(jnp.tril(jnp.ones(s.shape, bool)), s, -1e30)\n"
      "    s = jnp.exp(s - s.max(-1, keepdims=True))\n    p = s / s.sum(-1, keepdims=True)"),
    V("conv", "pad and slide", "return dx, jnp.stack(dw), dy.sum((0, 1))",
      "pad = jnp.pad(dy, ((0, 0), (len(w) - 1, len(w) - 1), (0, 0)))\n"
      "    dx = sum(pad[:, len(w) - 1 - k : len(w) - 1 - k + x.shape[1]] @ w[k].T "
      "for k in range(len(w)))\n    return dx, jnp.stack(dw), dy.sum(0).sum(0)"),
    V("dropout", "a product with the mask", "jnp.where(kept, dy / 0.7, 0), None",
      "dy * kept / 0.7, None"),
    V("embedding", "a product with one-hot rows",
      "jnp.zeros_like(table).at[tokens].add(dy)",
      "jnp.einsum('ntv,ntd->vd', tokens[..., None] == jnp.arange(len(table)), dy)"),
    V("lstm_step", "sigmoid's slope unfused", "o * (1 - o)", "(o - o * o)"),
    V("gru_step", "from the new state", "dy * (h - n)", "(dy * h - dy * n)"),
    V("rotary", "complex numbers", "(jnp.concatenate([du * cos + dv * sin, dv * cos - du * sin], "
      "-1),)", "(jnp.concatenate([du, dv], -1) * jnp.concatenate([cos, cos], -1) + "
      "jnp.concatenate([dv, -du], -1) * jnp.concatenate([sin, sin], -1),)"),
    V("softplus", "1/(1 + exp(-x))", "dy * jax.nn.sigmoid(x)", "dy / (1 + jnp.exp(-x))"),
    V("softplus", "tanh", "jax.nn.sigmoid(x)", "(0.5 * (1 + jnp.tanh(x / 2)))"),
    V("swiglu", "unfused", "(s + a * (1 - s))", "(s + gate * s * (1 - s))"),
    V("mse", "by the mean's weight", "2 * d * dloss / d.size", "dloss * (d / (0.5 * d.size))"),
    V("relu", "a product with the mask", "jnp.where(y > 0, dy, 0)", "dy * (y > 0)"),
    V("sigmoid", "unfused", "dy * y * (1 - y)", "dy * y - dy * y**2"),
    V("matmul", "einsum", "dy @ w.T", 'jnp.einsum("nm,km->nk", dy, w)'),
    V("batch_norm", "as in the paper",
      "dx = scale * rstd * (dy - dshift / len(dy) - x_hat * dscale / len(dy))",
      "n = len(dy)\n    dx = scale * rstd / n * (n * dy - dshift - x_hat * dscale)"),
    V("max_pool", "ones of the places", "jnp.where(taken, dy[:, :, None], 0)",
      "dy[:, :, None] * taken"),
    V("mlp", "the mask as a factor", "jnp.where(a > 0, da, 0)", "da * (a > 0)"),
    V("layer_norm", "fused, line by line", "dx = dcentred + dmu / x.shape[-1]",
      "dx = dcentred - dcentred.mean(-1, keepdims=True)", "easy"),
)  # fmt: skip


_THERE = exercise.names()
MISTAKES = tuple(case for case in ALL_MISTAKES if case.exercise in _THERE)
VARIANTS = tuple(case for case in ALL_VARIANTS if case.exercise in _THERE)


def graded(case: Mistake | Variant) -> tuple[Result, float]:
    """Return how the file of a case is graded, and the seconds that took."""
    found = exercise.find(case.exercise)
    path = f"{case.exercise}.py"
    source = start.solution(found, case.grade, path)
    assert case.old in source, f"{case.exercise}: {case.old!r} is not in the solution"
    source = source.replace(case.old, case.new, 1)
    imports = {"np": "import numpy as np", "jax": "import jax"}
    for name, text in imports.items():
        if re.search(rf"\b{name}\.", case.new) and f"{text}\n" not in source:
            source = source.replace("EXERCISE, GRADE", f"{text}\n\nEXERCISE, GRADE", 1)
    started = time.perf_counter()
    try:
        result = grade.graded(student.parsed(path, source))
    except guard.Fault as fault:
        result = Result("", "", fault=str(fault), kind="fault")
    return result, time.perf_counter() - started


class Verdict(NamedTuple):
    """What was found of a mistake."""

    caught: bool
    named: bool
    wrongly: str
    words: str


def verdict(case: Mistake, result: Result) -> Verdict:
    """Return whether a mistake was caught, and its cause named: the planted one and no other."""
    if result.fault:
        named = bool(re.search(case.kinds, result.fault)) if not case.args else False
        return Verdict(True, named, "" if named else result.fault, result.fault)
    wrong = {row.name: row for row in result.rows if row.status == "wrong"}
    asked = [row for name, row in wrong.items() if _concerns(case, name)]
    kinds = set(case.kinds.split()) | {case.kinds}
    others = [row for row in wrong.values() if row.kind and not _is_of(row.kind, kinds)]
    others += [row for name, row in wrong.items() if not _concerns(case, name) and row.cause]
    named = bool(asked) and all(row.kind for row in asked) and not others
    words = "; ".join(row.cause or f"{row.name}: -" for row in wrong.values())
    return Verdict(bool(asked), named, "; ".join(f"{r.kind}: {r.cause}" for r in others), words)


def _concerns(case: Mistake, name: str) -> bool:
    return any(name == arg or name.startswith(f"{arg}[") for arg in case.args.split())


def _is_of(kind: str, kinds: set[str]) -> bool:
    return kind in kinds or kind.split()[0] in kinds


def main(names: list[str]) -> None:
    """Print the table, and the figures."""
    mistakes = [m for m in MISTAKES if not names or m.exercise in names]
    variants = [v for v in VARIANTS if not names or v.exercise in names]
    caught = named = wrongly = 0
    took = []
    for m in mistakes:
        result, seconds = graded(m)
        found = verdict(m, result)
        caught, named = caught + found.caught, named + found.named
        wrongly += bool(found.wrongly)
        took.append(seconds)
        mark = "named" if found.named else ("WRONGLY" if found.wrongly else "unnamed")
        state = mark if found.caught else "MISSED"
        kinds = " ".join(sorted({r.kind for r in result.rows if r.kind})) or result.kind
        print(f"{m.exercise:<24} {m.what:<32} {state:<8} {kinds:<18} {seconds:5.2f}  {found.words}")
    right = 0
    for v in variants:
        result, seconds = graded(v)
        right += bool(result)
        took.append(seconds)
        print(f"{v.exercise:<24} {v.what:<32} {'accepted' if result else 'REFUSED'} {seconds:5.2f}")
        if not result:
            print(result)
    print(
        f"{len(mistakes)} mistakes: {caught} caught, {named} named, {wrongly} named wrongly; "
        f"{right} of {len(variants)} right answers accepted; {sum(took):.1f} s, at most "
        f"{max(took):.1f} s"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
