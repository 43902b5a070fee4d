"""LaTeX of Python expressions on arrays, as one would write them in mathematics."""

import ast
from collections.abc import Mapping
from typing import Any, NamedTuple

GREEK = {
    *("alpha", "beta", "gamma", "delta", "epsilon", "eta", "theta", "kappa", "lambda", "mu", "nu"),
    *("xi", "pi", "rho", "sigma", "tau", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta"),
    *("Lambda", "Sigma", "Phi", "Psi", "Omega"),
}
ACCENTS = {"hat": "hat", "bar": "bar", "tilde": "tilde"}
# How closely parts hold together: what is looser than its surroundings gets brackets.
SUM, REDUCED, NEGATIVE, PRODUCT, POWER, ATOM = range(6)
COMPARED: dict[type[ast.cmpop], str] = {
    ast.Gt: ">",
    ast.GtE: r"\ge",
    ast.Lt: "<",
    ast.LtE: r"\le",
    ast.Eq: "=",
    ast.NotEq: r"\ne",
}
FUNCTIONS = {
    "log": r"\log",
    "tanh": r"\tanh",
    "sin": r"\sin",
    "cos": r"\cos",
    "sinh": r"\sinh",
    "cosh": r"\cosh",
    "maximum": r"\max",
    "minimum": r"\min",
}
REDUCTIONS = {"sum": r"\sum", "prod": r"\prod"}
NAMED_REDUCTIONS = {"mean": r"\operatorname{mean}", "max": r"\max", "min": r"\min"}
# What changes no number, only how axes lie: the operand alone is shown.
LAYOUT = ("reshape", "astype", "broadcast_to", "expand_dims", "squeeze", "asarray", "ravel")


class Piece(NamedTuple):
    """LaTeX of a part, and how closely it holds together."""

    text: str
    binding: int

    def within(self, binding: int) -> str:
        """Return it, in brackets if it is looser than that."""
        return self.text if self.binding >= binding else rf"\left({self.text}\right)"


class Symbols(NamedTuple):
    """How names and axes are written.

    Attributes:
        known: names that have a value: `dx` is the cotangent of x where x has one.
        names: LaTeX for names.
        axes: letters for axes.
        products: whether matrix products occur, so that elementwise ones need a sign.
    """

    known: Mapping[str, Any]
    names: Mapping[str, str]
    axes: Mapping[int, str]
    products: bool

    def latex(self, node: ast.expr) -> str:
        """Return the LaTeX of an expression.

        Raises:
            ValueError: it has a form that is not typeset.
        """
        return self._piece(node).text

    def symbol(self, name: str) -> str:
        """Return the LaTeX of a name."""
        if name in self.names:
            return self.names[name]
        if name[0] == "d" and name[1:] and (name[1:] in self.known or len(name) == 2):
            return rf"d{self.symbol(name[1:])}"
        head, *rest = name.split("_")
        text = head if len(head) == 1 else rf"\{head}" if head in GREEK else ""
        if not text and head[:-1] and head[-1].isdigit() and head[:-1].isalpha():
            return f"{self.symbol(head[:-1])}_{{{'_'.join([head[-1], *rest])}}}"
        text = text or rf"\mathrm{{{head}}}"
        subscripts = []
        for part in rest:
            if part in ACCENTS:
                text = rf"\{ACCENTS[part]}{{{text}}}"
            else:
                subscripts.append(part)
        if not subscripts:
            return text
        below = ",".join(s if len(s) <= 2 else rf"\mathrm{{{s}}}" for s in subscripts)
        return f"{text}_{{{below}}}"

    def _piece(self, node: ast.expr) -> Piece:
        match node:
            case ast.Name():
                symbol = self.symbol(node.id)
                return Piece(symbol, PRODUCT if symbol.startswith(r"\frac") else ATOM)
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return _number(number)
            case ast.UnaryOp(op=ast.USub()):
                return Piece(f"-{self._piece(node.operand).within(PRODUCT)}", NEGATIVE)
            case ast.UnaryOp(op=ast.Invert()):
                return Piece(rf"\lnot {self._piece(node.operand).within(ATOM)}", ATOM)
            case ast.BinOp():
                return self._binary(node)
            case ast.Compare(ops=[op], comparators=[right]) if type(op) in COMPARED:
                sign = COMPARED[type(op)]
                left = self._piece(node.left).text
                return Piece(rf"[{left} {sign} {self._piece(right).text}]", ATOM)
            case ast.Attribute(attr="T" | "mT"):
                return Piece(rf"{self._piece(node.value).within(ATOM)}^{{\top}}", POWER)
            case ast.Attribute(attr="shape"):
                raise self._refused(node)
            case ast.Attribute():
                return Piece(self.symbol(node.attr), ATOM)
            case ast.Subscript():
                return self._indexed(node)
            case ast.Call():
                return self._call(node)
        raise self._refused(node)

    def _binary(self, node: ast.BinOp) -> Piece:
        left, right = self._piece(node.left), self._piece(node.right)
        match node.op:
            case ast.Add() | ast.Sub():
                sign = "+" if isinstance(node.op, ast.Add) else "-"
                first = left.within(SUM if left.binding != REDUCED else ATOM)
                second = right.within(PRODUCT if right.binding != REDUCED else REDUCED)
                return Piece(f"{first} {sign} {second}", SUM)
            case ast.Div():
                return Piece(rf"\frac{{{left.text}}}{{{right.text}}}", PRODUCT)
            case ast.Pow():
                if isinstance(node.right, ast.Constant) and node.right.value == 0.5:
                    return Piece(rf"\sqrt{{{left.text}}}", ATOM)
                return Piece(f"{left.within(ATOM)}^{{{right.text}}}", POWER)
            case ast.MatMult():
                return Piece(rf"{left.within(PRODUCT)}\, {right.within(PRODUCT)}", PRODUCT)
            case ast.Mult():
                numbers = isinstance(node.right, ast.Constant)
                number_first = isinstance(node.left, ast.Constant)
                sign = r"\cdot" if numbers else r"\,"
                sign = r"\odot" if self.products and not (numbers or number_first) else sign
                text = f"{left.within(NEGATIVE)} {sign} {right.within(PRODUCT)}"
                return Piece(
                    text, min(left.binding, PRODUCT) if left.binding >= NEGATIVE else PRODUCT
                )
        raise self._refused(node)

    def _indexed(self, node: ast.Subscript) -> Piece:
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        shown = [part for part in parts if not _keeps_all(part)]
        value = self._piece(node.value)
        if not shown:
            return value
        below = ",".join(self._index(part) for part in parts if not _is_new_axis(part))
        return Piece(f"{{{value.within(ATOM)}}}_{{{below}}}", ATOM)

    def _index(self, part: ast.expr) -> str:
        if isinstance(part, ast.Slice):
            ends = (self.latex(end) if end else "" for end in (part.lower, part.upper))
            return ":".join(ends)
        return (
            r"\cdot" if isinstance(part, ast.Constant) and part.value is ... else self.latex(part)
        )

    def _call(self, node: ast.Call) -> Piece:
        if not isinstance(node.func, ast.Attribute | ast.Name):
            raise self._refused(node)
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        arguments = list(node.args)
        if isinstance(node.func, ast.Attribute) and not _is_module(node.func.value, self.known):
            arguments.insert(0, node.func.value)
        if name == "einsum":
            return self._einsum(node, arguments)
        if not arguments:
            return Piece(rf"\operatorname{{{name}}}()", ATOM)
        first, others = self._piece(arguments[0]), arguments[1:]
        if name in (*REDUCTIONS, *NAMED_REDUCTIONS):
            over = others[0] if others else _keyword(node, "axis")
            below = "" if over is None else f"_{{{self._axes(over)}}}"
            if name in REDUCTIONS:
                return Piece(f"{REDUCTIONS[name]}{below} {first.within(PRODUCT)}", REDUCED)
            return Piece(rf"{NAMED_REDUCTIONS[name]}{below}\left({first.text}\right)", ATOM)
        match name:
            case "exp":
                return Piece(f"e^{{{first.text}}}", POWER)
            case "sqrt":
                return Piece(rf"\sqrt{{{first.text}}}", ATOM)
            case "rsqrt":
                return Piece(rf"\frac{{1}}{{\sqrt{{{first.text}}}}}", PRODUCT)
            case "square":
                return Piece(f"{first.within(ATOM)}^{{2}}", POWER)
            case "abs":
                return Piece(rf"\left|{first.text}\right|", ATOM)
            case "swapaxes" | "transpose":
                return Piece(rf"{first.within(ATOM)}^{{\top}}", POWER)
            case "outer":
                return Piece(rf"{first.within(PRODUCT)} \otimes {self._all(others)}", PRODUCT)
            case "where" if len(others) == 2:
                yes, no = (self._piece(other).text for other in others)
                bracketed = isinstance(arguments[0], ast.Compare)
                condition = first.text[1:-1] if bracketed else first.text
                return Piece(
                    rf"\begin{{cases}} {yes} & \text{{if }} {condition} \\ {no} & "
                    rf"\text{{else}} \end{{cases}}",
                    ATOM,
                )
        if name in LAYOUT:
            return first
        head = FUNCTIONS.get(name, rf"\operatorname{{{name.replace('_', ' ')}}}")
        return Piece(rf"{head}\left({self._all(arguments)}\right)", ATOM)

    def _all(self, nodes: list[ast.expr]) -> str:
        return ", ".join(self._piece(node).text for node in nodes)

    def _axes(self, node: ast.expr) -> str:
        numbers = ast.literal_eval(node)
        numbers = numbers if isinstance(numbers, tuple) else (numbers,)
        return "".join(self.axes.get(number, str(number)) for number in numbers)

    def _einsum(self, node: ast.Call, arguments: list[ast.expr]) -> Piece:
        form, *operands = arguments
        if not (isinstance(form, ast.Constant) and "->" in str(form.value)):
            raise self._refused(node)
        given, wanted = str(form.value).replace(" ", "").split("->")
        indices = given.split(",")
        summed = "".join(dict.fromkeys(letter for letter in given if letter not in wanted + ","))
        parts = [
            f"{{{self._piece(operand).within(ATOM)}}}_{{{index}}}"
            for operand, index in zip(operands, indices, strict=True)
        ]
        over = rf"\sum_{{{summed}}} " if summed else ""
        return Piece(over + r"\, ".join(parts), REDUCED if summed else PRODUCT)

    def _refused(self, node: ast.AST) -> ValueError:
        return ValueError(
            f"{ast.unparse(node)!r} cannot be typeset; write it in arithmetic, sums, means, "
            "comparisons and functions of arrays"
        )


def _number(number: float) -> Piece:
    """Return a number, with its power of ten, if it has one, as such."""
    digits, _, power = f"{number}".partition("e")
    if not power:
        return Piece(digits, ATOM)
    ten = f"10^{{{int(power)}}}"
    return Piece(ten if digits == "1" else rf"{digits} \cdot {ten}", PRODUCT)


def _keyword(node: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in node.keywords if keyword.arg == name), None)


def _is_module(node: ast.expr, known: Mapping[str, Any]) -> bool:
    """Whether it is the name of a module, as `jnp` or `jax.nn`."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and type(known.get(node.id)).__name__ == "module"


def _is_new_axis(part: ast.expr) -> bool:
    return isinstance(part, ast.Constant) and part.value is None


def _keeps_all(part: ast.expr) -> bool:
    whole = isinstance(part, ast.Slice) and not (part.lower or part.upper or part.step)
    dots = isinstance(part, ast.Constant) and part.value is ...
    return whole or dots or _is_new_axis(part)
