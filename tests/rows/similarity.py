"""Rows of the cosine of vectors and of the losses of pairs and triplets."""

import numpy as np

from jaxnn.ops.cosine import cosine_embedding, cosine_similarity
from jaxnn.ops.triplet import triplet_margin
from rows import Row
from rows.losses import REDUCE, pair


def vectors(rng, shape):
    """Of two dimensions at least: in one the cosine is 1 or -1, with gradient 0."""
    return pair(rng, (*shape[:-1], 1 + shape[-1]))


def cosine(a, b, eps=1e-8):
    norms = (np.maximum(np.linalg.norm(x, axis=-1), eps) for x in (a, b))
    return (a * b).sum(-1) / np.prod(list(norms), 0)


def pairs(rng, shape):
    return *vectors(rng, shape), rng.choice([-1, 1], shape[:-1])


def triplets(rng, shape):
    return tuple(rng.normal(size=(3, *shape)))


def embedding(a, b, labels, margin=0.0, reduction="mean"):
    squares = ((x * x).sum(-1) + 1e-12 for x in (a, b))
    c = (a * b).sum(-1) / np.sqrt(np.prod(list(squares), 0))
    return REDUCE[reduction](np.where(labels == 1, 1 - c, np.maximum(c - margin, 0)))


def torch_embedding(torch, a, b, labels, **static):
    rows = (x.reshape(-1, x.shape[-1]) for x in (a, b))
    return torch.nn.functional.cosine_embedding_loss(*rows, labels.ravel(), **static)


def triplet(a, p_, n, margin=1.0, p=2, eps=1e-6, swap=False, reduction="mean"):
    near, far, other = (np.linalg.norm(v + eps, p, -1) for v in (a - p_, a - n, p_ - n))
    far = np.minimum(far, other) if swap else far
    return REDUCE[reduction](np.maximum(margin + near - far, 0))


def torch_triplet(torch, *inputs, **static):
    return torch.nn.functional.triplet_margin_loss(*inputs, **static)


SWAPPED = {"p": 3.0, "margin": 0.5, "eps": 0.1, "swap": True, "reduction": "none"}

ROWS = {
    "cosine_similarity": Row(
        cosine_similarity,
        {},
        cosine,
        vectors,
        lambda torch, a, b: torch.nn.functional.cosine_similarity(a, b, -1),
    ),
    "cosine_similarity of short vectors": Row(
        cosine_similarity,
        {"eps": 1.5},
        cosine,
        vectors,
    ),
    "cosine_embedding": Row(cosine_embedding, {}, embedding, pairs, torch_embedding),
    "cosine_embedding with a margin": Row(
        cosine_embedding, {"margin": 0.2, "reduction": "sum"}, embedding, pairs, torch_embedding
    ),
    "triplet_margin": Row(triplet_margin, {}, triplet, triplets, torch_triplet),
    "triplet_margin by the nearer": Row(triplet_margin, SWAPPED, triplet, triplets, torch_triplet),
    "triplet_margin in steps": Row(
        triplet_margin, {"p": 1.0, "reduction": "sum"}, triplet, triplets, torch_triplet
    ),
}
