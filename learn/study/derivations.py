"""The derivations checked by numbers: both sides of every formula, on what the code's variables held."""

import re
from collections.abc import Mapping

import numpy as np

from contract.components import sizes
from learn.study.chapters import Chapter, Symbol, place
from learn.study.formulas import Formula, partial_derivative
from learn.study.witness import ADAM_CALL, Call, Witness, rerun


def step_errors(chapter: Chapter, witness: Witness) -> list[float]:
    """The error of each step's formula on a witness's numbers, relative to the largest magnitude.

    A formula whose left side has no value yet defines it, and has error 0.
    """
    reading = Reading(chapter, witness)
    return [reading.error(step.formula) for step in chapter.steps]


def shapes(chapter: Chapter, witness: Witness) -> dict[str, str]:
    """The shape of each symbol's variable in dimension letters, such as "B, T, C"; "" of a single number."""
    reading = Reading(chapter, witness)
    letters = {size: letter for letter, size in reversed(reading.sizes.items())}  # the first of equal ones
    letters |= {1: "1", reading.sizes["B"] * reading.sizes["T"]: "B T"}
    return {
        name: symbol.shape or ", ".join(letters[size] for size in np.shape(reading.values.get(name, 0)))
        for name, symbol in chapter.symbols.items()
    }


class Reading:
    """The values of a chapter's symbols in one witness."""

    def __init__(self, chapter: Chapter, witness: Witness):
        self.chapter, self.witness = chapter, witness
        self.values = {
            name: self._value(symbol) for name, symbol in chapter.symbols.items() if not symbol.formula
        }
        self.sizes = sizes(witness.config, witness.B, witness.T)
        for name, size in chapter.dimensions.items():
            self.sizes[name] = eval(size, {"len": len, "__builtins__": {}}, self.sizes | self.values)
        self.formulas: dict[str, Formula] = {}  # of the steps so far, by the symbol on the left

    def error(self, formula: Formula) -> float:
        left = formula.left
        self.formulas.setdefault(left, formula)
        if left is not None and left not in self.values:
            if not self.chapter.symbols[left].formula:
                raise ValueError(f"{formula.text}: {left} has no value")
            self.values[left] = formula.evaluate(1, self.values, self.sizes)
            return 0.0
        return formula.error(self.values, self.sizes, partial_derivative(self._rerun, self.values))

    def _rerun(self, by: str, value: np.ndarray, of: str) -> np.ndarray:
        """The symbol `of` with the symbol `by` changed: by the function that takes it, else by its formula."""
        symbol, argument = self.chapter.symbols[of], self.chapter.symbols[by].code
        function = "" if symbol.formula else symbol.result_of or self._function_with(symbol)
        call = self._call(symbol, function) if function else None
        if call is None or argument not in call.arguments:
            return self.formulas[of].evaluate(1, self.values | {by: value}, self.sizes)
        return _value_in(symbol, rerun(function, call, {argument: value}))

    def _value(self, symbol: Symbol) -> np.ndarray:
        function = symbol.result_of or self._function_with(symbol)
        return _value_in(symbol, self._call(symbol, function))

    def _call(self, symbol: Symbol, function: str) -> Call:
        """The call at the symbol's place: forward an operation's places come in order, and the call that gets
        the cache made there is its backward; where none is made, they come in reverse.
        """
        calls = self.witness.calls[function]
        if function.startswith("numpy_llm.adam"):
            return calls[ADAM_CALL]
        stem = re.sub(r"_(forward|backward)$", "", function.rpartition(".")[2])
        flow = self.witness.flow
        if not any(node.operation == stem for node in flow.nodes):
            own = [node for node in flow.nodes if node.operation == self.chapter.operation]
            stem = (
                self.chapter.operation if len(calls) == len(own) else stem
            )  # a part of it, called once in each
        at = self._at(stem, symbol.at)
        if not function.endswith("_backward"):
            return calls[at]
        forward = self.witness.calls.get(f"{function.removesuffix('backward')}forward", ())
        kept = forward[at].results[-1] if at < len(forward) else None
        own = [each for each in calls if kept is not None and each.arguments.get("cache") is kept]
        return own[0] if own else calls[-1 - at]

    def _at(self, operation: str, wanted: str) -> int:
        """Which of an operation's places is the one wanted, or made a part of what the chapter shows."""
        flow = self.witness.flow
        for node in self.chapter.nodes(flow.nodes):
            if wanted in ("", *map(place, node.results)):
                parts = [each for each, _ in flow.steps(node.results[0])]
                same = [each for each in flow.nodes if each.operation == operation]
                return next((at for at, each in enumerate(same) if any(each is part for part in parts)), 0)
        return 0

    def _function_with(self, symbol: Symbol) -> str:
        for function in [symbol.function] if symbol.function else self.chapter.functions():
            calls = self.witness.calls.get(function) or ()
            if any(symbol.code in each.variables for each in calls):
                return function
            if calls and hasattr(calls[0].variables.get("self"), symbol.code):
                return function
        raise ValueError(f"{self.chapter.name}: no function was called that has {symbol.code}")


def _value_in(symbol: Symbol, call: Call) -> np.ndarray:
    """The value of a symbol in a call."""
    if symbol.result_of:
        return np.asarray(call.results[symbol.result])
    found = call.arguments if symbol.before and symbol.code in call.arguments else call.variables
    value = found[symbol.code] if symbol.code in found else getattr(found["self"], symbol.code)
    if not symbol.key:
        return np.asarray(value)
    return np.asarray(value[symbol.key] if isinstance(value, Mapping) else getattr(value, symbol.key))
