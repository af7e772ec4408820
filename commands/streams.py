"""The three standard streams, made to outlive whatever they lead to."""

import io
import os
import re
import sys
from contextlib import suppress


class _LastingStderr(io.TextIOWrapper):
    """Stderr that ignores failures to write: a lost message must not stop the work."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self):
        with suppress(OSError, ValueError):
            super().flush()


def secure_streams():
    """Open the standard streams that are closed, onto nothing, and let stderr fail without a word.

    No file of ours then takes the place of a closed stream.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, os.O_RDWR), True
            )  # the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    fit_stdout()
    stderr = sys.stderr or open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = _LastingStderr(
        stderr.buffer, encoding=stderr.encoding, errors=stderr.errors, line_buffering=True
    )


def fit_stdout():
    """Let stdout take any text: no line's end is translated, and what its encoding lacks becomes a question mark."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace", newline="")


def release_stdout():
    """Flush stdout before the interpreter does, which would exit with code 120 if the reader has gone."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def cap_width():
    """Forget a width of the terminal that the environment claims and that help cannot be laid out in."""
    for name in ("COLUMNS", "TERMINAL_WIDTH"):
        if not re.fullmatch("[1-9][0-9]{0,2}", os.environ.get(name, "")):
            os.environ.pop(name, None)  # the terminal's own counts then
