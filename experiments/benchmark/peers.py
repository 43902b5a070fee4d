"""PyTorch's arms where PyTorch is installed; else what to say in their place."""

import importlib
from collections.abc import Callable
from typing import Any

import jax

from experiments import torch_peer
from experiments.benchmark.arms import PYTORCH, Arm, Builds, LeftOutError


def peers(room: str, works: Callable[[Any], Any]) -> Builds:
    """PyTorch's arms, which import it no earlier than this.

    Args:
        room: the module beside this one that has the work.
        works: what PyTorch does, given that module.
    """
    if not torch_peer.installed:
        return left_out(torch_peer.MISSING)
    if torch_peer.device() is None:
        return left_out(
            f"it would run on the CPU, JAX on {jax.devices()[0]}: it finds no such device"
        )
    from experiments.benchmark import in_torch

    return in_torch.builds(works(importlib.import_module(f"experiments.benchmark.{room}")))


def left_out(reason: str) -> Builds:
    """An arm of PyTorch's that says why there is none."""

    def missing() -> Arm:
        raise LeftOutError(reason)

    return {PYTORCH: missing}
