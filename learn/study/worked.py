"""One element of this run, followed through a formula: the numbers put in, as a reader types them into a calculator."""

import ast
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from learn.study.formulas import CONSTANTS, FUNCTIONS, Formula, to_python

_ATOL = 1e-3  # float32 cancels: what both sides may differ by, on the scale of the numbers put in
_TIMES, _MINUS = "×", "−"
_SUM, _PRODUCT, _ATOM = range(3)  # how tightly an expression holds together


class Worked(NamedTuple):
    """indices: the value of every index on the left; text: the right side with its numbers; value: what it comes to"""

    indices: dict[str, int]
    text: str
    value: str


class Numbers:
    """The numbers of a run by symbol: a formula's names stand for arrays, or for earlier formulas.

    values: arrays by symbol; formulas: of the symbols that no array holds; sizes: by dimension letter
    T: the number of tokens, of which an omitted index means the last
    """

    def __init__(
        self, values: Mapping[str, np.ndarray], formulas: Mapping[str, Formula], sizes: dict, T: int
    ):
        self.sizes = sizes
        self.names = FUNCTIONS | CONSTANTS | {"sum": sum, "__builtins__": {}}
        self.names |= {name: _Range(size) for name, size in sizes.items()}
        self.names |= {name: _Last(value, T) for name, value in values.items()}
        self.names |= {name: _Computed(formula, self) for name, formula in formulas.items()}
        self.symbols = {*values, *formulas}

    def evaluate(self, node: ast.expr, indices: Mapping[str, int]) -> float:
        """What an expression comes to with these indices."""
        tree = ast.Expression(to_python(node, self.symbols))
        return float(eval(compile(ast.fix_missing_locations(tree), "formula", "eval"), self.names | indices))


class _Range(int):
    def __iter__(self):
        return iter(range(self))


class _Last:
    """An array whose leading indices may be omitted: of tokens the last is meant, of all else the first."""

    def __init__(self, array: np.ndarray, T: int):
        self.array = np.asarray(array)
        self.leading = [0] * self.array.ndim
        if self.array.ndim > 2:
            self.leading[-2] = T - 1

    def __getitem__(self, place):
        leading = self.leading[: self.array.ndim - len(place)]
        return float(self.array[(*leading, *map(int, place))])


class _Computed:
    """The values of a symbol that a formula defines, each computed when it is asked for."""

    def __init__(self, formula: Formula, numbers: Numbers):
        self.formula, self.numbers = formula, numbers

    def __getitem__(self, place):
        indices = dict(zip(self.formula.free_indices, map(int, place), strict=True))
        return self.numbers.evaluate(self.formula.sides[1], indices)


def work_out(formula: Formula, numbers: Numbers, token: int) -> Worked | None:
    """The formula with numbers, for channel 0 of head 0 of the last token.

    token: id that an index of the vocabulary takes
    returns: None where derivatives alone stand on the right, or float32's numbers are too coarse to follow
    """
    sides = [side for side in formula.sides[1:] if "partial" not in _called(side)]
    if not sides:
        return None
    indices = {name: _choice(formula.indices[name], numbers.sizes, token) for name in formula.free_indices}
    right = numbers.evaluate(sides[-1], indices)
    text = _Text(numbers, indices)
    written = text.visit(sides[-1])
    if "partial" not in _called(formula.sides[0]):
        left = numbers.evaluate(formula.sides[0], indices)
        if not math.isclose(left, right, rel_tol=_ATOL, abs_tol=_ATOL * text.largest):
            return None
    return Worked(indices, written, shown(right))


def _called(node: ast.expr) -> set[str]:
    return {each.func.id for each in ast.walk(node) if isinstance(each, ast.Call)}


def _choice(dimension: str, sizes: Mapping[str, int], token: int) -> int:
    return {"T": sizes["T"] - 1, "V": token}.get(dimension, 0)


def shown(value: float) -> str:
    """Six digits, with a minus sign that is as wide as a plus; −∞ for what is masked."""
    text = "∞" if math.isinf(value) else f"{abs(value):.6g}"
    return f"{_MINUS if value < 0 else ''}{text}"


class _Text(ast.NodeVisitor):
    """largest: the largest magnitude of the numbers put in"""

    def __init__(self, numbers: Numbers, indices: Mapping[str, int]):
        self.numbers, self.indices, self.largest = numbers, indices, 0.0

    def generic_visit(self, node):
        value = self.numbers.evaluate(node, self.indices)
        if math.isfinite(value):
            self.largest = max(self.largest, abs(value))
        return shown(value)

    def visit_UnaryOp(self, node):
        return f"{_MINUS}{self._inside(node.operand, _ATOM)}"

    def visit_BinOp(self, node):
        signs = {ast.Add: "+", ast.Sub: _MINUS, ast.Mult: _TIMES, ast.Div: "/", ast.Pow: "^"}
        sign = signs[type(node.op)]
        if isinstance(node.op, ast.Add | ast.Sub):
            return f"{self._inside(node.left, _SUM)} {sign} {self._inside(node.right, _PRODUCT)}"
        if isinstance(node.op, ast.Pow):
            return f"{self._inside(node.left, _ATOM)}^{self._inside(node.right, _ATOM)}"
        right = _ATOM if isinstance(node.op, ast.Div) else _PRODUCT
        return f"{self._inside(node.left, _PRODUCT)} {sign} {self._inside(node.right, right)}"

    def visit_Call(self, node):
        name = node.func.id
        if name == "where":
            condition, value, otherwise = node.args
            chosen = value if self.numbers.evaluate(condition, self.indices) else otherwise
            return self.visit(chosen)
        if name == "sum":
            return self._sum(node)
        if name in ("exp", "log", "tanh", "sin", "cos", "sqrt"):
            return f"{'√' if name == 'sqrt' else name}({self.visit(node.args[0])})"
        return self.generic_visit(node)

    def _sum(self, node):
        """The first term, how many there are, and what they come to."""
        terms = list(self._places(node.args[0].generators, {}))
        total = shown(self.numbers.evaluate(node, self.indices))
        if not terms:
            return "0"
        outer, self.indices = self.indices, self.indices | terms[0]
        first = self.visit(node.args[0].elt)
        self.indices = outer
        return f"({first} + … = {total}, {len(terms)} terms)" if len(terms) > 1 else f"({first})"

    def _places(self, generators, found):
        if not generators:
            yield found
            return
        first, *rest = generators
        for value in range(self.numbers.sizes[first.iter.id]):
            place = found | {first.target.id: value}
            if all(self._holds(each, place) for each in first.ifs):
                yield from self._places(rest, place)

    def _holds(self, condition, place) -> bool:
        return bool(self.numbers.evaluate(condition, self.indices | place))

    def _inside(self, node, tightness):
        inner = self.visit(node)
        loose = _SUM if inner.startswith(_MINUS) else _ATOM
        if isinstance(node, ast.BinOp):
            loose = {ast.Add: _SUM, ast.Sub: _SUM, ast.Pow: _ATOM}.get(type(node.op), _PRODUCT)
        return inner if loose >= tightness and not inner.startswith(_MINUS) else f"({inner})"
