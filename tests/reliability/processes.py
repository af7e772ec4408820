"""Running the command line as a process, and what its failures must look like."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = (
    "--preset", "nano", "--n-layer", "1", "--n-head", "2", "--d-model", "16", "--context-length", "8",
    "--batch-size", "4", "--threads", "1",
)  # fmt: skip


def command(*arguments) -> list[str]:
    """The command line as a process."""
    return [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]


def run(*arguments, **options) -> subprocess.CompletedProcess:
    """Run the command line to its end."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, **options)


def assert_one_line(result: subprocess.CompletedProcess, *words: str):
    """It failed with a single line of error that holds the words, and no traceback."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode in (1, 2), result.stderr
    assert "Traceback" not in result.stderr
    assert len(lines) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == lines[0]
    for word in words:
        assert word in lines[0]
