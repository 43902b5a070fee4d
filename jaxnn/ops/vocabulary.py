"""A vocabulary spread over devices: each has V/n of its V tokens, one after another.

    embedding        y_t = table[t], of the device that has it; the sum over devices is the whole
                     dtable[t] = sum of dy wherever t stood, on the device that has it

    cross-entropy    z = x w,  m = max over devices of max_j z_j
                     L = m + log (sum over devices of sum_j exp(z_j - m))
                     l = L - z_label, of the device that has the label,  loss = mean l
                     p = exp(z - L),  dz = (p - one-hot label) dl,  dw = x^T dz,
                     dx = sum over devices of dz w^T

No device ever holds all logits, nor sends them: three numbers for each token go round, and x once
each way (Shoeybi et al., 2019, "Megatron-LM", section 3). With no axes, `()`, both are as on one
device, where `embedding` and `linear_cross_entropy` have more settings and less memory.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnn.checks import check_kind, check_shapes
from jaxnn.numerics import product, valid_labels, widen
from jaxnn.op import Op
from jaxnn.ops.collectives import Axis, all_copy, all_sum
from jaxnn.ops.collectives_doors import check_axis
from jaxnn.ops.linear import Embedding, EmbeddingResiduals, Linear, embedding
from jaxnn.ops.linear_cross_entropy import linear_cross_entropy


def vocabulary_embedding_fwd(
    params: Embedding, tokens: Array, *, axis: Axis
) -> tuple[Array, EmbeddingResiduals]:
    """Take a row of the table for each token: y (..., D), the same on all devices.

    Args:
        params: table (V / n, D), the rows of this device's tokens.
        tokens: (...) integers in [0, V), the same on all devices along the axes.
        axis: the names of the axes of the mesh along which the table is spread.

    Returns:
        y (..., D), residuals: the table, and the tokens counted from this device's first.

    Raises:
        TypeError, ValueError: as `jaxnn.ops.linear.embedding_fwd` and
            `jaxnn.ops.collectives.all_copy_fwd`.
    """
    (table,) = params
    local = tokens - lax.axis_index(axis) * len(table)
    is_here = (local >= 0) & (local < len(table))
    y, saved = embedding.fwd(params, local)
    y, _ = all_sum.fwd(jnp.where(is_here[..., None], y, 0), axis=axis)
    is_token = (tokens >= 0) & (tokens < len(table) * lax.axis_size(axis))
    return jnp.where(is_token[..., None], y, jnp.nan), saved


def vocabulary_embedding_bwd(
    saved: EmbeddingResiduals, dy: Array, *, axis: Axis
) -> tuple[Embedding, None]:
    """Add each dy to its token's row where that is; elsewhere there is no such row."""
    (dy,) = all_sum.bwd((), dy, axis=axis)
    return embedding.bwd(saved, dy)


class VocabularyCrossEntropyResiduals(NamedTuple):
    """This device's w (D, V/n), x (..., D), its logits (..., V/n), L (...), labels as saved above.

    The logits and L are in float32 or wider; `counts` (...) is 1, or NaN where no token is meant.
    """

    params: Linear
    x: Array
    z: Array
    log_sum: Array
    labels: Array
    counts: Array


def vocabulary_cross_entropy_fwd(
    params: Linear, x: Array, labels: Array, *, axis: Axis
) -> tuple[Array, VocabularyCrossEntropyResiduals]:
    """Return the mean softmax cross-entropy of the logits x w, in nats, the same on all devices.

    Args:
        params: w (D, V / n), the columns of this device's tokens; b must be None.
        x: (..., D), the same on all devices along the axes.
        labels: (...) integers in [0, V), the same on all of them.
        axis: the names of the axes of the mesh along which w is spread.

    Returns:
        loss, residuals.

    Raises:
        TypeError, ValueError: as `jaxnn.ops.linear_cross_entropy.linear_cross_entropy_fwd` and
            `jaxnn.ops.collectives.all_copy_fwd`.
    """
    w, _ = params
    here, _ = all_copy.fwd(x, axis=axis)
    z = product(here, w)
    classes = w.shape[1]
    label, counts = valid_labels(labels, classes * lax.axis_size(axis), z.dtype)
    local = label - lax.axis_index(axis) * classes
    is_here = (local >= 0) & (local < classes)
    largest = lax.pmax(lax.stop_gradient(z.max(-1)), axis)
    total, _ = all_sum.fwd(jnp.exp(z - largest[..., None]).sum(-1), axis=axis)
    found = jnp.take_along_axis(z, local[..., None], -1, mode="clip")[..., 0]
    label_z, _ = all_sum.fwd(jnp.where(is_here, found, 0), axis=axis)
    log_sum = largest + jnp.log(total)
    loss = ((log_sum - label_z) * counts).mean().astype(x.dtype)
    return loss, VocabularyCrossEntropyResiduals(params, x, z, log_sum, local, counts)


def vocabulary_cross_entropy_bwd(
    saved: VocabularyCrossEntropyResiduals, dloss: Array, *, axis: Axis
) -> tuple[Linear, Array, None]:
    """Return dw of this device's columns, and dx, to which all of them add."""
    (w, _), x, z, log_sum, local, counts = saved
    dl = widen(dloss) * counts / counts.size
    is_label = local[..., None] == jnp.arange(w.shape[1], dtype=local.dtype)
    dz = (jnp.exp(z - log_sum[..., None]) - is_label.astype(z.dtype)) * dl[..., None]
    wide, dz = dz.dtype, dz.astype(x.dtype)
    dw = jnp.einsum("...d,...v->dv", x, dz, preferred_element_type=wide).astype(w.dtype)
    (dx,) = all_copy.bwd((), dz @ w.T, axis=axis)
    return Linear(dw, None), dx, None


def _check_embedding(params: Embedding, tokens: Array, *, axis: Axis) -> None:
    n = check_axis("vocabulary_embedding: axis", axis)
    check_kind("vocabulary_embedding: params", params, Embedding)
    check_shapes("vocabulary_embedding", "reshape it", table=(params.table, "VD"))
    table: Any = params.table
    table = jax.ShapeDtypeStruct((n * len(table), *table.shape[1:]), table.dtype)
    embedding.admit((Embedding(table), tokens), {})


def _check_cross_entropy(params: Linear, x: Array, labels: Array, *, axis: Axis) -> None:
    n = check_axis("vocabulary_cross_entropy: axis", axis)
    check_kind("vocabulary_cross_entropy: params", params, Linear)
    w, b = params
    if b is not None:
        raise ValueError(
            "vocabulary_cross_entropy: b is an array; it must be None, for the output of a "
            "language model has no biases"
        )
    fix = "check the feature count, or transpose w"
    check_shapes("vocabulary_cross_entropy", fix, w=(w, "DV"), x=(x, "...D"))
    whole: Any = jax.ShapeDtypeStruct((len(w), n * w.shape[1]), w.dtype)
    linear_cross_entropy.admit((Linear(whole), x, labels), {})


def _example(key: Array) -> tuple[Linear, Array, Array]:
    """One device's columns, x, and labels of three devices; one occurs twice."""
    kw, kx = jax.random.split(key)
    w, x = jax.random.normal(kw, (3, 4)), jax.random.normal(kx, (2, 5, 3))
    return Linear(w), x, jnp.array([[3, 0, 11, 3, 5], [8, 4, 0, 7, 1]])


def _tokens_example(key: Array) -> tuple[Embedding, Array]:
    (w, _), _, labels = _example(key)
    return Embedding(w.T), labels


_AXIS = ({"axis": ("devices",)},)
vocabulary_embedding = Op(
    vocabulary_embedding_fwd, vocabulary_embedding_bwd, _tokens_example, _AXIS,
    check=_check_embedding, varies={"axis": ((True, False), False)},
)  # fmt: skip
vocabulary_cross_entropy = Op(
    vocabulary_cross_entropy_fwd, vocabulary_cross_entropy_bwd, _example, _AXIS,
    check=_check_cross_entropy, varies={"axis": ((True, False, False), False)},
)  # fmt: skip
