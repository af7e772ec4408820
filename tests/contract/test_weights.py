"""The weight table, the flat buffer behind the named weights, and their initial values."""

from hashlib import sha256
from math import sqrt

import numpy as np
import pytest

from contract.presets import preset
from contract.weights import Weights, initial_weights, is_low_rank, parameter_count, weight_table

# V 7, T 4, C 6, F 5 and one layer, written by hand: name, shape, initial value, deviation.
TABLE = [
    ("token_embedding.weight", (7, 6), "normal", 0.02),
    ("position_embedding.weight", (4, 6), "normal", 0.02),
    ("blocks.0.norm_1.weight", (6,), "ones", 0),
    ("blocks.0.norm_1.bias", (6,), "zeros", 0),
    ("blocks.0.attention.query_key_value.weight", (18, 6), "normal", 0.02),
    ("blocks.0.attention.query_key_value.bias", (18,), "zeros", 0),
    ("blocks.0.attention.output.weight", (6, 6), "normal", 0.02 / sqrt(2)),
    ("blocks.0.attention.output.bias", (6,), "zeros", 0),
    ("blocks.0.norm_2.weight", (6,), "ones", 0),
    ("blocks.0.norm_2.bias", (6,), "zeros", 0),
    ("blocks.0.feed_forward.up.weight", (5, 6), "normal", 0.02),
    ("blocks.0.feed_forward.up.bias", (5,), "zeros", 0),
    ("blocks.0.feed_forward.down.weight", (6, 5), "normal", 0.02 / sqrt(2)),
    ("blocks.0.feed_forward.down.bias", (6,), "zeros", 0),
    ("final_norm.weight", (6,), "ones", 0),
    ("final_norm.bias", (6,), "zeros", 0),
]


def rows(table):
    return [(name, spec.shape, spec.init, pytest.approx(spec.std)) for name, spec in table.items()]


def test_table(tiny_config):
    """Names, order, shapes, initial values and deviations are those of the table written by hand."""
    assert rows(weight_table(tiny_config())) == TABLE


def test_table_without_biases(tiny_config):
    """Without biases neither linear layers nor norms have one."""
    expected = [row for row in TABLE if not row[0].endswith("bias")]
    assert rows(weight_table(tiny_config(bias=False))) == expected


def test_table_untied(tiny_config):
    """An untied model ends with its own output projection, which has no bias."""
    expected = [*TABLE, ("output.weight", (7, 6), "normal", 0.02)]
    assert rows(weight_table(tiny_config(tie_embeddings=False))) == expected


def test_table_sinusoidal(tiny_config):
    """Sinusoidal positions have no weight, and beside them token embeddings start at deviation 1/√C."""
    expected = [("token_embedding.weight", (7, 6), "normal", 1 / sqrt(6)), *TABLE[2:]]
    assert rows(weight_table(tiny_config(position="sinusoidal"))) == expected


def test_table_of_another_head_size(tiny_config):
    """With H 4 and D 5, query, key and value have (H + 2K)·D rows, and the output reads H·D channels of C."""
    table = weight_table(tiny_config(n_head=4, head_size=5))
    assert table["blocks.0.attention.query_key_value.weight"].shape == (60, 6)
    assert table["blocks.0.attention.query_key_value.bias"].shape == (60,)
    assert table["blocks.0.attention.output.weight"].shape == (6, 20)
    assert table["blocks.0.attention.output.bias"].shape == (6,)


def test_table_with_low_rank_pairs(tiny_config):
    """A pair stands behind the projection that it adapts: A (R, in) starts at 1/√(3·in), B (out, R) at 0."""
    config = tiny_config(lora_rank=2, lora_targets=["down"])
    F, C = config.d_ff, config.d_model
    place = TABLE.index(next(row for row in TABLE if row[0] == "blocks.0.feed_forward.down.bias")) + 1
    pair = [
        ("blocks.0.feed_forward.down.lora_a", (2, F), "normal", pytest.approx((3 * F) ** -0.5)),
        ("blocks.0.feed_forward.down.lora_b", (C, 2), "zeros", 0.0),
    ]
    assert rows(weight_table(config)) == [*TABLE[:place], *pair, *TABLE[place:]]
    every = weight_table(tiny_config(lora_rank=2))
    pairs = {name.rpartition(".")[0]: spec.shape for name, spec in every.items() if is_low_rank(name)}
    assert {f"blocks.0.{name}" for name in (
        "attention.query_key_value", "attention.output", "feed_forward.up", "feed_forward.down"
    )} == pairs.keys()  # fmt: skip


def test_table_of_more_layers(tiny_config):
    """Layers repeat under their number, and projections into the stream start smaller by 1/√(2L)."""
    table = weight_table(tiny_config(n_layer=3))
    layer_names = [name.removeprefix("blocks.0.") for name, *_ in TABLE[2:14]]
    assert list(table) == [
        *[name for name, *_ in TABLE[:2]],
        *[f"blocks.{layer}.{name}" for layer in range(3) for name in layer_names],
        *[name for name, *_ in TABLE[14:]],
    ]
    for name, spec in table.items():
        if name.endswith(("attention.output.weight", "down.weight")):
            assert spec.std == pytest.approx(0.02 / sqrt(6)), name


def test_decay_is_for_matrices(tiny_config):
    """Matrices decay; biases and norms do not."""
    for name, spec in weight_table(tiny_config(n_layer=2, tie_embeddings=False)).items():
        assert spec.decays == (name.endswith("weight") and "norm" not in name), name


# Per layer 12 C² + 13 C; beside them V C + T C and 2 C of the final norm.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_published_parameter_counts(name, count):
    """The published sizes have as many parameters as the published weights."""
    config = preset(name, vocab_size=50257)
    C = config.d_model
    assert config.n_layer * (12 * C * C + 13 * C) + (50257 + 1024) * C + 2 * C == count
    assert parameter_count(config) == count


def test_views_share_the_flat_buffer(tiny_config):
    """Every number of the flat buffer belongs to exactly one weight, and writing to one writes to both."""
    config = tiny_config(n_layer=2)
    weights = Weights.zeros(config, "float32")
    assert weights.flat.dtype == np.float32
    assert weights.flat.size == parameter_count(config) == sum(view.size for view in weights.values())
    for view in weights.values():
        assert np.shares_memory(view, weights.flat)
        view += 1
    np.testing.assert_array_equal(weights.flat, 1)
    weights.flat[:] = np.arange(weights.flat.size)
    weights["final_norm.bias"][2] = -5
    assert np.count_nonzero(weights.flat == -5) == 1


def test_matrices_come_first(tiny_config):
    """In the flat buffer the decaying weights are the slice [:decaying]; names stay in table order."""
    config = tiny_config(n_layer=2, tie_embeddings=False)
    table, weights = weight_table(config), Weights.zeros(config, "float64")
    assert list(weights) == list(table)
    assert len(weights) == len(table)
    for name, spec in table.items():
        assert weights[name].shape == spec.shape
        weights[name][...] = 1 if spec.decays else 2
    assert weights.decaying == sum(np.prod(spec.shape) for spec in table.values() if len(spec.shape) == 2)
    assert (weights.flat[: weights.decaying] == 1).all()
    assert (weights.flat[weights.decaying :] == 2).all()


def test_weights_are_a_mapping(tiny_config):
    """A missing weight is a KeyError, and None through `get`, as layers without bias need it."""
    weights = Weights.zeros(tiny_config(bias=False), "float32")
    assert weights.get("final_norm.bias") is None
    with pytest.raises(KeyError):
        weights["final_norm.bias"]


def test_initial_values_from_their_streams(tiny_config):
    """Each weight's draws are NumPy's, from Philox keyed by the seed and a hash of the weight's name."""
    config = tiny_config(n_layer=4)
    weights = initial_weights(config, 9, "float32")
    for name, spec in weight_table(config).items():
        if spec.init == "normal":
            stream = int.from_bytes(sha256(f"weights.{name}".encode()).digest()[:8], "little")
            philox = np.random.Philox(key=np.array([9, stream], np.uint64))
            draws = np.random.Generator(philox).standard_normal(spec.shape, dtype=np.float32)
            np.testing.assert_array_equal(weights[name], draws * np.float32(spec.std), err_msg=name)
        else:
            np.testing.assert_array_equal(weights[name], {"ones": 1, "zeros": 0}[spec.init], err_msg=name)


def test_initial_deviations():
    """Large enough weights show the deviation of the table, and mean 0."""
    config = preset("tense", vocab_size=500)
    for name, weight in initial_weights(config, 1, "float32").items():
        spec = weight_table(config)[name]
        if spec.init == "normal":
            assert weight.std() == pytest.approx(spec.std, rel=0.05), name
            assert abs(weight.mean()) < 5 * spec.std / sqrt(weight.size), name


def test_initial_values_in_float64(tiny_config):
    """A float64 run starts from the very numbers of the float32 run."""
    exact, rounded = (initial_weights(tiny_config(), 3, dtype) for dtype in ("float64", "float32"))
    assert (exact.flat.dtype, rounded.flat.dtype) == (np.float64, np.float32)
    np.testing.assert_array_equal(exact.flat, rounded.flat.astype(np.float64))


def test_initial_values_are_independent(tiny_config):
    """The seed changes every drawn weight; an added layer changes no other layer's direction."""
    first, second = (initial_weights(tiny_config(), seed, "float32") for seed in (3, 4))
    deeper, table = (
        initial_weights(tiny_config(n_layer=2), 3, "float32"),
        weight_table(tiny_config(n_layer=2)),
    )
    for name, spec in weight_table(tiny_config()).items():
        if spec.init == "normal":
            assert (first[name] != second[name]).all(), name
            np.testing.assert_allclose(deeper[name], first[name] * (table[name].std / spec.std), rtol=1e-6)
    firsts = [deeper[name].flat[0] / spec.std for name, spec in table.items() if spec.decays]
    assert len({round(float(first), 5) for first in firsts}) == len(firsts)
