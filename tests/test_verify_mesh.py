"""The verifier on a mesh: right gradients pass, and of wrong ones the collective is named."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import of_two_processes
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxnn import verify
from jaxnn.models import mlp
from jaxnn.ops.collectives import ring_shift
from jaxnn.verify.causes import devices
from jaxnn.verify.mesh import axes_in, cut, put_together

RNG = np.random.default_rng(0)


def drawn(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def mesh_of(**sizes):
    count = int(np.prod([*sizes.values()]))
    return jax.make_mesh((*sizes.values(),), (*sizes,), devices=jax.devices()[:count])


# A layer cut over "model", its examples over "data".
def loss(p, x, t):
    h = jnp.tanh(x @ p["w"] + p["b"])
    return ((h @ p["v"] + p["c"] - t) ** 2).mean()


PARAMS = {"w": drawn(3, 6), "b": drawn(6), "v": drawn(6, 2), "c": drawn(2)}
X, T = drawn(8, 3), drawn(8, 2)
RULES = ({"w": P(None, "model"), "b": P("model"), "v": P("model"), "c": P()}, P("data"), P("data"))


def parallel(
    total=lambda y, c: lax.psum(y, "model") + c,
    returned=lambda g: lax.psum(g, "data"),
    slope=lambda h: 1 - h**2,
):
    """The gradient of one device, with what may be wrong in it."""

    def grad(p, x, t):
        h = jnp.tanh(x @ p["w"] + p["b"])
        y = total(h @ p["v"], p["c"])
        dy = 2 * (y - t) / (t.size * lax.axis_size("data"))
        dh = dy @ p["v"].T * slope(h)
        return returned({"w": x.T @ dh, "b": dh.sum(0), "v": h.T @ dy, "c": dy.sum(0)})

    return grad


def verified(manual_grad, of=loss, params=PARAMS, args=(X, T), rules=RULES, **sizes):
    mesh = mesh_of(**sizes or {"data": 4, "model": 2})
    return verify.gradient(of, manual_grad, params, *args, mesh=mesh, rules=rules)


def line_of(function, text):
    lines, first = inspect.getsourcelines(function)
    return f"(test_verify_mesh.py:{first + next(i for i, x in enumerate(lines) if text in x)})"


def test_a_right_gradient_passes_and_is_named_with_its_mesh():
    report = verified(parallel())
    assert report, report
    assert "on data=4, model=2" in report.name
    assert report.loss == pytest.approx(float(loss(PARAMS, X, T)), rel=1e-6)
    assert not report.elsewhere


def without(left_out):
    return lambda g: {k: v if k in left_out else lax.psum(v, "data") for k, v in g.items()}


def twice(g):
    g = lax.psum(g, "data")
    return g | {"c": lax.psum(g["c"], "model")}


def of_all(g):
    return jax.tree.map(lambda d: lax.psum(4 * d, "data"), g)


WRONG = {
    "every sum left out": (
        parallel(returned=lambda g: g),
        "sum left out",
        "the sum over 'data' is left out of the gradient of ['b'], ['c'], ['v'], ['w']",
    ),
    "one sum left out": (
        parallel(returned=without("v")),
        "sum left out",
        "the sum over 'data' is left out of the gradient of ['v']",
    ),
    "a sum of activations left out": (
        parallel(total=lambda y, c: y + c),
        "sum left out",
        "the sum over 'model' is left out at dot_general "
        + line_of(parallel, "y = total(h @"),
    ),
    "summed twice": (
        parallel(returned=twice),
        "sum too many",
        f"a sum over 'model' too many at psum {line_of(twice, 'lax.psum(g[')}: all devices have "
        "the same there already",
    ),
    "a mean for a sum": (
        parallel(returned=lambda g: lax.pmean(g, "data")),
        "mean for a sum",
        "a mean over 'data' where the sum is meant, 1/4 of it, at psum (test_verify_mesh.py:",
    ),
    "a sum for a mean": (
        parallel(returned=of_all),
        "sum for a mean",
        "a sum over 'data' where the mean is meant, 4 times as much, at psum "
        + line_of(of_all, "4 * d"),
    ),
    "over another axis": (
        parallel(total=lambda y, c: lax.psum(y, "data") + c),
        "sum over another axis",
        "the sum is over other axes than 'model' at psum (test_verify_mesh.py:",
    ),
    "a bias on every device": (
        parallel(total=lambda y, c: lax.psum(y + c, "model")),
        "per shard",
        "a term is added on every device before the sum over 'model', and so 2 times, at add (",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_the_collective_that_is_wrong_is_named(name):
    manual_grad, cause, text = WRONG[name]
    report = verified(manual_grad)
    assert report.status == "fail"
    assert report.shared_cause.cause == cause
    assert report.shared_cause.text.startswith(text)
    assert bool(report.problems) == (cause in ("sum left out", "sum over another axis"))


# Mistakes that have nothing to do with devices: what is named is not one of their collectives.
ELSEWHERE = {
    "sign": parallel(returned=lambda g: jax.tree.map(lambda d: -lax.psum(d, "data"), g)),
    "slope": parallel(slope=lambda h: 1 - h),
    "factor": parallel(returned=lambda g: jax.tree.map(lambda d: 3 * lax.psum(d, "data"), g)),
    "zero": parallel(returned=lambda g: lax.psum(g | {"b": 0 * g["b"]}, "data")),
}


NAMED = {"sign": "sign", "slope": "wrong derivative", "factor": "factor", "zero": "zeroed slice"}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_of_other_mistakes_no_collective_is_named(name):
    report = verified(ELSEWHERE[name])
    assert report.status == "fail"
    assert not report.problems  # all devices agree
    causes = {leaf.diagnosis.cause for leaf in report.leaves if leaf.diagnosis}
    assert causes == {NAMED[name]}


def test_a_factor_that_is_a_number_of_devices_by_chance_is_said_to_be_others_too():
    half = parallel(returned=lambda g: jax.tree.map(lambda d: lax.psum(d, "data") / 2, g))
    text = verified(half, data=2, model=2).shared_cause.text
    assert text.startswith("a mean over 'data' where the sum is meant, 1/2 of it, at psum (")
    assert "; or halved, or the 2 of a square forgotten" in text


def test_that_there_are_too_many_places_to_mend_is_said(monkeypatch):
    monkeypatch.setattr(devices, "MOST_REPAIRS", 3)
    report = verified(WRONG["a mean for a sum"][0])
    assert any("places; more than 3 would take" in x for x in report.coverage)
    assert "the number of devices along 'data'" in report.shared_cause.text


# Batch norm, of a batch that is spread over four devices.
def norm_loss(p, x, t):
    h = x @ p["w"]
    y = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-3)
    return (jnp.tanh(y) * t).sum(-1).mean()


def norm_grad(forward, backward):
    def grad(p, x, t):
        h = x @ p["w"]
        centred = h - forward(h.mean(0))
        r = lax.rsqrt(forward((centred**2).mean(0)) + 1e-3)
        y = centred * r
        dy = t * (1 - jnp.tanh(y) ** 2) / (len(x) * lax.axis_size("data"))
        dh = r * (dy - backward(dy.mean(0)) - y * backward((dy * y).mean(0)))
        return {"w": lax.psum(x.T @ dh, "data")}

    return grad


def over_all(x):
    return lax.pmean(x, "data")


def of_one(x):
    return x


@pytest.mark.parametrize(
    ("forward", "backward", "lines"),
    [
        (over_all, over_all, ()),
        (of_one, of_one, ("h - forward", "r = lax", "dh = r")),
        (over_all, of_one, ("dh = r",)),
    ],
)
def test_statistics_of_one_device_are_named(forward, backward, lines):
    args, rules = (drawn(12, 3), drawn(12, 5)), (P(), P("data"), P("data"))
    manual_grad = norm_grad(forward, backward)
    report = verified(manual_grad, norm_loss, {"w": drawn(3, 5)}, args, rules, data=4)
    assert bool(report) == (not lines)
    if lines:
        assert report.shared_cause.cause == "one shard"
        at = ", ".join(f"reduce_sum {line_of(norm_grad, line)}" for line in lines)
        assert report.shared_cause.text == (
            f"statistics of one device's part, not of all along 'data', at {at}"
        )


# A sequence that is spread over devices: what each sends on is added up around a ring.
def ring_loss(p, x):
    s = (x @ p["q"]) @ (x @ p["k"]).T
    return jnp.tanh(jnp.tril(s) @ x).sum()


def ring_grad(forth, home):
    def send(z, steps):
        return ring_shift.fwd(z, axis=("seq",), steps=steps)[0]

    def grad(p, x):
        n, here = lax.axis_size("seq"), lax.axis_index("seq")
        q = x @ p["q"]

        def seen(j):
            rows, columns = (i * len(x) + jnp.arange(len(x)) for i in (here, (here - j) % n))
            return rows[:, None] >= columns

        def forward(carry, j):
            k, v, y = carry
            return (send(k, forth), send(v, forth), y + (q @ k.T * seen(j)) @ v), None

        def backward(carry, j):
            k, v, dk, dq = carry
            ds = dy @ v.T * seen(j)
            return (send(k, 1), send(v, 1), send(dk + ds.T @ q, home), dq + ds @ k), None

        steps, k = jnp.arange(n), x @ p["k"]
        (_, _, y), _ = lax.scan(forward, (k, x, jnp.zeros_like(x)), steps)
        dy = 1 - jnp.tanh(y) ** 2
        zero = jnp.zeros_like(q)
        (_, _, dk, dq), _ = lax.scan(backward, (k, x, zero, zero), steps)
        return lax.psum({"q": x.T @ dq, "k": x.T @ dk}, "seq")

    return grad


@pytest.mark.parametrize(("forth", "home"), [(1, 1), (-1, 1), (1, -1)])
def test_a_ring_that_turns_the_wrong_way_is_named(forth, home):
    params = {"q": drawn(3, 2) / 2, "k": drawn(3, 2) / 2}
    report = verified(
        ring_grad(forth, home), ring_loss, params, (drawn(8, 3),), (P(), P("seq")), seq=4
    )
    assert bool(report) == (forth == home == 1), report
    if not report:
        where = line_of(ring_grad, "ring_shift.fwd")
        text = f"the ring along 'seq' turns the wrong way at ppermute {where}"
        assert report.shared_cause.text == text


def test_parameters_in_parts_are_gathered_and_their_gradient_is_scattered():
    def whole(p, x):
        return (jnp.tanh(x @ p) ** 2).mean()

    def sharded(give_back):
        def grad(p, x):
            w = lax.all_gather(p, "data", axis=0, tiled=True)
            y = jnp.tanh(x @ w)
            dw = x.T @ (2 * y * (1 - y**2)) / (y.size * lax.axis_size("data"))
            return give_back(dw, len(p))

        return grad

    def summed(dw, rows):
        return lax.psum_scatter(dw, "data", scatter_dimension=0, tiled=True)

    def own(dw, rows):
        return lax.dynamic_slice_in_dim(dw, lax.axis_index("data") * rows, rows)

    given = whole, drawn(8, 3), (drawn(8, 8),), (P("data"), P("data"))
    assert verified(sharded(summed), *given, data=4)
    report = verified(sharded(own), *given, data=4)
    assert report.shared_cause.text.startswith("the sum over 'data' is left out at ")


def test_a_model_of_the_library_in_parts_of_a_batch():
    config = mlp.EXAMPLE_CONFIGS[0]
    params = mlp.init_params(jax.random.key(0), config)
    batch = jax.tree.map(
        lambda x: jnp.concatenate([x] * 4)[:8], mlp.example_batch(jax.random.key(1), config)
    )

    def manual_grad(params, batch, config):
        value, grads = mlp.manual_value_and_grad(params, batch, config)
        return lax.pmean((value, grads), "data")

    report = verify.gradient(
        mlp.loss, manual_grad, params, batch, config,
        mesh=mesh_of(data=4), rules=(P(), P("data"), None),
    )  # fmt: skip
    assert report, report
    assert any("(value, gradient)" in line for line in report.coverage)


def test_arguments_are_differentiated_by_position_with_their_own_rules():
    def of_both(x, w, t):
        return ((x @ w - t) ** 2).mean()

    def grads(x, w, t):
        dy = 2 * (x @ w - t) / (t.size * lax.axis_size("data"))
        return dy @ w.T, lax.psum(x.T @ dy, "data")

    mesh, rules = mesh_of(data=4), (P("data"), P(), P("data"))
    given = of_both, grads, drawn(8, 3), drawn(3, 2), T
    assert verify.gradient(*given, argnums=(0, 1), mesh=mesh, rules=rules)
    assert verify.gradient(
        of_both, lambda x, w, t: grads(x, w, t)[1], *given[2:], argnums=1, mesh=mesh, rules=rules
    )


def test_what_jax_s_types_refuse_is_run_without_them_and_that_is_said():
    def refused(p, x, t):
        zero = jax.tree.map(jnp.zeros_like, p)  # a carry that begins the same on all devices

        def add(carry, row):
            found = parallel(returned=lambda g: g)(p, *(z[None] for z in row))
            return jax.tree.map(jnp.add, carry, found), None

        found, _ = lax.scan(add, zero, (x, t))
        return jax.tree.map(lambda d: lax.psum(d, "data") / len(x), found)

    report = verified(refused)
    assert report, report
    assert any("check_vma=False" in line for line in report.coverage)


def test_arrays_that_lie_on_the_mesh_are_taken_whole():
    mesh = mesh_of(data=4, model=2)
    placed = jax.device_put(
        (PARAMS, X, T), jax.tree.map(lambda s: jax.NamedSharding(mesh, s), RULES)
    )
    assert verify.gradient(loss, parallel(), *placed, mesh=mesh, rules=RULES)


@pytest.mark.parametrize(
    "spec", [P("a"), P(None, "b"), P("b", "a"), P(("b", "a")), P(), P(("a", "b"), "c")]
)
def test_parts_are_put_together_as_jax_puts_them(spec):
    mesh = mesh_of(a=2, b=2, c=2)
    x = np.arange(32.0).reshape(8, 4)
    placed = jax.device_put(x, jax.NamedSharding(mesh, spec))
    of = {shard.device: np.asarray(shard.data) for shard in placed.addressable_shards}
    parts = np.stack([of[device] for device in mesh.devices.flat])
    assert np.array_equal(put_together(parts, spec, mesh), x)
    along = [axis for axis in mesh.axis_names if axis in axes_in(spec)]
    sizes = [mesh.shape[axis] if axis in along else 1 for axis in mesh.axis_names]
    local = parts.shape[1:]
    ours = np.broadcast_to(cut(x, spec, mesh).reshape(*sizes, *local), (2, 2, 2, *local))
    assert np.array_equal(ours.reshape(parts.shape), parts)


REFUSED = {
    "no mesh": ({"mesh": 4}, TypeError, "must be a jax.sharding.Mesh"),
    "rules alone": ({"mesh": None}, TypeError, "must be a jax.sharding.Mesh"),
    "no rules": ({"rules": None}, TypeError, "must be a tuple of 3"),
    "a rule too few": ({"rules": RULES[:2]}, TypeError, "must be a tuple of 3"),
    "no rule": ({"rules": (RULES[0], "data", P())}, TypeError, "the rule of x is 'data'"),
    "another tree": ({"rules": ({"w": P()}, P(), P())}, TypeError, "do not fit the arguments"),
    "no such axis": (
        {"rules": (RULES[0], P("rows"), P())},
        ValueError,
        "no axis 'rows'; its axes are 'data', 'model'",
    ),
    "twice": ({"rules": (P(), P("data", "data"), P())}, ValueError, "each axis at most once"),
    "too long": ({"rules": (P(), P(None, None, "data"), P())}, ValueError, "it has 2"),
    "indivisible": (
        {"rules": (P(), P(None, "data"), P())},
        ValueError,
        "dimension 1 of x has 3 for 4 devices along 'data'",
    ),
    "second order": ({"second_order": True}, ValueError, "second_order is True with a mesh"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_lie_on_a_mesh_is_refused_in_words(name):
    given, kind, words = REFUSED[name]
    options = {"mesh": mesh_of(data=4, model=2), "rules": RULES} | given
    with pytest.raises(kind, match=words):
        verify.gradient(loss, parallel(), PARAMS, X, T, **options)


def test_what_the_gradient_raises_is_said_as_its_own():
    def broken(p, x, t):
        return p["w"] @ x

    with pytest.raises(TypeError, match="dot_general") as raised:
        verified(broken)
    assert any("hand-written gradient" in note for note in raised.value.__notes__)
    report = verified(lambda p, x, t: {k: v for k, v in parallel()(p, x, t).items() if k != "c"})
    assert "missing" in str(report)


def test_two_processes_come_to_the_same_verdict():
    said = of_two_processes("verify_processes.py")
    verdicts = [[x for x in out.splitlines() if x.startswith("verdict:")] for out in said]
    assert verdicts[0] == verdicts[1]
    right, mean, local = verdicts[0]
    assert right.startswith("verdict: pass")
    assert "a mean over 'data' where the sum is meant, 1/2 of it" in mean
    assert "the sum over 'data' is left out of the gradient of w" in local
