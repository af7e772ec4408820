"""The operations of the model as the page explains them: read from `operations/*.toml`, checked by numbers.

An entry gives an operation's two sentences, its symbols with the variables of the code that they stand for,
the functions to show, and the steps of its derivation, each with a formula and the lines that it explains.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from contract.config import ModelConfig
from study.formulas import Formula, partial_derivative, symbol_latex
from study.source import Excerpt, excerpt, variables
from study.witness import CONTEXT_LENGTH, SIZES, Witness, find_function, rerun

FOLDER = Path(__file__).parent / "operations"
# In the order of dataflow; "relu" and "gelu" are two forms of one place.
ORDER = (
    "embedding", "position", "layer_norm", "query_key_value", "scores", "mask", "softmax", "weighted_sum",
    "output_projection", "residual", "feed_forward", "relu", "gelu", "final_norm", "logits", "cross_entropy",
    "adam",
)  # fmt: skip
SIDES = ("forward", "backward", "torch")


@dataclass(frozen=True)
class Symbol:
    """A letter of the formulas.

    code: the variable that it stands for; means: in words; latex: how it is written
    in_: the function whose variable it is, "" for the first of the operation's that has it
    from_: the function whose (first) result is the value, "" for the variable's own
    trace, gradient: a traced name whose tensor is the value
    key: the name to look up in a mapping; call: which call to look at, None for the operation's
    before: the value before the step, which the function changed in place
    formula: given by a formula, not by a variable that still holds it when the function returns
    shape: of such a one, in dimension letters
    """

    code: str
    means: str
    latex: str
    in_: str = ""
    from_: str = ""
    trace: str = ""
    gradient: str = ""
    key: str = ""
    call: int | None = None
    before: bool = False
    formula: bool = False
    shape: str = ""


@dataclass(frozen=True)
class Step:
    """A step of a derivation: what it says, its formula, and fragments of the lines that do it, if any do.

    twins: fragments of the PyTorch lines that do the same
    """

    side: str
    says: str
    formula: Formula
    lines: tuple[str, ...]
    needs: Mapping = field(default_factory=dict)
    twins: tuple[str, ...] = ()

    def fragments(self, side: str) -> tuple[str, ...]:
        """What to look for in the code of one side."""
        return self.twins if side == "torch" else self.lines if side == self.side else ()


@dataclass(frozen=True)
class Operation:
    """An entry of the page; activations and weights are dotted names with "{block}" for the block's."""

    name: str
    title: str
    summary: str
    activations: tuple[str, ...]
    weights: tuple[str, ...]
    symbols: dict[str, Symbol]
    steps: tuple[Step, ...]
    code: tuple[dict, ...]
    dimensions: dict[str, str]
    call: int
    needs: Mapping

    @property
    def looks(self) -> dict[str, str]:
        """LaTeX by symbol."""
        return {name: symbol.latex for name, symbol in self.symbols.items()}

    @property
    def in_blocks(self) -> bool:
        """Whether every block has one."""
        return any("{block}" in name for name in self.activations)

    def excerpts(self, side: str, config: ModelConfig) -> list[Excerpt]:
        """The code of one side that a model of this configuration runs."""
        return [
            excerpt(each["function"], each.get("first", ""), each.get("last", ""))
            for each in self.code
            if each["side"] == side and fits(each.get("needs", {}), config)
        ]

    def functions(self) -> list[str]:
        """Every NumPy function that is shown or that a symbol's value comes from."""
        shown = [each["function"] for each in self.code if each["side"] != "torch"]
        named = [each for symbol in self.symbols.values() for each in (symbol.in_, symbol.from_) if each]
        return list(dict.fromkeys([*shown, *named]))

    def names_variable(self, symbol: Symbol) -> bool:
        """Whether the code has the variable that the symbol stands for."""
        functions = [symbol.in_] if symbol.in_ else self.functions()
        return any(symbol.code in variables(function) for function in functions)


def fits(needs: Mapping, config: ModelConfig) -> bool:
    """Whether a configuration has the settings that an entry needs."""
    return all(getattr(config, name) == value for name, value in needs.items())


@lru_cache
def operations() -> tuple[Operation, ...]:
    """Every operation, in the order of dataflow."""
    return tuple(_read(name) for name in ORDER)


def operations_of(config: ModelConfig) -> list[Operation]:
    """The operations that a model of this configuration runs."""
    return [each for each in operations() if fits(each.needs, config)]


def _entry(name: str) -> dict:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def _read(name: str) -> Operation:
    entry = _entry(name)
    if "like" in entry:  # the same function at another place
        entry = _entry(entry["like"]) | entry
    symbols = {}
    for letter, row in entry["symbols"].items():
        row = {{"in": "in_", "from": "from_"}.get(key, key): value for key, value in row.items()}
        symbols[letter] = Symbol(**{"latex": symbol_latex(letter)} | row)
    steps = tuple(
        Step(
            each["side"],
            each["says"],
            Formula(each["formula"], entry["indices"]),
            tuple(each.get("lines", ())),
            each.get("needs", {}),
            tuple(each.get("torch", ())),
        )
        for each in entry["steps"]
    )
    return Operation(
        name=name,
        title=entry["title"],
        summary=entry["summary"],
        activations=tuple(entry["activations"]),
        weights=tuple(entry["weights"]),
        symbols=symbols,
        steps=steps,
        code=tuple(entry["code"]),
        dimensions=entry.get("dimensions", {}),
        call=entry.get("call", 0),
        needs=entry.get("needs", {}),
    )


# The check by numbers


def check(operation: Operation, witness: Witness) -> list[float]:
    """The error of each step's formula on a witness's numbers, relative to the largest magnitude.

    A formula whose left side has no value yet defines it, and has error 0. nan: for other settings.
    """
    reading = _Reading(operation, witness)
    return [
        reading.error(step.formula) if fits(step.needs, witness.config) else float("nan")
        for step in operation.steps
    ]


def shapes(operation: Operation, witness: Witness) -> dict[str, str]:
    """The shape of each symbol's variable in dimension letters, such as "B, T, C"; "" of a single number."""
    reading = _Reading(operation, witness)
    letters = {size: letter for letter, size in reading.sizes.items()}
    letters |= {
        SIZES["B"] * SIZES["T"]: "B T",
        3 * SIZES["C"]: "3 C",
        CONTEXT_LENGTH: "context_length",
        1: "1",
    }
    letters |= {size: letter for letter, size in SIZES.items()}
    return {
        name: symbol.shape or ", ".join(letters[size] for size in np.shape(reading.values.get(name, 0)))
        for name, symbol in operation.symbols.items()
    }


class _Reading:
    """The values of an operation's symbols in one witness."""

    def __init__(self, operation: Operation, witness: Witness):
        self.operation, self.witness = operation, witness
        self.values = {
            name: self._value(symbol) for name, symbol in operation.symbols.items() if not symbol.formula
        }
        self.sizes = dict(SIZES)
        for name, size in operation.dimensions.items():
            self.sizes[name] = eval(size, {"len": len, "__builtins__": {}}, self.sizes | self.values)
        self.formulas: dict[str, Formula] = {}  # of the steps so far, by the symbol on the left

    def error(self, formula: Formula) -> float:
        left = formula.left
        self.formulas.setdefault(left, formula)
        if left is not None and left not in self.values:
            if not self.operation.symbols[left].formula:
                raise ValueError(f"{formula.text}: {left} has no value")
            self.values[left] = formula.evaluate(1, self.values, self.sizes)
            return 0.0
        return formula.error(self.values, self.sizes, partial_derivative(self._rerun, self.values))

    def _rerun(self, by: str, value: np.ndarray, of: str) -> np.ndarray:
        """The symbol `of` with the symbol `by` changed: by the function that takes it, else by its formula."""
        symbol = self.operation.symbols[of]
        argument = self.operation.symbols[by].code
        function = "" if symbol.formula or symbol.trace else symbol.from_ or self._function_with(symbol)
        call = self.witness.calls[function][self._place(symbol, function)] if function else None
        if call is None or argument not in call.arguments:
            return self.formulas[of].evaluate(1, self.values | {by: value}, self.sizes)
        return np.asarray(rerun(function, call, {argument: value}, "return" if symbol.from_ else symbol.code))

    def _value(self, symbol: Symbol) -> np.ndarray:
        if symbol.trace:
            return self.witness.trace.activations[symbol.trace]
        if symbol.gradient:
            return self.witness.trace.gradients[symbol.gradient]
        function = symbol.from_ or self._function_with(symbol)
        calls = self.witness.calls[function]
        found = calls[self._place(symbol, function)].variables
        if symbol.from_:
            return np.asarray(found["return"])
        value = found[symbol.code] if symbol.code in found else getattr(found["self"], symbol.code)
        return np.asarray(value[symbol.key] if symbol.key else value)

    def _place(self, symbol: Symbol, function: str) -> int:
        """Which call: backward, the calls come in the opposite order. Adam calls twice a step."""
        if function.startswith("numpy_llm.adam"):
            return 0 if symbol.before else self.operation.call
        call = self.operation.call if symbol.call is None else symbol.call
        count = len(self.witness.calls[function])
        call = min(call, count - 1)
        return count - 1 - call if function.endswith("_backward") else call

    def _function_with(self, symbol: Symbol) -> str:
        for function in [symbol.in_] if symbol.in_ else self.operation.functions():
            calls = self.witness.calls.get(function) or ()
            if any(symbol.code in each.variables for each in calls):
                return function
            if calls and hasattr(calls[0].variables.get("self"), symbol.code):
                return function
        raise ValueError(f"{self.operation.name}: no function was called that has {symbol.code}")


def every_function() -> list[str]:
    """What a witness has to watch for all operations."""
    names = [each for operation in operations() for each in operation.functions()]
    return [each for each in dict.fromkeys(names) if hasattr(find_function(each), "__code__")]
