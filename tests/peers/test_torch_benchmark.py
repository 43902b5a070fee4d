"""PyTorch's arms of the benchmark: the same work, on the same device, in the same dtype."""

import os
import random
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="PyTorch is an optional peer: pip install -e '.[peers]'"
)

from test_data import idx  # noqa: E402

from experiments import torch_peer  # noqa: E402
from experiments.benchmark import in_torch, measure  # noqa: E402
from experiments.benchmark.arms import LeftOutError  # noqa: E402
from experiments.benchmark.cases import Sizes, cases  # noqa: E402
from experiments.benchmark.peers import peers  # noqa: E402
from experiments.benchmark.worker import working  # noqa: E402


def test_pytorch_does_the_same_work(monkeypatch):
    monkeypatch.setattr(measure, "TURN_SECONDS", 0.0)
    known = cases(Sizes(16))
    with working(None, Sizes(16)) as worker:
        assert torch.__version__.startswith(worker.about["torch"].partition("+")[0])
        for name in ("gru-b4", "conv-stride2", "digits"):
            result = measure.measure(
                known[name], 1, random.Random(0), 16, {"PyTorch compiled"},
                worker.builds(name), worker.pids,
            )  # fmt: skip
            assert not result.left_out
            assert {"by hand", "jax.grad", "PyTorch", "PyTorch, one thread"} <= set(result.seconds)


def test_an_epoch_of_mnist_is_the_same_by_pytorch(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "TURN_SECONDS", 0.0)
    drawn = np.random.default_rng(0)
    for name in ("train", "t10k"):
        images, labels = drawn.integers(0, 256, (300, 28, 28)), drawn.integers(0, 10, 300)
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
    sizes = Sizes(16, tmp_path)
    with working(None, sizes) as worker:
        for name in ("mnist-mlp", "mnist-cnn"):
            result = measure.measure(
                cases(sizes)[name], 1, random.Random(0), 16, (), worker.builds(name), worker.pids
            )
            assert not result.left_out
            assert {"by hand", "jax.grad", "PyTorch"} <= set(result.seconds)


def test_a_question_that_fails_there_leaves_pytorch_out_and_the_next_is_answered():
    def said(case):
        with pytest.raises(LeftOutError) as reason:
            worker.builds(case)["PyTorch"]()
        return str(reason.value)

    with working(None, Sizes(16)) as worker:
        assert "KeyError: 'no case'" in said("no case")
        building = worker.builds("gru-b4")["PyTorch"]
        assert len(building().run()) == 2
        os.kill(*worker.pids, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="PyTorch's process ended when it was asked"):
            building()
        assert "PyTorch's process ended when it was asked" in said("gru-b4")


@pytest.mark.parametrize(
    ("backend", "has_cuda", "device"),
    [("cpu", True, "cpu"), ("gpu", True, "cuda"), ("gpu", False, None), ("tpu", True, None)],
)
def test_pytorch_computes_where_jax_does_or_is_left_out(monkeypatch, backend, has_cuda, device):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert torch_peer.device() == device
    if device is None:
        with pytest.raises(LeftOutError, match="it would run on the CPU, JAX on"):
            peers("torch_ops", lambda torch: torch.product(1, 2))["PyTorch"]()


def test_on_a_gpu_pytorch_has_no_threads_to_choose_and_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(in_torch, "DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    x = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    builds = in_torch.builds({"": in_torch.Work(lambda: (x * x).sum(), [x])})
    assert list(builds) == ["PyTorch", "PyTorch compiled"]
    arm = builds["PyTorch"]()
    assert not waited
    result, gradient = map(arm.read, arm.run())
    assert len(waited) == 1
    assert result == 3
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient, jnp.full(3, 2, jnp.bfloat16))


def test_pytorch_takes_and_gives_arrays_of_bfloat16():
    x = jnp.arange(5, dtype=jnp.bfloat16) / 3
    tensor = in_torch.learned(x)
    assert str(tensor.dtype) == "torch.bfloat16"
    np.testing.assert_array_equal(in_torch._read(tensor), x)
