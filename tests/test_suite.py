"""The suite itself: what was not tried is said, and how to have it tried."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SKIPS = {"skip": 0, "skipif": None, "importorskip": None}  # where the reason may stand without its name


TESTS = """import pytest

def test_a(): pass

@pytest.mark.skipif(True, reason="needs root")
def test_b(): pass

@pytest.mark.parametrize("n", range(3))
def test_c(n): pytest.skip("needs Chromium (apt-get install chromium)")
"""


def test_the_last_line_says_what_was_not_run(tmp_path):
    """Behind pytest's own closing line, the most frequent need first; nothing where all was run."""
    (tmp_path / "conftest.py").write_text(
        (ROOT / "conftest.py").read_text(encoding="utf-8"), encoding="utf-8"
    )
    (tmp_path / "test_some.py").write_text(TESTS)

    def lines(*flags):
        command = [sys.executable, "-m", "pytest", *flags]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return result.stdout.splitlines()

    *_, closing, last = lines()
    assert "1 passed, 4 skipped" in closing
    assert last == "4 tests were not run: 3 need Chromium (apt-get install chromium); 1 needs root."
    assert lines("-k", "test_a or test_b")[-1] == "1 test was not run: 1 needs root."
    assert "1 passed" in lines("-k", "test_a")[-1]


def test_every_skip_says_what_it_needs():
    """Each reason of a skip reads "needs WHAT (how to have it)", so that the last line can say it."""
    found = 0
    for path in [*ROOT.glob("tests/**/*.py"), *ROOT.glob("parity/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(getattr(node, "func", None), "attr", None)
            if name not in SKIPS or not isinstance(node, ast.Call):
                continue
            reasons = [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
            if SKIPS[name] is not None:
                reasons += node.args[SKIPS[name] :]
            text = ast.unparse(reasons[0]).lstrip("f").strip("'\"") if reasons else "no reason"
            assert text.startswith("needs "), (
                f"{path.name}:{node.lineno}: {text}; say what it needs, and how to have it"
            )
            found += 1
    assert found > 20
