"""A chapter as the template draws it: symbols, steps with their mathematics, code beside them, tensors."""

import ast
import re
from itertools import groupby
from typing import NamedTuple

from latex2mathml.converter import convert
from markupsafe import Markup, escape

from learn.exercises.catalogue import EXERCISES
from learn.exercises.exercise import Exercise
from learn.study.chapters import EVERY, SIDES, Chapter, Step, block_of
from learn.study.derivations import shapes, step_errors
from learn.study.inner import Shown, look_inside
from learn.study.one_pass import Pass
from learn.study.source import highlighted
from learn.study.tensors import View
from learn.study.witness import Witness
from learn.study.worked import Worked

_LONG = 100  # characters of LaTeX
_COUNTED = {
    "B": "sequences", "T": "tokens", "C": "channels", "H": "query heads", "K": "key/value heads",
    "D": "channels of a head", "F": "wide channels", "V": "tokens of the vocabulary",
}  # fmt: skip
_MARKS = {
    "delta": (r"\delta_{i\,j}", "1 where its two indices are equal, 0 elsewhere"),
    "partial": (r"\frac{\partial a}{\partial b}", "by how much a moves when b moves a little, per unit"),
}
_TITLES = {"forward": "NumPy, forward", "backward": "NumPy, backward", "torch": "PyTorch, autograd"}


class Proved(NamedTuple):
    """errors: of a chapter's formulas; letters: the shape of each symbol in dimension letters"""

    errors: list[float]
    letters: dict[str, str]


def prove(chapter: Chapter, witness: Witness) -> Proved:
    """Check a chapter on the small model."""
    return Proved(step_errors(chapter, witness), shapes(chapter, witness))


def lay_out(chapter: Chapter, run: Pass, proved: Proved, watched: Witness, shown: Shown) -> dict:
    """What the template needs of a chapter.

    watched: this run's calls, whose numbers are shown; shown: what the page has so far, extended here
    """
    letters = proved.letters
    inside = look_inside(chapter, run, watched, letters, shown)
    pairs = zip(chapter.steps, proved.errors, inside.steps, strict=True)
    steps = [_step(chapter, step, number, *rest) for number, (step, *rest) in enumerate(pairs, 1)]
    _define(chapter, steps)
    columns = [_column(chapter, side, steps) for side in SIDES]
    views = views_of(chapter, run)
    return {
        "name": chapter.name,
        "title": chapter.title,
        "summary": chapter.summary,
        "symbols": _symbols(chapter, run.sizes, letters),
        "indices": _indices(chapter, run.sizes),
        "exercises": exercises_of(chapter),
        "words": " ".join([*chapter.keywords, *exercises_of(chapter)]),
        "inner": inside.views,
        "choices": inside.choices,
        "worked": any(inside.steps),
        "steps": steps,
        "columns": [column for column in columns if column["excerpts"]],
        "views": views,
        "failing": sum(bool(run.fails(view)) for view in views),
    }


def views_of(chapter: Chapter, run: Pass) -> list[View]:
    """The tensors of a chapter, block by block: what it makes, its gradient, its weights' gradients."""
    if chapter.operation not in EVERY:  # Adam, after the pass
        return [view for view in run.views.values() if view.kind == "optimizer"]
    keys = []
    for _, group in groupby(chapter.nodes(run.flow.nodes), lambda node: block_of(node)):
        nodes = list(group)
        made = [name for node in nodes for name in chapter.tensors(node)]
        steps = [step for node in nodes for step, _ in run.flow.steps(node.results[0])]
        read = [name for step in steps for name in step.inputs]
        keys += [(kind, name) for kind in ("activation", "gradient") for name in made]
        keys += [("weight gradient", name) for name in read]
    return [run.views[key] for key in dict.fromkeys(keys) if key in run.views]


def _symbols(chapter: Chapter, sizes: dict[str, int], letters: dict[str, str]) -> list[dict]:
    return [
        vars(symbol)
        | {
            "math": math(symbol.latex),
            "letters": letters[name],
            "numbers": " × ".join(str(sizes.get(each, each)) for each in letters[name].split(", ")),
        }
        for name, symbol in chapter.symbols.items()
    ]


# Exercises that are made of no single operation, and the chapters in which what they practise stands.
_ELSEWHERE = {
    "gradient-clipping": "adam", "accumulation": "adam", "key-value-cache": "mask", "modern-block": "residual",
}  # fmt: skip


def exercises_of(chapter: Chapter) -> list[str]:
    """The exercises in which a student writes an operation that the chapter shows."""
    functions = [each["function"].rpartition(".")[2] for each in chapter.code]
    stems = {re.sub(r"_(forward|backward)$", "", each) for each in functions}
    stems |= {chapter.name, chapter.operation}
    return [name for name, exercise in EXERCISES.items() if stems & _practised(name, exercise)]


def _practised(name: str, exercise: Exercise) -> set[str]:
    """An exercise named after an operation is about that one; any other about all that it is made of."""
    own = name.replace("-", "_")
    made_of = {each.name for each in exercise.operations} | {_ELSEWHERE.get(name, own)}
    return {own} if own in EVERY else {own} | made_of


def _indices(chapter: Chapter, sizes: dict[str, int]) -> list[dict]:
    """The indices of the formulas, by what they count."""
    found: dict[str, list[str]] = {}
    for step in chapter.steps:
        used = {node.id for node in ast.walk(step.formula.tree) if isinstance(node, ast.Name)}
        for index in sorted(used & step.formula.indices.keys()):
            group = found.setdefault(step.formula.indices[index], [])
            group += [index] if index not in group else []
    known = {letter: f"{letter} = {sizes[letter]:,} {words}" for letter, words in _COUNTED.items()}
    own = {letter: f"{letter} = {size.replace('//', '/')}" for letter, size in chapter.dimensions.items()}
    return [
        {"names": sorted(names), "counts": (known | own)[letter]} for letter, names in sorted(found.items())
    ]


def _define(chapter: Chapter, steps: list[dict]):
    """Give each step the symbols that stand in it for the first time, with their meanings."""
    seen: set[str] = set()
    for step, row in zip(chapter.steps, steps, strict=True):
        names = [name for name in chapter.symbols if name in step.formula.symbols - seen]
        row["defines"] = [(math(chapter.symbols[name].latex), chapter.symbols[name].means) for name in names]
        calls = {node.func.id for node in ast.walk(step.formula.tree) if isinstance(node, ast.Call)}
        for name, (latex, means) in _MARKS.items():
            if name in calls - seen:
                row["defines"].append((math(latex), means))
        seen |= {*names, *calls}


def _step(chapter: Chapter, step: Step, number: int, error: float, worked: Worked | None) -> dict:
    looks = {name: symbol.latex for name, symbol in chapter.symbols.items()}
    return vars(step) | {
        "id": f"{chapter.name}-step-{number}",
        "number": number,
        "says": _prose(step.says),
        "maths": [_line(latex) for latex in step.formula.latex(looks)],
        "error": error,
        "worked": worked and _worked(step, worked, looks),
        "derivative": "partial(" in step.formula.text,
        "targets": [],  # filled when the code is laid out
        "twins": [],  # PyTorch's lines, the same way
    }


def _worked(step: Step, worked: Worked, looks: dict[str, str]) -> dict:
    chosen = {index: str(value) for index, value in worked.indices.items()}
    (left, *_) = step.formula.latex(looks | chosen)
    whole = worked.text.strip("()") == worked.value  # one number, not a calculation
    return {
        "left": math(left.partition(" = ")[0]),
        "text": "" if whole else worked.text,
        "value": worked.value,
    }


def _prose(text: str) -> Markup:
    """Text in which x[j] is set as an index."""
    return Markup(re.sub(r"\b(\w+)\[(\w+)\]", r"<var>\1<sub>\2</sub></var>", str(escape(text))))


def _line(latex: str) -> list[Markup]:
    """A line of a formula: in two parts where it is long, so that a narrow window can break it before the =."""
    left, equals, right = latex.partition(" = ")
    parts = [left, f"= {right}"] if equals and len(latex) > _LONG else [latex]
    return [math(part, display=True) for part in parts]


def math(latex: str, *, display: bool = False) -> Markup:
    """LaTeX as MathML, which carries the LaTeX for readers who cannot see it."""
    mathml = convert(latex, display="block" if display else "inline")
    return Markup(mathml.replace("<math ", f'<math alttext="{escape(latex)}" ', 1))


def _column(chapter: Chapter, side: str, steps: list[dict]) -> dict:
    """The code of one side; each step gets the lines that do it."""
    excerpts, explained = [], chapter.explained(side)
    for shown in chapter.excerpts(side):
        lines = []
        for number, html in highlighted(shown).items():
            line = {
                "id": f"{chapter.name}-{shown.path.replace('/', '-').removesuffix('.py')}-L{number}",
                "number": number,
                "html": Markup(html),
                "indent": len(html) - len(html.lstrip()),
            }
            own = [steps[at] for at in explained.get((shown.path, number), ())]
            for step in own:
                step["twins" if side == "torch" else "targets"].append(line | {"html": Markup(html.lstrip())})
            lines.append(line | {"steps": own})
        excerpts.append({"path": shown.path, "function": shown.function, "lines": lines})
    title = "PyTorch, torch.optim" if side == "torch" and chapter.name == "adam" else _TITLES[side]
    return {"side": side, "title": title, "excerpts": excerpts}
