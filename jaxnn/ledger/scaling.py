"""Strong scaling on paper: how long a step takes on more and more devices, the batch the same.

    compute    = multiplications and additions of a device / (share of peak x peak)
    overlapped = gathers and scatters of a layer's parameters, and k, v, dk, dv round a ring
    exposed    = all else: sums of activations, which what follows waits for, and sums of gradients
                 after the backward
    step       = max(compute, overlapped) + exposed
    efficiency = compute of one device alone / (devices x step)

The share of peak is assumed, 45%; that a layer's parameters come while another computes, too. Left
out are the optimizer's update, input, and that small products use less of the peak.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jax.sharding import AbstractMesh

from jaxnn.ledger.machines import Machine, seconds
from jaxnn.ledger.memory import memory
from jaxnn.ledger.paper import local_batch, predicted
from jaxnn.ledger.sent import Sent
from jaxnn.mesh import Layout, Rules, lay_out
from jaxnn.models import transformer
from jaxnn.models.transformer_params import GATED

SHARE_OF_PEAK = 0.45
DEVICES = tuple(2**i for i in range(3, 13))  # 8 to 4,096


class Job(NamedTuple):
    """A model to train: its name, configuration, and batch (N, T)."""

    name: str
    config: transformer.Config
    batch: tuple[int, int]


class Plan(NamedTuple):
    """A layout for any number of devices: sizes of the axes after the first, and the rules."""

    name: str
    inner: Mapping[str, int]
    rules: Rules

    def layout(self, config: transformer.Config, devices: int) -> Layout:
        """Return it for so many devices; all that the inner axes leave lie along "data".

        Raises:
            ValueError: the inner axes do not divide the devices, or those the model.
        """
        inner = math.prod(self.inner.values())
        if devices % inner:
            raise ValueError(
                f"{self.name}: {devices} devices over {inner}; they must be a multiple: take more"
            )
        sizes = {"data": devices // inner, **self.inner}
        mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
        return lay_out(transformer, config, mesh, self.rules)


class Step(NamedTuple):
    """A step on so many devices: seconds, efficiency in [0, 1], bytes on a device."""

    devices: int
    compute: float
    overlapped: float
    exposed: float
    efficiency: float
    memory: int

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return max(self.compute, self.overlapped) + self.exposed


def flops(layout: Layout, batch: tuple[int, int]) -> float:
    """Return what one device multiplies and adds in a step: forward once, backward twice that.

    Two for each element of a matrix and token; of attention's products half, for it is causal.

    Raises:
        ValueError: the devices do not divide the batch.
    """
    config, axes = layout.config, layout.axes
    n, t = local_batch(layout, batch)
    heads = config.heads // layout.devices(axes.heads)
    pairs = (config.kv_heads or config.heads) // layout.devices(axes.heads)
    d, size = config.width, config.per_head
    units = (config.hidden or 4 * d) // layout.devices(axes.hidden)
    matrices = 2 * d * (heads + pairs) * size
    if config.experts:
        here = config.experts // layout.devices(axes.experts)
        matrices += d * config.experts + 3 * here * d * units
    else:
        matrices += (3 if config.feed_forward in GATED else 2) * d * units
    attention = batch[1] * heads * size  # q k and p v, with half of the keys each
    layers: int = config.layers * (matrices + attention) * (4 if config.recompute else 3)
    logits: int = 3 * d * (config.vocabulary // layout.devices(axes.vocab))
    return 2.0 * n * t * (layers + logits)


def step(job: Job, plan: Plan, devices: int, machine: Machine, *, dtype: str = "bf16") -> Step:
    """Return how long a step takes, on paper.

    Raises:
        ValueError: the layout does not divide the model, the batch or the devices.
    """
    layout = plan.layout(job.config, devices)
    rate = SHARE_OF_PEAK * machine.flops
    ledger = predicted(layout, job.batch, dtype=dtype)
    mesh = layout.mesh.shape
    overlapped = sum(seconds(sent, mesh, machine) for sent in ledger if overlaps(sent))
    exposed = sum(seconds(sent, mesh, machine) for sent in ledger if not overlaps(sent))
    compute = flops(layout, job.batch) / rate
    one = Plan("one device", {}, {}).layout(job.config, 1)
    alone = flops(one, job.batch) / rate
    taken = max(compute, overlapped) + exposed
    held = memory(layout, job.batch, dtype=dtype).total
    return Step(devices, compute, overlapped, exposed, alone / (devices * taken), held)


def overlaps(sent: Sent) -> bool:
    """Whether a layer's computation goes on meanwhile."""
    return sent.in_loop and sent.kind != "all-reduce"


def scaling(job: Job, plan: Plan, machine: Machine, devices: Sequence[int] = DEVICES) -> list[Step]:
    """Return the steps on each number of devices that the layout divides the job over."""
    found = []
    for number in devices:
        try:
            found.append(step(job, plan, number, machine))
        except ValueError:  # that is where the layout stops
            continue
    return found


def reach(steps: Sequence[Step], efficiency: float = 0.5) -> int:
    """Return the most devices on which a step is at least so efficient; 0 for none."""
    return max((s.devices for s in steps if s.efficiency >= efficiency), default=0)


# GPT-2's vocabulary filled up to a multiple of 128; a batch as in the papers: half a million tokens
# (Radford et al., 2019; Brown et al., 2020, table 2.1), four million (Touvron et al., 2023).
JOBS = (
    Job(
        "GPT-2 124M",
        transformer.gpt2(vocabulary=50304, positions=1024, layers=12, width=768, heads=12),
        (512, 1024),
    ),
    Job(
        "GPT-2 1.5B",
        transformer.gpt2(vocabulary=50304, positions=1024, layers=48, width=1600, heads=25),
        (512, 1024),
    ),
    Job(
        "Llama 7B",
        transformer.llama(
            vocabulary=32000, positions=2048, layers=32, width=4096, heads=32, hidden=11008
        ),
        (2048, 2048),
    ),
)
DATA = {"batch": "data"}
FSDP = DATA | {"embed": "data"}
TENSOR = {"heads": "model", "hidden": "model", "vocab": "model"}
PLANS = (
    Plan("data", {}, DATA),
    Plan("FSDP", {}, FSDP),
    # Parameters in parts over each eight devices, whole over all: less to gather across nodes.
    Plan("FSDP 8 x data", {"shard": 8}, {"batch": ("data", "shard"), "embed": "shard"}),
    Plan("FSDP x tensor 4", {"model": 4}, FSDP | TENSOR),
    Plan("FSDP x tensor 8", {"model": 8}, FSDP | TENSOR),
    Plan("ring 8 x data", {"ring": 8}, DATA | {"sequence": "ring", "embed": "ring"}),
)
