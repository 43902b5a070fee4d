"""The convolutional classifier in PyTorch, float64, to 1e-9: loss, gradients, statistics."""

import jax
import numpy as np
import pytest
from conftest import assert_leaves_close, run

torch = pytest.importorskip(
    "torch", reason="PyTorch is an optional peer: pip install -e '.[peers]'"
)

from torch.nn import functional as F  # noqa: E402, N812

from jaxnn.models import cnn  # noqa: E402


def conv(x, params, stride, padding):
    return F.conv2d(x, params.w.permute(3, 2, 0, 1), stride=stride, padding=padding)


def norm(x, params, config, training):
    scale, shift = params.affine
    if params.running is None:
        return F.group_norm(x, config.groups, scale, shift)
    # With momentum 1 PyTorch leaves the statistics of this batch in the tensors handed in.
    return F.batch_norm(x, *params.running, scale, shift, training=training, momentum=1.0)


def network(params, inputs, config, kept):
    """Logits; `kept` are the features that dropout keeps, None in evaluation."""
    training = kept is not None
    x = inputs.reshape(-1, *config.shape).permute(0, 3, 1, 2)
    a = F.relu(norm(conv(x, params.stem, 1, 1), params.norm, config, training))
    for i, block in enumerate(params.blocks):
        stride = 2 if i and i % config.blocks == 0 else 1
        z = F.relu(norm(conv(a, block.conv1, stride, 1), block.norm1, config, training))
        z = norm(conv(z, block.conv2, 1, 1), block.norm2, config, training)
        a = F.relu(z + (a if block.shortcut is None else conv(a, block.shortcut, stride, 0)))
    features = a.mean((2, 3))
    if training:
        features = features * kept / (1 - config.dropout)
    return features @ params.head.w + params.head.b


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("config", cnn.EXAMPLE_CONFIGS, ids=str)
def test_cnn(config, training, x64):
    batch = cnn.example_batch(jax.random.key(1), config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: p + 0.1 * rng.normal(size=p.shape), cnn.init_params(jax.random.key(0), config)
    )
    kept = None
    if training:
        bits = jax.random.bits(batch.key, (7, config.channels[-1]), "uint32")
        kept = torch.from_numpy(np.asarray(bits) >= np.uint32(int(config.dropout * 2**32)))
    else:
        batch = batch._replace(key=None)
    value, grads = run(lambda *a: cnn.manual_value_and_grad(*a, config), params, batch)
    peer = jax.tree.map(lambda p: torch.tensor(np.asarray(p), requires_grad=True), params)
    # PyTorch has no gradient of running statistics, which it takes as buffers.
    peer = jax.tree.map(
        lambda p: cnn.Running(*(q.detach() for q in p)) if isinstance(p, cnn.Running) else p,
        peer,
        is_leaf=lambda p: isinstance(p, cnn.Running),
    )
    logits = network(peer, torch.tensor(np.asarray(batch.inputs)), config, kept)
    expected = F.cross_entropy(logits, torch.tensor(np.asarray(batch.targets)).long())
    expected.backward()
    assert_leaves_close(value, expected.item(), 1e-12)
    learned = [
        (ours, np.asarray(theirs.grad))
        for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(peer), strict=True)
        if theirs.requires_grad
    ]
    assert len(learned) >= 17
    assert_leaves_close(*zip(*learned, strict=True), 1e-9, floor=1e-15)
    if training and config.norm == "batch":
        settled = run(lambda *a: cnn.update_running(*a, config), params, batch.inputs)
        assert_leaves_close(settled.norm.running, peer.norm.running, 1e-12)
        assert_leaves_close(settled.blocks[-1].norm2.running, peer.blocks[-1].norm2.running, 1e-10)
