"""Every field of a published configuration is used, known to change nothing, or refused by name and value."""

import inspect
import json

import pytest

from contract.errors import UserError
from harness.exchange.families import FAMILIES, family_of
from tests.harness.family_fields import BASES, CHANGES, CLASSES

every_family = pytest.mark.parametrize("family", FAMILIES)
every_change = pytest.mark.parametrize(
    ("family", "change"),
    [(family, change) for family in FAMILIES for change in CHANGES[family]],
    ids=lambda value: value if isinstance(value, str) else value.title,
)


def read(fields):
    return family_of(fields).config_from_published(fields)


def config_class(family):
    transformers = pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")
    return getattr(transformers, CLASSES[family][0])


@every_family
def test_all_fields_are_changed(family):
    """The table has a change of each field that the class of `transformers` has or takes."""
    known = config_class(family)
    fields = known().to_dict().keys() | inspect.signature(known.__init__).parameters.keys() - {"self"}
    assert not fields - {change.field for change in CHANGES[family]}


@every_change
def test_a_changed_field(family, change):
    """It gives another configuration, or none, or the line that refuses it names it and its value."""
    base, changed = BASES[family], BASES[family] | change.fields
    if change.outcome == "refused":
        with pytest.raises(UserError) as raised:
            read(changed)
        message = str(raised.value)
        value = change.value if isinstance(change.value, str) else json.dumps(change.value)
        if isinstance(change.value, dict):
            value = change.value.get("rope_type", value)
        assert change.field in message
        assert value.strip('[]"{}').lower() in message.replace("'", '"').lower()
        assert "\n" not in message
    elif change.outcome == "config":
        assert read(changed) != read(base)
    else:
        assert read(changed) == read(base)


@every_family
def test_what_a_file_omits(family):
    """Defaults are those of the class; a configuration that `transformers` wrote says the same as the short one."""
    known, base = config_class(family), BASES[family]
    for fields in ({"model_type": family}, base):
        written = known.from_dict(fields).to_json_string(use_diff=False)
        assert read(json.loads(written)) == read(fields)
