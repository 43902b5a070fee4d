"""The oracle: in what is differentiated, every rule that a person wrote is replaced."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import verify
from jaxnn.ops.softmax import softmax
from jaxnn.verify.oracle import rules_in, stripped

X = jnp.array([0.3, -0.7, 1.2])
WRONG = 100.0


def wrong_vjp(f, nondiff_argnums=()):
    """f with a rule that says 100 for every derivative, in JAX's own idiom: fwd calls f itself."""
    rule = jax.custom_vjp(f, nondiff_argnums=nondiff_argnums)
    n = len(nondiff_argnums)

    def bwd(*args):
        return (WRONG * args[-1],)

    rule.defvjp(lambda *args: (rule(*args), None), (lambda *a: bwd(*a)) if n else bwd)
    return rule


sine = wrong_vjp(jnp.sin)
scaled = wrong_vjp(lambda x: x * jnp.arange(3.0))
powered = wrong_vjp(lambda n, x: x**n, (0,))
nested = wrong_vjp(lambda x: sine(x) * scaled(x))


@jax.custom_jvp
def doubled(x):
    return 2 * x


doubled.defjvp(lambda primals, tangents: (doubled(*primals), WRONG * tangents[0]))


@jax.custom_gradient
def squared(x):
    return x**2, lambda dy: WRONG * dy


FORMS = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "vmap": jax.vmap,
    "checkpoint": jax.checkpoint,
    "scan": lambda f: lambda x: jax.lax.scan(lambda c, _: (f(c), c), x, length=3)[0],
    "fori": lambda f: lambda x: jax.lax.fori_loop(0, 3, lambda i, c: f(c), x),
    "cond": lambda f: lambda x: jax.lax.cond(x.sum() > 0, f, jnp.cos, x),
    "map": lambda f: lambda x: jax.lax.map(f, x),
    "closure": lambda f: lambda x: jax.jit(lambda y: f(y) * x.sum())(x),
    "twice": lambda f: lambda x: jax.jit(lambda y: f(f(y)))(x) + f(x),
}
by_parts = jax.custom_jvp(jnp.tanh)
by_parts.defjvps(lambda tangent, out, x: WRONG * tangent)
PLAIN = {
    "tanh": (by_parts, jnp.tanh),
    "sine": (sine, jnp.sin),
    "doubled": (doubled, lambda x: 2 * x),
    "squared": (squared, lambda x: x**2),
}


def loss_of(f):
    return lambda x: (f(x) * jnp.array([1.0, -2.0, 0.5], x.dtype)).sum()


@pytest.mark.parametrize("form", FORMS)
def test_a_rule_is_replaced_wherever_it_is(form):
    for rule, function in PLAIN.values():
        wrapped, plain = (loss_of(FORMS[form](f)) for f in (rule, function))
        ours, theirs, wrong = (jax.grad(f)(X) for f in (stripped(wrapped), plain, wrapped))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        assert np.abs(wrong - theirs).max() > 1
        np.testing.assert_allclose(stripped(wrapped)(X), plain(X), rtol=1e-6)


def test_rules_inside_rules_constants_and_arguments_that_are_not_differentiated():
    def loss(f, g, h):
        return lambda x: (f(x) + g(2, x) + h(x) + jax.nn.relu(x)).sum()

    rules = loss(scaled, powered, nested)
    plain = loss(
        lambda x: x * jnp.arange(3.0), lambda n, x: x**n, lambda x: jnp.sin(x) * x * jnp.arange(3.0)
    )
    np.testing.assert_allclose(jax.grad(stripped(rules))(X), jax.grad(plain)(X), rtol=1e-6)
    names = [str(rule) for rule in rules_in(jax.make_jaxpr(rules)(X))]
    assert len(names) == 4  # JAX's own, relu's, is none of them
    assert all("(test_verify_oracle.py:" in name for name in names)
    np.testing.assert_allclose(
        jax.hessian(stripped(rules))(X), jax.hessian(plain)(X), rtol=1e-5, atol=1e-5
    )


def test_forward_mode_passes_through_a_while_loop_and_a_rule():
    def loop(f):
        return lambda x: jax.lax.while_loop(lambda c: c.sum() < 5, f, x).sum()

    given = jnp.abs(X), X
    ours, theirs = (jax.jvp(f, given[:1], given[1:]) for f in (
        stripped(loop(doubled)), loop(lambda x: 2 * x)))  # fmt: skip
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_rule_inside_shard_map_is_replaced():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("i",))
    spec = jax.sharding.PartitionSpec("i")

    def mapped(f):
        def local(x):
            return jax.lax.psum((f(x) * x).sum(), "i")

        return jax.shard_map(
            local, mesh=mesh, in_specs=spec, out_specs=jax.sharding.PartitionSpec()
        )

    np.testing.assert_allclose(
        jax.grad(stripped(mapped(sine)))(X), jax.grad(mapped(jnp.sin))(X), rtol=1e-6
    )


def test_an_op_in_a_loss_is_replaced_and_called_by_its_name():
    def loss(f):
        return lambda x: (f(x) * x).sum()

    ours, theirs = jax.grad(stripped(loss(softmax)))(X), jax.grad(loss(jax.nn.softmax))(X)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    (rule,) = rules_in(jax.make_jaxpr(loss(softmax))(X))
    assert rule.kind == "custom_vjp"


def test_one_rule_may_be_kept():
    both = functools.partial(lambda x: sine(x).sum() + doubled(x).sum())
    kept = jax.grad(stripped(both, lambda rule: rule.name == "doubled"))(X)
    np.testing.assert_allclose(kept, jnp.cos(X) + WRONG, rtol=1e-6)


def hijax_cube():
    """A hijax primitive x^3 whose backward says 100; None where this JAX has none."""
    try:
        from jax._src import hijax
    except ImportError:
        return None
    base = getattr(hijax, "HiPrim", None) or getattr(hijax, "VJPHiPrimitive", None)
    if base is None:
        return None

    class Cube(base):
        def __init__(self, aval):
            self.in_avals, self.out_aval, self.params = (aval,), aval, {}
            super().__init__()

        def expand(self, x):
            return x**3

        def vjp_fwd(self, nzs, x):
            return self(x), None

        def vjp_bwd_retval(self, _, dy):
            return (WRONG * dy,)

    return lambda x: Cube(jax.typeof(x))(x)


def test_a_hijax_primitive_is_replaced():
    cube = hijax_cube()
    if cube is None:
        pytest.skip("this JAX has no hijax primitives")
    assert float(jax.grad(lambda x: cube(x).sum())(X)[0]) == WRONG
    np.testing.assert_allclose(jax.grad(stripped(lambda x: cube(x).sum()))(X), 3 * X**2, rtol=1e-6)
    (rule,) = rules_in(jax.make_jaxpr(lambda x: cube(x).sum())(X))
    assert (rule.kind, rule.name) == ("hijax primitive", "Cube")


def test_a_loss_s_own_gradient_is_a_question_where_a_rule_is_inside():
    loss = loss_of(lambda x: jnp.tanh(sine(x)))
    report = verify.gradient(loss, jax.grad(loss), X)
    assert report.status == "fail"
    assert any("wrong: off by" in line for line in report.rules)
    right = loss_of(lambda x: jnp.tanh(jnp.sin(x)))
    by_hand = verify.gradient(loss, jax.grad(right), X)
    assert by_hand.status == "pass"  # the gradient is right, whatever the rule says
    assert any("wrong" in line for line in by_hand.rules)
