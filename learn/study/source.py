"""The tested source as the page shows it, with its line numbers, in colour; read from the modules that run."""

import ast
import inspect
import textwrap
from functools import lru_cache
from html import escape
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

_ROOT = Path(__file__).parents[2]
_LIGHT, _DARK = "default", "github-dark"


class Excerpt(NamedTuple):
    """Lines of a function.

    function: its dotted name; path: of its file from the project's root, with "/"
    lines: text by number, docstring omitted
    """

    function: str
    path: str
    lines: dict[int, str]


def find_function(dotted: str):
    """The function that "package.module.function" or "package.module.Class.method" names."""
    parts = dotted.split(".")
    found = import_module(".".join(parts[:2]))
    for part in parts[2:]:
        found = getattr(found, part)
    return found


@lru_cache(maxsize=512)
def excerpt(function: str, shows: tuple[str, ...] = ()) -> Excerpt:
    """The source of a function without its docstring, or of it the statements that `shows` names.

    Raises ValueError for a name that the function does not assign.
    """
    tree, path, lines = _source(function)
    if shows:
        wanted = set()
        for each in shows:
            found = statement_lines(function, each)
            if not found:
                raise ValueError(f"{function} has no statement that assigns {each}")
            wanted |= found
    else:
        docstring = tree.body[0] if ast.get_docstring(tree) is not None else None
        wanted = lines.keys() - set(_lines(docstring) if docstring else ())
    return Excerpt(function, path, {number: lines[number] for number in sorted(wanted)})


@lru_cache(maxsize=1024)
def statement_lines(function: str, shown: str) -> frozenset[int]:
    """The lines of the statements that assign a name: "dx", or "dx from dy" for those that also read dy.

    "return" stands for the result. In-place changes count, of an argument `out=` or of what a call is made for too.
    """
    name, _, read = shown.partition(" from ")
    found = set()
    for statement in ast.walk(_source(function)[0]):
        if name in _assigned(statement) and (not read or read in _names(statement.value)):
            found |= set(_lines(statement))
    return frozenset(found)


def variables(function: str) -> set[str]:
    """Every name that a function's body binds or takes as an argument, attributes included."""
    tree = _source(function)[0]
    return _names(tree) | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}


def _assigned(statement: ast.AST) -> list[str]:
    """The names that a simple statement gives a value."""
    match statement:
        case ast.Return():
            return ["return"]
        case ast.Assign(targets=targets):
            return [_root(part) for each in targets for part in getattr(each, "elts", [each])]
        case ast.AugAssign(target=target):
            return [_root(target)]
        case ast.Expr(value=ast.Call(func=func, args=arguments, keywords=keywords)):
            out = [each.value for each in keywords if each.arg == "out"]
            return [_root((out or [*arguments, func])[0])]
    return []


def _root(node: ast.expr) -> str:
    """The variable at the bottom of an expression: x of x[i].y(z)."""
    while not isinstance(node, ast.Name):
        node = getattr(node, "value", None) or getattr(node, "func", None)
        if not isinstance(node, ast.expr):
            return ""
    return node.id


def _names(tree: ast.AST) -> set[str]:
    nodes = list(ast.walk(tree))
    return {each.id for each in nodes if isinstance(each, ast.Name)} | {
        each.attr for each in nodes if isinstance(each, ast.Attribute)
    }


def _lines(node: ast.stmt) -> range:
    return range(node.lineno, node.end_lineno + 1)


@lru_cache
def _source(function: str) -> tuple[ast.FunctionDef, str, dict[int, str]]:
    """A function's syntax tree, its file and its lines by number; decorators belong to it."""
    found = inspect.unwrap(find_function(function))
    source, start = inspect.getsourcelines(found)
    text = textwrap.dedent("".join(source))
    (tree,) = ast.parse(text).body
    path = Path(inspect.getsourcefile(found)).resolve().relative_to(_ROOT).as_posix()
    return ast.increment_lineno(tree, start - 1), path, dict(enumerate(text.splitlines(), start))


def highlighted(shown: Excerpt) -> dict[int, str]:
    """Each line's HTML by its number: escaped, with a class for each kind of word."""
    text = "\n".join(shown.lines.values())
    html = highlight(text, PythonLexer(stripnl=False, ensurenl=False), HtmlFormatter(nowrap=True))
    lines = html.rstrip("\n").split("\n")
    if len(lines) != len(shown.lines):  # a word that spans lines: plain text rather than broken tags
        lines = [escape(line) for line in shown.lines.values()]
    return dict(zip(shown.lines, lines, strict=True))


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
