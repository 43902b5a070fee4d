"""Bad input, hundreds of kinds of it: every refusal is one of ours, in words."""

import fuzz
import jax
import jax.numpy as jnp
import pytest

from jaxnn.op import Op

BATCHES = 4


@pytest.mark.parametrize("batch", range(BATCHES))
@pytest.mark.parametrize("calls", [fuzz.calls_of_ops, fuzz.calls_of_models])
def test_bad_input_is_refused_in_words(calls, batch):
    drawn = fuzz.sampled(calls(), 100 * BATCHES)[batch::BATCHES]
    assert len(drawn) == 100
    faults = [f"{name} -> {said}" for name, call in drawn if (said := fuzz.fault(call))]
    assert not faults, "\n".join(faults)


def test_a_traceback_from_inside_jax_is_a_fault():
    assert "TypeError in" in fuzz.fault(lambda: jax.jit(jnp.sin)("x"))
    assert "OverflowError" in fuzz.fault(lambda: float(10**400))
    unchecked = Op(lambda x: (jnp.sin(x), x), lambda x, dy: (dy,))
    assert not fuzz.fault(lambda: unchecked("x"))
    assert "in jaxnn" not in fuzz.fault(lambda: unchecked((1.0, 2.0)))


def test_every_op_and_model_is_tried():
    tried = {name.split(":")[0].split(".")[0] for name, _ in fuzz.calls_of_ops()}
    assert tried == set(fuzz.ops())
    assert len(list(fuzz.calls_of_models())) > 2000
