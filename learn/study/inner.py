"""What the variables of the code held in this run, at one block: the numbers inside each operation.

The trace has what operations hand on; the mean inside a norm, its own dx and its weights are read here, from the
variables of the functions while they ran, so that every step of a derivation can be followed with a calculator.
"""

from typing import NamedTuple
from unittest.mock import patch

import numpy as np

from contract.trace import Trace
from learn.study.chapters import Chapter, block_of
from learn.study.derivations import Reading
from learn.study.one_pass import LEARNING_RATE, Pass, adam_weights
from learn.study.tensors import View, inner_view
from learn.study.witness import Witness, record_calls
from learn.study.worked import Numbers, Worked, work_out
from numpy_llm import GPT, Adam, threads
from numpy_llm.positions import rotary_table
from operations.dataflow import Dataflow

_MAX_COMPUTED = 4096  # numbers of a symbol that a formula defines: each takes a walk through the formula


class Choice(NamedTuple):
    """A symbol's numbers in the viewer. key: of the view that has them; symbol, means: its letter and words"""

    key: str
    symbol: str
    means: str


class Inside(NamedTuple):
    """choices: of a chapter's symbols; views: those that nothing else on the page has; steps: each one's numbers"""

    choices: list[Choice]
    views: list[View]
    steps: list[Worked | None]


class Shown:
    """The arrays that the viewer has, by the key that shows them, so that none is in the page twice."""

    def __init__(self, run: Pass):
        self.found: dict[tuple[int, ...], list[tuple[np.ndarray, str]]] = {}
        for kind, name in run.views:
            if kind != "optimizer":
                self.add(run.tensors["float32"][kind][0][name], f"{kind} {name}")

    def add(self, array: np.ndarray, key: str):
        """Take note of an array that is shown."""
        self.found.setdefault(array.shape, []).append((array, key))

    def key_of(self, array: np.ndarray) -> str:
        """The key that shows these numbers, or ""."""
        same = (key for each, key in self.found.get(array.shape, ()) if np.array_equal(each, array))
        return next(same, "")


def watch_pass(run: Pass, chapters: list[Chapter]) -> Witness:
    """The pass of the page once more, in float32 by hand, with the calls of the first block that is shown on record."""
    config, inputs, block = run.config, run.inputs["float32"], f"blocks.{run.layers[0]}."
    trace = Trace()

    def again():
        model = GPT(config, inputs.weights)
        _, _, cache = model.forward(inputs.tokens, inputs.targets, trace=trace)
        gradients = model.backward(cache, trace=trace)
        weights = adam_weights(config, inputs.weights)
        optimizer = Adam(weights)
        changing = adam_weights(config, gradients)
        for _ in range(2):
            optimizer.update(changing, LEARNING_RATE)
            changing.flat[...] /= 2

    rotary_table.cache_clear()  # so that it is computed while it is watched
    functions = {name for chapter in chapters for name in chapter.functions()}
    with patch.object(threads, "PIECE", 1 << 62):  # one call for each place
        calls = record_calls(again, functions, block=block, shared=inputs.weights.flat)
    nodes = [node for node in run.flow.nodes if block_of(node) in ("", block)]
    activations = trace.activations
    flow = Dataflow(nodes, activations.__contains__, activations.get)
    return Witness(calls, flow, config, 1, inputs.tokens.shape[1])


def look_inside(
    chapter: Chapter, run: Pass, witness: Witness, letters: dict[str, str], shown: Shown
) -> Inside:
    """The numbers inside a chapter; none of what no traced pass computes, such as attention in blocks.

    letters: the shape of each symbol in dimension letters; shown: what the page has so far, extended here
    """
    if chapter.at or chapter.name == "dropout":
        return Inside([], [], [None] * len(chapter.steps))
    reading = Reading(chapter, witness)
    formulas = {step.formula.left: step.formula for step in reversed(chapter.steps) if step.formula.left}
    computed = {name: formulas[name] for name, symbol in chapter.symbols.items() if symbol.formula}
    numbers = Numbers(reading.values, computed, reading.sizes, witness.T)
    token = _token(reading, run)
    steps = [work_out(step.formula, numbers, token) for step in chapter.steps]
    choices, views = [], []
    for name, symbol in chapter.symbols.items():
        value = reading.values.get(name)
        value = _compute(computed[name], numbers, name) if value is None else value
        if value is None:
            continue
        key = shown.key_of(value)
        if not key:
            views.append(inner_view(f"{chapter.name}.{name}", symbol.means, value, letters[name], run))
            key = views[-1].key
            shown.add(value, key)
        choices.append(Choice(key, name, f"{symbol.means} ({symbol.code})"))
    return Inside(choices, views, steps)


def _token(reading: Reading, run: Pass) -> int:
    """The id that an index of the vocabulary takes: the one looked up, or the one to predict, at the last token."""
    ids = reading.values.get("k")
    return int(ids[0, -1]) if ids is not None and ids.ndim == 2 else int(run.tokens[-1])


def _compute(formula, numbers: Numbers, name: str) -> np.ndarray | None:
    """All values of a symbol that a formula defines; None where they are many."""
    shape = [numbers.sizes[formula.indices[index]] for index in formula.free_indices]
    if np.prod(shape, dtype=float) > _MAX_COMPUTED:
        return None
    places = np.ndindex(*shape)
    return np.array([numbers.names[name][place] for place in places], np.float32).reshape(shape)
