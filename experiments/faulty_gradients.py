"""Small networks with hand-written gradients in which honest mistakes can be planted.

An MLP, a convolution and two normalisations here, a recurrent cell and attention in
`faulty_sequences`. All compute in the dtype they are given, and end in a linear layer, softmax
and cross-entropy, whose mistakes they share.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from experiments import faulty_sequences
from experiments.faulty_layers import (
    HEAD,
    SLOPES,
    Batch,
    Fault,
    Params,
    System,
    activate,
    draw,
    draw_labels,
    head_bwd,
    head_loss,
    slope,
)

L2 = 0.02
EPSILON = 1e-5  # added to a variance
PADDING = ((0, 0), (1, 1), (1, 0), (0, 0))  # of an image [N, H, W, C] for a 3 x 2 kernel


def make_mlp(seed: int, size: int, dtype: Any, dead: bool = False) -> tuple[Params, Batch]:
    """Inputs [N, D] as wide as the hidden layer, so that a transpose fits.

    Dead: one unit is 0 for every example, and another's pre-activation is exactly 0.
    """
    n, d, k = ((5, 6, 4), (9, 16, 7))[size]
    rng = np.random.default_rng(seed)
    params = draw(rng, dtype, w1=(d, d), b1=(d,), w=(d, k), b=(k,))
    if dead:
        params["w1"] = params["w1"].at[:, 0].set(0)
        params["b1"] = params["b1"].at[:2].set(jnp.asarray([0, -100], dtype))
    return params, (jnp.asarray(rng.normal(size=(n, d)), dtype), draw_labels(rng, n, k))


def mlp_loss(params: Params, batch: Batch, *, activation: str) -> Array:
    """CE(f(x w1 + b1)) + L2/2 (|w1|^2 + |w|^2)."""
    x, labels = batch
    h = activate(activation, x @ params["w1"] + params["b1"])
    penalty = (params["w1"] ** 2).sum() + (params["w"] ** 2).sum()
    return head_loss(h, params, labels) + 0.5 * L2 * penalty


def mlp_grad(params: Params, batch: Batch, fault: Fault = None, *, activation: str) -> Params:
    """dz = dh f'(z);  dw1 = x' dz + L2 w1;  db1 = sum dz."""
    x, labels = batch
    z = x @ params["w1"] + params["b1"]
    h = activate(activation, z)
    saved = z if fault == "pre-activation saved" else h
    dh, grads = head_bwd(h, params, labels, fault, saved)
    dz = dh * slope(activation, z, h, dh, fault)
    dw = dz.T @ x if fault == "gradient transposed" else x.T @ dz
    l2 = {"regulariser forgotten": 0, "regulariser doubled": 2 * L2}.get(fault or "", L2)
    grads |= {
        "w1": dw + l2 * params["w1"],
        "b1": dz.sum(0),
        "w": grads["w"] + L2 * params["w"],
    }
    if fault == "regulariser of a bias":
        grads["b1"] += L2 * params["b1"]
    return grads


def make_conv(seed: int, size: int, dtype: Any, zeros: bool = False) -> tuple[Params, Batch]:
    """Images [N, H, W, C] with as many channels between the two layers, so that a transpose fits.

    Zeros: half of every image is black and the first biases are 0, so that relu is met at 0.
    """
    n, height, width, k = ((3, 5, 4, 4), (5, 7, 6, 5))[size]
    rng = np.random.default_rng(seed)
    params = draw(rng, dtype, w1=(3, 2, 2, 3), b1=(3,), w2=(3, 2, 3, 3), b2=(3,), w=(3, k), b=(k,))
    x = rng.normal(size=(n, height, width, 2))
    if zeros:
        x[:, : height // 2 + 1] = 0
        params["b1"] = params["b1"].at[:2].set(0)
    return params, (jnp.asarray(x, dtype), draw_labels(rng, n, k))


def _conv(x: Array, w: Array, b: Array) -> Array:
    out = lax.conv_general_dilated(
        x, w, (1, 1), PADDING[1:3], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return out + b


def _conv_layers(params: Params, x: Array) -> tuple[Array, Array, Array, Array]:
    z1 = _conv(x, params["w1"], params["b1"])
    h1 = activate("relu", z1)
    z2 = _conv(h1, params["w2"], params["b2"])
    return z1, h1, z2, activate("relu", z2)


def conv_loss(params: Params, batch: Batch) -> Array:
    """CE of the mean over the pixels of two layers of convolution and relu."""
    x, labels = batch
    return head_loss(_conv_layers(params, x)[-1].mean((1, 2)), params, labels)


def conv_grad(params: Params, batch: Batch, fault: Fault = None) -> Params:
    """The layers in reverse; every pixel of the mean gets its share of the cotangent."""
    x, labels = batch
    z1, h1, z2, h2 = _conv_layers(params, x)
    saved = (z2 if fault == "pre-activation saved" else h2).mean((1, 2))
    dm, grads = head_bwd(h2.mean((1, 2)), params, labels, fault, saved)
    pixels = 1 if fault == "pixels not averaged" else z2.shape[1] * z2.shape[2]
    dh2 = jnp.broadcast_to(dm[:, None, None] / pixels, z2.shape)
    dz2 = dh2 * slope("relu", z2, h2, dh2, None)
    dh1, dw2 = _conv_bwd(h1, params["w2"], dz2, fault)
    dz1 = dh1 * slope("relu", z1, h1, dh1, fault)
    _, dw1 = _conv_bwd(x, params["w1"], dz1, None)
    db1 = dz1[:, 0, 0].sum(0) if fault == "bias of one pixel" else dz1.sum((0, 1, 2))
    return grads | {"w1": dw1, "b1": db1, "w2": dw2, "b2": dz2.sum((0, 1, 2))}


def _conv_bwd(x: Array, w: Array, dy: Array, fault: Fault) -> tuple[Array, Array]:
    """dw[i, j] = sum x[h + i, w + j]' dy[h, w];  dx[h + i, w + j] += dy[h, w] w[i, j]'."""
    _, height, width, _ = x.shape
    padded = jnp.pad(x, PADDING)
    if fault == "shifted by one pixel":
        padded = jnp.roll(padded, 1, axis=2)
    windows = [
        (slice(None), slice(i, i + height), slice(j, j + width)) for i, j in np.ndindex(w.shape[:2])
    ]
    patches = jnp.stack([padded[window] for window in windows])
    dw = jnp.einsum("tnhwc,nhwk->tck", patches, dy).reshape(w.shape)
    if fault == "kernel not flipped":
        w = w[::-1, ::-1]
    if fault == "channels not transposed":
        w = w.swapaxes(2, 3)
    dpatches = jnp.einsum("nhwk,tck->tnhwc", dy, w.reshape(-1, *w.shape[2:]))
    dpadded = jnp.zeros_like(padded)
    for window, dpatch in zip(windows, dpatches, strict=True):
        dpadded = dpadded.at[window].add(dpatch)
    top = 0 if fault == "padding off by one" else PADDING[1][0]
    left = PADDING[2][0]
    dx = dpadded[:, top : top + height, left : left + width]
    return dx, dw[::-1, ::-1] if fault == "gradient flipped" else dw


def make_norm(seed: int, size: int, dtype: Any) -> tuple[Params, Batch]:
    """Inputs [N, D] for a linear layer, then a gain and a bias of each of its H units."""
    n, d, hidden, k = ((5, 3, 6, 4), (9, 7, 11, 5))[size]
    rng = np.random.default_rng(seed)
    params = draw(rng, dtype, w1=(d, hidden), gain=(hidden,), bias=(hidden,), w=(hidden, k), b=(k,))
    params["gain"] = 1 + params["gain"]
    return params, (jnp.asarray(rng.normal(size=(n, d)), dtype), draw_labels(rng, n, k))


def _normalised(a: Array, axis: int) -> tuple[Array, Array]:
    """(a - mean) / std along an axis, and 1 / std."""
    centred = a - a.mean(axis, keepdims=True)
    inverse = lax.rsqrt((centred**2).mean(axis, keepdims=True) + EPSILON)
    return centred * inverse, inverse


def norm_loss(params: Params, batch: Batch, *, axis: int) -> Array:
    """CE(gain x̂ + bias), x̂ = x w1 normalised over examples (axis 0) or over units (axis 1)."""
    x, labels = batch
    hat, _ = _normalised(x @ params["w1"], axis)
    return head_loss(params["gain"] * hat + params["bias"], params, labels)


def norm_grad(params: Params, batch: Batch, fault: Fault = None, *, axis: int) -> Params:
    """da = (g - mean g - x̂ mean(g x̂)) / std,  g = gain dh."""
    x, labels = batch
    a = x @ params["w1"]
    hat, inverse = _normalised(a, axis)
    dh, grads = head_bwd(params["gain"] * hat + params["bias"], params, labels, fault)
    g = dh if fault == "gain left out" else dh * params["gain"]
    n = a.shape[axis]
    over = 1 - axis if fault == "sums over the other axis" else axis
    divisor = n - 1 if fault == "n - 1 for n" else n
    mean = g.sum(over, keepdims=True) / n
    variance = hat * (g * hat).sum(over, keepdims=True) / divisor
    da = g
    if fault != "mean's part forgotten":
        da -= mean
    if fault != "variance's part forgotten":
        da -= variance
    if fault != "deviation left out":
        da *= inverse
    dgain = (dh * (a if fault == "gain from what was not normalised" else hat)).sum(0)
    dbias = dh.sum(0)
    if fault == "gain and bias swapped":
        dgain, dbias = dbias, dgain
    return grads | {"w1": x.T @ da, "gain": dgain, "bias": dbias}


def _mlp(activation: str) -> System:
    faults = (
        *HEAD, *SLOPES[activation], "pre-activation saved", "gradient transposed",
        "regulariser forgotten", "regulariser doubled", "regulariser of a bias",
    )  # fmt: skip
    return System(
        f"MLP, {activation}",
        make_mlp,
        partial(mlp_loss, activation=activation),
        partial(mlp_grad, activation=activation),
        faults,
    )


def _norm(name: str, axis: int) -> System:
    faults = (
        *HEAD, "mean's part forgotten", "variance's part forgotten", "n - 1 for n",
        "gain left out", "deviation left out", "sums over the other axis",
        "gain from what was not normalised", "gain and bias swapped",
    )  # fmt: skip
    return System(
        name, make_norm, partial(norm_loss, axis=axis), partial(norm_grad, axis=axis),
        faults,
    )  # fmt: skip


_CONV = (
    *HEAD, *SLOPES["relu"], "pre-activation saved", "kernel not flipped", "gradient flipped",
    "channels not transposed", "shifted by one pixel", "padding off by one",
    "pixels not averaged", "bias of one pixel",
)  # fmt: skip
SYSTEMS: tuple[System, ...] = (
    _mlp("relu"),
    _mlp("tanh"),
    System("convolution", make_conv, conv_loss, conv_grad, _CONV),
    _norm("batch norm", 0),
    _norm("layer norm", 1),
    *faulty_sequences.SYSTEMS,
)
# The same networks where relu is met at exactly 0 and units are dead: only for false alarms.
AWKWARD: tuple[System, ...] = (
    _mlp("relu")._replace(name="MLP, dead units", make=partial(make_mlp, dead=True), faults=()),
    System("convolution, zeros", partial(make_conv, zeros=True), conv_loss, conv_grad, ()),
)
