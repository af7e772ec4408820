"""Validates JSON before anything is built from it; an error is one line.

A schema is written like the values that it describes:

    str, bool, int, float, dict, list   a value of that type; a float may be written as a whole number, a bool is no int
    range(0, 10)                        a whole number in the range
    None                                null, or no such field
    (str, None)                         one of several
    [int]                               a list of such values
    {"name": str, "step": int}          an object with these fields at least
    {str: int}                          an object whose values are all so
"""

import json
import sys
from hashlib import sha256
from os import PathLike
from pathlib import Path

from contract.files import open_regular

MAX_JSON_BYTES = 1 << 28
_NAMES = {
    str: "text", bool: "true or false", int: "a whole number", float: "a finite number", dict: "an object",
    list: "a list", type(None): "nothing",
}  # fmt: skip


def read_json(path: str | PathLike, schema=dict):
    """The value in a regular JSON file.

    Raises OSError if it cannot be read, ValueError if it is not JSON, too long, or does not fit the schema.
    """
    with open_regular(path) as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"it has more than {MAX_JSON_BYTES >> 20} MB")
    try:
        value = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    require(value, schema)
    return value


def checksum(record: dict) -> str:
    """The SHA-256 of an object of a JSON, whatever the order of its fields."""
    return sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def write_record(path: Path, record: dict):
    """Write an object with its checksum to a new, indented JSON file."""
    path.write_text(json.dumps(record | {"checksum": checksum(record)}, indent=2) + "\n", encoding="utf-8")


def pop_checksum(record: dict) -> bool:
    """Take the checksum out of an object that `write_record` wrote. returns: whether it fits the other fields"""
    return record.pop("checksum", None) == checksum(record)


def require(value, schema, name: str = ""):
    """Raise ValueError, with the place, the value and what was expected, unless `value` is as the schema says."""
    if not _fits(value, schema):
        raise ValueError(f"{name or 'it'} is {shown(value)}, expected {_described(schema)}")
    if isinstance(schema, tuple):
        schema = next(each for each in schema if _fits(value, each))
    if isinstance(schema, list):
        for place, item in enumerate(value):
            require(item, schema[0], f"{name}[{place}]")
    elif isinstance(schema, dict):
        for key, inner in schema.items():
            for field in value if key is str else [key]:
                require(value.get(field), inner, f"{name}.{field}" if name else str(field))


def _fits(value, schema) -> bool:
    """Whether the value itself has the right type; not yet what is inside it."""
    if isinstance(schema, tuple):
        return any(_fits(value, each) for each in schema)
    if isinstance(schema, range):
        return type(value) is int and value in schema
    if schema is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is (schema if isinstance(schema, type) else type(schema))


def _described(schema) -> str:
    if isinstance(schema, tuple):
        return " or ".join(map(_described, schema))
    if isinstance(schema, range):
        return f"a whole number from {schema.start} to {schema.stop - 1}"
    return _NAMES[schema if isinstance(schema, type) else type(schema)]


def shown(value) -> str:
    """A JSON value, short enough for a message."""
    return "missing" if value is None else shortened(value)


def shortened(value) -> str:
    """The representation of a value, at most 61 characters long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
