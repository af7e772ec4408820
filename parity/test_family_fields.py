"""What the fields of a published configuration do to `transformers`' logits, they do to the twin's."""

from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
transformers = pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")

from harness.exchange.families import FAMILIES  # noqa: E402
from harness.exchange.families.fields import HARMLESS  # noqa: E402
from parity.families import lifted  # noqa: E402
from parity.published_fields import logits, make, our_logits  # noqa: E402
from tests.harness.family_fields import BASES, CHANGES  # noqa: E402

TOKENS = np.random.default_rng(5).integers(17, size=(2, 14))
WITHIN = 1e-10  # of float64 logits, with their casts lifted
# What may leave the logits of the same weights as they are: rates, sizes of what is allowed, a tie of equal weights.
SILENT = {
    "attention_dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop", "n_positions", "max_position_embeddings",
    "tie_word_embeddings",
}  # fmt: skip
# Where `transformers` itself cannot run the change, and why.
BROKEN = {"return_dict": "their own output layer then fails to read the tuple of their own decoder"}
# The other fields that are known to have no effect: of older releases, other programs, and generation.
LEFTOVERS = {
    "_attn_implementation_autoset": True, "_commit_hash": "0f", "_flash_attn_2_enabled": True,
    "auto_map": {"AutoModel": "a--b.C"}, "bad_words_ids": [[1]], "begin_suppress_tokens": [1],
    "cache_implementation": "hybrid", "decoder_start_token_id": 1, "diversity_penalty": 0.5, "do_sample": True,
    "early_stopping": True, "encoder_no_repeat_ngram_size": 2, "exponential_decay_length_penalty": [1, 1.5],
    "finetuning_task": "a", "forced_bos_token_id": 1, "forced_eos_token_id": 1, "gradient_checkpointing": True,
    "is_decoder": True, "is_llama_config": True, "keys_to_ignore_at_inference": ["a"],
    "length_penalty": 0.5, "max_length": 9, "min_length": 3, "no_repeat_ngram_size": 2, "num_beam_groups": 2,
    "num_beams": 2, "num_return_sequences": 2, "output_scores": True, "prefix": "a", "pretraining_tp": 2,
    "remove_invalid_values": True, "rep_pen": 1.5, "repetition_penalty": 1.5, "return_dict_in_generate": True,
    "sep_token_id": 1, "suppress_tokens": [1], "summary_activation": "tanh", "summary_first_dropout": 0.5,
    "summary_proj_to_labels": False, "summary_type": "mean", "summary_use_proj": False,
    "task_specific_params": {"a": {"b": 1}}, "temperature": 0.5, "tf_legacy_loss": True, "tokenizer_class": "A",
    "top_k": 3, "top_p": 0.5, "torch_dtype": "float16", "torchscript": True, "transformers.js_config": {"a": 1},
    "twin_gpt": {"a": 1}, "typical_p": 0.5, "unsloth_fixed": True, "unsloth_version": "1", "use_bfloat16": True,
    "_sliding_window_pattern": 3,
}  # fmt: skip
# How they are computed, which the caller of `from_pretrained` says.
NOT_OF_THE_FILE = {"_attn_implementation", "attn_implementation", "architectures", "model_type"}


def changes(*outcomes):
    return pytest.mark.parametrize(
        ("family", "change"),
        [(family, each) for family in FAMILIES for each in CHANGES[family] if each.outcome in outcomes],
        ids=lambda value: value if isinstance(value, str) else value.title,
    )


def same_shapes(model, other):
    shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (model, other)]
    return shapes[0] == shapes[1]


@cache
def plain_model(family):
    return make(BASES[family])


@changes("config", "weights")
def test_a_field_that_is_used(family, change):
    """The twin follows their logits with the changed value; and these are others than without it."""
    base, fields = BASES[family], BASES[family] | change.fields
    with lifted():
        model, plain = make(fields), make(base)
        found = logits(model, TOKENS)
        np.testing.assert_allclose(our_logits(fields, model, TOKENS), found, rtol=0, atol=WITHIN)
        if same_shapes(model, plain) and change.field not in SILENT:
            plain.load_state_dict(model.state_dict())
            assert np.abs(logits(plain, TOKENS) - found).max() > 1e-4


@changes("harmless")
def test_a_field_without_effect(family, change):
    """Two models of the same weights, with the field and without it, give the same logits."""
    if change.field in BROKEN:
        with pytest.raises(AttributeError, match="tuple"):
            logits(make(BASES[family] | change.fields), TOKENS)
        return
    model, plain = make(BASES[family] | change.fields), plain_model(family)
    model.load_state_dict(plain.state_dict())
    # the product is taken in another order, or the same formula written otherwise
    atol = 1e-5 if change.field in ("reorder_and_upcast_attn", "activation_function") else 0
    np.testing.assert_allclose(logits(model, TOKENS), logits(plain, TOKENS), rtol=0, atol=atol)


@pytest.mark.parametrize("family", FAMILIES)
def test_leftovers_have_no_effect(family):
    """All fields that import ignores are here or in the table of changes; with all, the logits are the same bits."""
    changed = {change.field for change in CHANGES[family] if change.outcome == "harmless"}
    assert LEFTOVERS.keys() | (changed & HARMLESS) | NOT_OF_THE_FILE == HARMLESS
    model = make(BASES[family] | LEFTOVERS)
    model.load_state_dict(plain_model(family).state_dict())
    np.testing.assert_array_equal(logits(model, TOKENS), logits(plain_model(family), TOKENS))


LINEAR, LLAMA3 = {"factor": 2.0}, {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_OF_16 = LLAMA3 | {"original_max_position_embeddings": 16}
# Ways to say one rotation; each row is one function.
ONE_ROTATION = [
    [{}, {"rope_theta": 10000}, {"rope_parameters": {}}, {"rope_scaling": None}, {"rope_parameters": None}],
    [
        {"rope_theta": 50.0},
        {"rope_parameters": {"rope_theta": 50.0}},
        {"rope_parameters": {"rope_theta": 50, "rope_type": "default"}, "rope_theta": 3.0},
        {"rope_parameters": {"type": "default", "partial_rotary_factor": 1.0}, "rope_theta": 50.0},
    ],
    [
        {"rope_theta": 50.0, "rope_scaling": {"type": "linear"} | LINEAR},
        {"rope_theta": 50.0, "rope_scaling": {"rope_type": "linear"} | LINEAR},
        {"rope_theta": 50.0, "rope_parameters": {"rope_type": "linear"} | LINEAR},
        {"rope_parameters": {"type": "linear", "rope_theta": 50.0} | LINEAR},
        {"rope_parameters": {"rope_type": "linear", "type": "llama3", "rope_theta": 50.0} | LINEAR},
        {
            "rope_parameters": {"rope_theta": 3.0},
            "rope_scaling": {"type": "linear", "rope_theta": 50.0} | LINEAR,
        },
    ],
    [
        {"rope_theta": 50.0, "rope_scaling": {"type": "llama3"} | LLAMA3_OF_16},
        {"rope_theta": 50.0, "rope_scaling": {"rope_type": "llama3"} | LLAMA3_OF_16},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 50.0} | LLAMA3_OF_16},
        {
            "rope_parameters": {"rope_type": "llama3", "rope_theta": 50.0} | LLAMA3,
            "max_position_embeddings": 16,
        },
    ],
]
FULL, LOCAL = (
    {"rope_type": "linear", "rope_theta": 200.0} | LINEAR,
    {"rope_type": "default", "rope_theta": 30.0},
)
TWO_ROTATIONS = [
    [
        {},
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
        {"rope_parameters": {"sliding_attention": None, "full_attention": {"rope_type": "default"}}},
    ],
    [
        {"rope_theta": 200.0, "rope_local_base_freq": 30.0, "rope_scaling": {"rope_type": "linear"} | LINEAR},
        {"rope_parameters": {"full_attention": FULL, "sliding_attention": LOCAL}},
        {"rope_parameters": {"full_attention": FULL}, "rope_local_base_freq": 30.0},
        {"rope_parameters": {"full_attention": FULL, "sliding_attention": LOCAL}, "rope_theta": 7.0},
    ],
]
SPELLINGS = [
    *[(family, row) for family in ("llama", "mistral", "qwen2", "qwen3", "gemma2") for row in ONE_ROTATION],
    *[("gemma3_text", row) for row in TWO_ROTATIONS],
]


@pytest.mark.parametrize(("family", "row"), SPELLINGS)
def test_spellings_of_rotary_settings(family, row):
    """Old keys and new say one thing to the twin, and it is what they say to `transformers`."""
    found = []
    with lifted():
        for said in row:
            fields = BASES[family] | said
            model = make(fields)
            found.append(our_logits(fields, model, TOKENS))
            np.testing.assert_allclose(
                found[-1], logits(model, TOKENS), rtol=0, atol=WITHIN, err_msg=str(said)
            )
            np.testing.assert_array_equal(found[-1], found[0], err_msg=str(said))
