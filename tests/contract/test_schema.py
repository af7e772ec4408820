"""What a JSON file must hold: the schema's verdict, and files that are no JSON."""

import json
import re

import pytest

from contract.schema import read_json, require


@pytest.mark.parametrize(
    ("value", "schema", "words"),
    [
        ({"a": 1}, {"a": str}, "a is 1, expected text"),
        ({"a": [1, "x"]}, {"a": [int]}, "a[1] is 'x', expected a whole number"),
        ({"a": {"b": True}}, {"a": {str: int}}, "a.b is True, expected a whole number"),
        ({}, {"a": int}, "a is missing, expected a whole number"),
        ({"a": 3}, {"a": range(3)}, "a is 3, expected a whole number from 0 to 2"),
        ({"a": float("nan")}, {"a": float}, "a is nan, expected a finite number"),
        ({"a": 10**400}, {"a": float}, "expected a finite number"),
        ({"a": []}, {"a": (str, None)}, "a is [], expected text or nothing"),
        ([], dict, "it is [], expected an object"),
    ],
)
def test_a_schema_names_what_is_wrong(value, schema, words):
    """Place, value and what was expected."""
    with pytest.raises(ValueError, match=re.escape(words)):
        require(value, schema)


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        (
            {"a": None, "c": 1, "d": {"x": [1.5, 2]}, "e": "more"},
            {"a": (str, None), "b": (int, None), "c": float},
        ),
        ({"d": {"x": [1.5, 2]}}, {"d": {str: [float]}}),
    ],
)
def test_a_schema_lets_pass_what_fits(tmp_path, value, schema):
    """A value that fits, with fields that the schema does not name, is read as it was written."""
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "a.json", schema) == value


@pytest.mark.parametrize("text", [b"[" * 200_000, b"{", b"\xff", b""])
def test_bad_json_is_a_value_error(tmp_path, text):
    """Whatever is wrong with the file's bytes, one kind of error says so."""
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"nested|Expecting|decode|property"):
        read_json(tmp_path / "a.json")
