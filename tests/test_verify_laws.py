import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.op import Op
from jaxnn.verify.batch import BatchLaws
from jaxnn.verify.laws import batch_laws
from jaxnn.verify.other_ways import run_in_other_ways, run_op_in_other_ways
from jaxnn.verify.problem import bind, to_float64
from jaxnn.verify.programs import Programs, compiled
from jaxnn.verify.second_order import second_order
from jaxnn.verify.values import Evaluator, both_gradients, by_path

# Whether a gradient is wrong, not why, is asked here.
pytestmark = pytest.mark.usefixtures("undiagnosed")

RNG = np.random.default_rng(0)


class Batch(NamedTuple):
    x: Any
    y: Any
    mask: Any


BATCH = Batch(
    RNG.normal(size=(7, 2)).astype(np.float32),
    RNG.normal(size=7).astype(np.float32),
    np.array([True, True, False, True, True, True, False]),
)
W = jnp.asarray([0.5, -1.5], jnp.float32)


def mean_loss(w, batch):
    return ((batch.x @ w - batch.y) ** 2).mean() + 0.1 * (w**2).sum()


def mean_grad(w, batch, size=None):
    r = batch.x @ w - batch.y
    return 2 * r @ batch.x / (size or len(r)) + 0.2 * w


def sum_loss(w, batch):
    return ((batch.x @ w - batch.y) ** 2).sum()


def sum_grad(w, batch):
    return 2 * (batch.x @ w - batch.y) @ batch.x


def masked_loss(w, batch):
    x, y = jnp.where(batch.mask[:, None], batch.x, 0), jnp.where(batch.mask, batch.y, 0)
    return ((x @ w - y) ** 2).sum() / batch.mask.sum()


def masked_grad(w, batch):
    x, y = jnp.where(batch.mask[:, None], batch.x, 0), jnp.where(batch.mask, batch.y, 0)
    return 2 * (x @ w - y) @ x / batch.mask.sum()


MASKED = BatchLaws(mask="[0].mask")


def broken(laws, loss, manual_grad, *args, seed=0, **kwargs):
    with jax.enable_x64(True):
        problem_of = functools.partial(bind, loss, manual_grad, W)
        return batch_laws(laws, problem_of, args or (BATCH,), kwargs, seed)


@pytest.mark.parametrize(
    ("laws", "loss", "manual_grad"),
    [
        (BatchLaws(), mean_loss, mean_grad),  # with its penalty
        (BatchLaws(reduction="sum"), sum_loss, sum_grad),
        (MASKED, masked_loss, masked_grad),
        (BatchLaws(reduction="sum", mask="[0].mask"),
         lambda w, b: masked_loss(w, b) * b.mask.sum(),
         lambda w, b: masked_grad(w, b) * b.mask.sum()),
    ],
)  # fmt: skip
def test_a_right_gradient_breaks_no_law(laws, loss, manual_grad):
    assert broken(laws, loss, manual_grad) == ()


@pytest.mark.parametrize(
    ("laws", "loss", "manual_grad", "expected"),
    [
        (BatchLaws(), mean_loss, lambda w, b: mean_grad(w, b, 7) - 0.2 * w,
         ["not additive over micro-batches of 2 and 5 .* is the batch size a constant"]),
        (BatchLaws(reduction="sum"), sum_loss, lambda w, b: sum_grad(w, b) / len(b.y),
         ["not additive .* is there a mean where a sum belongs"]),
        (BatchLaws(), mean_loss,
         lambda w, b: mean_grad(w, b._replace(x=b.x - b.x.mean(0))),
         ["not additive .* are examples coupled"]),
        (BatchLaws(), mean_loss,
         lambda w, b: mean_grad(w, Batch(b.x[:1], b.y[:1], None)),
         ["not additive .* singled out", "changed by permuting .* single out an example"]),
        (MASKED, masked_loss, lambda w, b: masked_grad(w, b) * b.mask.mean(),
         ["not additive .* averages by rows", "changed by 2 rows .* count the rows"]),
        (MASKED, masked_loss,
         lambda w, b: 2 * ((b.x @ w - b.y) * b.mask) @ b.x / b.mask.sum(),
         ["changed by NaN.* is nan at w.* 0 \\* NaN"]),
        (BatchLaws(), mean_loss, lambda w, b: mean_grad(w, b._replace(x=b.x.reshape(7, 2))),
         ["on 2 examples, given 7, the hand-written gradient raises TypeError.* constant",]),
    ],
)  # fmt: skip
def test_a_wrong_gradient_is_accused_of_the_law_it_breaks(laws, loss, manual_grad, expected):
    found = broken(laws, loss, manual_grad)
    assert len(found) == len(expected), found
    for sentence, pattern in zip(found, expected, strict=True):
        assert re.search(pattern, sentence), sentence
        assert "the hand-written gradient" in sentence
        assert "\n" not in sentence


@pytest.mark.parametrize(
    ("laws", "loss", "expected"),
    [
        (BatchLaws(reduction="sum"), mean_loss, "the loss is no sum .* but, it seems, a mean"),
        (BatchLaws(), sum_loss, "the loss is no mean .* but, it seems, a sum"),
        (BatchLaws(), lambda w, b: mean_loss(w, b._replace(x=b.x - b.x.mean(0))), "no mean"),
        (MASKED, lambda w, b: (((b.x @ w - b.y) * b.mask) ** 2).sum() / b.mask.sum(),
         "the loss itself leaks"),
        (BatchLaws(), lambda w, b: mean_loss(w, b._replace(x=b.x.reshape(7, 2))),
         "given 7, the loss raises"),
    ],
)  # fmt: skip
def test_a_loss_that_breaks_a_law_is_blamed_itself(laws, loss, expected):
    found = broken(laws, loss, jax.grad(loss))
    assert len(found) == 1
    assert re.search(expected, found[0]), found


def test_a_leak_in_autodiff_alone_is_no_fault():
    loss = lambda w, b: jnp.where(b.mask, (b.x @ w - b.y) ** 2, 0).sum() / b.mask.sum()  # noqa: E731
    poisoned = BATCH._replace(x=np.where(BATCH.mask[:, None], BATCH.x, np.nan))
    assert np.isnan(jax.grad(loss)(W, poisoned)).any()
    assert broken(MASKED, loss, masked_grad) == ()


def test_the_batch_may_be_spread_over_arguments_and_named():
    def loss(w, x, scale, *, y, mask):
        return masked_loss(w, Batch(x, y, mask)) * scale

    def grad(w, x, scale, *, y, mask):
        return masked_grad(w, Batch(x, y, mask)) * scale

    laws = BatchLaws(arguments=(0, "y", "mask"), mask="mask")
    args, kwargs = (BATCH.x, np.float32(3)), {"y": BATCH.y, "mask": BATCH.mask}
    assert broken(laws, loss, grad, *args, **kwargs) == ()
    wrong = lambda *args, **kwargs: grad(*args, **kwargs) * kwargs["mask"].sum()  # noqa: E731
    assert "not additive" in broken(laws, loss, wrong, *args, **kwargs)[0]


def test_every_part_shows_something():
    mask = np.array([False, False, False, False, True, True, False])
    assert broken(MASKED, masked_loss, masked_grad, BATCH._replace(mask=mask)) == ()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: BatchLaws(arguments=0), TypeError, "must be a tuple of positions and names"),
        (lambda: BatchLaws(arguments=()), ValueError, "name at least one"),
        (lambda: BatchLaws(reduction="max"), ValueError, "'max'; it must be 'mean' or 'sum'"),
        (lambda: BatchLaws(mask=BATCH.mask), TypeError, "mask is a ndarray; it must be the name"),
        (lambda: broken(BatchLaws((1,)), mean_loss, mean_grad), ValueError,
         "names 1, which the call has not; .* are 0$"),
        (lambda: broken(BatchLaws((-1,)), mean_loss, mean_grad), ValueError, "names -1"),
        (lambda: broken(BatchLaws(mask="mask"), mean_loss, mean_grad), ValueError,
         r"'mask', which is no array of the batch; they are \[0\].x, \[0\].y, \[0\].mask"),
        (lambda: broken(BatchLaws(), mean_loss, mean_grad, BATCH._replace(y=BATCH.y[:3])),
         ValueError, "all of one size, but hold .*'.0..x': 7, '.0..y': 3"),
        (lambda: broken(BatchLaws(), mean_loss, mean_grad, BATCH._replace(y=jnp.float32(1))),
         ValueError, "leading axis"),
        (lambda: broken(BatchLaws(), mean_loss, mean_grad, Batch(jnp.float32(1), None, None)),
         ValueError, "leading axis"),
        (lambda: broken(BatchLaws(), mean_loss, mean_grad, Batch(None, None, None)), ValueError,
         "must hold arrays"),
        (lambda: broken(BatchLaws(), mean_loss, mean_grad, Batch(*(b[:1] for b in BATCH))),
         ValueError, "1 examples in the batch 1 can be seen"),
        (lambda: broken(MASKED, mean_loss, mean_grad, BATCH._replace(mask=np.zeros(7))),
         ValueError, "7 examples in the batch 0 can be seen"),
    ],
)  # fmt: skip
def test_what_is_no_batch_is_refused_in_words(make, error, words):
    with pytest.raises(error, match=words):
        make()


def quartic(w, scale):
    return scale * (w**4).sum() + (w[0] * w[1]) ** 2


def quartic_grad(w, scale):
    return 4 * scale * w**3 + 2 * w[0] * w[1] * w[::-1]


@jax.custom_jvp
def cube(w):
    return w**3


cube.defjvp(lambda x, t: (x[0] ** 3, 2 * x[0] ** 2 * t[0]))


@jax.custom_vjp
def opaque(w):
    return w


opaque.defvjp(lambda w: (w, None), lambda _, d: (d,))


def differentiated(loss, manual_grad):
    problem = bind(loss, manual_grad, W, (np.float32(1.5),), {})
    with jax.enable_x64(True):
        return second_order(problem, to_float64(problem.floats), to_float64(problem.rest), 0)


def test_a_gradient_with_the_right_derivative_passes_the_second_order():
    assert differentiated(quartic, quartic_grad) == ()


@pytest.mark.parametrize(
    ("manual_grad", "words"),
    [
        (lambda w, s: quartic_grad(jax.lax.stop_gradient(w), s), "own derivative is 0 at w"),
        (lambda w, s: 4 * s * cube(w) + 2 * w[0] * w[1] * w[::-1], "autodiff's Hessian-vector"),
        (lambda w, s: quartic_grad(w, s) + jnp.sqrt(w - jax.lax.stop_gradient(w)), "is inf at"),
        (lambda w, s: quartic_grad(opaque(w), s), "cannot be differentiated in forward mode"),
        (lambda w, s: quartic_grad(w, s) + 1e-8 * jnp.sin(w - jax.lax.stop_gradient(w)), "deriv"),
    ],
)
def test_a_gradient_with_a_wrong_derivative_fails_the_second_order(manual_grad, words):
    found = differentiated(quartic, manual_grad)
    assert len(found) == 1
    assert words in found[0]
    assert "\n" not in found[0]


def test_a_loss_that_refuses_forward_mode_is_named():
    loss = lambda w, s: jax.pure_callback(lambda v: v.sum(), jnp.zeros((), w.dtype), w)  # noqa: E731
    assert "the loss's gradient cannot" in differentiated(loss, quartic_grad)[0]


def cubes(w):
    return (w**3).sum()


def around(manual_grad, loss=cubes, params=W):
    problem = bind(loss, manual_grad, params, (), {})
    floats, rest = problem.floats, problem.rest
    programs = Programs()
    first = Evaluator(programs.get("first", both_gradients(problem), floats, rest)).at(floats, rest)
    truth = dict(zip(problem.paths, first.autodiff, strict=True))

    def precise_enough(path, values):
        return np.abs(values - truth[path]).max(initial=0) <= 1e-6 * np.abs(truth[path]).max(
            initial=0
        )

    return run_in_other_ways(problem, first, programs, precise_enough)


def traced(x):
    return isinstance(x, jax.core.Tracer)


def first_row_only(rule):
    function = jax.custom_batching.custom_vmap(lambda w: 3 * w**2)
    function.def_vmap(lambda size, batched, w: (rule(3 * w**2), True))
    return function


def counted(w, runs=None):
    runs = [0] if runs is None else runs

    def count(w):
        runs[0] += 1
        return np.asarray(3 * w**2 + runs[0] * 1e-6, np.float32)

    return jax.pure_callback(count, w, w, vmap_method="sequential")


def raises_eagerly(w):
    if not traced(w):
        raise KeyError("no such\nthing")
    return 3 * w**2


@pytest.mark.parametrize("params", [W, jnp.zeros((0, 3)), jnp.asarray(2.0), W.astype(jnp.bfloat16)])
def test_a_pure_function_is_the_same_everywhere(params):
    assert around(lambda w: 3 * w**2, params=params) == ()


@pytest.mark.parametrize(
    ("manual_grad", "words"),
    [
        (lambda w: (3 if traced(w) else 3.01) * w**2, "run eagerly, it gives 6.77.* not 6.75 as"),
        (lambda w: (3.01 if traced(w) else 3) * w**2, "run eagerly, it gives 6.75.* not 6.77"),
        (lambda w: 3 * w**2 if traced(w) else (3 * w**2)[None], "gives float32.1, 2. for w"),
        (lambda w: 3 * w**2 if traced(w) else (), "gives nothing for w"),
        (lambda w: 3 * w**2 if traced(w) else w * jnp.nan, "run eagerly, it gives nan at"),
        (raises_eagerly, "run eagerly, it raises KeyError: 'no such"),
        (first_row_only(lambda g: g.at[1].set(g[0])), "under vmap, it gives"),
        (first_row_only(lambda g: g.at[0].set(g[1])), "under vmap, it gives"),
        (first_row_only(lambda g: g[::-1]), "under vmap, it gives"),
        (lambda w: jax.pure_callback(lambda w: np.asarray(3 * w**2, np.float32), w, w),
         "under vmap, it raises NotImplementedError"),
    ],
)  # fmt: skip
def test_a_function_that_differs_elsewhere_is_told_so(manual_grad, words):
    found = around(manual_grad)
    assert len(found) == 1, found
    assert re.search(words, found[0]), found
    assert "\n" not in found[0]


def test_runs_that_do_not_repeat_are_told_so():
    runs = [0]
    found = around(lambda w: counted(w, runs))
    assert any(line.startswith("the same program, run again, gives") for line in found)


def test_nan_in_every_way_is_no_difference():
    assert around(lambda w: 0.5 / jnp.sqrt(w), lambda w: jnp.sqrt(w).sum()) == ()


def test_what_was_compiled_is_not_compiled_again():
    programs = Programs()
    problem = bind(cubes, lambda w: 3 * w**2, W, (), {})
    program = compiled(both_gradients(problem), problem.floats, problem.rest)
    first = Evaluator(program).at(problem.floats, problem.rest)
    point = (problem, first, programs, lambda path, values: True)
    run_in_other_ways(*point)
    with jax.no_tracing():
        assert run_in_other_ways(*point) == ()


def op_around(fwd, bwd):
    inputs = (W, jnp.arange(2))
    dout = jnp.asarray([2.0, -3.0])
    expected = jax.jit(lambda w, i, d: ((3 * w**2 * d)[i], None))(*inputs, dout)
    truth = by_path(expected)

    def precise_enough(path, values):
        return np.allclose(values, truth[path], rtol=1e-6)

    op = Op(fwd, bwd, example=lambda key: inputs)
    return run_op_in_other_ways(op, inputs, dout, {}, expected, Programs(), precise_enough)


def cube_fwd(w, i):
    return (w**3)[i], (w, i)


def cube_bwd(residuals, dout):
    w, i = residuals
    return jnp.zeros_like(w).at[i].set(3 * w**2 * dout), None


def test_an_op_is_the_same_inside_scan_and_under_checkpoint():
    assert op_around(cube_fwd, cube_bwd) == ()


def test_an_op_that_differs_inside_others_is_told_so():
    def refuses(residuals, dout):
        raise ValueError("no rule\nfor this")

    scan, checkpoint = op_around(cube_fwd, refuses)
    assert scan == "called inside lax.scan, it raises ValueError: no rule"
    assert checkpoint == "called under jax.checkpoint, it raises ValueError: no rule"
    scan, checkpoint = op_around(cube_fwd, lambda r, d: (2 * cube_bwd(r, d)[0], None))
    assert scan.startswith("called inside lax.scan, it gives")
    assert checkpoint.startswith("called under jax.checkpoint, it gives")
