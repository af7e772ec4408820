"""Formulas written once, as Python expressions: set as mathematics for the page, and evaluated to check them.

    dx[t, i] == sum(dy[t, o] * W[o, i] for o in O)

A capital letter is a dimension, a small one after `for` or in brackets an index, everything else a symbol of
the chapter. Omitted leading indices are 0: `x[i]` speaks of the first token of the first sequence.
`partial(n[i], x[j])` is a derivative, which is evaluated by central differences.
"""

import ast
import math
from collections.abc import Callable, Collection, Mapping
from itertools import product

import numpy as np

from contract.numbers import central_difference, magnitude, relative_error

# What a formula may call, besides `sum` and `partial`; how it is written stands in `_LATEX_CALLS`.
FUNCTIONS = {
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "tanh": math.tanh,
    "sin": math.sin,
    "cos": math.cos,
    "delta": lambda i, j: float(i == j),
    "where": lambda condition, value, otherwise: value if condition else otherwise,
}
CONSTANTS = {"pi": math.pi, "inf": math.inf}
_STEP = 1e-5  # of central differences: error of order h⁴, rounding of order 1e-16 / h


class Formula:
    """An equation, `a == b` or `a == b == c`.

    text: as written above
    indices: every index that occurs, by name, with its dimension, such as {"i": "C"}
    """

    def __init__(self, text: str, indices: Mapping[str, str]):
        self.text, self.indices = text, indices
        self.tree = ast.parse(text, mode="eval").body
        if not isinstance(self.tree, ast.Compare) or not all(isinstance(op, ast.Eq) for op in self.tree.ops):
            raise ValueError(f"a formula is an equation with ==, got {text!r}")
        self.sides = [self.tree.left, *self.tree.comparators]

    @property
    def symbols(self) -> set[str]:
        """The names that are no index, dimension, function or constant: what the code must have."""
        names = {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)}
        known = self.indices.keys() | set(self.indices.values()) | FUNCTIONS.keys() | CONSTANTS.keys()
        return names - known - {"sum", "partial", *"BTCHKDFV"}

    def without(self, absent: Collection[str]) -> "Formula":
        """The formula with these symbols, which are added to something in it, left out."""
        return (
            Formula(ast.unparse(_Without(absent).visit(_copy(self.tree))), self.indices) if absent else self
        )

    def latex(self, looks: Mapping[str, str]) -> list[str]:
        """The formula in LaTeX, a line for each ==; looks: LaTeX of the symbols not written as they are called."""
        left, right, *more = (_Latex(looks).visit(side) for side in self.sides)
        return [f"{left} = {right}", *(f"= {each}" for each in more)]

    @property
    def left(self) -> str | None:
        """The symbol that stands alone on the left, or None."""
        return getattr(getattr(self.sides[0], "value", self.sides[0]), "id", None)

    def evaluate(self, side: int, values, sizes, partial=None) -> np.ndarray:
        """The numbers of one side, an axis for each index on the left, in the order of their appearance.

        values: array by symbol; sizes: int by dimension
        partial: see `partial_derivative`; needed where a derivative occurs
        """
        free = self._free_indices()
        tree = ast.fix_missing_locations(ast.Expression(_Quote().visit(_copy(self.sides[side]))))
        code = compile(tree, self.text, "eval")
        names = {name: _Size(size) for name, size in sizes.items()} | FUNCTIONS | CONSTANTS
        names |= {name: _Tensor(np.asarray(value)) for name, value in values.items()}
        names |= {"sum": sum, "partial": partial, "float": float, "__builtins__": {}}
        result = np.empty([sizes[self.indices[index]] for index in free])
        for place in product(*map(range, result.shape)):
            # A formula is this project's own text; no word of a user's gets here.
            result[place] = float(eval(code, names | dict(zip(free, place, strict=True))))
        return result

    def error(self, values, sizes, partial=None) -> float:
        """The largest difference between the sides, relative to the largest magnitude on the right."""
        found = [self.evaluate(side, values, sizes, partial) for side in range(len(self.sides))]
        finite = np.isfinite(found[-1])
        if not all((np.isfinite(each) == finite).all() for each in found):
            return math.inf
        right = found[-1][finite]
        return max(relative_error(each[finite], right, magnitude(right) or 1.0) for each in found[:-1])

    def _free_indices(self) -> list[str]:
        names = [node.id for node in ast.walk(self.sides[0]) if isinstance(node, ast.Name)]
        bound = {
            each.target.id for node in ast.walk(self.sides[0]) for each in getattr(node, "generators", ())
        }
        return list(dict.fromkeys(name for name in names if name in self.indices and name not in bound))


def partial_derivative(run: Callable[[str, np.ndarray, str], np.ndarray], values: Mapping[str, np.ndarray]):
    """What `partial` means: the change of one number per change of another, both named with their indices.

    run: (symbol, its changed value, wanted symbol) -> the wanted symbol's value with that change
    """
    found: dict[tuple, np.ndarray] = {}

    def partial(of: str, at: tuple[int, ...], by: str, where: tuple[int, ...]) -> float:
        place = (0,) * (values[by].ndim - len(where)) + where
        if (of, by, place) not in found:

            def changed(step):
                value = np.array(values[by])
                value[place] += step
                return np.array(run(by, value, of))

            found[of, by, place] = central_difference(changed, _STEP)
        return float(_Tensor(found[of, by, place])[at])

    return partial


class _Size(int):
    """A dimension: a number in a product, a range after `for`."""

    def __iter__(self):
        return iter(range(self))


class _Tensor:
    """An array whose leading indices may be omitted, all of them too: those are 0."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __getitem__(self, place):
        place = tuple(int(i) for i in (place if isinstance(place, tuple) else (place,)))
        return self.array[(0,) * (self.array.ndim - len(place)) + place].item()

    def __float__(self):
        return float(self.array.flat[0])

    def _plain(operation):
        return lambda self, *other: getattr(float(self), operation)(*map(float, other))

    __add__, __radd__, __sub__, __rsub__ = map(_plain, ("__add__", "__radd__", "__sub__", "__rsub__"))
    __mul__, __rmul__, __neg__ = map(_plain, ("__mul__", "__rmul__", "__neg__"))
    __truediv__, __rtruediv__ = map(_plain, ("__truediv__", "__rtruediv__"))
    __pow__, __rpow__ = map(_plain, ("__pow__", "__rpow__"))


class _Quote(ast.NodeTransformer):
    """partial(n[i], x[j]) -> partial("n", (i,), "x", (j,)): a derivative needs names, not numbers."""

    def visit_Call(self, node):
        if getattr(node.func, "id", "") != "partial":
            return self.generic_visit(node)
        arguments = []
        for each in node.args:
            name = each.value.id if isinstance(each, ast.Subscript) else each.id
            arguments += [ast.Constant(name), ast.Tuple(_places(each), ast.Load())]
        return ast.Call(node.func, arguments, [])


class _Without(ast.NodeTransformer):
    """a + b[i] -> a, where b is absent."""

    def __init__(self, absent: Collection[str]):
        self.absent = absent

    def visit_BinOp(self, node):
        self.generic_visit(node)
        added = isinstance(node.op, ast.Add) and isinstance(node.right, ast.Subscript)
        return node.left if added and node.right.value.id in self.absent else node


def _places(node) -> list[ast.expr]:
    if not isinstance(node, ast.Subscript):
        return []
    return node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]


def _copy(node):
    return ast.parse(ast.unparse(node), mode="eval").body


_LATEX_CALLS = {"exp": r"\exp", "log": r"\log", "tanh": r"\tanh", "sin": r"\sin", "cos": r"\cos"}
_LATEX_COMPARISONS = {
    ast.Eq: "=", ast.Gt: ">", ast.GtE: r"\ge", ast.Lt: "<", ast.LtE: r"\le", ast.NotEq: r"\ne",
}  # fmt: skip
_SUM, _PRODUCT, _POWER, _ATOM = range(4)  # how tightly an expression holds together


class _Latex(ast.NodeVisitor):
    def __init__(self, looks: Mapping[str, str]):
        self.looks = {"pi": r"\pi", "inf": r"\infty"} | dict(looks)

    def generic_visit(self, node):
        raise ValueError(f"no mathematics for {ast.unparse(node)!r}")

    def visit_Constant(self, node):
        return str(node.value)

    def visit_Name(self, node):
        return self.looks.get(node.id) or symbol_latex(node.id)

    def visit_Subscript(self, node):
        places = [self.visit(each) for each in _places(node)]
        # The product of two indices cannot be meant, so single letters need no comma.
        joint = r"\," if all(len(each) == 1 for each in places) else ", "
        return f"{self.visit(node.value)}_{{{joint.join(places)}}}"

    def visit_UnaryOp(self, node):
        return f"-{self._inside(node.operand, _PRODUCT)}"

    def visit_BinOp(self, node):
        left, right, op = node.left, node.right, node.op
        if isinstance(op, ast.Add | ast.Sub):
            sign = "+" if isinstance(op, ast.Add) else "-"
            return f"{self._inside(left, _SUM)} {sign} {self._inside(right, _PRODUCT)}"
        if isinstance(op, ast.Mult):
            # What follows a sum's terms would seem to belong to them.
            first = self._inside(left, _ATOM if _ends_in_sum(left) else _PRODUCT)
            second = self._inside(right, _PRODUCT)
            between = r"\cdot" if second[0].isdigit() else r"\,"
            return f"{first} {between} {second}"
        if isinstance(op, ast.Div):
            return rf"\frac{{{self.visit(left)}}}{{{self.visit(right)}}}"
        if isinstance(op, ast.Pow):
            return f"{{{self._inside(left, _ATOM)}}}^{{{self.visit(right)}}}"
        return self.generic_visit(node)

    def visit_Compare(self, node):
        (op,), (right,) = node.ops, node.comparators
        return f"{self.visit(node.left)} {_LATEX_COMPARISONS[type(op)]} {self.visit(right)}"

    def visit_Call(self, node):
        name = node.func.id
        arguments = [self.visit(each) for each in node.args]
        if name == "sum":
            return arguments[0]
        if name == "sqrt":
            return rf"\sqrt{{{arguments[0]}}}"
        if name == "delta":
            return rf"\delta_{{{arguments[0]}\,{arguments[1]}}}"
        if name == "partial":
            return rf"\frac{{\partial {arguments[0]}}}{{\partial {arguments[1]}}}"
        if name == "where":
            condition, value, otherwise = arguments
            return (
                rf"\begin{{cases}} {value} & \text{{where }} {condition} \\ "
                rf"{otherwise} & \text{{elsewhere}} \end{{cases}}"
            )
        return rf"{_LATEX_CALLS[name]}\left({arguments[0]}\right)"

    def visit_GeneratorExp(self, node):
        below = [self.visit(each.target) for each in node.generators]
        conditions = [self.visit(each) for generator in node.generators for each in generator.ifs]
        under = ", ".join(below) + (r" :\, " + ", ".join(conditions) if conditions else "")
        return rf"\sum\limits_{{{under}}} {self._inside(node.elt, _PRODUCT)}"

    def _inside(self, node, tightness):
        """The expression, in brackets where it holds together less tightly than its surroundings ask."""
        inner = self.visit(node)
        return inner if _tightness(node) >= tightness else rf"\left({inner}\right)"


def _tightness(node) -> int:
    if isinstance(node, ast.UnaryOp):
        return _SUM
    if isinstance(node, ast.BinOp):
        return _SUM if isinstance(node.op, ast.Add | ast.Sub) else _PRODUCT
    return _PRODUCT if _ends_in_sum(node) else _ATOM


def _ends_in_sum(node) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _ends_in_sum(node.right)
    return isinstance(node, ast.Call) and node.func.id == "sum"


def symbol_latex(name: str) -> str:
    """How a symbol is written: a letter as it is, a word, such as a gradient's name, upright."""
    return name if len(name) == 1 else rf"\text{{{name}}}"
