"""GGUF files: the models that they came from, `transformers`' own reading, and what is refused."""

import struct

import numpy as np
import pytest

pytest.importorskip("gguf", reason="needs gguf (pip install -c constraints.txt -e '.[dev]')")
pytest.importorskip("transformers", reason="needs transformers (pip install -c constraints.txt -e '.[dev]')")
import gguf
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from contract.errors import UserError
from harness.exchange.gguf.file import open_gguf, quantisation
from harness.exchange.gguf.model import read_gguf
from harness.exchange.gguf.rope import llama3_factors, llama3_settings
from tests.harness.gguf_files import CHANGES, small_model, write_gguf
from tests.shared_files import SMOLLM2, needs_smollm2

KINDS = ["Q8_0", "Q4_0", "F16", "BF16", "Q5_1", "F32"]


def read(path):
    return read_gguf(open_gguf(path))


def rebuilt(published):
    """A `transformers` model of the fields and the tensors that were read."""
    fields = dict(published.fields)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    state = {name: torch.from_numpy(np.array(tensor.read())) for name, tensor in published.stored.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if config.tie_word_embeddings else set())
    return model


def logits(model):
    with torch.no_grad():
        return model(torch.arange(40)[None] * 7 % 128).logits.numpy()


@pytest.mark.parametrize("model_type", CHANGES)
def test_a_converted_model_computes_what_the_original_did(model_type, tmp_path):
    """Fields, names, rows, transposes: a mistake in one of them changes the logits."""
    original = small_model(model_type)
    ours = rebuilt(read(write_gguf(tmp_path / "model.gguf", original)))
    assert ours.config.model_type == model_type
    np.testing.assert_allclose(logits(ours), logits(original), rtol=1e-4, atol=1e-4)
    wanted, found = original.config.to_dict(), ours.config.to_dict()
    of_text = {"bos_token_id", "eos_token_id", "pad_token_id"}
    assert {key for key in wanted if wanted[key] != found.get(key)} <= {"architectures", *of_text}


@pytest.mark.parametrize("model_type", sorted(CHANGES.keys() - {"mistral"}))  # which transformers cannot map
def test_quantised_tensors_are_as_transformers_reads_them(model_type, tmp_path):
    """Of the sizes that it takes from no file, they are its defaults."""
    sizes = {"qwen3": {"head_dim": 128}, "gpt2": {"n_inner": 256, "n_positions": 1024}}.get(model_type, {})
    path = write_gguf(tmp_path / "model.gguf", small_model(model_type, **sizes), KINDS)
    file = open_gguf(path)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    ).state_dict()
    ours = read_gguf(file).stored
    assert ours.keys() == theirs.keys() - ({"lm_head.weight"} - ours.keys())
    for name, tensor in ours.items():
        value = tensor.read()
        assert value.shape == tensor.shape
        assert value.dtype == tensor.float_dtype
        np.testing.assert_array_equal(value, theirs[name].numpy(), err_msg=name)
    line = quantisation(file)
    assert all(kind in line for kind in KINDS[:5])
    assert f"of {len(file.tensors)} tensors" in line


def test_floats_are_no_quantisation(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", small_model("llama"), ["BF16", "F16"])
    file = open_gguf(path)
    assert quantisation(file) is None
    assert {tensor.dtype for tensor in read_gguf(file).stored.values()} == {"BF16", "F16", "F32"}


def test_every_kind_that_gguf_writes_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.exchange.gguf.file._DEQUANTISED_AT_ONCE", 3 * 512)
    values = np.random.default_rng(0).normal(size=(7, 512)).astype(np.float32)
    writer, wanted = gguf.GGUFWriter(tmp_path / "kinds.gguf", "llama"), {}
    for kind in gguf.GGMLQuantizationType:
        try:
            stored = gguf.quantize(values, kind)
        except NotImplementedError:
            continue
        writer.add_tensor(kind.name, stored, raw_dtype=kind)
        wanted[kind.name] = gguf.dequantize(stored, kind)
    writer.add_tensor("F64", values.astype(np.float64))
    wanted["F64"] = values.astype(np.float64)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    tensors = open_gguf(tmp_path / "kinds.gguf").tensors
    assert {"Q4_0", "Q8_0", "BF16", "F16", "F32", "TQ1_0"} < wanted.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.read(), wanted[name], err_msg=name)


def test_an_output_that_repeats_the_embedding_is_tied(tmp_path):
    def repeat(tensors):
        tensors["output.weight"] = tensors["token_embd.weight"]

    published = read(write_gguf(tmp_path / "model.gguf", small_model("gpt2"), tensors=repeat))
    assert published.fields["tie_word_embeddings"] is True
    assert "lm_head.weight" not in published.stored


@pytest.mark.parametrize(("layers", "scalar"), [(46, 16), (42, 32)])
def test_gemmas_largest_model_scales_by_its_channels_a_head(layers, scalar, tmp_path):
    model = small_model("gemma2", num_hidden_layers=layers, hidden_size=64, intermediate_size=32)
    assert read(write_gguf(tmp_path / "m.gguf", model)).fields["query_pre_attn_scalar"] == scalar


@pytest.mark.parametrize("pattern", [2, [True, False, False]])
def test_the_pattern_of_sliding_layers_may_be_in_the_file(pattern, tmp_path):
    model = small_model("gemma3_text", num_hidden_layers=3)
    path = write_gguf(tmp_path / "m.gguf", model, more=lambda w: w.add_sliding_window_pattern(pattern))
    wanted = [True, False, True] if pattern == 2 else pattern
    assert [kind == "sliding_attention" for kind in read(path).fields["layer_types"]] == wanted


@pytest.mark.parametrize(
    ("factor", "low", "high", "original", "theta", "head_dim"),
    [(8, 1, 4, 8192, 5e5, 128), (32, 1, 4, 8192, 5e5, 64), (4, 2, 6, 512, 1e4, 64), (8, 1, 4, 8192, 5e5, 8)],
)
def test_llama3_scaling_is_found_again(factor, low, high, original, theta, head_dim):
    """Held against the frequencies that `transformers` computes from the settings."""
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    settings = {"rope_type": "llama3", "rope_theta": theta} | dict(
        zip(names, (float(factor), float(low), float(high), original), strict=True)
    )
    config = AutoConfig.for_model("llama", head_dim=head_dim, rope_parameters=settings)
    plain = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    factors = plain / ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].numpy()
    found = llama3_settings(factors.astype(np.float32), theta, head_dim)
    np.testing.assert_allclose(llama3_factors(found, theta, head_dim), factors, rtol=1e-5)
    assert found["factor"] == factor
    if low == 1:
        assert found.items() <= settings.items()
    factors[-1] *= 1.01
    assert llama3_settings(factors, theta, head_dim) is None


def add_frequencies(values):
    return lambda tensors: tensors.update({"rope_freqs.weight": np.asarray(values, np.float32)})


def test_llama3_scaling_is_read(tmp_path):
    settings = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64, "rope_theta": 1e4,
    }  # fmt: skip
    original = small_model("llama", rope_parameters=settings)
    path = write_gguf(
        tmp_path / "m.gguf", original, tensors=add_frequencies(llama3_factors(settings, 1e4, 16))
    )
    published = read(path)
    assert published.fields["rope_parameters"] == settings
    np.testing.assert_allclose(logits(rebuilt(published)), logits(original), rtol=1e-4, atol=1e-4)


# --- what is refused ---


def drop(name):
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"more": lambda w: w.add_string("general.architecture", "mpt")}, ["'mpt'", "llama, qwen2"]),
        ({"more": lambda w: w.add_string("general.type", "mmproj")}, ["general.type", "'mmproj'"]),
        ({"more": lambda w: w.add_uint16("split.count", 3)}, ["one of 3 parts", "--merge"]),
        ({"more": lambda w: w.add_expert_count(8)}, ["llama.expert_count", "8"]),
        ({"more": lambda w: w.add_logit_scale(2.0)}, ["llama.logit_scale", "2.0"]),
        ({"more": lambda w: w.add_block_count(1 << 31)}, ["llama.block_count", "2,147,483,648", "of 3"]),
        ({"more": lambda w: w.add_rope_dimension_count(8)}, ["llama.rope.dimension_count", "16"]),
        ({"more": lambda w: w.add_value_length(8)}, ["llama.attention.value_length", "16"]),
        ({"more": lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN)}, ["scaling.type", "'yarn'"]),
        ({"more": lambda w: w.add_string("llama.context_length", "8k")}, ["llama.context_length", "'8k'"]),
        ({"more": lambda w: w.add_head_count(0)}, ["llama.attention.head_count", "0"]),
        ({"more": lambda w: w.kv_data[0].pop("llama.embedding_length")}, ["no llama.embedding_length"]),
        ({"tensors": add_frequencies(np.linspace(1, 8, 8))}, ["rope_freqs.weight", "Llama 3"]),
        ({"tensors": drop("token_embd.weight")}, ["token_embd.weight"]),
        (
            {"tensors": lambda t: t.update({"blk.0.attn_q_norm.weight": np.ones(16, np.float32)})},
            ["blk.0.attn_q_norm.weight", "none of llama's"],
        ),
    ],
)
def test_what_computes_another_function_is_refused_by_name(options, words, tmp_path):
    refuse(write_gguf(tmp_path / "model.gguf", small_model("llama"), **options), *words)


def refuse(path, *words):
    with pytest.raises(UserError) as error:
        read(path)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a good file."""
    path = write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf", small_model("llama"), ["Q8_0"])
    return path.read_bytes()


def test_a_kind_that_gguf_cannot_dequantise_is_refused(whole, tmp_path):
    name = b"blk.0.attn_q.weight"
    kind = whole.index(name) + len(name) + 4 + 16
    assert whole[kind] == gguf.GGMLQuantizationType.Q8_0
    for number, shown in ((gguf.GGMLQuantizationType.Q8_1, "Q8_1"), (99, "99"), (26, "I32")):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(whole[:kind] + struct.pack("<I", number) + whole[kind + 4 :])
        refuse(path, f"type {shown}", "Q8_0")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            ["Git LFS", "git lfs pull"],
        ),
        (lambda data: b"PK" + data[2:], ["no GGUF file", "PK"]),
        (lambda data: b"", ["no GGUF file"]),
        (lambda data: data[:10], ["cut short"]),
        (lambda data: data[:4] + struct.pack(">I", 3) + data[8:], ["big-endian"]),
        (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], ["version 1"]),
        (lambda data: data[:4] + struct.pack("<I", 9) + data[8:], ["version 9"]),
        (lambda data: data[:-4096], ["cut short", "ends at byte"]),
        (lambda data: data[:1000], ["cut short"]),
        (lambda data: data[:8] + struct.pack("<QQ", 2**62, 2**62) + data[24:], ["damaged"]),
        (lambda data: data.replace(b"token_embd", b"\xff" * 10), ["damaged"]),
        (lambda data: data.replace(b"blk.1.attn_q.weight", b"blk.0.attn_q.weight"), ["occurs twice"]),
    ],
)
def test_damage_is_one_line(change, words, whole, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(change(whole))
    refuse(path, str(path), *words)


def test_every_cut_in_the_header_is_noticed(whole, tmp_path):
    end = whole.index(b"output_norm.weight")
    for size in range(0, end, 97):
        (tmp_path / "model.gguf").write_bytes(whole[:size])
        refuse(tmp_path / "model.gguf")


def test_a_missing_file_is_one_line(tmp_path):
    refuse(tmp_path / "model.gguf", "cannot be read")


# --- a real one ---


@needs_smollm2
@pytest.mark.slow
def test_smollm2_is_as_transformers_reads_it():
    theirs = AutoModelForCausalLM.from_pretrained(SMOLLM2.parent, gguf_file=SMOLLM2.name, dtype=torch.float32)
    file = open_gguf(SMOLLM2)
    published = read_gguf(file)
    assert "of 272 tensors, 210 Q4_1, 61 F32, 1 Q8_0" in quantisation(file)
    assert published.fields["tie_word_embeddings"]
    state = theirs.state_dict()
    assert published.stored.keys() == state.keys() - {"lm_head.weight"}
    for name, tensor in published.stored.items():
        np.testing.assert_array_equal(tensor.read(), state[name].numpy(), err_msg=name)
