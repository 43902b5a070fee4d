"""Every picture the experiments draw, each a function from numbers to a PNG file."""

from experiments.pictures.comparisons import benchmark, causes, kept, speeds, verifier
from experiments.pictures.digits import confusion, images, latent_plane, misread, rebuilt
from experiments.pictures.runs import (
    bits,
    curves,
    function_and_slope,
    gradients,
    ladder,
    loss,
    moons,
    regression,
    scales,
    training,
)
from experiments.pictures.scaling import scaling
from experiments.pictures.trials import trials

__all__ = [
    "benchmark",
    "bits",
    "causes",
    "confusion",
    "curves",
    "function_and_slope",
    "gradients",
    "images",
    "kept",
    "ladder",
    "latent_plane",
    "loss",
    "misread",
    "moons",
    "rebuilt",
    "regression",
    "scales",
    "scaling",
    "speeds",
    "training",
    "trials",
    "verifier",
]
