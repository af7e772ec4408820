"""What the README shows works as it stands there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(tmp_path):
    """The library example trains, saves, loads and writes, as a program of its own."""
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "data").mkdir()
    for name in ("tense.txt", "tense.tiktoken"):
        shutil.copy(ROOT / "data" / name, tmp_path / "data" / name)
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{example}"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    loss, text = result.stdout.split("\n", 1)
    assert float(loss.removeprefix("loss ")) < 6.7  # an untrained model's is ln 768 = 6.64 and more
    assert text.strip()
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_every_command_shown_exists():
    """Each `python cli.py COMMAND --flag ...` of the README names a command and flags that there are."""
    shown = re.findall(r"^python cli\.py (.+(?:\\\n.+)*)$", README, re.MULTILINE)
    assert len(shown) >= 5
    for line in shown:
        words = line.replace("\\\n", " ").split("#")[0].split()
        command = words[: 2 if words[0] in ("exercise", "golden", "tokenizer") else 1]
        help_text = subprocess.run(
            [sys.executable, "cli.py", *command, "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for flag in (word for word in words if word.startswith("--")):
            assert flag in help_text, f"{' '.join(command)} has no {flag}"


def test_the_rooms_shown_exist():
    """Every folder and file in the tree of the README is there."""
    (tree,) = re.findall(r"```\n(cli\.py .*?)```", README, re.DOTALL)
    for line in tree.splitlines():
        assert (ROOT / line.split()[0]).exists(), line


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (apt-get install gcc libc6-dev)")
def test_the_first_verified_layer(tmp_path):
    """The porter's way: the program shown has the mistake that is shown, and is right once that is put right."""
    (program,) = re.findall(r"```c\n(.*?)```", README, re.DOTALL)
    (shown,) = re.findall(r"```\n(gpt2-tied, float64.*?)```", README, re.DOTALL)

    def run(*words):
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)

    def check(source):
        (tmp_path / "first.c").write_text(source)
        assert run("cc", "-o", "first", "first.c", "-lm").returncode == 0
        assert run("./first").returncode == 0
        return run(*cli, "check", "dump", "--golden", "gpt2-tied").stdout

    cli = (sys.executable, ROOT / "cli.py")
    (tmp_path / "dump").mkdir()
    run(*cli, "golden", "export", "gpt2-tied", "--format", "raw", "--out", "pack")
    assert check(program).splitlines()[0] == shown.splitlines()[0]
    assert "the variance is divided by C - 1" in check(program)
    assert "the tensor agrees" in check(program.replace("/ 5;", "/ 6;"))
