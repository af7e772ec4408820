"""The README and the pages of docs/: every link resolves, every command parses, every example runs as shown."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.main import get_command

from cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
README, EXERCISES, GOLDEN = TEXTS["README.md"], TEXTS["docs/exercises.md"], TEXTS["docs/golden.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
every_page = pytest.mark.parametrize("page", TEXTS)


def blocks(text: str, language: str) -> list[str]:
    return [body for found, body in BLOCK.findall(text) if found == language]


def spans(text: str) -> list[str]:
    """The code between single backticks, outside of blocks."""
    return re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    prose = re.sub(r"(?<!\[)`[^`\n]+`(?!\])", "", BLOCK.sub("", text))
    return re.findall(r"\]\(([^)\s]+)\)", prose)


@every_page
def test_links_and_anchors_resolve(page):
    """Each link of a page leads to a file of the project and, after a #, to one of its headings."""
    for link in links(TEXTS[page]):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.is_file(), f"{page}: {link} does not exist"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), (
                f"{page}: {link} has no such heading"
            )


def test_the_readme_links_every_page():
    """No page of docs/ is out of a reader's reach."""
    reached = {link.partition("#")[0] for link in links(README)}
    assert TEXTS.keys() - {"README.md"} <= reached


@every_page
def test_named_files_and_tests_exist(page):
    """Each path in backticks that begins with a folder of the project exists, and so does each test named."""
    sources = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("parity/**/*.py")]
    tests = {path.name for path in sources}
    for path in sources:
        tests.update(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    written = (ROOT / ".gitignore").read_text(encoding="utf-8").split()  # /runs/ and the like, by the user
    for span in spans(TEXTS[page]):
        folder = span.split("/")[0]
        if (
            re.fullmatch(r"[\w.-]+/[\w./-]*", span)
            and (ROOT / folder).is_dir()
            and f"/{folder}/" not in written
        ):
            assert (ROOT / span).exists(), f"{page}: {span} does not exist"
        elif re.fullmatch(r"test_\w+(\.py)?(::test_\w+)?", span):
            assert set(span.split("::")) <= tests, f"{page}: {span} does not exist"


def commands(text: str) -> list[list[str]]:
    """The words of every command of a page, in blocks and between backticks, without pipes and redirections."""
    shown = [line for block in blocks(text, "") for line in block.replace("\\\n", " ").splitlines()]
    shown += [
        line[2:] for block in blocks(text, "console") for line in block.splitlines() if line[:2] == "$ "
    ]
    shown = [re.sub(r"\s# .*|\s#$", "", line) for line in shown]
    pieces = [piece for line in shown + spans(text) for piece in re.split(r" && | \| | > ", line)]
    pieces = [piece.strip().removeprefix("time ") for piece in pieces]
    return [
        shlex.split(piece)
        for piece in pieces
        if re.match(r"(python (cli\.py|-m)|torchrun|pytest|make|pip) \S", piece)
    ]


def parse(words: list[str]):
    """Parse a command line as `cli.py` does, and run nothing. Raises the parser's error."""
    command, words = get_command(app), [word for word in words if word != "--help"]
    parent = None
    while words and hasattr(command, "commands"):
        context = command.make_context(words[0], list(words), parent=parent)
        name, command, words = command.resolve_command(context, words)
        parent = context
    if not hasattr(command, "commands") and words:
        command.make_context(name, list(words), parent=parent)


def problem(words: list[str]) -> str | None:
    """What is wrong with a command, or None."""
    match words:
        case ["python", "cli.py", "COMMAND", *_]:
            return None  # stands for any
        case ["torchrun", *words] if "cli.py" in words:
            return problem(["python", *words[words.index("cli.py") :]])
        case ["python", "cli.py", *arguments]:
            try:
                parse(arguments)
            except Exception as error:
                return error.format_message()
        case ["python", "-m", module, *_]:
            return None if find_spec(module) else f"no module {module}"
        case ["make", target]:
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            return None if re.search(rf"^{target}:", makefile, re.MULTILINE) else f"no target {target}"
        case ["pip", "install", *arguments]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            extras = set(re.findall(r"\w+", re.sub(r".*\[|\].*", "", arguments[-1])))
            return None if extras <= project["optional-dependencies"].keys() else f"no extra {extras}"
        case ["pytest", *arguments]:
            missing = [word for word in arguments if "/" in word and not (ROOT / word).exists()]
            return f"no {missing[0]}" if missing else None
    return None


@every_page
def test_every_command_shown_exists(page):
    """Commands and flags exist and values have the right type; so do make's targets, pytest's paths, pip's extras."""
    problems = [(" ".join(words), problem(words)) for words in commands(TEXTS[page])]
    assert [each for each in problems if each[1]] == []


def test_commands_are_found_and_judged():
    """The test above sees the commands, and sees what is wrong with one."""
    assert len([words for text in TEXTS.values() for words in commands(text)]) > 60
    for wrong in (
        "python cli.py trian", "python cli.py train --stepz 3", "python cli.py train --steps many",
        "python cli.py golden mak x", "python cli.py check --golden llama", "python -m no_such_module", "make nothing",
        'pip install -e ".[nothing]"', "pytest tests/test_nothing.py", "torchrun --nproc-per-node 2 cli.py train --x",
    ):  # fmt: skip
        assert commands(f"`{wrong}`") == [shlex.split(wrong)]
        assert problem(shlex.split(wrong)), wrong


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if "run_recipe" in text else ())
        for page, text in TEXTS.items()
        if blocks(text, "python")
    ],
)
def test_the_python_examples_run(tmp_path, page):
    """The Python of a page, one block after the other, is a program that ends without a warning."""
    if page != "README.md":
        pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
    (tmp_path / "data").mkdir()
    for name in ("tense.txt", "tense.tiktoken"):
        shutil.copy(ROOT / "data" / name, tmp_path / "data" / name)
    program = "\n".join(blocks(TEXTS[page], "python")).replace(
        "turns=3", "turns=1"
    )  # nobody reads the figures
    (tmp_path / "example.py").write_text(program, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-W", "error", "example.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    if page == "docs/python.md":
        loss, text = result.stdout.split("\n", 1)
        assert float(loss.removeprefix("loss ")) < 6.7  # an untrained model's is ln 768 = 6.64 and more
        assert text.strip()
        assert (tmp_path / "model" / "model.safetensors").exists()


def test_the_rooms_shown_exist():
    """Every folder and file in the tree of the README is there."""
    (tree,) = [block for block in blocks(README, "") if block.startswith("cli.py ")]
    for line in tree.splitlines():
        assert (ROOT / line.split()[0]).exists(), line


@pytest.fixture
def run(tmp_path):
    """A function that runs a command in a folder of the test's own, `python cli.py` being the project's."""

    def run(command: str) -> subprocess.CompletedProcess:
        words = shlex.split(command)
        if words[:2] == ["python", "cli.py"]:
            words[:2] = [sys.executable, str(ROOT / "cli.py")]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (apt-get install gcc libc6-dev)")
def test_the_first_verified_layer(tmp_path, run):
    """The porter's way: the program shown has the mistake that is shown, and is right once that is put right."""
    (program,) = blocks(GOLDEN, "c")
    (shown,) = [block for block in blocks(GOLDEN, "") if block.startswith("gpt2-tied, float64")]

    def check(source):
        (tmp_path / "first.c").write_text(source)
        assert run("cc -o first first.c -lm").returncode == 0
        assert run("./first").returncode == 0
        return run("python cli.py check dump --golden gpt2-tied").stdout

    (tmp_path / "dump").mkdir()
    run("python cli.py golden export gpt2-tied --format raw --out pack")
    assert check(program).splitlines()[0] == shown.splitlines()[0]
    assert "the variance is divided by C - 1" in check(program)
    assert "the tensor agrees" in check(program.replace("/ 5;", "/ 6;"))


ANSWER = """dnormal = dy * weight
dx = dnormal - normal * (dnormal * normal).mean(-1, keepdims=True)
dx = (dx - dnormal.mean(-1, keepdims=True)) * inverse_deviation
return dx, (dy * normal).sum((0, 1)), dy.sum((0, 1))"""
NO_MEAN = ANSWER.replace("dx - dnormal.mean(-1, keepdims=True)", "dx")
HANDED_IN = {"ada": ANSWER, "ben": NO_MEAN, "cleo": NO_MEAN, "dan": "while True:\n    pass"}


def test_the_exercise_page_shows_what_is_printed(tmp_path, run):
    """Its console blocks: a start, a hint, the grade of a forgotten mean, the summary of a class."""
    started, graded, summary = (block.splitlines() for block in blocks(EXERCISES, "console"))
    first, *lines, second, hint = started
    assert run(first[2:]).stderr.splitlines() == lines
    assert run(second[2:]).stdout.strip() == hint

    blank = (tmp_path / "layer_norm.py").read_text(encoding="utf-8")
    (tmp_path / "handed_in").mkdir()
    for name, answer in HANDED_IN.items():
        body = answer.replace("\n", "\n    ")
        filled = blank.replace('raise NotImplementedError("write this function")', body)
        (tmp_path / "handed_in" / f"{name}.py").write_text(filled, encoding="utf-8")
    shutil.copy(tmp_path / "handed_in" / "ben.py", tmp_path / "layer_norm.py")

    def without_figures(lines):
        return [re.sub(r"\d\.\de[+-]\d\d", "", line) for line in lines]

    assert without_figures(run(graded[0][2:]).stdout.splitlines()) == without_figures(graded[1:])
    names = " ".join(f"handed_in/{name}.py" for name in HANDED_IN)
    command = summary[0][2:].removesuffix(" | tail -13").replace("handed_in/*.py", names)
    assert run(command).stdout.splitlines()[-13:] == summary[1:]
    shown = next(block for block in blocks(README, "console")).splitlines()
    assert shown == graded[: len(shown)]
