"""A forward taken line by line, each with autodiff's cotangent: what a backward is held to.

y = f(x), written as lines v_1 = f_1(x), v_2 = f_2(x, v_1), ...
the cotangent of v_k is the gradient of <dy, y> with respect to the value of v_k, with all that
was computed before it held fixed: the sum over all lines below that use it
"""

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.learn.compare import Checked, Row, WrongStep, compared
from jaxnn.verify.draws import cotangent_rng, draw_cotangent


class Line(NamedTuple):
    """One line of a forward: its text, the names that it gives, those that it uses."""

    text: str
    gives: tuple[str, ...]
    uses: tuple[str, ...]


class Written:
    """A forward as it is written, without values.

    Attributes:
        inputs: the names of its inputs, in order.
        lines: its lines, each a `Line`, in order.
        names: all names, inputs first, in the order in which they get a value.
        result: the name that it returns.
    """

    def __init__(self, forward: Callable[..., Any], inputs: tuple[str, ...]) -> None:
        """Read its source.

        Args:
            forward: a function whose body is a docstring, then assignments of names that have no
                value yet, then `return` of one of these names.
            inputs: the names of its arguments.

        Raises:
            TypeError: it has no source.
            ValueError: its body is something else.
        """
        self.inputs = inputs
        self.lines, self.result = _parsed(forward, inputs)
        self.names = (*inputs, *(name for line in self.lines for name in line.gives))
        self._outside = inspect.getclosurevars(forward).nonlocals
        self._globals = getattr(forward, "__globals__", {})
        self._code = [compile(line.text, "<line of a forward>", "exec") for line in self.lines]

    def run_line(self, number: int, values: dict[str, Any]) -> dict[str, Any]:
        """Run one line on values by name, and return what it gives, by name."""
        scope = {**self._globals, **self._outside, **values}
        exec(self._code[number], scope)
        return {name: scope[name] for name in self.lines[number].gives}

    def run(self, start: int, values: dict[str, Any]) -> dict[str, Any]:
        """Run the lines from one on, and return all values."""
        values = dict(values)
        for number in range(start, len(self.lines)):
            values |= self.run_line(number, values)
        return values


class Lines(Written):
    """A forward taken line by line, at a point, with a random cotangent of its output.

    Attributes:
        out: the value it returns; `result` is its name.
        dout: the cotangent of that value.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        *inputs: Any,
        dout: Any = None,
        seed: int = 0,
    ) -> None:
        """Run it.

        Args:
            forward: a function whose body is a docstring, then assignments of names that have no
                value yet, then `return` of one of these names.
            *inputs: arrays, one for each of its arguments (those left out take their defaults).
            dout: the cotangent of its output; drawn from a normal distribution if None.
            seed: of that draw.

        Raises:
            TypeError: forward is no function with a source, or cannot take the inputs.
            ValueError: its body is something else.
        """
        call = _bound(forward, inputs)
        super().__init__(forward, tuple(call))
        self._values = self.run(0, {k: _as_array(v) for k, v in call.items()})
        self.out = self._values[self.result]
        self.dout = _drawn(self.out, seed) if dout is None else jnp.asarray(dout)
        if self.dout.shape != jnp.shape(self.out):
            raise ValueError(
                f"dout has shape {self.dout.shape}; it must have that of {self.result}, "
                f"{jnp.shape(self.out)}"
            )
        self._cotangents: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """Return the value of a name."""
        self._check_name(name)
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        """Return the value of a name."""
        values = self.__dict__.get("_values", {})
        if name not in values:
            raise AttributeError(f"the forward has no line that gives {name!r}")
        return values[name]

    def __iter__(self) -> Iterator[Any]:
        """Give all values, inputs first, in the order of `names`."""
        return (self._values[name] for name in self.names)

    def text_of(self, name: str) -> str:
        """Return the line that gives a name; for an input, its name."""
        self._check_name(name)
        return next((line.text for line in self.lines if name in line.gives), name)

    def cotangent(self, name: str) -> Any:
        """Return autodiff's cotangent of a name: the gradient of <dout, out>.

        Raises:
            KeyError: there is no such name.
            TypeError: its value is of integers, which have none.
        """
        self._check_name(name)
        if name not in self._cotangents:
            self._cotangents[name] = self._differentiated(name)
        return self._cotangents[name]

    def check(self, *, zero: str = "", **cotangents: Any) -> "Checked":
        """Hold cotangents, given by name, to autodiff's: value to rounding, shape and dtype.

        Args:
            zero: why a cotangent may be zero throughout; else that is refused, for it shows
                nothing.
            **cotangents: `mu=dmu` holds dmu to the cotangent of mu.

        Raises:
            WrongStep: one is not equal to it.
        """
        rows = []
        for name, given in cotangents.items():
            wanted = self.cotangent(name)
            label = f"d{name}"
            rows.append(Row(label, *compared(label, given, wanted)))
            scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
            if scale == 0 and not zero:
                raise WrongStep(
                    f"{label} is zero throughout at this point, so that a wrong one may not show: "
                    "choose another point, or say zero='why it must be'"
                )
        return Checked(tuple(rows))

    def cotangents(self) -> dict[str, Any]:
        """Return autodiff's cotangents of all names that have one, found by one compiled program.

        It is quicker than one name after the other where most of them are wanted.
        """
        floating = {name: self._values[name] for name in self.names if self.has_cotangent(name)}
        if not floating.keys() <= self._cotangents.keys():
            moves = jax.tree.map(jnp.zeros_like, floating)
            self._cotangents |= jax.jit(jax.grad(self._moved_loss))(moves)
        return {name: self._cotangents[name] for name in floating}

    def has_cotangent(self, name: str) -> bool:
        """Return whether a name's value is of floating numbers throughout."""
        leaves = jax.tree.leaves(self[name])
        return all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves)

    def _check_name(self, name: str) -> None:
        if name not in self._values:
            raise KeyError(f"the forward gives no {name!r}; its names are {', '.join(self.names)}")

    def _loss(self, name: str, value: Any) -> Any:
        """<dout, out> where a name has another value, and what was before it the one it had."""
        given = [i for i, line in enumerate(self.lines) if name in line.gives]
        start = given[0] + 1 if given else 0
        known = (*self.inputs, *(n for line in self.lines[:start] for n in line.gives))
        values = {n: self._values[n] for n in known}
        out = self.run(start, {**values, name: value})[self.result]
        return (out * self.dout).sum()

    def _differentiated(self, name: str) -> Any:
        value = self._values[name]
        for leaf in jax.tree.leaves(value):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                raise TypeError(
                    f"{name} is of {jnp.result_type(leaf)}: only floating values have a cotangent"
                )
        return jax.grad(functools.partial(self._loss, name))(value)

    def _moved_loss(self, moves: dict[str, Any]) -> Any:
        """<dout, out> where to the value of each name, once it is computed, its move is added."""

        def moved(values: dict[str, Any]) -> dict[str, Any]:
            return {
                n: jax.tree.map(jnp.add, v, moves[n]) if n in moves else v
                for n, v in values.items()
            }

        values = moved({name: self._values[name] for name in self.inputs})
        for number in range(len(self.lines)):
            values |= moved(self.run_line(number, values))
        return (values[self.result] * self.dout).sum()


def _as_array(value: Any) -> Any:
    return jax.tree.map(jnp.asarray, value)


def _drawn(out: Any, seed: int) -> jax.Array:
    out = jnp.asarray(out)
    dtype = out.dtype if jnp.issubdtype(out.dtype, jnp.floating) else jnp.result_type(float)
    return draw_cotangent(cotangent_rng(seed), jax.ShapeDtypeStruct(out.shape, dtype))


def _bound(forward: Callable[..., Any], inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Return all arguments of a call by name, defaults included."""
    if not inspect.isfunction(forward):
        raise TypeError(f"forward is {forward!r}; it must be a function written with def")
    call = inspect.signature(forward).bind(*inputs)
    call.apply_defaults()
    return dict(call.arguments)


def _parsed(forward: Callable[..., Any], inputs: tuple[str, ...]) -> tuple[list[Line], str]:
    """Return the lines of a forward, and the name that it returns."""
    try:
        source = textwrap.dedent(inspect.getsource(forward))
    except OSError as error:
        raise TypeError(
            f"the source of {forward.__name__} cannot be read ({error}); write it in a file or a "
            "cell of a notebook"
        ) from error
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    known, lines = [*inputs], []
    for node in body[:-1]:
        text = ast.get_source_segment(source, node) or ""
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            raise ValueError(
                f"{forward.__name__} has the line {text!r}; every line but the last must be "
                "an assignment: name = expression"
            )
        gives = tuple(n.id for n in ast.walk(node.targets[0]) if isinstance(n, ast.Name))
        again = [name for name in gives if name in known]
        if again:
            raise ValueError(
                f"{forward.__name__} gives {again[0]} twice ({text!r}); every line must give a "
                "name of its own, so that each has one cotangent"
            )
        used = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
        lines.append(Line(textwrap.dedent(text), gives, tuple(n for n in known if n in used)))
        known += gives
    last = body[-1]
    if not (isinstance(last, ast.Return) and isinstance(last.value, ast.Name)):
        raise ValueError(f"{forward.__name__} must end in `return NAME`, the name of its output")
    if last.value.id not in known:
        raise ValueError(f"{forward.__name__} returns {last.value.id}, which no line gives")
    return lines, last.value.id
