"""How fast devices send: bandwidth and delay of a group of them, on two kinds of machine.

Figures are the makers', what is assumed stands beside them; a time is

    seconds = bytes on the wire / bandwidth + delay

H200 nodes. Eight GPUs with NVLink, 900 GB/s in both directions together (NVIDIA H200 datasheet):
450 GB/s each way. Nodes are connected by one 400 Gbit/s InfiniBand adapter per GPU (NVIDIA DGX H200
user guide): 50 GB/s each way. A group with g GPUs in each of its nodes crosses from node to node on
g adapters at once. 989 TFLOP/s in bfloat16 without sparsity, 141 GB (the datasheet). Delay: NCCL's
own model of its tree (tuning.cc, LL128): 1.2 us for each further GPU of a node, 8.5 us for each
doubling of the nodes, up and down.

TPU v5p. 1,200 GB/s per chip in both directions together, over six links in a three-dimensional
torus (Cloud TPU documentation): 100 GB/s each way per link; 459 TFLOP/s in bfloat16, 95 GiB. A
group is taken to lie along one dimension of the torus for every 16 of its size, and to use both
links of each, both ways round. Delay: 1 us for each of the n / 2 links to the farthest chip
(Austin et al., 2025, "How to scale your model", part 3).
"""

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

from jaxnn.ledger.sent import Sent


class Link(NamedTuple):
    """What a group of devices sends with: bytes per second of each, and seconds of delay."""

    bandwidth: float
    delay: float


class Nodes(NamedTuple):
    """Nodes of a few devices each, fast inside and slower between.

    Attributes:
        name: of the machine.
        flops: of a device, per second, in bfloat16.
        memory: bytes of a device.
        per_node: devices in a node.
        inside: bytes per second that a device sends to others of its node.
        between: bytes per second that a device sends to other nodes.
        delay_inside: seconds for each further device of a node.
        delay_between: seconds for each doubling of the nodes.
    """

    name: str = "H200 nodes"
    flops: float = 989e12
    memory: float = 141e9
    per_node: int = 8
    inside: float = 450e9
    between: float = 50e9
    delay_inside: float = 1.2e-6
    delay_between: float = 8.5e-6

    def link(self, group: list[int], neighbours: bool) -> Link:
        """Return what devices of these numbers, counted node by node, send to each other with.

        Neighbours in a ring: the slowest is the last of a node, to the first of the next.
        """
        nodes = {number // self.per_node for number in group}
        here = len(group) / len(nodes)
        if len(nodes) == 1:
            return Link(self.inside, (1 if neighbours else here - 1) * self.delay_inside)
        if neighbours:
            return Link(self.between, self.delay_between)
        delay = (here - 1) * self.delay_inside
        bandwidth = min(self.inside, here * self.between)
        return Link(bandwidth, delay + math.ceil(math.log2(len(nodes))) * self.delay_between)


class Torus(NamedTuple):
    """Devices in a torus, each linked to its neighbours.

    Attributes:
        name: of the machine.
        flops: of a device, per second, in bfloat16.
        memory: bytes of a device.
        side: devices along one dimension.
        inside: bytes per second of one link, one way.
        delay_inside: seconds per link.
    """

    name: str = "TPU v5p pod"
    flops: float = 459e12
    memory: float = 95 * 2**30
    side: int = 16
    inside: float = 100e9
    delay_inside: float = 1e-6

    def link(self, group: list[int], neighbours: bool) -> Link:
        """Return what devices of these numbers send to each other with: only how many matters.

        Neighbours in a ring send one way, over one link.
        """
        if neighbours:
            return Link(self.inside, self.delay_inside)
        dimensions = max(1, math.ceil(math.log(len(group), self.side) - 1e-9))
        long = len(group) ** (1 / dimensions)
        return Link(2 * dimensions * self.inside, dimensions * long / 2 * self.delay_inside)


Machine = Nodes | Torus
MACHINES: dict[str, Machine] = {"h200": Nodes(), "v5p": Torus()}


def seconds(sent: Sent, mesh: Mapping[str, int], machine: Machine) -> float:
    """Return how long a line of the ledger takes, all its times together.

    Devices are numbered along the mesh, its last axis first. An all-reduce goes up and comes down,
    and waits twice.
    """
    neighbours = sent.kind == "collective-permute"
    link = machine.link(group_of(sent.axes, mesh), neighbours)
    turns = 2 if sent.kind == "all-reduce" else 1
    return sent.wire / link.bandwidth + link.delay * turns * sent.times


def group_of(axes: tuple[str, ...], mesh: Mapping[str, int]) -> list[int]:
    """Return the numbers of the devices that take part with the first."""
    names, sizes = list(mesh), list(mesh.values())
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    along = [
        [i * stride for i in range(size)] if name in axes else [0]
        for name, size, stride in zip(names, sizes, strides, strict=True)
    ]
    return sorted(map(sum, itertools.product(*along)))
