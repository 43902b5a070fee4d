"""One of two processes that hold half of a batch each: `two_processes.py PORT NUMBER`."""

import sys

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnn import data
from jaxnn.models import mlp


def main(port, number):
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(number))
    mesh = jax.make_mesh((2,), ("data",))
    over = NamedSharding(mesh, P("data"))
    config = mlp.Config(sizes=(3, 4, 2))
    params = mlp.init_params(jax.random.key(0), config)
    mine = np.arange(6.0, dtype=np.float32).reshape(2, 3) - int(number), np.array([0, 1])
    batch = data.Batch(*(jax.make_array_from_process_local_data(over, x) for x in mine))
    assert not batch.targets.is_fully_addressable
    params = jax.device_put(params, NamedSharding(mesh, P()))
    print(float(mlp.loss(params, batch, config)))


main(*sys.argv[1:])
