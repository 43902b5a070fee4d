"""One of two processes that hold half of a batch each: `two_processes.py PORT NUMBER`."""

import sys

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnn import data
from jaxnn.ops.cross_entropy import softmax_cross_entropy


def main(port, number):
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(number))
    mesh = jax.make_mesh((2,), ("data",))
    over = NamedSharding(mesh, P("data"))
    mine = np.arange(6.0, dtype=np.float32).reshape(2, 3) - int(number), np.array([0, 1])
    batch = data.Batch(*(jax.make_array_from_process_local_data(over, x) for x in mine))
    assert not batch.targets.is_fully_addressable
    logits, labels = batch
    print(float(softmax_cross_entropy(logits, labels)))


main(*sys.argv[1:])
