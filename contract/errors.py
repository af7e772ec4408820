"""The one kind of error that is shown to a person as a single line, without a traceback."""

import re


class UserError(Exception):
    """Something that the user can mend; its message says what was wrong, what was found, what to do.

    `cli.py` prints the message alone and leaves with `exit_code`: 1 for a failure, 2 for wrong usage.
    """

    exit_code = 1


class ConfigError(UserError, ValueError):
    """A setting that is impossible or does not fit the others."""

    exit_code = 2


def refused_memory(error: RuntimeError) -> str | None:
    """What PyTorch says of memory that it did not get, on the CPU or a device; None for another error."""
    words = str(error)
    if not re.search("not enough memory|can't allocate memory|out of memory", words):
        return None
    asked = re.search(r"tried to allocate [\d.,]+ \w+", words, re.IGNORECASE)
    return f"not enough memory ({asked[0][0].lower()}{asked[0][1:]})" if asked else "not enough memory"
