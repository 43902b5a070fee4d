"""The samples of PyTorch's OpInfo for the functions of the table."""

import warnings

import torch

with warnings.catch_warnings():  # of PyTorch's own tests
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

from . import elementwise, layers, losses, windows
from .compare import Case

TABLE = elementwise.TABLE | layers.TABLE | losses.TABLE | windows.TABLE
# A default that depends on the dtype would be another function in float64: a value in its place.
SETTLED = {"nn.functional.rms_norm": {"eps": 1e-5}}
# PyTorch's hardsigmoid multiplies by 1/6 in float32, 3e-8 off, whatever the dtype: as tests/rows.
INSTEAD = {"nn.functional.hardsigmoid": lambda x: torch.nn.functional.relu6(x + 3) / 6}


def cases(name):
    """Every sample of a function, of all its variants, drawn in float64."""
    torch.manual_seed(0)
    found = []
    for info in op_db:
        if info.name == name and torch.float64 in info.supported_dtypes("cpu"):
            for sample in info.sample_inputs("cpu", torch.float64, requires_grad=True):
                kwargs = SETTLED.get(name, {}) | sample.kwargs
                args = (sample.input, *sample.args)
                found.append(Case(name, INSTEAD.get(name, info.op), args, kwargs, TABLE[name]))
    return found
