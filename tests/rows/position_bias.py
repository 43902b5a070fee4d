"""Rows of attention's biases by distance."""

import math

import numpy as np

from jaxnn.ops.position_bias import PositionBias, relative_position_bias
from rows import Row

BOTH = {"queries": 9, "keys": 14, "max_distance": 7}
CAUSAL = {"queries": 6, "keys": 4, "bidirectional": False, "max_distance": 5}


def table(rng, shape):
    return (PositionBias(rng.normal(size=(8, shape[0]))),)


def bucket(distance, count, bidirectional, max_distance):
    """One distance at a time, near ones by themselves, far ones by the logarithm."""
    after = bidirectional and distance > 0
    n = count // 2 if bidirectional else count
    away = abs(distance) if bidirectional else max(-distance, 0)
    if away < n // 2:
        return away + n * after
    share = math.log(away / (n // 2)) / math.log(max_distance / (n // 2))
    return min(n // 2 + math.floor(share * (n - n // 2)), n - 1) + n * after


def looked_up(params, queries, keys, bidirectional=True, max_distance=128):
    """Each query and key by itself."""
    bias = np.zeros((1, params.table.shape[1], queries, keys))
    for i, j in np.ndindex(queries, keys):
        distance = j - (i + keys - queries)
        bias[0, :, i, j] = params.table[
            bucket(distance, len(params.table), bidirectional, max_distance)
        ]
    return bias


def torch_looked_up(torch, params, queries, keys, bidirectional=True, max_distance=128):
    """PyTorch's embedding, at buckets worked out one by one."""
    distances = (j - (i + keys - queries) for i in range(queries) for j in range(keys))
    found = [bucket(d, len(params.table), bidirectional, max_distance) for d in distances]
    rows = torch.nn.functional.embedding(torch.tensor(found), params.table)
    return rows.T.reshape(1, -1, queries, keys)


ROWS = {
    f"relative_position_bias {static}": Row(
        relative_position_bias, static, looked_up, table, torch_looked_up
    )
    for static in (BOTH, CAUSAL)
}
