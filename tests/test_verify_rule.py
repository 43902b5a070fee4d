"""verify.rule: derivative rules as people write them, judged by the function that they decorate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import verify

X = jnp.array([[0.5, -1.2, 0.0], [2.0, 0.7, -0.3]])
Y = jnp.array([[1.5, 0.2, -0.7], [0.1, 0.9, 1.1]])
N = jnp.array([0, 2])


def with_rule(f, fwd, bwd, **options):
    rule = jax.custom_vjp(f, **options)
    rule.defvjp(fwd, bwd)
    return rule


def leaky(factor=1.0, shift=0.0):
    """In JAX's own idiom: the forward rule calls the function decorated."""

    @jax.custom_vjp
    def leaky(x):
        return jnp.where(x > 0, x, 0.1 * x)

    leaky.defvjp(
        lambda x: (leaky(x) + shift, x),
        lambda x, dy: (factor * dy * jnp.where(x > 0, 1.0, 0.1),),
    )
    return leaky


def test_a_right_rule_passes_and_a_wrong_one_is_named():
    right = verify.assert_rule(leaky(), X)
    assert right.name == "rule leaky"
    assert [leaf.path for leaf in right.leaves] == ["x"]
    (line,) = right.rules
    assert line.startswith("custom_vjp leaky (test_verify_rule.py:")
    assert line.endswith(": right")
    assert right.coverage == ()  # its cotangent shares the input's leading axis: no coincidence
    wrong = verify.rule(leaky(-5.0), X)
    assert wrong.status == "fail"
    assert "-5 times" in wrong.leaves[0].diagnosis.text
    assert "wrong: off by 6.0e+00" in wrong.rules[0]
    with pytest.raises(verify.GradientMismatch, match="-5 times"):
        verify.assert_rule(leaky(-5.0), X)


def test_a_forward_rule_that_returns_another_value_is_named(undiagnosed):
    report = verify.rule(leaky(shift=0.1), X)
    assert report.status == "fail"
    assert (
        "the forward rule of leaky and the function it decorates disagree in value"
        in (report.problems[0])
    )


def test_inputs_that_are_integers_may_have_none_or_float0(undiagnosed):
    def take(x, n):
        return x[n]

    for nothing in (None, np.zeros(N.shape, jax.dtypes.float0)):
        rule = with_rule(
            take,
            lambda x, n: (x[n], n),
            lambda n, dy, nothing=nothing: (jnp.zeros((3, 3), dy.dtype).at[n].add(dy), nothing),
        )
        table = jax.random.normal(jax.random.key(0), (3, 3))
        assert verify.rule(rule, table, N).status == "pass"


def test_settings_arrays_by_name_and_arguments_that_are_not_differentiated(undiagnosed):
    def power(n, x, scale):
        return scale * x**n

    def rule_of(factor):
        return with_rule(
            power,
            lambda n, x, scale: (power(n, x, scale), (x, scale)),
            lambda n, r, dy: (
                factor * n * r[1] * r[0] ** (n - 1) * dy,
                (r[0] ** n * dy).sum(),
            ),
            nondiff_argnums=(0,),
        )

    assert verify.rule(rule_of(1.0), 3, X, jnp.float32(0.5)).status == "pass"
    assert verify.rule(rule_of(1.1), 3, X, jnp.float32(0.5)).status == "fail"
    names = [leaf.path for leaf in verify.rule(rule_of(1.0), 3, X, jnp.float32(0.5)).leaves]
    assert names == ["x", "scale"]

    def scaled(x, *, gain):
        return leaky(1.0)(x) * gain

    assert verify.rule(scaled, X, gain=3.0).name == "rule scaled, gain=3.0"


def two(own):
    """Two outputs; the second one's cotangent is used for the first's where that is none."""

    def f(x):
        return jnp.sin(x), x**2

    def bwd(x, dy):
        second = dy[1] if own else jnp.where((dy[0] == 0).all(), 2.0, 1.0) * dy[1]
        return (jnp.cos(x) * dy[0] + 2 * x * second,)

    return with_rule(f, lambda x: (f(x), x), bwd)


def test_each_output_has_a_cotangent_of_its_own(undiagnosed):
    assert verify.rule(two(True), X).status == "pass"
    report = verify.rule(two(False), X)
    assert report.status == "fail"
    assert "wrong where output 2 alone has one: the cotangents of x" in report.problems[0]


def product(slope=1.0, forward_only=0.0):
    @jax.custom_jvp
    def product(x, y):
        return x * y

    @product.defjvp
    def _(primals, tangents):
        (x, y), (dx, dy) = primals, tangents
        return product(x, y), dx * y + slope * x * dy

    return product


def test_forward_rules_are_asked_for_their_tangents(undiagnosed):
    assert verify.rule(product(), X, Y).status == "pass"
    wrong = verify.rule(product(2.0), X, Y)
    assert {leaf.path: leaf.status for leaf in wrong.leaves} == {"x": "pass", "y": "fail"}


def test_a_rule_that_only_forward_mode_can_run(undiagnosed):
    def rule_of(factor):
        @jax.custom_jvp
        def f(x):
            return jnp.sin(x)

        @f.defjvp
        def _(primals, tangents):
            (x,), (dx,) = primals, tangents
            # A loop over the tangent has no transpose.
            dx = jax.lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, c[1]), (0, dx))[1]
            return jnp.sin(x), factor * jnp.cos(x) * dx

        return f

    assert verify.rule(rule_of(1.0), X).status == "pass"
    assert verify.rule(rule_of(1.5), X).status == "fail"


def test_several_rules_are_judged_one_by_one():
    """Two wrong signs that cancel each other: the whole is right, and neither of the two is."""

    def f(x):
        return flipped_one(x) + 0 * flipped_two(x) + leaky()(x)

    flipped_one = with_rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, d: (-jnp.cos(x) * d,))
    flipped_two = with_rule(jnp.cos, lambda x: (jnp.cos(x), x), lambda x, d: (-jnp.sin(x) * d,))
    report = verify.rule(f, X)
    assert report.status == "fail"
    assert [line.rpartition(": ")[2][:5] for line in report.rules[1:]] == ["right"] * 2
    assert ": wrong: off by" in report.rules[0]

    def chained(x):
        return minus(minus_too(x))

    minus = with_rule(lambda x: 2 * x, lambda x: (2 * x, None), lambda _, d: (-2 * d,))
    minus_too = with_rule(lambda x: 3 * x, lambda x: (3 * x, None), lambda _, d: (-3 * d,))
    cancelled = verify.rule(chained, X)
    assert cancelled.status == "fail"
    assert "by itself" in cancelled.problems[0]
    assert "test_verify_rule.py" in cancelled.problems[0]


def test_a_surrogate_is_the_reference_of_what_is_no_derivative_on_purpose(undiagnosed):
    def nearest(x):
        return jnp.round(x)

    rounded = with_rule(nearest, lambda x: (jnp.round(x), None), lambda _, dy: (dy,))
    at = X + 0.3
    assert verify.rule(rounded, at).status == "fail"
    declared = verify.rule(rounded, at, surrogate=(lambda x: x, "straight-through"))
    assert declared.status == "pass"
    assert "straight-through" in declared.coverage[0]
    twice = with_rule(nearest, lambda x: (jnp.round(x), None), lambda _, dy: (2 * dy,))
    assert verify.rule(twice, at, surrogate=(lambda x: x, "straight-through")).status == "fail"
    with pytest.raises(ValueError, match="reason"):
        verify.rule(rounded, at, surrogate=(lambda x: x, ""))


def test_a_reference_may_stand_for_the_function_that_is_decorated(undiagnosed):
    tanh = with_rule(
        lambda x: 2 * jax.nn.sigmoid(2 * x) - 1,
        lambda x: (jnp.tanh(x), x),
        lambda x, dy: (dy / jnp.cosh(x) ** 2,),
    )
    assert verify.rule(tanh, X, reference=jnp.tanh).status == "pass"
    assert verify.rule(tanh, X, reference=jnp.sin).status == "fail"
    with pytest.raises(ValueError, match=r"the reference returns float32\[\], .* the same shapes"):
        verify.rule(tanh, X, reference=jnp.sum)


def test_a_declared_tolerance_covers_what_a_solver_leaves(undiagnosed):
    rule = with_rule(
        jnp.sin, lambda x: (jnp.sin(x), x), lambda x, d: ((1 + 1e-5) * jnp.cos(x) * d,)
    )
    assert verify.rule(rule, X).status == "fail"
    declared = verify.rule(rule, X, tolerance={"x": (1e-4, "the solver stops at 1e-4")})
    assert declared.status == "pass"
    assert declared.leaves[0].sees >= 1e-4
    assert "the solver stops at 1e-4" in str(declared)
    assert verify.rule(rule, X, tolerance={"x": (1e-6, "too little")}).status == "fail"
    for bad in ({"x": 1e-4}, {"x": (1e-4, "")}, {"z": (1e-4, "why")}, {"x": (2.0, "why")}):
        with pytest.raises((TypeError, ValueError), match="tolerance"):
            verify.rule(rule, X, tolerance=bad)


def one_cotangent_short():
    return with_rule(lambda x, y: x * y, lambda x, y: (x * y, (x, y)), lambda r, d: (r[1] * d,))


def test_a_backward_in_numpy_is_run_as_it_is(undiagnosed):
    def rule_of(factor):
        return with_rule(
            jnp.sin,
            lambda x: (jnp.sin(x), x),
            lambda x, d: (factor * np.cos(np.asarray(x)) * np.asarray(d),),
        )

    assert verify.rule(rule_of(1.0), X).status == "pass"
    assert verify.rule(rule_of(1.1), X).status == "fail"


def raising():
    def backward(x, d):
        raise LookupError("no table")

    return with_rule(jnp.sin, lambda x: (jnp.sin(x), x), backward)


def misfit():
    return with_rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, d: (d @ x,))


def saving_a_word():
    return with_rule(jnp.sin, lambda x: (jnp.sin(x), (x, "sine")), lambda r, d: (d,))


def test_what_a_rule_raises_itself_is_raised():
    with pytest.raises(LookupError, match="no table"):
        verify.rule(raising(), X)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: verify.rule(misfit(), X), ValueError,
         "a custom_vjp inside has reverse mode alone.*mend its backward rule.*dot_general"),
        (lambda: verify.rule(saving_a_word(), X), TypeError, "arrays alone among its residuals"),
        (lambda: verify.rule(jax.custom_vjp(jnp.sin), X), TypeError, r"no rule yet.*defvjp\("),
        (lambda: verify.rule(jax.custom_jvp(jnp.sin), X), TypeError, r"no rule yet.*defjvp\("),
        (lambda: verify.rule(leaky(), X, X), TypeError, r"f\(x\) cannot take 2 positional"),
        (lambda: verify.rule(leaky(), X, slope=1), TypeError, r"cannot take .*slope=\.\.\."),
        (lambda: verify.rule(leaky(), X, reference=lambda x, y: x), TypeError,
         r"reference\(x, y\) cannot take 1 positional .* it must take what f takes"),
        (lambda: verify.rule(leaky(), X, surrogate=(lambda x, y: x, "why")), TypeError,
         r"surrogate\(x, y\) cannot take 1"),
        (lambda: verify.rule(with_rule(jnp.exp, lambda x: (jnp.exp(x), x), lambda x, d: (d,)),
                             X + 1j), ValueError, "complex64.*the imaginary part"),
        (lambda: verify.rule(one_cotangent_short(), X, Y), TypeError,
         r"backward rule of <lambda> must return a tuple of one cotangent per input"),
        (lambda: verify.rule(with_rule(jnp.sin, lambda x: jnp.sin(x), lambda r, d: (d,)), X),
         TypeError, r"forward rule of sin must return \(output, residuals\)"),
        (lambda: verify.rule(jnp.sin, X), ValueError, "sin holds no derivative rule that a person"),
        (lambda: verify.rule(leaky()), TypeError, "no inputs are given"),
        (lambda: verify.rule(3, X), TypeError, "f is 3; it must be a function"),
        (lambda: verify.rule(leaky(), N), ValueError, "no floating"),
        (lambda: verify.rule(with_rule(lambda x: N, lambda x: (N, x), lambda x, d: (0 * x,)), X),
         ValueError, "must return at least one floating array"),
        (lambda: verify.rule(leaky(), X, seed=-1), ValueError, "seed is -1"),
        (lambda: jax.jit(lambda x: verify.rule(leaky(), x))(X), TypeError, "inside jax.jit"),
    ],
)  # fmt: skip
def test_what_cannot_be_verified_is_refused_in_words(call, error, message):
    with pytest.raises(error, match=message) as raised:
        call()
    assert len(str(raised.value).splitlines()[0]) > 20
