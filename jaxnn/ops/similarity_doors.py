"""What cosine and triplet losses refuse: their doors."""

import math
from typing import Any

import numpy as np

from jaxnn.checks import check_integers, check_one_dtype, check_pair, check_shapes, is_seen
from jaxnn.numerics import REDUCTIONS
from jaxnn.settings import check_choice, check_flag, check_number


def check_cosine_similarity(a: Any, b: Any, *, eps: Any) -> None:
    """Refuse what `cosine_similarity_fwd` says it raises.

    Raises:
        TypeError, ValueError: as `cosine_similarity_fwd`.
    """
    _check_vectors("cosine_similarity", "none", a=a, b=b)
    rule = "positive, what a smaller norm counts as: 1e-8 is usual"
    check_number("cosine_similarity: eps", eps, rule, lambda e: 0 < e < math.inf)


def check_cosine_embedding(a: Any, b: Any, labels: Any, *, margin: Any, reduction: Any) -> None:
    """Refuse what `cosine_embedding_fwd` says it raises.

    Raises:
        TypeError, ValueError: as `cosine_embedding_fwd`.
    """
    op = "cosine_embedding"
    _check_vectors(op, reduction, a=a, b=b)
    check_integers(f"{op}: labels", labels, "cast them with labels.astype(int)")
    if labels.shape != a.shape[:-1]:
        raise ValueError(
            f"{op}: labels have shape {labels.shape}, a and b {a.shape}; there must be one label "
            f"per pair, shape {a.shape[:-1]}: check that all have the same length"
        )
    check_number(f"{op}: margin", margin, "within [-1, 1], as a cosine is", lambda m: -1 <= m <= 1)
    if is_seen(labels) and (abs(np.asarray(labels)) != 1).any():
        raise ValueError(
            f"{op}: labels are not all 1 or -1; they must be: pass 2 * labels - 1 for 0 and 1"
        )


def check_triplet_margin(
    anchor: Any, positive: Any, negative: Any, *, swap: Any, reduction: Any, **numbers: Any
) -> None:
    """Refuse what `triplet_margin_fwd` says it raises.

    Raises:
        TypeError, ValueError: as `triplet_margin_fwd`.
    """
    op = "triplet_margin"
    _check_vectors(op, reduction, anchor=anchor, positive=positive, negative=negative)
    check_flag(f"{op}: swap", swap)
    rules = {
        "margin": ("finite and positive: 1 is usual", lambda m: 0 < m < math.inf),
        "p": ("at least 1 and finite: 2 is usual", lambda p: 1 <= p < math.inf),
        "eps": ("finite and at least 0: 1e-6 is usual", lambda e: 0 <= e < math.inf),
    }
    for name, (rule, holds) in rules.items():
        check_number(f"{op}: {name}", numbers[name], rule, holds)


def _check_vectors(op: str, reduction: Any, **vectors: Any) -> None:
    """Refuse vectors of unlike shapes or dtypes, and none of them for the mean."""
    check_choice(f"{op}: reduction", reduction, REDUCTIONS)
    first, *others = vectors
    check_shapes(op, "add a dimension", **{first: (vectors[first], "...D")})
    for name in others:
        check_pair(op, reduction, **{first: vectors[first], name: vectors[name]})
    check_one_dtype(op, **vectors)
