"""Mixture of experts: a router sends each token to k of E small networks.

Forward; f_e is the share of tokens that chose e, P_e the mean of p_e over the tokens:

    z = x router,  p = softmax(z)
    w_e = p_e / (sum of the k largest p) for those k, 0 for the others
    h_e = silu(x gate_e) * (x up_e),  y = sum_e w_e h_e down_e
    loss = E sum_e f_e P_e

Backward; the choice has no gradient, and so neither has f:

    dw_e = h_e . (down_e dy),  dp_e = dloss E f_e / tokens
    dz = w (dw - sum_e w_e dw_e) + p (dp - sum_e p_e dp_e)

Over devices (`axis`) each has some of the experts, or some units of each (`units`): every device
routes all tokens, x is handed to all, what their experts add to y is summed, and no token goes
anywhere by itself. Where devices have tokens of their own (`batch`), f and P are means over the
tokens of all of them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_kind, check_not_empty, check_one_dtype, check_shapes
from jaxnn.numerics import product, widen
from jaxnn.op import Op
from jaxnn.ops.collectives import Axis, all_copy, all_mean, all_sum
from jaxnn.ops.collectives_doors import check_axis
from jaxnn.settings import check_integer
from jaxnn.varying import vary_with


class Experts(NamedTuple):
    """Parameters: `router` (D, E); of each expert, `gate` and `up` (E, D, F), `down` (E, F, D)."""

    router: Array
    gate: Array
    up: Array
    down: Array


class ExpertsResiduals(NamedTuple):
    """The inputs; p and w (B, E) of B tokens, f (E,); x gate and x up (B, E, F).

    p, w and f are in float32 or wider.
    """

    params: Experts
    x: Array
    p: Array
    w: Array
    f: Array
    gated: Array
    raised: Array


def experts_fwd(
    params: Experts, x: Array, *, k: int, axis: Axis = (), units: Axis = (), batch: Axis = ()
) -> tuple[tuple[Array, Array], ExpertsResiduals]:
    """Mix E SwiGLU experts, of which each token uses k; return y and the load-balancing loss.

    The weights of the chosen are their probabilities divided by the sum of these, which is the
    softmax of their k logits (Mixtral's convention): with k = 1 the weight is 1, and the router
    learns from the loss alone. Of equal logits the first is chosen. The
    choice itself has no gradient.

    The loss is k where tokens or probabilities are spread evenly, and E where k = 1 and all
    tokens choose one expert with certainty. Multiply it by a coefficient of your own (Switch:
    0.01).

    Every expert computes every token, E / k times what is used, in E products of full matrices
    and no moving of tokens: right for few experts. Saves the router's 2 E values and the experts'
    2 E F values per token, beside x; silu and h are recomputed, and the experts' outputs (E D
    values) are never held.

    Args:
        params: router (D, E), gate and up (E, D, F), down (E, F, D).
        x: (..., D), tokens along all but the last dimension, at least one.
        k: how many experts each token uses, from 1 to E.
        axis: inside `jax.shard_map`, the axes of the mesh along which each device has some of the
            experts' gate, up and down; the router is whole on each, and x the same.
        units: the axes along which each device has some of the F units of its experts.
        batch: the axes along which each device has tokens of its own.

    Returns:
        (y like x, loss a scalar), residuals.

    Raises:
        TypeError: params are no `Experts`, they and x not floating arrays of one dtype, or k is no
            integer.
        ValueError: the shapes do not fit, there is no token, or k is outside [1, E].

    Jiang et al. (2024), "Mixtral of experts", section 2.1; the loss: Fedus et al. (2021), "Switch
    transformers", equations 4 to 6, with tokens that choose k experts each.
    """
    rows = x.reshape(-1, x.shape[-1])
    z = product(rows, params.router)  # wide: rounded, two close logits would change places
    count = z.shape[-1]
    chosen = jnp.zeros(z.shape, bool)
    for _ in range(k):  # by `lax.top_k` the compiler would gather the tokens of all devices
        largest = jnp.where(chosen, -jnp.inf, z).argmax(-1, keepdims=True)
        chosen |= largest == jnp.arange(count)
    exp = jnp.exp(z - lax.stop_gradient(z.max(-1, keepdims=True)))
    p = exp / exp.sum(-1, keepdims=True)
    w = jnp.where(chosen, exp, 0)
    w /= w.sum(-1, keepdims=True)
    rows, _ = all_copy.fwd(rows, axis=axis + units)
    gated = jnp.einsum("bd,edf->bef", rows, params.gate)
    raised = jnp.einsum("bd,edf->bef", rows, params.up)
    h = jax.nn.silu(widen(gated)) * widen(raised)
    own = lax.dynamic_slice_in_dim(w, _first(params, axis), len(params.down), axis=1)
    y = jnp.einsum("bef,efd->bd", (own[..., None] * h).astype(x.dtype), params.down)
    y, _ = all_sum.fwd(y, axis=axis + units)
    f, _ = all_mean.fwd(chosen.astype(p.dtype).mean(0), axis=batch)
    mean_p, _ = all_mean.fwd(p.mean(0), axis=batch)
    loss = count * (f * mean_p).sum()
    saved = ExpertsResiduals(params, x, p, w, f, gated, raised)
    return (y.reshape(x.shape), loss.astype(x.dtype)), saved


def experts_bwd(
    residuals: ExpertsResiduals,
    dout: tuple[Array, Array],
    *,
    k: int,
    axis: Axis = (),
    units: Axis = (),
    batch: Axis = (),
) -> tuple[Experts, Array]:
    """Return the cotangents of the parameters and of x from those of y and the loss."""
    params, x, p, w, f, gated, raised = residuals
    router, gate, up, down = params
    (dy, dloss), shared = dout, axis + units
    (dy,) = all_sum.bwd((), dy, axis=shared)
    first = _first(params, axis)
    own = lax.dynamic_slice_in_dim(w, first, len(down), axis=1)
    rows, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, x.shape[-1])
    gated, raised = widen(gated), widen(raised)
    sigmoid = lax.logistic(gated)
    silu = gated * sigmoid
    h = silu * raised
    # Of each expert's output, were its weight 1; a sum over D that is multiplied and summed again.
    back = jnp.einsum("bd,efd->bef", dy, down, preferred_element_type=w.dtype)
    dw = (back * h).sum(-1)
    dh = own[..., None] * back
    dgated = (dh * raised * (sigmoid + silu * (1 - sigmoid))).astype(x.dtype)
    draised = (dh * silu).astype(x.dtype)
    # Of the other devices' experts 0: what each sends back to the router and to x is summed.
    dw = lax.dynamic_update_slice_in_dim(vary_with(jnp.zeros_like(w), dw), dw, first, axis=1)
    (dmean_p,) = all_mean.bwd((), widen(dloss) * p.shape[1] * f, axis=batch)
    dp = dmean_p / p.shape[0]
    dz = w * (dw - (w * dw).sum(-1, keepdims=True))
    # Of the balance each device knows all: it is to be in the sum once.
    once = (lax.axis_index(shared) == 0).astype(p.dtype) if shared else 1
    dz = (dz + once * p * (dp - (p * dp).sum(-1, keepdims=True))).astype(x.dtype)
    dx = (
        product(dz, router.T)
        + jnp.einsum("bef,edf->bd", dgated, gate, preferred_element_type=w.dtype)
        + jnp.einsum("bef,edf->bd", draised, up, preferred_element_type=w.dtype)
    )
    ddown = jnp.einsum("bef,bd->efd", (own[..., None] * h).astype(x.dtype), dy)
    dgate = jnp.einsum("bd,bef->edf", rows, dgated)
    dup = jnp.einsum("bd,bef->edf", rows, draised)
    drouter, dx = (all_copy.bwd((), d, axis=shared)[0] for d in (rows.T @ dz, dx.astype(x.dtype)))
    return Experts(drouter, dgate, dup, ddown), dx.reshape(x.shape)


def _first(params: Experts, axis: Axis) -> Array | int:
    """The number of this device's first expert."""
    return lax.axis_index(axis) * len(params.down) if axis else 0


def _check(params: Experts, x: Array, *, k: int, axis: Axis, units: Axis, batch: Axis) -> None:
    check_kind("experts: params", params, Experts)
    router, gate, up, down = params
    sizes = check_shapes(
        "experts",
        "check the sizes of the E experts of F units, or transpose what differs",
        router=(router, "DE"),
        gate=(gate, "GDF"),
        up=(up, "GDF"),
        down=(down, "GFD"),
        x=(x, "...D"),
    )
    n = check_axis("experts: axis", axis)
    for name, one in {"units": units, "batch": batch}.items():
        check_axis(f"experts: {name}", one)
    if n * sizes.G != sizes.E:
        raise ValueError(
            f"experts: gate, up and down have {sizes.G} experts on each of {n} devices, the router "
            f"{sizes.E}; there must be as many: check the sizes of the experts"
        )
    check_one_dtype("experts", **params._asdict(), x=x)
    check_not_empty("experts: x", x, "the loss is a mean over tokens, there must be one")
    check_integer("experts: k", k, hint=f", and at most {sizes.E}, all experts")
    if k > sizes.E:
        raise ValueError(
            f"experts: k is {k} for {sizes.E} experts; it must be at most as many: choose fewer "
            "per token, or more experts"
        )


def _example(key: Array) -> tuple[Experts, Array]:
    """Four experts, two of them with one gate; one token is zero nearly everywhere."""
    kr, kg, ku, kd, kx = jax.random.split(key, 5)
    gate = jax.random.normal(kg, (4, 5, 3))
    params = Experts(
        router=jax.random.normal(kr, (5, 4)),
        gate=gate.at[1].set(gate[2]),
        up=jax.random.normal(ku, (4, 5, 3)),
        down=jax.random.normal(kd, (4, 3, 5)),
    )
    x = jax.random.normal(kx, (2, 7, 5))
    return params, x.at[0, 0, 1:].set(0)


_kinds: Any = Experts  # of bools here
experts = Op(
    experts_fwd,
    experts_bwd,
    _example,
    ({"k": 1}, {"k": 2}, {"k": 2, "units": ("columns",), "batch": ("rows",)}),
    check=_check,
    varies={  # along the batch each device has a gradient of its own
        "units": ((_kinds(False, True, True, True), False), False),
        "batch": ((True, True), (True, False)),
    },
)
