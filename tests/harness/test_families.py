"""Every field of a published configuration is used, known to change nothing, or refused by name and value."""

import inspect
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.config import ModelConfig
from contract.errors import UserError
from harness.exchange.families import FAMILIES, family_of
from tests.harness.family_fields import BASES, CHANGES, CLASSES
from tests.harness.published_models import one_line

_ROTARY = {"rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq", "partial_rotary_factor"}
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


@pytest.mark.parametrize(
    ("family", "fields", "words"),
    [
        ("llama", {"head_dim": 0}, "head_dim must be a whole number of at least 1, got 0"),
        ("llama", {"head_dim": False}, "head_dim must be"),
        ("llama", {"hidden_size": 15}, "hidden_size 15 is not a multiple of num_attention_heads 4"),
        ("llama", {"rope_scaling": 1}, "rope_scaling must be an object, got 1"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling has rope_type 'dynamic'"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling: factor must be a number above 0"),
        ("llama", {"rope_parameters": {"mscale": 2}}, "rope_parameters has an unknown mscale 2"),
        ("llama", {"rope_theta": None}, "theta must be a number above 0"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; this project turns whole heads"),
        ("qwen2", {"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor is 0.25"),
        ("qwen2", {"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}, "rope_type 'mrope'"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 3 layers"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "layer_types is ['chunked_attention'"),
        ("qwen3", {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 3}, "sliding_window is null"),
        ("gemma2", {"hidden_size": 10**400}, "hidden_size must be a whole number from 1 to 2^63 - 1"),
        ("gemma3_text", {"rope_parameters": {"full_attention": [1]}}, "full_attention must be an object, got [1]"),
        ("gemma3_text", {"rope_parameters": {"sliding_attention": 1}}, "sliding_attention must be an object, got 1"),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 3.0}}, "must have full_attention and sliding_attention"),
        ("gemma3_text", {"rope_scaling": [1]}, "full_attention must be an object, got [1]"),
    ],
)  # fmt: skip
def test_what_is_impossible_is_named(family, fields, words):
    """A number, an object or a kind that cannot be is refused in one line, by field and value."""
    with pytest.raises(UserError, match=re.escape(words)):
        read(BASES[family] | fields)


_NESTED = ["rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "full_attention",
           "sliding_attention", "original_max_position_embeddings", "partial_rotary_factor"]  # fmt: skip
_VALUES = st.recursive(
    st.sampled_from(
        ["linear", "llama3", "sliding_attention", "full_attention", "relu", 0, 1, 2, 1e30, 10**400]
    )
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NESTED), inner, max_size=4),
    max_leaves=6,
)
_FIELDS = {family: sorted({change.field for change in CHANGES[family]} | _ROTARY) for family in FAMILIES}


@every_family
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_fields_end_in_a_line(family, data):
    """Whatever JSON stands in the fields: a configuration, or one line."""
    changed = data.draw(st.dictionaries(st.sampled_from(_FIELDS[family]), _VALUES, max_size=4))
    changed.pop("model_type", None)
    try:
        assert isinstance(read(BASES[family] | changed), ModelConfig)
    except UserError as error:
        one_line(error)
