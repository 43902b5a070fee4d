"""Rows of the mixture of experts."""

import numpy as np
import scipy.special

from jaxnn.ops.experts import Experts, experts
from rows import Row


def routed(rng, shape):
    size, count, units = shape[-1], 2 + shape[0] % 4, 3
    params = Experts(
        rng.normal(size=(size, count)),
        rng.normal(size=(count, size, units)),
        rng.normal(size=(count, size, units)),
        rng.normal(size=(count, units, size)),
    )
    return params, rng.normal(size=shape)


def token_by_token(params, x, k):
    """Only the chosen experts, one token after another."""
    rows = x.reshape(-1, x.shape[-1])
    y, share = np.zeros_like(rows), np.zeros(params.router.shape[1])
    for i, row in enumerate(rows):
        z = row @ params.router
        best = np.argsort(-z, kind="stable")[:k]
        share[best] += 1 / len(rows)
        for e, weight in zip(best, scipy.special.softmax(z[best]), strict=True):
            gated = row @ params.gate[e]
            h = gated * scipy.special.expit(gated) * (row @ params.up[e])
            y[i] += weight * (h @ params.down[e])
    mean = scipy.special.softmax(rows @ params.router, -1).mean(0)
    return y.reshape(x.shape), len(share) * share @ mean


def torch_experts(torch, params, x, k):
    rows = x.reshape(-1, x.shape[-1])
    p = torch.softmax(rows @ params.router, -1)
    best, index = p.topk(k)
    weights = best / best.sum(-1, keepdim=True)
    y = torch.zeros_like(rows)
    for e, (gate, up, down) in enumerate(zip(*params[1:], strict=True)):
        token, place = torch.where(index == e)
        h = torch.nn.functional.silu(rows[token] @ gate) * (rows[token] @ up)
        y = y.index_add(0, token, weights[token, place, None] * (h @ down))
    share = torch.nn.functional.one_hot(index, p.shape[-1]).to(p.dtype).sum(1).mean(0)
    return y.reshape(x.shape), p.shape[-1] * share @ p.mean(0)


ROWS = {"experts": Row(experts, {"k": 2}, token_by_token, routed, torch_experts, averages=True)}
