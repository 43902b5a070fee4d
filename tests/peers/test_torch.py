"""The same operations and networks in PyTorch, float64, to 1e-9."""

import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_leaves_close

torch = pytest.importorskip(
    "torch", reason="PyTorch is an optional peer: pip install -e '.[peers]'"
)

from experiments import square, torch_peer, two_layer  # noqa: E402
from jaxnn.models import mlp  # noqa: E402
from jaxnn.ops import activations, linear, losses  # noqa: E402

F = torch.nn.functional
UNARY = {
    "relu": (activations.relu, {}, F.relu),
    "sigmoid": (activations.sigmoid, {}, torch.sigmoid),
    "tanh": (activations.tanh, {}, torch.tanh),
    "softmax": (activations.softmax, {}, lambda x: F.softmax(x, -1)),
    "softmax axis 0": (activations.softmax, {"axis": 0}, lambda x: F.softmax(x, 0)),
    "log_softmax": (activations.log_softmax, {}, lambda x: F.log_softmax(x, -1)),
    "log_softmax axis 0": (activations.log_softmax, {"axis": 0}, lambda x: F.log_softmax(x, 0)),
}
shapes = st.tuples(*[st.sampled_from([1, 2, 3, 5, 8])] * 2)


def tensor(x, grad=True):
    return torch.tensor(np.asarray(x), requires_grad=grad)


@pytest.mark.parametrize("name", UNARY)
@hypothesis.given(shape=shapes, seed=st.integers(0, 99))
def test_activations(name, shape, seed):
    op, static, theirs = UNARY[name]
    rng = np.random.default_rng(seed)
    x, dout = rng.normal(size=shape), rng.normal(size=shape)
    x.flat[0] = 0.0
    with jax.enable_x64(True):
        y, residuals = op.fwd(jnp.asarray(x), **static)
        (dx,) = op.bwd(residuals, jnp.asarray(dout), **static)
    t = tensor(x)
    out = theirs(t)
    out.backward(torch.tensor(dout))
    assert_leaves_close(y, out.detach().numpy(), 1e-9, floor=1e-15)
    assert_leaves_close(dx, t.grad.numpy(), 1e-9, floor=1e-15)


@hypothesis.given(shape=shapes, out=st.sampled_from([1, 3, 4]), seed=st.integers(0, 99))
def test_linear(shape, out, seed):
    rng = np.random.default_rng(seed)
    w, b, x = rng.normal(size=(shape[1], out)), rng.normal(size=out), rng.normal(size=shape)
    dout = rng.normal(size=(shape[0], out))
    with jax.enable_x64(True):
        params = linear.Linear(jnp.asarray(w), jnp.asarray(b))
        y, residuals = linear.linear.fwd(params, jnp.asarray(x))
        (dw, db), dx = linear.linear.bwd(residuals, jnp.asarray(dout))
    tw, tb, tx = tensor(w.T), tensor(b), tensor(x)
    theirs = F.linear(tx, tw, tb)
    theirs.backward(torch.tensor(dout))
    assert_leaves_close(y, theirs.detach().numpy(), 1e-9)
    assert_leaves_close((dw, db, dx), (tw.grad.numpy().T, tb.grad.numpy(), tx.grad.numpy()), 1e-9)


@hypothesis.given(shape=shapes, seed=st.integers(0, 99))
def test_losses(shape, seed):
    rng = np.random.default_rng(seed)
    z, targets = 5 * rng.normal(size=shape), rng.normal(size=shape)
    labels = rng.integers(0, shape[1], shape[0])
    with jax.enable_x64(True):
        one = 1.7 * jnp.ones(())
        ce, residuals = losses.softmax_cross_entropy.fwd(jnp.asarray(z), jnp.asarray(labels))
        dz, _ = losses.softmax_cross_entropy.bwd(residuals, one)
        mse, residuals = losses.mean_squared_error.fwd(jnp.asarray(z), jnp.asarray(targets))
        dp, dt = losses.mean_squared_error.bwd(residuals, one)
        l2, residuals = losses.l2_penalty.fwd(jnp.asarray(z), coefficient=0.3)
        (dw,) = losses.l2_penalty.bwd(residuals, one, coefficient=0.3)
    for ours, grads, theirs in (
        (ce, (dz,), lambda z, t: F.cross_entropy(z, torch.tensor(labels))),
        (mse, (dp, dt), F.mse_loss),
        (l2, (dw,), lambda z, t: 0.15 * (z**2).sum()),
    ):
        inputs = tensor(z), tensor(targets)
        value = theirs(*inputs)
        (1.7 * value).backward()
        assert_leaves_close(ours, value.item(), 1e-9, floor=1e-15)
        expected = [i.grad.numpy() for i in inputs[: len(grads)]]
        assert_leaves_close(grads, expected, 1e-9, floor=1e-15)


@hypothesis.settings(max_examples=25)
@hypothesis.given(
    sizes=st.lists(st.sampled_from([1, 2, 3, 5, 9]), min_size=2, max_size=4).map(tuple),
    activation=st.sampled_from(sorted(mlp.ACTIVATIONS)),
    loss=st.sampled_from(sorted(mlp.LOSSES)),
    l2=st.sampled_from([0.0, 0.3]),
    n=st.sampled_from([1, 2, 7]),
)
def test_mlp(sizes, activation, loss, l2, n):
    config = mlp.Config(sizes=sizes, activation=activation, loss=loss, l2=l2)
    rng = np.random.default_rng(n)
    with jax.enable_x64(True):
        params = mlp.init_params(jax.random.key(n), config)
        inputs = jnp.asarray(rng.normal(size=(n, sizes[0])))
        if loss == "softmax_cross_entropy":
            targets = jnp.asarray(rng.integers(0, sizes[-1], n))
        else:
            targets = jnp.asarray(rng.normal(size=(n, sizes[-1])))
        value, grads = mlp.manual_value_and_grad(params, (inputs, targets), config)
        theirs, expected = torch_peer.value_and_grad(params, (inputs, targets), config)
    assert_leaves_close(value, theirs, 1e-9, floor=1e-15)
    assert_leaves_close(grads, expected, 1e-9, floor=1e-15)


def test_the_fixed_case():
    with jax.enable_x64(True):
        params, batch = two_layer.fixed_case()
        value, grads = mlp.manual_value_and_grad(params, batch, two_layer.CONFIG)
        theirs, expected = torch_peer.value_and_grad(params, batch, two_layer.CONFIG)
    assert_leaves_close(value, theirs, 1e-12)
    assert_leaves_close(grads, expected, 1e-12, floor=1e-12)


def test_the_experiments_show_pytorch_beside_us(tmp_path, capsys):
    assert two_layer.main(out=tmp_path) == 0
    assert "PyTorch" in capsys.readouterr().out
    assert square.main(epochs=50, out=tmp_path) == 0
    out = capsys.readouterr().out
    ours, theirs = re.findall(r"^(?:jaxnn|PyTorch): +loss (\d\.\d{2})", out, re.MULTILINE)
    assert ours == theirs
