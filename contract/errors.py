"""The one kind of error that is shown to a person as a single line, without a traceback."""


class UserError(Exception):
    """Something that the user can mend; its message says what was wrong, what was found, what to do.

    `cli.py` prints the message alone and leaves with `exit_code`: 1 for a failure, 2 for wrong usage.
    """

    exit_code = 1


class ConfigError(UserError, ValueError):
    """A setting that is impossible or does not fit the others."""

    exit_code = 2
