"""PyTorch's own samples (OpInfo, ModuleInfo) as calls of the ops here.

A mapping takes what a sample hands to PyTorch's function, as tensors, and returns the `Call` of
ours that must give the same. It changes the layout only (channels last, weights transposed), by
operations of PyTorch that lose nothing, so that PyTorch itself carries our gradients back to the
sample's tensors. What no call of ours expresses, it refuses by `CannotSay`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxnn.op import Op


class Call(NamedTuple):
    """A call of an op that must equal PyTorch's.

    Attributes:
        op: the op.
        inputs: its inputs, tensors in the op's containers.
        settings: its settings.
        back: of our result, as tensors, what PyTorch returns.
        theirs: of PyTorch's result, what is compared.
        step: of the inputs and settings, the integers that PyTorch returns as well, or None.
    """

    op: Op[..., Any]
    inputs: tuple[Any, ...]
    settings: Mapping[str, Any] = MappingProxyType({})
    back: Callable[[Any], Any] = lambda out: out
    theirs: Callable[[Any], Any] = lambda out: out
    step: Callable[..., Any] | None = None


# Why a sample cannot be expressed: the documentation counts by these words.
REASONS = {
    "random": "PyTorch draws random numbers that only it can draw",
    "indices": "PyTorch also returns where the largest is",
    "repeats": "two maxima at one position: added up here, one of them in PyTorch",
    "absent": "a function that is not here",
    "setting": "a setting that the op has not",
    "layers": "several layers in one call: a model chains ops",
    "running": "running statistics where there are none here",
    "axes": "a number of axes that the op has not",
    "hidden": "rows that see nothing: 0 here, NaN in PyTorch",
    "nothing": "a mean over nothing: 0 here, NaN in PyTorch",
    "zero_target": "the slope of the divergence at a target of 0: 0 here, NaN in PyTorch",
    "padded_row": "a row of the table without a gradient, or rescaled in place",
    "form": "a form of arguments that the op has not",
}


class CannotSay(Exception):  # noqa: N818, no error: an answer
    """No call of ours expresses the sample: for which of `REASONS`, and which setting."""

    def __init__(self, reason, detail=""):
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def only(reason="setting", **settings):
    """Refuse a sample unless each setting, (value, possible), has its one possible value."""
    for name, (value, possible) in settings.items():
        if value != possible:
            raise CannotSay(reason, name)
