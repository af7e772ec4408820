"""The chapters of the study page: read from `operations/*.toml`, placed in the dataflow of a model.

A file is the chapter of its operation, or a table of chapters: the operation at different places, or a part of it.
A chapter gives its two sentences, its symbols with the variables of the code that they stand for, the functions to
show, and the steps of its derivation, each with a formula and the variables whose assignments it explains.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from operator import itemgetter
from pathlib import Path

from contract.config import ModelConfig
from contract.trace import Node
from learn.study.formulas import Formula, symbol_latex
from learn.study.source import Excerpt, excerpt, statement_lines
from numpy_llm.attend_in_blocks import BLOCKS_FROM
from operations.catalogue import OPERATIONS, UNTRACED

EVERY = OPERATIONS | UNTRACED
FOLDER = Path(__file__).parents[2] / "operations"
SIDES = ("forward", "backward", "torch")


@dataclass(frozen=True)
class Symbol:
    """A letter of the formulas.

    code: the variable that it stands for; means: in words; latex: how it is written
    function: whose variable it is, "" for the first of the chapter's that has it
    result_of: the function whose result is the value, "" for the variable's own; result: which of several
    at: the place whose call to look at, "" for the chapter's first; key: the name to look up in a mapping, or a field
    before: the value before the function changed it in place
    formula: given by a formula, not by a variable that still holds it when the function returns
    shape: of such a one, in dimension letters
    needs: the settings without which it is 0 and not written
    """

    code: str
    means: str
    latex: str
    function: str = ""
    result_of: str = ""
    result: int = 0
    at: str = ""
    key: str = ""
    before: bool = False
    formula: bool = False
    shape: str = ""
    needs: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A step of a derivation: what it says and its formula.

    shows: what it explains in NumPy's code of its side, see `statement_lines`; torch: in the twin's
    needs: the settings that a configuration must have
    """

    side: str
    says: str
    formula: Formula
    shows: list[str] = field(default_factory=list)
    torch: list[str] = field(default_factory=list)
    needs: Mapping = field(default_factory=dict)

    def explains(self, side: str) -> list[str]:
        """What it explains in the code of one side."""
        return self.torch if side == "torch" else self.shows if side == self.side else []


@dataclass(frozen=True)
class Chapter:
    """A chapter of the page.

    operation: the stem of its pair, as a trace records it
    code: functions, which statements of each to show, all where none are named, and what settings they need
    dimensions: sizes of those that are the chapter's own, as expressions
    places: the tensors that it makes, without "blocks.0."; all of the operation's where none are given
    labels: what the map calls them, by place, where that is not the title
    of_inputs: it has no tensors of its own and shows those that it reads
    at: the traced operation whose tensors it shows, where no traced pass has its own
    needs: the settings of a model that has it
    keywords: what readers may call it, for the search; picture: the name of its drawing in `pictures`, or ""
    """

    name: str
    operation: str
    title: str
    summary: str
    symbols: dict[str, Symbol]
    steps: list[Step]
    code: list[dict]
    dimensions: Mapping[str, str] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)
    labels: Mapping[str, str] = field(default_factory=dict)
    of_inputs: bool = False
    at: str = ""
    needs: Mapping = field(default_factory=dict)
    keywords: list[str] = field(default_factory=list)
    picture: str = ""

    def of(self, config: ModelConfig) -> "Chapter":
        """What applies to a model of this configuration."""
        absent = {name for name, symbol in self.symbols.items() if not fits(symbol.needs, config)}
        steps = [
            replace(step, formula=step.formula.without(absent))
            for step in self.steps
            if fits(step.needs, config)
        ]
        used = {name for step in steps for name in step.formula.symbols}
        symbols = {name: symbol for name, symbol in self.symbols.items() if name in used}
        code = [each for each in self.code if fits(each.get("needs", {}), config)]
        return replace(self, steps=steps, symbols=symbols, code=code)

    def nodes(self, nodes: Iterable[Node]) -> list[Node]:
        """Where a model does this."""
        own = [node for node in nodes if node.operation == (self.at or self.operation)]
        return [
            node
            for node in own
            if not self.places or any(place(each) in self.places for each in node.results)
        ]

    def tensors(self, node: Node) -> list[str]:
        """The tensors that the chapter shows of one of its nodes."""
        return node.inputs if self.of_inputs else list(node.results)

    def excerpts(self, side: str) -> list[Excerpt]:
        """The code of one side."""
        own = [each for each in self.code if side_of(each["function"]) == side]
        return [excerpt(each["function"], tuple(each.get("shows", ()))) for each in own]

    def explained(self, side: str) -> dict[tuple[str, int], list[int]]:
        """The steps that explain a line of one side, from 0, by the line's file and number.

        Raises ValueError for a step that names what no code beside it assigns.
        """
        found: dict[tuple[str, int], list[int]] = {}
        for at, step in enumerate(self.steps):
            for name in step.explains(side):
                lines = [
                    (shown.path, number)
                    for shown in self.excerpts(side)
                    for number in sorted(statement_lines(shown.function, name) & shown.lines.keys())
                ]
                if not lines:
                    raise ValueError(
                        f"operations/{self.operation}.toml, {self.name}: no code beside "
                        f"{step.formula.text!r} assigns {name}"
                    )
                for line in dict.fromkeys(lines):
                    if at not in found.setdefault(line, []):
                        found[line].append(at)
        return found

    def functions(self) -> list[str]:
        """Every NumPy function that is shown or that a symbol's value comes from."""
        shown = [each["function"] for each in self.code if side_of(each["function"]) != "torch"]
        named = [
            each for symbol in self.symbols.values() for each in (symbol.function, symbol.result_of) if each
        ]
        return list(dict.fromkeys([*shown, *named]))


def place(tensor: str) -> str:
    """A tensor's name without its block: the same in every one."""
    return re.sub(r"^blocks\.\d+\.", "", tensor)


def block_of(node: Node) -> str:
    """The block that a node is in, such as "blocks.0.", or ""."""
    return node.results[0].removesuffix(place(node.results[0]))


def side_of(function: str) -> str:
    """Which of `SIDES` a function belongs to."""
    if function.startswith("torch_llm."):
        return "torch"
    return "backward" if re.search(r"[._]backward(_layers)?$", function) else "forward"


def fits(needs: Mapping, config: ModelConfig) -> bool:
    """Whether a configuration has the settings that an entry needs; true and false stand for any value or none."""
    facts = vars(config) | {
        "grouped": config.n_kv_head < config.n_head,
        "in_blocks": config.context_length >= BLOCKS_FROM,  # an untraced pass over a long text
        "rotary_scaling": config.rotary.scaling if config.rotary else "",
    }
    return all(
        (bool(facts[name]) if isinstance(value, bool) else facts[name]) == value
        for name, value in needs.items()
    )


@lru_cache
def all_chapters() -> tuple[Chapter, ...]:
    """The chapters of every operation of the catalogue, then Adam's, which is none of the model's dataflow."""
    found = []
    for operation in (*EVERY, "adamw"):
        file = FOLDER / f"{operation}.toml"
        if file.exists():  # some are explained in another's chapter, or not yet
            content = tomllib.loads(file.read_text(encoding="utf-8"))
            entries = {operation: content} if "title" in content else content
            for name, entry in entries.items():
                found.append(_chapter(name, operation, entries.get(entry.get("like"), {}) | entry))
    return tuple(found)


def chapters_of(nodes: list[Node], config: ModelConfig) -> list[Chapter]:
    """The chapters of a model with this dataflow, in its order."""
    found = []
    for chapter in all_chapters():
        own = chapter.nodes(nodes) if fits(chapter.needs, config) else []
        if own or chapter.operation not in EVERY:
            first = next((at for at, node in enumerate(nodes) if own and node is own[0]), len(nodes))
            found.append((first, chapter.of(config)))
    return [chapter for _, chapter in sorted(found, key=itemgetter(0))]


def _chapter(name: str, operation: str, entry: dict) -> Chapter:
    indices, replace_with = entry.pop("indices"), entry.pop("replace", ())
    steps = []
    for side in ("forward", "backward"):
        for row in entry.pop(side, ()):
            whole = {"torch": ["return"] if side == "forward" else []} | row
            formula = Formula(_replaced(row["formula"], replace_with), indices)
            steps.append(Step(side=side, **whole | {"formula": formula}))
    symbols = {}
    for letter, row in entry.pop("symbols").items():
        row = row | {key: _pairs.get(row[key], row[key]) for key in ("function", "result_of") if key in row}
        row |= {"shape": _replaced(row["shape"], replace_with)} if "shape" in row else {}
        symbols[letter] = Symbol(**{"latex": symbol_latex(letter)} | row)
    code = [each for shown in entry.pop("code", [operation]) for each in _code(shown)]
    entry.pop("like", None)
    return Chapter(name, operation, symbols=symbols, steps=steps, code=code, **entry)


def _replaced(text: str, pairs: Iterable[list[str]]) -> str:
    """A formula of the chapter that this one is `like`, with whole words replaced: other dimensions, other indices."""
    for old, new in pairs:
        text = re.sub(rf"\b{re.escape(old)}\b", new, text)
    return text


def _dotted(function) -> str:
    return f"{function.__module__}.{function.__name__}"


# The functions of the operations by their names alone.
_pairs = {
    function.__name__: _dotted(function)
    for operation in EVERY.values()
    for function in (operation.forward, operation.backward)
    if function
}


def _code(entry: str | dict) -> list[dict]:
    """The code that an entry of the list means: of a pair and its twin, of a function, or of some of its lines."""
    if isinstance(entry, dict):
        return [entry]
    if entry not in EVERY:
        return [{"function": _pairs.get(entry, entry)}]
    forward, backward = _pairs[f"{entry}_forward"], _pairs[f"{entry}_backward"]
    twin = forward.replace("numpy_llm", "torch_llm", 1).removesuffix("_forward")
    return [{"function": each} for each in (forward, backward, twin)]
