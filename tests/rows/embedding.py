"""Rows of the embedding and of its table as the output layer."""

import numpy as np

from jaxnn.ops.linear import Embedding, embedding, unembed
from rows import Row


def tokens(rng, shape):
    table = rng.normal(size=(1 + shape[0], 3))
    return Embedding(table), rng.integers(0, len(table), shape)


def features(rng, shape):
    return Embedding(rng.normal(size=(1 + shape[0], shape[-1]))), rng.normal(size=shape)


ROWS = {
    "embedding": Row(
        embedding,
        {},
        lambda p, t: np.take(p.table, t, axis=0),
        tokens,
        lambda torch, p, t: torch.nn.functional.embedding(t, p.table),
    ),
    "unembed": Row(
        unembed,
        {},
        lambda p, x: np.einsum("...d,vd->...v", x, p.table),
        features,
        lambda torch, p, x: torch.nn.functional.linear(x, p.table),
    ),
}
