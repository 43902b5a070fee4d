"""One of two processes that verify a gradient together: `verify_processes.py PORT NUMBER`."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnn import verify


def loss(w, x):
    return (jnp.tanh(x @ w) ** 2).mean()


def local(w, x):
    y = jnp.tanh(x @ w)
    return x.T @ (2 * y * (1 - y**2)) / (y.size * lax.axis_size("data"))


def right(w, x):
    return lax.psum(local(w, x), "data")


def mean(w, x):
    return lax.pmean(local(w, x), "data")


def main(port, number):
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(number))
    mesh, rng = jax.make_mesh((2,), ("data",)), np.random.default_rng(0)
    w, x = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 2), (8, 3)))
    mine = x[4 * int(number) :][:4]
    x = jax.make_array_from_process_local_data(NamedSharding(mesh, P("data")), mine)
    assert not x.is_fully_addressable
    for manual_grad in (right, mean, local):
        report = verify.gradient(loss, manual_grad, w, x, mesh=mesh, rules=(P(), P("data")))
        cause = report.shared_cause.text if report.shared_cause else ""
        print("verdict:", report.status, report.leaves[0].difference, *report.problems, cause)


main(*sys.argv[1:])
