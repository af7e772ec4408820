"""What a person is told: the one kind of error that is a line without a traceback, and what such lines are made of."""

import re
import shlex
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

# What a terminal obeys or hides instead of showing it: control characters but for the tab and the line's end, marks
# that turn the direction of writing, other ends of lines, halves of characters (undecodable bytes of a path).
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """Something that the user can mend; its message says what was wrong, what was found, what to do.

    `cli.py` prints the message alone and leaves with `exit_code`: 1 for a failure, 2 for wrong usage.
    """

    exit_code = 1


class ConfigError(UserError, ValueError):
    """A setting that is impossible or does not fit the others."""

    exit_code = 2


@contextmanager
def needs(what: str, extra: str, packages: Collection[str], way: str = "") -> Iterator[None]:
    """Turn the failed import of an optional package inside the block into a UserError.

    what: what needs it; extra: the extra of this project that has it; packages: their import names
    way: what else to do
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
    """What PyTorch says of memory that it did not get, on the CPU or a device; None for another error."""
    words = str(error)
    if not re.search("not enough memory|can't allocate memory|out of memory", words):
        return None
    asked = re.search(r"tried to allocate [\d.,]+ \w+", words, re.IGNORECASE)
    return f"not enough memory ({asked[0][0].lower()}{asked[0][1:]})" if asked else "not enough memory"


def visible(text: str) -> str:
    """Text with escapes in the place of characters that would steer a terminal or turn the words around them about."""
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
