"""Faults of plumbing: copies of a twin with one line wrong, to prove that the suite would turn red.

The mistakes of single operations stand in `operations/`, which makes them without text.
"""

import ast
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import NamedTuple

from parity.passes import Twins


class Fault(NamedTuple):
    """A mistake and the proof that must see it.

    place: the function or class to break, such as "numpy_llm.layers.gelu_forward", or a whole file; one of
        `contract` is broken for the reference alone
    old, new: what to write instead of what; `old` must stand there exactly once, docstrings aside
    check: a name in `parity.checks.CHECKS`
    """

    title: str
    place: str
    old: str
    new: str
    check: str = "tensors"


@contextmanager
def injected(fault: Fault | None) -> Iterator[Twins]:
    """The twins, one of them a copy that has the fault; the packages themselves stay as they are.

    None makes a copy of the reference without a fault, which every proof must let pass.
    """
    package = "torch_llm" if fault and fault.place.startswith("torch_llm.") else "numpy_llm"
    finder = _CopyFinder(package, _faulty_sources(package, fault))
    sys.meta_path.insert(0, finder)
    try:
        copy = importlib.import_module(finder.alias)
        yield Twins(reference=copy) if package == "numpy_llm" else Twins(twin=copy)
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == finder.alias]:
            del sys.modules[name]


def _faulty_sources(package: str, fault: Fault | None) -> dict[str, str]:
    """The sources of a package by file name, one of them changed."""
    rooms = Path(__file__).parents[1]
    sources = {path.stem: path.read_text(encoding="utf-8") for path in (rooms / package).glob("*.py")}
    if fault:
        room, file, *qualified_name = fault.place.split(".")
        if room != package:  # a file of the contract, which the copy gets as one of its own
            sources = {
                name: source.replace(f"from {room}.{file} ", f"from {package}.{file} ")
                for name, source in sources.items()
            }
            sources[file] = (rooms / room / f"{file}.py").read_text(encoding="utf-8")
        sources[file] = _replace(fault, sources[file], qualified_name)
    return sources


def _replace(fault: Fault, source: str, qualified_name: list[str]) -> str:
    """The source with the fault; raises LookupError unless the old text stands once in the code of the place."""
    node = ast.parse(source)
    for name in qualified_name:
        found = [child for child in node.body if getattr(child, "name", None) == name]
        if len(found) != 1:
            raise LookupError(f"{fault.title}: there is no {fault.place}")
        node = found[0]
    lines = source.splitlines(keepends=True)
    first, last = (node.lineno - 1, node.end_lineno) if qualified_name else (0, len(lines))
    code = sorted(set(range(first, last)) - set(_docstring_lines(node)))
    count = sum(lines[number].count(fault.old) for number in code)
    if count != 1:
        raise LookupError(f"{fault.title}: {fault.old!r} stands {count} times in {fault.place}, not once")
    for number in code:
        lines[number] = lines[number].replace(fault.old, fault.new)
    return "".join(lines)


def _docstring_lines(node) -> Iterator[int]:
    for each in ast.walk(node):
        if isinstance(each, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(each):
            yield from range(each.body[0].lineno - 1, each.body[0].end_lineno)


class _CopyFinder(MetaPathFinder, Loader):
    """Imports a package a second time under another name, from sources given."""

    def __init__(self, package: str, sources: dict[str, str]):
        self.package, self.alias, self.sources = package, f"faulty_{package}", sources

    def find_spec(self, fullname, path=None, target=None):
        package, _, file = fullname.partition(".")
        if package != self.alias or (file or "__init__") not in self.sources:
            return None
        return ModuleSpec(fullname, self, is_package=not file)

    def exec_module(self, module):
        file = module.__name__.partition(".")[2] or "__init__"
        source = self.sources[file].replace(f"from {self.package}", f"from {self.alias}")
        exec(compile(source, f"<{module.__name__}>", "exec"), module.__dict__)
