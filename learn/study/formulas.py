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
FUNCTIONS = {name: getattr(math, name) for name in ("exp", "log", "sqrt", "tanh", "sin", "cos")} | {
    "delta": lambda i, j: float(i == j),
    "where": lambda condition, value, otherwise: value if condition else otherwise,
    "max": max,
}
CONSTANTS = {"pi": math.pi, "inf": math.inf}
_STEP = 1e-5  # of central differences: error of order h⁴, rounding of order 1e-16 / h


class Formula:
    """An equation, `a == b` or `a == b == c`; indices: the dimension of every index, such as {"i": "C"}."""

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
        """The formula in LaTeX, a line for each ==; looks: LaTeX of symbols that are not written as they are called."""
        left, right, *more = (_Latex(looks).visit(side) for side in self.sides)
        return [f"{left} = {right}", *(f"= {each}" for each in more)]

    @property
    def left(self) -> str | None:
        """The symbol that stands alone on the left, or None."""
        return _name(self.sides[0]) or None

    def evaluate(self, side: int, values, sizes, partial=None) -> np.ndarray:
        """The numbers of one side, an axis for each index on the left in order of appearance."""
        free = self.free_indices
        tree = ast.Expression(to_python(self.sides[side], values))
        code = compile(ast.fix_missing_locations(tree), self.text, "eval")
        names = {name: _Size(size) for name, size in sizes.items()} | FUNCTIONS | CONSTANTS
        names |= {name: _Tensor(np.asarray(value)) for name, value in values.items()}
        names |= {"sum": sum, "partial": partial, "__builtins__": {}}
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

    @property
    def free_indices(self) -> list[str]:
        """The indices on the left, in order of appearance."""
        nodes = list(ast.walk(self.sides[0]))
        bound = {each.target.id for node in nodes for each in getattr(node, "generators", ())}
        names = [node.id for node in nodes if isinstance(node, ast.Name)]
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
        return _Tensor(found[of, by, place])[at]

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
        return self.array[(0,) * (self.array.ndim - len(place)) + tuple(map(int, place))].item()


class _Python(ast.NodeTransformer):
    """What can be computed: n -> n[()], n[i] -> n[i,], partial(n[i], x[j]) -> partial("n", (i,), "x", (j,))."""

    def __init__(self, tensors: Collection[str]):
        self.tensors = tensors

    def visit_Call(self, node):
        if getattr(node.func, "id", "") != "partial":
            return self.generic_visit(node)
        arguments = []
        for each in node.args:
            arguments += [ast.Constant(_name(each)), ast.Tuple(_places(each), ast.Load())]
        return ast.Call(node.func, arguments, [])

    def visit_Subscript(self, node):
        places = ast.Tuple([self.visit(each) for each in _places(node)], ast.Load())
        return ast.Subscript(node.value, places, ast.Load())

    def visit_Name(self, node):
        return ast.Subscript(node, ast.Tuple([], ast.Load()), ast.Load()) if node.id in self.tensors else node


def to_python(node: ast.expr, tensors: Collection[str]) -> ast.expr:
    """The expression as Python computes it, with these names as tensors."""
    return _Python(tensors).visit(_copy(node))


class _Without(ast.NodeTransformer):
    """a + b[i] -> a, where b is absent."""

    def __init__(self, absent: Collection[str]):
        self.absent = absent

    def visit_BinOp(self, node):
        self.generic_visit(node)
        return node.left if isinstance(node.op, ast.Add) and _name(node.right) in self.absent else node


def _name(node: ast.expr) -> str:
    """The symbol of `x` or `x[i]`, "" for any other expression."""
    return getattr(getattr(node, "value", node), "id", "")


def _places(node: ast.expr) -> list[ast.expr]:
    if not isinstance(node, ast.Subscript):
        return []
    return node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]


def _copy(node):
    return ast.parse(ast.unparse(node), mode="eval").body


_LATEX_CALLS = {name: rf"\{name}\left({{}}\right)" for name in ("exp", "log", "tanh", "sin", "cos")} | {
    "sum": r"\sum{}",
    "max": r"\max{}",
    "sqrt": r"\sqrt{{{}}}",
    "delta": r"\delta_{{{}\,{}}}",
    "partial": r"\frac{{\partial {}}}{{\partial {}}}",
    "where": r"\begin{{cases}} {1} & \text{{where }} {0} \\ {2} & \text{{elsewhere}} \end{{cases}}",
}
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
        return _LATEX_CALLS[node.func.id].format(*map(self.visit, node.args))

    def visit_GeneratorExp(self, node):
        below = [self.visit(each.target) for each in node.generators]
        conditions = [self.visit(each) for generator in node.generators for each in generator.ifs]
        under = ", ".join(below) + (r" :\, " + ", ".join(conditions) if conditions else "")
        return rf"\limits_{{{under}}} {self._inside(node.elt, _PRODUCT)}"

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
    return isinstance(node, ast.Call) and node.func.id in ("sum", "max")


def symbol_latex(name: str) -> str:
    """How a symbol is written: a letter as it is, a word, such as a gradient's name, upright."""
    return name if len(name) == 1 else rf"\text{{{name}}}"
