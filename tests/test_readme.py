"""What the README shows works as it stands there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

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
