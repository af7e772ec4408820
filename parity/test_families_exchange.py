"""Models of odd shapes, saved by `transformers`, go in and come out with the same tensors, logits, ids and texts."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
transformers = pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")

import numpy_llm  # noqa: E402
import torch_llm  # noqa: E402
from contract.errors import UserError  # noqa: E402
from harness.exchange.export import export  # noqa: E402
from harness.exchange.families import FAMILIES  # noqa: E402
from harness.exchange.huggingface_import import import_folder  # noqa: E402
from harness.exchange.tokenizer_files import tokenizer_texts  # noqa: E402
from harness.training.tensor_file import stored_tensors  # noqa: E402
from parity.cases import cast_weights  # noqa: E402
from parity.families import lifted  # noqa: E402
from parity.published_fields import logits, make  # noqa: E402
from parity.test_huggingface import MEASURE  # noqa: E402
from tests.small_tokenizers import lines, published  # noqa: E402

ROOT, MODEL = Path(__file__).parents[1], "model.safetensors"
TOKENIZERS = {
    "gpt2": "gpt2", "llama": "llama3", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "smollm", "gemma2": "gemma",
    "gemma3_text": "gemma",
}  # fmt: skip
S, F = "sliding_attention", "full_attention"
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 50.0,
    "original_max_position_embeddings": 24,
}  # fmt: skip


class Shape(NamedTuple):
    """A model of a family: C, H, K, D (None: C / H), F and L, and further fields of its configuration."""

    family: str
    sizes: tuple
    fields: dict

    @property
    def published(self) -> dict:
        names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
        if self.family == "gpt2":
            names = ("n_embd", "n_head", None, None, "n_inner")
        sized = dict(zip((*names, FAMILIES[self.family].layers_field), self.sizes, strict=True))
        length = "n_positions" if self.family == "gpt2" else "max_position_embeddings"
        known = {name: value for name, value in sized.items() if name and value is not None}
        return {"model_type": self.family, "vocab_size": tokenizer(self.family).n_vocab + 3, length: 64} | (
            known | {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": None} | self.fields
        )


SHAPES = {
    "GPT-2, odd widths": Shape("gpt2", (15, 3, None, None, 7, 2), {}),
    "GPT-2, untied": Shape("gpt2", (8, 1, None, None, None, 1), {"tie_word_embeddings": False}),
    "Llama, one kv head, wide heads": Shape("llama", (15, 3, 1, 8, 7, 2), {}),
    "Llama 3, tied": Shape("llama", (24, 6, 2, None, 9, 2), {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "Llama, linear, biases": Shape(
        "llama", (12, 2, 2, None, 31, 3), {"rope_parameters": LINEAR, "attention_bias": True, "mlp_bias": True}
    ),
    "Mistral, window, narrow heads": Shape("mistral", (14, 4, 2, 6, 9, 2), {"sliding_window": 5}),
    "Mistral, no window": Shape("mistral", (15, 2, 1, 10, 7, 1), {"sliding_window": None}),
    "Qwen2, no window": Shape("qwen2", (20, 5, 5, None, 7, 2), {}),
    "Qwen2, window from the second layer on": Shape(
        "qwen2", (12, 6, 3, None, 9, 3),
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "Qwen3, odd width, tied": Shape("qwen3", (13, 3, 1, 8, 7, 2), {"tie_word_embeddings": True}),
    "Qwen3, window, linear": Shape(
        "qwen3", (14, 4, 2, 6, 9, 3),
        {"use_sliding_window": True, "sliding_window": 5, "layer_types": [F, S, F], "rope_parameters": LINEAR},
    ),
    "Gemma 2": Shape("gemma2", (15, 3, 1, 8, 7, 3), {"sliding_window": 5, "query_pre_attn_scalar": 11}),
    "Gemma 2, untied, no caps, all full": Shape(
        "gemma2", (12, 4, 2, 6, 9, 2),
        {
            "query_pre_attn_scalar": 6, "tie_word_embeddings": False, "layer_types": [F, F],
            "attn_logit_softcapping": None, "final_logit_softcapping": None,
        },
    ),
    "Gemma 3, six layers, linear": Shape(
        "gemma3_text", (15, 3, 1, 8, 7, 6),
        {
            "sliding_window": 5, "query_pre_attn_scalar": 11,
            "rope_parameters": {F: LINEAR, S: {"rope_type": "default", "rope_theta": 30.0}},
        },
    ),
    "Gemma 3, all sliding": Shape("gemma3_text", (12, 4, 2, 6, 9, 2), {"sliding_window": 5, "head_dim": 6}),
    "Gemma 3, all full": Shape("gemma3_text", (12, 4, 2, 6, 9, 2), {"layer_types": [F, F]}),
}  # fmt: skip
each_shape = pytest.mark.parametrize("title", SHAPES)


@cache
def tokenizer(family):
    return published(TOKENIZERS[family])


@pytest.fixture
def save(tmp_path):
    """A function that saves a model of a shape as `transformers` does, in a dtype, with its tokenizer beside."""

    def save(title, dtype, change=lambda model: None):
        shape, folder = SHAPES[title], tmp_path / "in"
        model = make(shape.published).to(getattr(torch, dtype))
        change(model)
        model.save_pretrained(folder)
        for name, text in tokenizer_texts(tokenizer(shape.family), 64).items():
            (folder / name).write_text(text, encoding="utf-8")
        return folder

    return save


def contents(path):
    """Each tensor's name, dtype, shape and bytes."""
    data = path.read_bytes()
    width = {"F32": 4, "BF16": 2, "F16": 2}
    return {
        name: (each.dtype, each.shape, data[each.offset :][: width[each.dtype] * int(np.prod(each.shape))])
        for name, each in stored_tensors(path).items()
    }


def load(folder, **settings):
    settings = {"attn_implementation": "eager", "local_files_only": True} | settings
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **settings).eval()


def greedy(model, prompt, count):
    ids = torch.tensor([prompt])
    settings = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "eos_token_id": None}
    found = model.generate(ids, do_sample=False, max_new_tokens=count, **settings)
    return found[0, len(prompt) :].tolist()


@each_shape
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_and_out(title, dtype, save, tmp_path):
    """The same tensors to the bit, by name; loaded from both folders, the same bits of logits, ids and greedy texts."""
    folder, out = save(title, dtype), tmp_path / "out"
    checkpoint = import_folder(folder)
    assert checkpoint.training["model_type"] == SHAPES[title].family
    export(checkpoint, "huggingface", out, dtype=dtype)
    assert contents(out / MODEL) == contents(folder / MODEL)
    before, after = load(folder), load(out)
    assert type(after) is type(before)
    assert after.dtype == before.dtype == getattr(torch, dtype)
    tokens = np.random.default_rng(4).integers(checkpoint.config.vocab_size, size=(2, 30))
    found, expected = (
        model(torch.from_numpy(tokens)).logits.detach().float().numpy() for model in (after, before)
    )
    np.testing.assert_array_equal(found, expected)
    theirs, ours = (transformers.AutoTokenizer.from_pretrained(path) for path in (folder, out))
    for line in lines(5):
        assert ours(line)["input_ids"] == theirs(line)["input_ids"]
    prompt = theirs("the quick brown")["input_ids"]
    assert greedy(after, prompt, 40) == greedy(before, prompt, 40)


@each_shape
def test_the_twins_compute_it(title, save):
    """Imported from bfloat16, both twins give transformers' logits and 40 greedy tokens, in float64 without casts."""
    folder = save(title, "bfloat16")
    checkpoint = import_folder(folder)
    config, weights = checkpoint.config, cast_weights(checkpoint.config, checkpoint.weights, "float64")
    tokens = np.random.default_rng(4).integers(config.vocab_size, size=(2, 30))
    prompt = tokenizer(SHAPES[title].family).encode("the quick brown").tolist()
    with lifted():
        model = load(folder, dtype=torch.float64)
        found, expected = logits(model, tokens), greedy(model, prompt, 40)
    ours, _, _ = numpy_llm.GPT(config, weights).forward(tokens)
    np.testing.assert_allclose(ours, found, rtol=0, atol=1e-12 * np.abs(found).max())
    for twin in (numpy_llm, torch_llm):
        assert twin.GPT(config, weights).generate(prompt, 40, temperature=0) == expected, twin.__name__


def test_a_weight_too_large_for_float16(save, tmp_path):
    """bfloat16 holds numbers that float16 does not: the export names the tensor, and leaves nothing."""

    def widen(model):
        with torch.no_grad():
            model.model.layers[1].self_attn.v_proj.weight[0, 1] = 70144.0

    checkpoint = import_folder(save("Qwen3, window, linear", "bfloat16", widen))
    with pytest.raises(
        UserError, match=r"^model\.layers\.1\.self_attn\.v_proj\.weight holds 70144\.0, too large for F16"
    ):
        export(checkpoint, "huggingface", tmp_path / "out", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    export(checkpoint, "huggingface", tmp_path / "out", dtype="bfloat16")
    assert contents(tmp_path / "out" / MODEL) == contents(tmp_path / "in" / MODEL)


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.exists("/proc/self/status"), reason="needs Linux (its /proc tells the peak memory)"
)
def test_import_of_bfloat16_is_lean(tmp_path):
    """A Llama of 78M: import takes the memory of the float32 model and of one tensor of the file."""
    config = transformers.LlamaConfig(
        vocab_size=32_000, hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8,
        num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "in")
    for name, text in tokenizer_texts(tokenizer("llama"), 64).items():
        (tmp_path / "in" / name).write_text(text, encoding="utf-8")
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    largest = 4 * max(parameter.numel() for parameter in model.parameters())
    arguments = [sys.executable, "-c", MEASURE, "import", tmp_path / "in", tmp_path / "run"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    print(f"{found['bytes'] / size:.2f} times {size:,} bytes, the largest tensor is {largest / size:.2f}")
    assert size <= found["bytes"] < size + largest
    assert not found["torch"]
