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

from jaxnn.ledger.layout import Layout, Rules
from jaxnn.ledger.machines import Machine, seconds
from jaxnn.ledger.memory import memory
from jaxnn.ledger.paper import predicted
from jaxnn.ledger.sent import Sent
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

    def mesh(self, devices: int) -> dict[str, int]:
        """Return the mesh; all devices that the inner axes leave lie along "data".

        Raises:
            ValueError: the inner axes do not divide the devices.
        """
        inner = math.prod(self.inner.values())
        if devices % inner:
            raise ValueError(
                f"{self.name}: {devices} devices over {inner}; they must be a multiple: take more"
            )
        return {"data": devices // inner, **self.inner}


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


def flops(config: transformer.Config, batch: tuple[int, int], layout: Layout) -> float:
    """Return what one device multiplies and adds in a step: forward once, backward twice that.

    Two for each element of a matrix and token; of attention's products half, for it is causal.
    """
    (n, t), length = (
        (layout.share(*b) for b in zip(batch, ("batch", "sequence"), strict=True)),
        batch[1],
    )  # noqa: E501
    heads = layout.share(config.heads, "heads")
    pairs = layout.share(config.kv_heads or config.heads, "heads")
    d, size, units = config.width, config.per_head, config.hidden or 4 * config.width
    matrices = 2 * d * (heads + pairs) * size
    if config.experts:
        matrices += d * config.experts + 3 * layout.share(config.experts, "experts") * d * units
    else:
        many = 3 if config.feed_forward in GATED else 2
        matrices += many * d * layout.share(units, "hidden")
    attention = length * heads * size  # q k and p v, (t + 1) / 2 of t keys each
    layers = config.layers * (matrices + attention) * (4 if config.recompute else 3)
    return 2 * n * t * (layers + 3 * d * layout.share(config.vocabulary, "vocab"))


def step(job: Job, plan: Plan, devices: int, machine: Machine, *, dtype: str = "bf16") -> Step:
    """Return how long a step takes, on paper.

    Raises:
        ValueError: the layout does not divide the model, the batch or the devices.
    """
    mesh = plan.mesh(devices)
    layout = Layout(mesh, plan.rules)
    rate = SHARE_OF_PEAK * machine.flops
    compute = flops(job.config, job.batch, layout) / rate
    ledger = predicted(transformer, job.config, job.batch, mesh, plan.rules, dtype=dtype)
    overlapped = sum(seconds(sent, mesh, machine) for sent in ledger if overlaps(sent))
    exposed = sum(seconds(sent, mesh, machine) for sent in ledger if not overlaps(sent))
    alone = flops(job.config, job.batch, Layout({}, {})) / rate
    taken = max(compute, overlapped) + exposed
    held = memory(transformer, job.config, job.batch, layout, dtype=dtype).total
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
    Plan("FSDP x tensor 4", {"model": 4}, FSDP | TENSOR),
    Plan("FSDP x tensor 8", {"model": 8}, FSDP | TENSOR),
    Plan("FSDP x ring 8", {"sequence": 8}, FSDP | {"sequence": "sequence"}),
)
