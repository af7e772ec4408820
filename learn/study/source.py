"""The tested source as the page shows it: an excerpt with its line numbers, in colour.

It is read from the modules that run, when the page is written, so that it cannot drift from them.
"""

import ast
import inspect
import textwrap
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from learn.study.witness import find_function

_ROOT = Path(__file__).parents[2]
_LIGHT, _DARK = "default", "github-dark"


@dataclass(frozen=True)
class Excerpt:
    """Lines of a function.

    function: its dotted name; path: of its file from the project's root, with "/"
    lines: number and text, docstring omitted
    """

    function: str
    path: str
    lines: tuple[tuple[int, str], ...]


def excerpt(function: str, first: str = "", last: str = "") -> Excerpt:
    """The source of a function without its docstring, from the line holding `first` to that holding `last`.

    function: see `study.witness.find_function`; first, last: fragments, "" for the function's own end
    Raises ValueError where a fragment is in none of its lines.
    """
    path, lines = _source(function)
    begin = _only(function, lines, first) if first else 0
    end = _only(function, lines, last) if last else len(lines) - 1
    return Excerpt(function, path, lines[begin : end + 1])


def variables(function: str) -> set[str]:
    """Every name that a function's body binds or takes as an argument, attributes included."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(find_function(function))))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def _only(function: str, lines, fragment: str) -> int:
    found = [place for place, (_, text) in enumerate(lines) if fragment in text]
    if not found:
        raise ValueError(f"{function} has no line with {fragment!r}")
    return found[0]


@lru_cache
def _source(function: str) -> tuple[str, tuple[tuple[int, str], ...]]:
    """A function's file and its lines with their numbers, the docstring omitted."""
    found = inspect.unwrap(find_function(function))
    source, start = inspect.getsourcelines(found)
    (tree,) = ast.parse(textwrap.dedent("".join(source))).body
    docstring = tree.body[0] if ast.get_docstring(tree) is not None else None
    skipped = range(docstring.lineno, docstring.end_lineno + 1) if docstring else ()
    margin = len(source[0]) - len(source[0].lstrip())
    path = Path(inspect.getsourcefile(found)).resolve().relative_to(_ROOT).as_posix()
    lines = [(start + n - 1, text[margin:].rstrip()) for n, text in enumerate(source, 1) if n not in skipped]
    return path, tuple(lines)


def highlighted(shown: Excerpt) -> list[tuple[int, str]]:
    """Each line's number and its HTML: escaped, with a class for each kind of word."""
    text = "\n".join(line for _, line in shown.lines)
    html = highlight(text, PythonLexer(stripnl=False, ensurenl=False), HtmlFormatter(nowrap=True))
    lines = html.rstrip("\n").split("\n")
    if len(lines) != len(shown.lines):  # a word that spans lines: plain text rather than broken tags
        lines = [escape(line) for _, line in shown.lines]
    return [(number, line) for (number, _), line in zip(shown.lines, lines, strict=True)]


def highlight_css() -> tuple[str, str]:
    """The colours of the words' classes, for a light and for a dark page."""
    light, dark = (
        "\n".join(
            line
            for line in HtmlFormatter(style=style).get_style_defs(".code").splitlines()
            if line.startswith(".code .")  # no background, no line numbers: the page has its own
        )
        for style in (_LIGHT, _DARK)
    )
    return light, dark
