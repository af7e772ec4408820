"""The three standard streams, made robust: a closed, full or unread one never ends the work."""

import io
import os
import re
import sys
from contextlib import suppress


class _LastingStderr(io.TextIOWrapper):
    """Stderr that ignores failed writes: a message may be lost, the work continues."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self):
        with suppress(OSError, ValueError):
            super().flush()


def secure_streams():
    """Open closed standard streams on the null device, and let stderr fail silently.

    Otherwise a file opened later would take the descriptor of a closed stream.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Takes the lowest free descriptor: this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    fit_stdout()
    stderr = sys.stderr or open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    kept = {"encoding": stderr.encoding, "errors": stderr.errors}
    sys.stderr = _LastingStderr(stderr.buffer, **kept, line_buffering=True)


def fit_stdout():
    """Let stdout take any text: line ends unchanged, characters missing from its encoding as question marks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace", newline="")


def release_stdout():
    """Flush stdout before the interpreter does, which would exit with code 120 if the reader has closed the pipe."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def cap_width():
    """Ignore a terminal width in the environment that help cannot be laid out in."""
    for name in ("COLUMNS", "TERMINAL_WIDTH"):
        if not re.fullmatch("[1-9][0-9]{0,2}", os.environ.get(name, "")):
            os.environ.pop(name, None)  # then the terminal's own width applies
