"""More mistakes by their names: in softmax, indices, carries, sums, slopes, and whole leaves."""

import jax
import jax.numpy as jnp
import pytest

from jaxnn import verify

KEYS = jax.random.split(jax.random.key(1), 12)


def normal(i, *shape):
    return jax.random.normal(KEYS[i], shape)


def cause(loss, by_hand, *args):
    report = verify.gradient(loss, by_hand, *args)
    assert report.status == "fail"
    (found,) = {leaf.diagnosis for leaf in report.leaves if leaf.status == "fail"}
    return found


def softmax(z):
    e = jnp.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


SOFTMAX = {
    "diagonal": (
        lambda y, dy: y * (1 - y) * dy,
        "missing term",
        "only the diagonal of softmax's Jacobian",
    ),
    "no sum": (lambda y, dy: y * dy, "missing term", "only a diagonal of softmax's Jacobian, y dy"),
    "logs": (
        lambda y, dy: jnp.log(y) * (dy - (jnp.log(y) * dy).sum(-1, keepdims=True)),
        "wrong saved value",
        "log-probabilities",
    ),
    "axis": (
        lambda y, dy: y * (dy - (y * dy).sum(0, keepdims=True)),
        "wrong axis",
        "summed over axis 0, not 1",
    ),
    "right": (lambda y, dy: y * (dy - (y * dy).sum(-1, keepdims=True)), "", ""),
}


@pytest.mark.parametrize("function", [softmax, jax.nn.softmax])
@pytest.mark.parametrize("fault", SOFTMAX)
def test_softmax(fault, function):
    backward, name, words = SOFTMAX[fault]
    w, x, t = normal(0, 3, 4), normal(1, 5, 3), normal(2, 5, 4)

    def loss(w, x, t):
        return (function(x @ w) * jnp.sin(t)).sum()

    def by_hand(w, x, t):
        return x.T @ backward(softmax(x @ w), jnp.sin(t))

    if fault == "right":
        assert verify.gradient(loss, by_hand, w, x, t).status == "pass"
        return
    found = cause(loss, by_hand, w, x, t)
    assert found.cause == name
    assert words in found.text


def log_softmax(z):
    return z - jax.nn.logsumexp(z, axis=-1, keepdims=True)


@pytest.mark.parametrize("function", [log_softmax, jax.nn.log_softmax])
@pytest.mark.parametrize(
    ("backward", "words"),
    [
        (lambda y, dy: (1 - jnp.exp(y)) * dy, "only the diagonal of log-softmax's Jacobian"),
        (lambda y, dy: dy, "only a diagonal of log-softmax's Jacobian"),
        (lambda y, dy: dy - y * dy.sum(-1, keepdims=True), "log-probabilities are taken for prob"),
    ],
)
def test_log_softmax(function, backward, words):
    w, x, t = normal(0, 3, 4), normal(1, 5, 3), normal(2, 5, 4)
    found = cause(
        lambda w, x, t: (function(x @ w) * jnp.sin(t)).sum(),
        lambda w, x, t: x.T @ backward(log_softmax(x @ w), jnp.sin(t)),
        w,
        x,
        t,
    )
    assert words in found.text


def test_the_part_of_a_mean_and_of_a_deviation():
    w, x, t = normal(0, 3, 4), normal(1, 5, 3), normal(2, 5, 4)

    def loss(w, x, t):
        z = x @ w
        centred = z - z.mean(-1, keepdims=True)
        return (centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 0.1) * t).sum()

    def by_hand(mean, deviation):
        def grad(w, x, t):
            z = x @ w
            c = z - z.mean(-1, keepdims=True)
            s = jnp.sqrt((c**2).mean(-1, keepdims=True) + 0.1)
            dc = t / s - deviation * c * (t * c).mean(-1, keepdims=True) / s**3
            return x.T @ (dc - mean * dc.mean(-1, keepdims=True))

        return grad

    assert verify.gradient(loss, by_hand(1, 1), w, x, t).status == "pass"
    assert "the mean's part" in cause(loss, by_hand(0, 1), w, x, t).text
    assert "part of the norm or standard dev" in cause(loss, by_hand(1, 0), w, x, t).text


ROWS, COLUMNS = jnp.array([0, 1, 3, 2, 0]), jnp.array([2, 0, 1, 1, 3])


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ((COLUMNS, ROWS), "rows for columns"),
        ((ROWS, ROWS), "was taken for column 2 of the indices in operand 2 of gather"),
    ],
)
def test_an_index_of_another_axis(index, words):
    w, x = normal(3, 4, 4), normal(4, 4, 4)
    t = jnp.arange(1, 6)
    found = cause(
        lambda w, r, c: jnp.sin((x @ w)[r, c] * t).sum(),
        lambda w, r, c: x.T @ jnp.zeros_like(w).at[index].add(t * jnp.cos((x @ w)[r, c] * t)),
        w,
        ROWS,
        COLUMNS,
    )
    assert found.cause == "index"
    assert words in found.text


@pytest.mark.parametrize(
    ("take", "give"),
    [
        (lambda w: w[1], lambda g, d: g.at[:, 1].set(d)),
        (lambda w: jax.lax.dynamic_index_in_dim(w, 1, 0, False), lambda g, d: g.at[:, 1].set(d)),
    ],
)
def test_a_row_for_a_column(take, give):
    w, x = normal(3, 4, 4), normal(4, 3, 4)

    def loss(w, x):
        return jnp.sin(take(x.T @ x @ w)).sum()

    def wrong(w, x):
        z = x.T @ x @ w
        return (x.T @ x).T @ give(jnp.zeros_like(z), jnp.cos(take(z)))

    found = cause(loss, wrong, w, x)
    assert "rows for columns" in found.text


def test_a_carry_lost_at_a_boundary_and_every_few_steps():
    w, xs = normal(5, 3, 3), normal(6, 6, 2, 3)

    def loss(w, xs):
        def step(h, x):
            return jnp.tanh(h @ w + x), None

        return (jax.lax.scan(step, jnp.zeros((2, 3), xs.dtype), xs)[0] ** 2).sum()

    def by_hand(lost):
        def grad(w, xs):
            hs = [jnp.zeros((2, 3), xs.dtype)]
            for x in xs:
                hs.append(jnp.tanh(hs[-1] @ w + x))
            dh, dw = 2 * hs[-1], jnp.zeros_like(w)
            for t in reversed(range(len(xs))):
                dz = dh * (1 - hs[t + 1] ** 2)
                dw += hs[t].T @ dz
                dh = 0 * dh if t in lost else dz @ w.T
            return dw

        return grad

    assert verify.gradient(loss, by_hand(()), w, xs).status == "pass"
    for lost, words in (
        ((3,), "from step 3 to step 2"),
        ((2, 4), "every 2 steps, before step 2 first"),
        (range(6), "from step to step"),
    ):
        found = cause(loss, by_hand(lost), w, xs)
        assert found.cause == "detached"
        assert words in found.text


def test_the_mask_of_the_first_step():
    w, xs, keep = normal(5, 3), normal(6, 4, 2, 3), jnp.array([0.0, 1, 0, 1])[:, None]

    def loss(w, xs, keep):
        def step(h, x):
            x, m = x
            h = jnp.sin(h * w + x) * jnp.broadcast_to(m, x.shape)
            return h, h

        return (jax.lax.scan(step, jnp.ones((2, 3), xs.dtype), (xs, keep))[1] ** 2 + xs).sum()

    def by_hand(w, xs, keep):
        g = jnp.zeros_like(w)
        hs = [jnp.ones((2, 3), xs.dtype)]
        for x, m in zip(xs, keep, strict=True):
            hs.append(jnp.sin(hs[-1] * w + x) * m)
        dh = 0
        for t in reversed(range(len(xs))):
            dh = (dh + 2 * hs[t + 1]) * (keep[t] if t else 1)
            dz = dh * jnp.cos(hs[t] * w + xs[t])
            g += (dz * hs[t]).sum(0)
            dh = dz * w
        return g

    found = cause(loss, by_hand, w, xs, keep)
    assert found.cause == "mask"
    assert "in the first step" in found.text


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda dz: dz.sum(1), "summed over axis 1, not axis 0"),
        (lambda dz: dz.sum(0), ""),
    ],
)
def test_a_sum_over_another_axis(fault, words):
    p, x = {"w": normal(0, 3, 5), "b": normal(7, 5)}, normal(1, 5, 3)

    def by_hand(p, x):
        dz = jnp.cos(x @ p["w"] + p["b"])
        return {"w": x.T @ dz, "b": fault(dz)}

    def loss(p, x):
        return jnp.sin(x @ p["w"] + p["b"]).sum()

    if not words:
        assert verify.gradient(loss, by_hand, p, x).status == "pass"
        return
    found = cause(loss, by_hand, p, x)
    assert found.cause == "wrong axis"
    assert words in found.text


def test_a_cotangent_spread_along_another_axis():
    w, x = normal(0, 3, 5), normal(1, 5, 3)
    found = cause(
        lambda w, x: jnp.sin((x @ w).mean(0)).sum(),
        lambda w, x: x.T @ jnp.broadcast_to(jnp.cos((x @ w).mean(0))[:, None] / 5, (5, 5)),
        w,
        x,
    )
    assert "spread over axis 1, not axis 0" in found.text


def leaky(x):
    return jnp.where(x > 0, x, 0.3 * x)


def gelu(x):
    return 0.5 * x * (1 + jnp.tanh(jnp.sqrt(2 / jnp.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    ("function", "slope", "words"),
    [
        (jax.nn.sigmoid, lambda x: 1 - jnp.tanh(x) ** 2, "of tanh is taken for that of logistic"),
        (jnp.tanh, lambda x: 1.0 * (x > 0), "of ReLU is taken for that of tanh"),
        (jax.nn.relu, lambda x: jnp.where(x > 0, 1, 0.01), "of leaky ReLU (0.01) is taken"),
        (leaky, jax.nn.sigmoid, "of softplus is taken for that of what ends in"),
        (gelu, lambda x: 1.0 * (x > 0), "of ReLU is taken"),
        (gelu, jax.vmap(jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, False)))), "of GELU by erf"),
        (jax.nn.gelu, jax.vmap(jax.vmap(jax.grad(jax.nn.silu))), "of SiLU is taken"),
        (jax.nn.silu, lambda x: 1 - jnp.tanh(x) ** 2, "of tanh is taken"),
        (jax.nn.softplus, jax.vmap(jax.vmap(jax.grad(jax.nn.sigmoid))), "of sigmoid is taken"),
        (jax.nn.elu, jax.nn.sigmoid, "of softplus is taken"),
    ],
)
def test_the_slope_of_another_activation(function, slope, words):
    w, x = normal(0, 3, 4), normal(1, 5, 3)
    found = cause(
        lambda w, x: jnp.sin(function(x @ w)).sum(),
        lambda w, x: x.T @ (jnp.cos(function(x @ w)) * slope(x @ w)),
        w,
        x,
    )
    assert found.cause == "wrong derivative"
    assert words in found.text


def test_scores_that_are_not_transposed():
    p = {"q": normal(0, 3, 4), "k": normal(8, 3, 4)}
    x = normal(1, 2, 3, 3)

    def loss(p, x):
        s = (x @ p["q"]) @ (x @ p["k"]).mT
        return jnp.sin(s).sum()

    def by_hand(p, x):
        q, k = x @ p["q"], x @ p["k"]
        ds = jnp.cos(q @ k.mT)
        return {
            "q": jnp.einsum("ntd,nte->de", x, ds @ k),
            "k": jnp.einsum("ntd,nte->de", x, ds @ q),
        }

    found = cause(loss, by_hand, p, x)
    assert found.cause == "transpose"
    assert "is not transposed as it should be" in found.text


def test_a_term_subtracted_twice():
    w, x = normal(0, 3, 4), normal(1, 5, 3)
    found = cause(
        lambda w, x: (jnp.sin(x @ w) - jnp.tanh(x @ w)).sum(),
        lambda w, x: x.T @ (jnp.cos(x @ w) - 2 * (1 - jnp.tanh(x @ w) ** 2)),
        w,
        x,
    )
    assert found.cause == "doubled term"
    assert "the term is subtracted twice that goes" in found.text


GATES = {name: normal(i, 4) for i, name in enumerate(("forget", "write", "read"))}


def gates_loss(p, x):
    f, w, r = (jax.nn.sigmoid(p[name] + x[i]) for i, name in enumerate(GATES))
    return (f * w + r**2).sum() + 0.1 * (p["write"] ** 2).sum()


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (lambda g, p, x: g | {"read": g["forget"]}, "copied leaf", "a copy of the gradient of"),
        (
            lambda g, p, x: {"forget": g["write"], "write": g["read"], "read": g["forget"]},
            "swapped leaves",
            "leaves swapped",
        ),
        (lambda g, p, x: g | {"read": p["read"]}, "forward value", "it is the parameter itself"),
        (lambda g, p, x: g | {"read": -p["read"]}, "forward value", "minus the parameter itself"),
        (lambda g, p, x: g | {"read": p["write"]}, "forward value", "the parameter ['write']"),
        (
            lambda g, p, x: g | {"read": g["read"] + 0.2 * p["read"]},
            "parameter term",
            "0.2 times the parameter itself is too much: a regulariser on ['read'] too",
        ),
        (
            lambda g, p, x: g | {"read": g["read"] + 0.2 * jnp.sign(p["read"])},
            "parameter term",
            "an L1 regulariser on ['read'] too",
        ),
    ],
)
def test_what_a_leaf_is_in_place_of_its_gradient(change, name, words):
    x = normal(9, 3, 5, 4)

    def by_hand(p, x):
        return change(jax.grad(gates_loss)(p, x), p, x)

    report = verify.gradient(gates_loss, by_hand, GATES, x)
    found = {leaf.diagnosis for leaf in report.leaves if leaf.status == "fail"}
    assert {d.cause for d in found} == {name}
    assert all(words in d.text for d in found)


def test_equal_constants_are_no_copies():
    """Two leaves whose wrong gradients are all ones say nothing of where they came from."""
    p = {"a": normal(0, 4), "b": normal(1, 4)}
    report = verify.gradient(
        lambda p: jnp.sin(p["a"]).sum() + p["b"].sum(),
        lambda p: {"a": jnp.ones(4, p["a"].dtype), "b": jnp.ones(4, p["b"].dtype)},
        p,
    )
    assert not any(
        d and d.cause == "copied leaf" for d in (leaf.diagnosis for leaf in report.leaves)
    )


def test_a_factor_near_one_is_given_digits_enough():
    p = normal(0, 9)
    found = cause(lambda p: jnp.sin(p).sum(), lambda p: jnp.cos(p) * (1 + 3e-8), p)
    assert "1.00000003 times" in found.text
