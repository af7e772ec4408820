"""A chapter as the template draws it: symbols, steps with their mathematics, code beside them, tensors."""

import re
from itertools import groupby

from latex2mathml.converter import convert
from markupsafe import Markup, escape

from learn.study.chapters import EVERY, SIDES, Chapter, Step, block_of
from learn.study.derivations import shapes, step_errors
from learn.study.one_pass import Pass
from learn.study.source import highlighted
from learn.study.tensors import View
from learn.study.witness import Witness

_LONG = 100  # characters of LaTeX
_TITLES = {"forward": "NumPy, forward", "backward": "NumPy, backward", "torch": "PyTorch, autograd"}


def lay_out(chapter: Chapter, run: Pass, witness: Witness) -> dict:
    """What the template needs of a chapter."""
    pairs = zip(chapter.steps, step_errors(chapter, witness), strict=True)
    steps = [_step(chapter, step, number, error) for number, (step, error) in enumerate(pairs, 1)]
    columns = [_column(chapter, side, steps) for side in SIDES]
    views = views_of(chapter, run)
    return {
        "name": chapter.name,
        "title": chapter.title,
        "summary": chapter.summary,
        "symbols": _symbols(chapter, run.sizes, shapes(chapter, witness)),
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


def _step(chapter: Chapter, step: Step, number: int, error: float) -> dict:
    looks = {name: symbol.latex for name, symbol in chapter.symbols.items()}
    return vars(step) | {
        "id": f"{chapter.name}-step-{number}",
        "number": number,
        "says": _prose(step.says),
        "maths": [_line(latex) for latex in step.formula.latex(looks)],
        "error": error,
        "derivative": "partial(" in step.formula.text,
        "targets": [],  # filled when the code is laid out
        "twins": [],  # PyTorch's lines, the same way
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
