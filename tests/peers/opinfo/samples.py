"""The samples: all of a function or module, and a choice of them that shows every setting."""

import functools
import itertools
import warnings
from unittest import mock

import torch

# PyTorch's own tests warn, and forbid the whole process to set flags, which other tests here do.
with warnings.catch_warnings(), mock.patch.object(torch.backends, "disable_global_flags"):
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

from . import CannotSay, elementwise, layers, losses, windows
from .compare import Case
from .modules import MODELS, OWN, module_case

TABLE = elementwise.TABLE | layers.TABLE | losses.TABLE | windows.TABLE
# A default that depends on the dtype would be another function in float64: a value in its place.
SETTLED = {"nn.functional.rms_norm": {"eps": 1e-5}}
# PyTorch's hardsigmoid multiplies by 1/6 in float32, 3e-8 off, whatever the dtype: as tests/rows.
INSTEAD = {"nn.functional.hardsigmoid": lambda x: torch.nn.functional.relu6(x + 3) / 6}
MODULES = {
    f"nn.{info.module_cls.__name__}": info
    for info in module_db
    if not info.module_cls.__name__.startswith("Lazy") and info.module_cls.__name__ not in MODELS
}


def cases(name):
    """Every sample of a function, of all its variants, or of a module, drawn in float64."""
    torch.manual_seed(0)
    if name in MODULES:
        settings = {"device": "cpu", "dtype": torch.float64, "requires_grad": True}
        info = MODULES[name]
        found = info.module_inputs_func(info, **settings, training=True)
        return [module_case(info, TABLE, sample) for sample in found]
    found = []
    for info in op_db:
        if info.name == name and torch.float64 in info.supported_dtypes("cpu"):
            for sample in info.sample_inputs("cpu", torch.float64, requires_grad=True):
                kwargs = SETTLED.get(name, {}) | sample.kwargs
                args = (sample.input, *sample.args)
                found.append(Case(name, INSTEAD.get(name, info.op), args, kwargs, TABLE[name]))
    return found


def kind(value):
    """What of an argument a choice of samples should show."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.ndim, value.numel() == 0
    if isinstance(value, tuple | list):
        return tuple(map(kind, value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return type(value), (value > 1) - (value < 0)
    return repr(value) if isinstance(value, bool | str | None) else type(value)


def shown(case):
    """The settings and kinds of arguments that a sample shows, and every two of them together."""
    each = [*enumerate(map(kind, case.args)), *((k, kind(v)) for k, v in case.kwargs.items())]
    return set(itertools.combinations(each, 2)) | set(each)


def expressible(case):
    """Whether there is a call of ours for the sample."""
    try:
        case.mapping(*case.args, **case.kwargs)
    except CannotSay:
        return False
    return True


@functools.cache
def covering(name, most):
    """At most so many samples that show together what all of them do, or nearly, and their dtypes:
    float64, and one of the others by turns, or all where there are few samples."""
    found = [case for case in cases(name) if expressible(case)]
    left = {number: shown(case) for number, case in enumerate(found)}
    chosen, seen = [], set()
    while left and len(chosen) < most:
        best = max(left, key=lambda number: len(left[number] - seen))
        new = left.pop(best) - seen
        if not new and len(chosen) > 2:
            break
        seen |= new
        chosen.append(found[best])
    others = ("float32", "bfloat16", "float16")
    turns = itertools.cycle(others)
    dtypes = [others if len(chosen) < 3 else (next(turns),) for _ in chosen]
    return [(case, ("float64", *more)) for case, more in zip(chosen, dtypes, strict=True)]


# Every function of the table, and the modules that are more than one of these.
NAMES = (*TABLE, *(f"nn.{name}" for name in OWN))


@functools.cache
def is_here(name):
    """Whether any sample of a module calls a function of the table."""
    return name.removeprefix("nn.") in OWN or any(map(calls_of_the_table, cases(name)))


def calls_of_the_table(case):
    try:
        case.mapping(*case.args, **case.kwargs)
    except CannotSay as answer:
        return answer.reason != "absent"
    return True


def families():
    """The functions of the table by their files, and the modules made of them."""
    files = (elementwise, layers, losses, windows)
    found = {file.__name__.rpartition(".")[2]: [*file.TABLE] for file in files}
    return found | {"modules": [name for name in MODULES if is_here(name)]}
