"""The files of published weights: each precision, spread and prefix is read to the bit; damage is named."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from contract.errors import UserError
from contract.weights import weight_table
from harness.exchange.families import FAMILIES
from harness.exchange.huggingface_import import import_folder
from harness.training.tensor_file import stored_tensors, stream_tensors
from tests.harness.published_models import (
    INDEX,
    MODEL,
    edit_json,
    edit_tensors,
    expect_refusal,
    write_shards,
)

QWEN3 = {
    "position": "rotary", "norm": "rms_norm", "feed_forward": "gated", "activation": "silu", "bias": False,
    "query_key_norm": "head", "n_head": 4, "n_kv_head": 2, "head_size": 4, "n_layer": 2,
}  # fmt: skip
LLAMA = {**QWEN3, "query_key_norm": "none", "tie_embeddings": False, "n_head": 3, "n_kv_head": 1}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 1234\n"
BITS = np.arange(1 << 16, dtype=np.uint16)


def write_raw(path, tensors):
    """A safetensors file from dtypes, shapes and bytes, by its specification."""
    header, content = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {
            "dtype": dtype, "shape": list(shape), "data_offsets": [len(content), len(content) + len(data)]
        }  # fmt: skip
        content += data
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + content)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_half_becomes_the_same_float32(dtype, tmp_path):
    """All 65,536 of each kind, the subnormal and infinite ones too."""
    write_raw(tmp_path / MODEL, {"a": (dtype, (256, 256), BITS.astype("<u2").tobytes())})
    found = stored_tensors(tmp_path / MODEL)["a"].read().ravel()
    if dtype == "BF16":
        expected = (BITS.astype(np.uint32) << 16).view(np.float32)
    else:
        expected = np.array([struct.unpack("<e", struct.pack("<H", bits))[0] for bits in BITS], np.float32)
    numbers = ~np.isnan(expected)
    assert (np.isnan(found) == ~numbers).all()
    np.testing.assert_array_equal(found[numbers].view(np.uint32), expected[numbers].view(np.uint32))


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_half_is_written_as_it_was_read(dtype, tmp_path):
    """Widened and narrowed again, each finite one has its bits; one between two goes to the even."""
    write_raw(tmp_path / MODEL, {"a": (dtype, BITS.shape, BITS.astype("<u2").tobytes())})
    wide = stored_tensors(tmp_path / MODEL)["a"].read()
    finite = np.isfinite(wide)
    bits, ends = written(tmp_path / "out", wide[finite], dtype), wide[:100:2]
    np.testing.assert_array_equal(bits, BITS[finite])
    between = (ends.astype(np.float64) + wide[1:101:2]) / 2  # exact in float32: one more bit than a half has
    np.testing.assert_array_equal(written(tmp_path / "ties", between.astype(np.float32), dtype) % 2, 0)


def written(path, values, dtype):
    stream_tensors(path, {"a": values.shape}, iter([values]), dtype, {})
    return np.frombuffer(path.read_bytes()[-values.size * 2 :], "<u2")


@pytest.mark.parametrize(("dtype", "large"), [("BF16", 3.4e38), ("F16", 65520.0)])
def test_a_number_too_large_for_a_half_names_the_tensor(dtype, large, tmp_path):
    """The largest that fits is written, the next refused by the tensor's name and value."""
    fits = np.float32({"BF16": 3.3895314e38, "F16": 65519.0}[dtype])
    assert np.isfinite(written(tmp_path / "fits", np.array([fits]), dtype)).all()
    values = iter([np.zeros(2, np.float32), np.array([1, large], np.float32)])
    with pytest.raises(UserError, match=r"^b\.weight holds (3\.399\d*e\+38|65520\.0), too large for"):
        stream_tensors(tmp_path / "out", {"a": (2,), "b.weight": (2,)}, values, dtype, {})


@pytest.mark.parametrize("changes", [{}, QWEN3, LLAMA], ids=["gpt2", "qwen3", "llama"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_each_precision_in_one_file_or_in_shards(published, changes, dtype, shards):
    """Every weight is the file's, widened to the bit, wherever its rows lie."""
    folder = published(**changes)
    tensors = load_file(folder / MODEL)
    random = np.random.default_rng(2)
    bits = {
        name: random.integers(0x7000, size=value.shape, dtype=np.uint16) for name, value in tensors.items()
    }
    wide = {
        "F32": lambda bits: bits.astype(np.float32) / 3,
        "F16": lambda bits: bits.view(np.float16).astype(np.float32),
        "BF16": lambda bits: (bits.astype(np.uint32) << 16).view(np.float32),
    }[dtype]
    values = {name: wide(each) for name, each in bits.items()}
    raw = {
        name: (dtype, each.shape, (values[name] if dtype == "F32" else each).tobytes())
        for name, each in bits.items()
    }
    (folder / MODEL).unlink()
    places = {}
    for shard in range(shards):
        name = MODEL if shards == 1 else f"model-{shard}.safetensors"
        part = dict(list(raw.items())[shard::shards])
        write_raw(folder / name, part)
        places |= dict.fromkeys(part, name)
    if shards > 1:
        (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    found = import_folder(folder)
    family = FAMILIES[found.training["model_type"]]
    seen = set()
    for ours, place in family.published_places(found.config).items():
        names = [name if name == family.output else family.prefix + name for name in place.names]
        parts = [values[name].T if place.transposed else values[name] for name in names]
        np.testing.assert_array_equal(found.weights[ours], np.concatenate(parts), err_msg=ours, strict=True)
        seen |= set(names)
    assert seen == values.keys()
    assert found.weights.keys() == weight_table(found.config).keys()


def put(value, row, column):
    def damage(tensor):
        tensor[row, column] = value
        return tensor

    return damage


INSIDE = "model.layers.1.self_attn."


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        (INSIDE + "k_proj.weight", lambda k: None, "missing layers.1.self_attn.k_proj.weight"),
        (INSIDE + "rotary", lambda _: np.zeros(2), "not Qwen3's layers.1.self_attn.rotary"),
        ("norm.weight", lambda _: np.zeros(6), "both norm.weight and model.norm.weight"),
        (INSIDE + "v_proj.weight", lambda v: np.tile(v, (2, 1)), "v_proj.weight is (16, 6), wanted (8, 6)"),
        (INSIDE + "q_proj.weight", lambda q: q.T.copy(), "q_proj.weight is (6, 16), wanted (16, 6)"),
        (INSIDE + "o_proj.weight", lambda o: o.astype(np.int8), "o_proj.weight is of I8, wanted F64"),
        (INSIDE + "k_proj.weight", put(np.nan, 3, 2), "layers.1.self_attn.k_proj.weight holds nan"),
        (INSIDE + "v_proj.weight", put(-np.inf, 7, 5), "layers.1.self_attn.v_proj.weight holds -inf"),
    ],
)
def test_damage_names_the_tensor(published, name, damage, words):
    """Query, key and value, three tensors in the file, are each named."""
    folder = published(**QWEN3)

    def change(tensors):
        value = damage(tensors.pop(name, None))
        tensors.update({} if value is None else {name: value})

    edit_tensors(folder, change)
    expect_refusal(folder, words)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.timeout(20)
def test_sizes_beyond_all_bounds(family, tmp_path):
    """A million layers, or a vocabulary of a trillion, is refused before anything of its size is made."""
    layers = FAMILIES[family].layers_field
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / MODEL)
    for field, value, words in (
        (layers, 10**6, [f"{layers} must be", "10,000"]),
        (layers, 10_000, [f"says {layers} 10,000, but the weights are 1 tensors"]),
        (layers, 10**30, [layers]),
        ("vocab_size", 10**12, ["missing"]),
    ):
        fields = {"model_type": family, layers: 1, field: value}
        (tmp_path / "config.json").write_text(json.dumps(fields))
        expect_refusal(tmp_path, *words)


@pytest.mark.parametrize("changes", [{}, QWEN3, LLAMA], ids=["gpt2", "qwen3", "llama"])
@pytest.mark.parametrize("before", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("bare", [False, True])
def test_wrappers_before_all_names(published, changes, before, bare):
    """What two wrappers put before every name is left out, with the family's own prefix and without it."""
    folder = published(**changes)
    expected = import_folder(folder)
    family = FAMILIES[expected.training["model_type"]]

    def wrap(tensors):
        for name in list(tensors):
            tensors[before + (name.removeprefix(family.prefix) if bare else name)] = tensors.pop(name)

    edit_tensors(folder, wrap)
    np.testing.assert_array_equal(import_folder(folder).weights.flat, expected.weights.flat)
    edit_tensors(folder, lambda tensors: tensors.update({"a.b": np.zeros(1, np.float32)}))
    expect_refusal(folder, before)  # and 20 names at most


@pytest.mark.parametrize("name", [MODEL, "config.json", "tokenizer.json", "vocab.json", "shard", INDEX])
def test_a_git_lfs_pointer(published, name):
    """The few lines that stand for a file not fetched are named, with the command that fetches it."""
    folder = published(**QWEN3)
    if name in ("shard", INDEX):
        write_shards(folder, load_file(folder / MODEL), 2)
        name = "model-00002-of-00002.safetensors" if name == "shard" else name
    (folder / name).write_text(POINTER)
    expect_refusal(folder, f"{folder / name} is a Git LFS pointer", f"run git lfs pull in {folder}")


def test_a_llama_with_one_kind_of_bias(published):
    """Both flags or neither; one alone is refused by both names."""
    folder = published(**LLAMA)
    edit_json(folder / "config.json", attention_bias=True)
    expect_refusal(folder, "attention_bias is True and mlp_bias False", "both or neither")
    edit_json(folder / "config.json", mlp_bias=True)
    expect_refusal(folder, "missing layers.0.self_attn.q_proj.bias", "layers.1.mlp.down_proj.bias")
