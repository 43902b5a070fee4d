"""Samples of ModuleInfo: recurrent layers, the block, and modules that are one function."""

import functools

import torch
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from jaxnn.ops.bidirectional import Directions, bidirectional
from jaxnn.ops.gru import gru
from jaxnn.ops.multi_head import MultiHead, multi_head
from jaxnn.ops.recurrent import lstm, rnn
from jaxnn.ops.recurrent_parts import CellState, Recurrent

from . import Call, CannotSay, only
from .compare import Case

OPS = {"RNN": rnn, "LSTM": lstm, "GRU": gru}
Directed = tuple[Recurrent, CellState]


def called(module, params, *args, **kwargs):
    return functional_call(module, params, args, kwargs)


class Found(Exception):  # noqa: N818, no error: an answer
    """The function that a module calls, with its arguments."""


class Catching(TorchFunctionMode):
    """Ends the module's call at the first function of a table."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        for known in (f"nn.functional.{name}", name):
            if known in self.table:
                raise Found(self.table[known], args, kwargs or {})
        return func(*args, **(kwargs or {}))


def by_its_function(table, module, params, *args, **kwargs):
    """The call of the one function that a module is."""
    try:
        with Catching(table):
            called(module, params, *args, **kwargs)
    except Found as found:
        mapping, arguments, settings = found.args
        call = mapping(*arguments, **settings)
        shape = called(module, params, *args, **kwargs).shape  # modules take single examples
        return call._replace(back=lambda y: call.back(y).reshape(shape))
    raise CannotSay("absent", type(module).__name__)


def direction(module, params, hx, number):
    """Parameters and state of one direction; PyTorch's two biases are one of ours but for b_hn."""
    end = "_reverse" if number else ""

    def of(name):
        return params.get(f"{name}_l0{end}")

    w_x, w_h, b, b_h = (of(n) for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    if b is None:
        b, b_h = torch.zeros(len(w_x), dtype=w_x.dtype), torch.zeros(len(w_x), dtype=w_x.dtype)
    inner = None
    if module.mode == "GRU":
        h = module.hidden_size
        inner, b_h = b_h[-h:], torch.cat([b_h[:-h], torch.zeros_like(b_h[-h:])])
    state = CellState(*(s[number] for s in hx))
    w_hr = of("weight_hr")
    return Recurrent(w_x.T, w_h.T, b + b_h, inner, None if w_hr is None else w_hr.T), state


def recurrent(module, params, x, hx=None):
    only("layers", layers=(module.num_layers, 1))
    alone, first = x.ndim == 2, module.batch_first
    x = x[None] if alone else x if first else x.movedim(0, 1)
    ways, states = 1 + module.bidirectional, 1 + (module.mode == "LSTM")
    if hx is None:
        sizes = (getattr(module, "proj_size", 0) or module.hidden_size, module.hidden_size)
        hx = tuple(torch.zeros(ways, len(x), h, dtype=x.dtype) for h in sizes[:states])
    else:
        hx = hx if isinstance(hx, tuple) else (hx,)
        hx = tuple(h[:, None] if alone else h for h in hx)
    op = OPS[module.mode.removesuffix("_TANH").removesuffix("_RELU")]
    settings = {"activation": "relu"} if module.mode == "RNN_RELU" else {}

    def back(out):
        y, final = out
        finals = final if ways == 2 else (final,)
        y = y[0] if alone else y if first else y.movedim(0, 1)
        both = [torch.stack(s) for s in zip(*finals, strict=True) if s[0] is not None]
        both = [s[:, 0] for s in both] if alone else both
        return y, tuple(both) if states == 2 else both[0]

    params, before = zip(*(direction(module, params, hx, way) for way in range(ways)), strict=True)
    if ways == 2:
        inputs = Directions(*params), Directions(*before), x, None
        return Call(bidirectional, inputs, settings | {"cell": op}, back)
    return Call(op, (*params, *before, x, None), settings, back)


def attention_block(module, params, x, key_padding_mask=None, attn_mask=None):
    only(add_bias_kv=(module.bias_k, None), add_zero_attn=(module.add_zero_attn, False))
    alone, first, w = x.ndim == 2, module.batch_first, params["in_proj_weight"]
    x = x[None] if alone else x if first else x.movedim(0, 1)
    b, bo = params.get("in_proj_bias"), params.get("out_proj.bias")
    biases = (None,) * 3 if b is None else b.chunk(3)
    weights = (m.T for m in (*w.chunk(3), params["out_proj.weight"]))
    n, t, heads = *x.shape[:2], module.num_heads
    mask = torch.ones(n, 1, t, t, dtype=torch.bool)
    for hidden, shape in ((key_padding_mask, (n, 1, 1, t)), (attn_mask, (-1, heads, t, t))):
        if hidden is not None:
            if hidden.is_floating_point():
                raise CannotSay("setting", "mask of numbers")
            mask = mask & ~(hidden.reshape(shape) if hidden.ndim != 2 or shape[1] == 1 else hidden)
    if not mask.any(-1).all():
        raise CannotSay("hidden")

    def back(z):
        return z[0] if alone else z if first else z.movedim(0, 1)

    block = MultiHead(*weights, *biases, bo)
    return Call(multi_head, (block, x, None, mask), {"heads": heads}, back, lambda out: out[0])


OWN = {"MultiheadAttention": attention_block} | dict.fromkeys(OPS, recurrent)
# Models, in any release made of the same functions.
MODELS = ("Transformer", "TransformerEncoder", "TransformerEncoderLayer", "TransformerDecoderLayer")


def module_case(info, table, sample):
    """A sample of a module.

    All samples of recurrent layers have two layers, and those of the block attend to others: asked
    of one layer, and of attention to itself, which is what the ops here are.
    """
    name, made, given = info.module_cls.__name__, sample.constructor_input, sample.forward_input
    settings, inputs = dict(made.kwargs), list(given.args)
    if name in OPS:
        settings["num_layers"] = 1
        inputs[1:] = [first_layer(h, 1 + settings["bidirectional"]) for h in inputs[1:]]
    module = info.module_cls(*made.args, **settings).double()
    params = {k: p.detach().requires_grad_() for k, p in module.named_parameters()}
    params |= {k: p.detach() for k, p in module.named_buffers()}
    mapping = OWN.get(name, functools.partial(by_its_function, table))
    function = functools.partial(called, module)
    if name == "MultiheadAttention":
        inputs = inputs[:1]
        function = functools.partial(attends_itself, module)
    mapping = functools.partial(mapping, module)
    return Case(f"nn.{name}", function, (params, *inputs), dict(given.kwargs), mapping)


def attends_itself(module, params, x, **kwargs):
    return functional_call(module, params, (x, x, x), kwargs)


def first_layer(h, ways):
    if isinstance(h, tuple):
        return tuple(first_layer(s, ways) for s in h)
    return h[:ways].detach().requires_grad_()
