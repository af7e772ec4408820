"""Errors for users: one line without a traceback, and helpers to write such lines."""

import re
import shlex
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

# What a terminal obeys or hides: control characters except tab and newline, bidirectional marks, other line separators,
# lone surrogates (undecodable bytes of a path).
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """A problem that the user can fix; `cli.py` prints only the message: what was wrong, what was found, what to do."""

    exit_code = 1  # a failure


class ConfigError(UserError, ValueError):
    """A setting that is impossible or does not fit the others."""

    exit_code = 2  # wrong usage


def reason_of(error: Exception) -> str:
    """What happened, without Python's number and file name: "No space left on device"."""
    return str(getattr(error, "strerror", None) or error)


@contextmanager
def explaining(
    problem: str, advice: str, errors: type[Exception] | tuple[type[Exception], ...] = OSError
) -> Iterator[None]:
    """Turn one of `errors` inside the block into the UserError "PROBLEM (REASON); ADVICE"."""
    try:
        yield
    except UserError:  # a ConfigError is a ValueError too
        raise
    except errors as error:
        raise UserError(f"{problem} ({reason_of(error)}); {advice}") from error


@contextmanager
def needs(what: str, extra: str, packages: Collection[str], way: str = "") -> Iterator[None]:
    """Turn the failed import of one of `packages` inside the block into a UserError.

    what: what needs it; extra: the extra of this project that has it; way: what else to do
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in packages:
            raise
        name = "PyTorch" if error.name == "torch" else error.name
        raise UserError(
            f"{what} needs {name}, which is not installed; run: "
            f'pip install -c constraints.txt -e ".[{extra}]"{way}'
        ) from None


def refused_memory(error: RuntimeError) -> str | None:
    """A message for PyTorch's out-of-memory errors, on the CPU or a device; None for another error."""
    message = str(error)
    if not re.search("not enough memory|can't allocate memory|out of memory", message):
        return None
    asked = re.search(r"tried to allocate [\d.,]+ \w+", message, re.IGNORECASE)
    return f"not enough memory ({asked[0][0].lower()}{asked[0][1:]})" if asked else "not enough memory"


def visible(text: str) -> str:
    """The text, with characters that would control a terminal or reverse its direction escaped."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def command_line(*arguments: str | Path) -> str:
    """A command of this program to suggest: `python cli.py` and its arguments, as `quoted` gives them."""
    return f"python cli.py {quoted(*arguments)}"


def quoted(*arguments: str | Path) -> str:
    """Arguments that can be pasted into a shell; a Path never reads as an option, whatever its name."""
    return shlex.join(
        f"./{each}" if isinstance(each, Path) and str(each).startswith("-") else str(each)
        for each in arguments
    )


@contextmanager
def readable(path: Path, way: str, *, damaged: str = "is damaged") -> Iterator[None]:
    """Turn what reading `path` inside the block may raise into a UserError that ends in `way`, what to do.

    damaged: what an error of its contents (ValueError) means
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); {way}") from None
    except ValueError as error:
        raise UserError(f"{path} {damaged} ({error}); {way}") from None
