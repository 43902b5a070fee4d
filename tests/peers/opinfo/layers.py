"""Linear maps, the embedding, normalisations and attention."""

import torch

from jaxnn.ops.attention import attention
from jaxnn.ops.batch_norm import Running, batch_norm
from jaxnn.ops.l2_normalize import l2_normalize
from jaxnn.ops.linear import Embedding, Linear, embedding, linear
from jaxnn.ops.normalisation import Scale, group_norm, instance_norm, layer_norm, rms_norm

from . import Call, CannotSay, only


def linear_(x, weight, bias=None):
    if weight.ndim == 1:
        b = None if bias is None else bias.reshape(1)
        return Call(linear, (Linear(weight[:, None], b), x), back=lambda y: y.squeeze(-1))
    return Call(linear, (Linear(weight.T, bias), x))


def matrices(x, other):
    return Call(linear, (Linear(other), x))


def embedding_(
    weight,
    tokens,
    padding_idx=None,
    max_norm=None,
    norm_type=2.0,
    scale_grad_by_freq=False,
    sparse=False,
):
    only("padded_row", padding_idx=(padding_idx, None), max_norm=(max_norm, None))
    only(scale_grad_by_freq=(scale_grad_by_freq, False), sparse=(sparse, False))
    return Call(embedding, (Embedding(weight), tokens))


def last_axes(op, x, normalized_shape, weight, bias, eps):
    return Call(op, (Scale(weight, bias), x), {"axes": len(normalized_shape), "eps": eps})


def layer_norm_(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    return last_axes(layer_norm, x, normalized_shape, weight, bias, eps)


def rms_norm_(x, normalized_shape, weight=None, eps=None):
    return last_axes(rms_norm, x, normalized_shape, weight, None, eps)


def channels(op, x, weight, bias, **settings):
    return Call(op, (Scale(weight, bias), x.movedim(1, -1)), settings, lambda y: y.movedim(-1, 1))


def group_norm_(x, num_groups, weight=None, bias=None, eps=1e-5):
    return channels(group_norm, x, weight, bias, groups=num_groups, eps=eps)


def instance_norm_(
    x,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
):
    only("running", running_mean=(running_mean, None), running_var=(running_var, None))
    return channels(instance_norm, x, weight, bias, eps=eps)


def batch_norm_(
    x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):
    if x.ndim < 2:
        raise CannotSay("axes")
    settings = {"training": training, "momentum": momentum, "eps": eps}
    if running_mean is None:
        zeros = torch.zeros(x.shape[1], dtype=x.dtype)
        running_mean, running_var = zeros, zeros + 1
    running = Running(running_mean, running_var)
    return Call(
        batch_norm,
        (Scale(weight, bias), running, x.movedim(1, -1)),
        settings,
        lambda out: out[0].movedim(-1, 1),
    )


def attention_(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    only("random", dropout_p=(dropout_p, 0.0))
    if query.ndim < 3:
        raise CannotSay("axes")
    if not query.ndim == key.ndim == value.ndim:
        lead = torch.broadcast_shapes(*(z.shape[:-2] for z in (query, key, value)))
        query, key, value = (z.expand(*lead, *z.shape[-2:]) for z in (query, key, value))
    lead = query.shape[:-3] if query.ndim > 3 else query.shape[:1]
    q, k, v = ((z.unsqueeze(-3) if z.ndim == 3 else z).flatten(0, -4) for z in (query, key, value))
    t, s = q.shape[-2], k.shape[-2]
    mask = bias = None
    if attn_mask is not None:
        mask, bias = (None, attn_mask) if attn_mask.is_floating_point() else (attn_mask, None)
    if is_causal and t != s:  # PyTorch counts from the first query, ours from the last
        mask, is_causal = torch.ones(t, s, dtype=torch.bool).tril(), False

    def back(y):
        y = y.transpose(1, 2)
        return y.squeeze(1) if query.ndim == 3 else y.unflatten(0, lead)

    inputs = (*(z.transpose(1, 2) for z in (q, k, v)), mask, bias)
    return Call(attention, inputs, {"causal": is_causal, "scale": scale}, back)


def normalize(x, p=2.0, dim=1, eps=1e-12):
    only(p=(p, 2.0), dim=(isinstance(dim, int), True))
    return Call(l2_normalize, (x,), {"axis": dim, "eps": eps})


F = "nn.functional."
TABLE = {
    F + "linear": linear_,
    "mm": matrices,
    F + "embedding": embedding_,
    F + "layer_norm": layer_norm_,
    F + "rms_norm": rms_norm_,
    F + "group_norm": group_norm_,
    F + "instance_norm": instance_norm_,
    F + "normalize": normalize,
    F + "batch_norm": batch_norm_,
    F + "scaled_dot_product_attention": attention_,
}
