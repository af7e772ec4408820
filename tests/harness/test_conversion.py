"""Checkpoints that are pickles, or of one program alone: never read, and the lines that convert them work."""

import os
import re
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from contract.errors import UserError
from harness.exchange.hub import find_source, origin
from harness.exchange.huggingface_import import import_folder
from harness.exchange.pickles import SUFFIXES
from harness.exchange.tokenizer_files import tokenizer_texts
from tests.harness.published_models import MODEL, edit_json

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
ROOT = Path(__file__).parents[2]
needs_bash = pytest.mark.skipif(
    os.name != "posix", reason="needs bash, whose quotes the lines have (Linux or macOS)"
)


def attempt(source):
    """Import, as the command does it."""
    place = find_source(source)
    import_folder(place, origin=origin(source, place))


def refusal(source):
    """The line in which import refuses a source."""
    with pytest.raises(UserError) as error:
        attempt(str(source))
    assert "\n" not in str(error.value)
    return str(error.value)


def convert(message, folder):
    """Run the command that a message gives, in a folder; what it says, and the new folder that import takes."""
    command, out = re.search(r"python (-c \$'.*')(?: \(.*\))?; then import (.+)$", message).groups()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} {command}"],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (out,) = shlex.split(out)
    return done.stdout, folder / out


@pytest.mark.parametrize("name", [f"model{suffix}" for suffix in SUFFIXES])
def test_a_file_that_is_a_pickle(name, tmp_path):
    """It is never read; the line names its folder, in which transformers finds what belongs to it."""
    torch.save({"a": torch.ones(2)}, tmp_path / name)
    message = refusal(tmp_path / name)
    assert f"{tmp_path / name} is no safetensors file, and pickles are never read" in message
    assert f"{tmp_path.name}\\').save_pretrained(\\'model-safetensors\\')" in message


def test_an_evil_pickle_is_not_run(published, tmp_path):
    """A pickle's code runs when it is read; none is, whichever way the file is named."""

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    folder = published()
    (folder / MODEL).unlink()
    torch.save({"model": Evil(), "model_args": {}}, folder / "pytorch_model.bin")
    for source in (folder, folder / "pytorch_model.bin"):
        assert "never read" in refusal(source)
    assert not (tmp_path / "touched").exists()


def test_a_model_of_llm_c(tmp_path):
    """Its first number tells it; llm.c's own program converts it."""
    path = tmp_path / "gpt2_124M.bin"
    path.write_bytes(struct.pack("<2i", 20240326, 3) + bytes(1016))
    message = refusal(path)
    assert f"python dev/eval/export_hf.py --input {path} --output gpt2_124M-safetensors" in message
    assert "python cli.py import gpt2_124M-safetensors --out runs/gpt2_124M" in message


def test_a_name_on_the_hub_with_pickles_alone(published, monkeypatch, tmp_path):
    """Its .bin files are not fetched; the line converts the model by its name there."""
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub (pip install -e '.[dev]')")
    monkeypatch.chdir(tmp_path)
    folder = published("0f0f")
    (folder / MODEL).unlink()
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: str(folder))
    monkeypatch.setattr("huggingface_hub.utils.disable_progress_bars", lambda: None)
    message = refusal("someone/old-model")
    assert r"from_pretrained(\'someone/old-model\').save_pretrained(\'old-model-safetensors\')" in message
    assert message.endswith("; then import old-model-safetensors")


@needs_bash
@pytest.mark.slow
def test_the_lines_for_a_folder_work(tmp_path):
    """A Llama with pytorch_model.bin and tokenizer.json becomes a folder that is imported to the bit."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")
    from tests.small_tokenizers import published as small_tokenizer

    folder = tmp_path / "models" / "it's an old one"
    tokenizer = small_tokenizer("llama3")
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.n_vocab, hidden_size=12, intermediate_size=7, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    folder.mkdir(parents=True)
    for name, text in tokenizer_texts(tokenizer, 64).items():
        (folder / name).write_text(text, encoding="utf-8")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    message = refusal(folder)
    assert "pytorch_model.bin is a pickle, which is never read" in message
    _, out = convert(message, tmp_path)
    found = import_folder(out)
    np.testing.assert_array_equal(
        found.weights["token_embedding.weight"], model.model.embed_tokens.weight.detach().numpy()
    )
    text = "the quick brown fox, <s> 12345"
    assert found.tokenizer.encode(text).tolist() == tokenizer.encode(text).tolist()


@pytest.fixture
def nanogpt(tmp_path):
    """A checkpoint as nanoGPT's train.py writes it under torch.compile, without biases; its weights by name."""
    V, T, C, L = 7, 5, 6, 2
    shapes = {
        "transformer.wte.weight": (V, C),
        "transformer.wpe.weight": (T, C),
        "transformer.ln_f.weight": (C,),
    }
    for layer in range(L):
        for name, shape in (
            ("ln_1", (C,)), ("attn.c_attn", (3 * C, C)), ("attn.c_proj", (C, C)),
            ("ln_2", (C,)), ("mlp.c_fc", (4 * C, C)), ("mlp.c_proj", (C, 4 * C)),
        ):  # fmt: skip
            shapes[f"transformer.h.{layer}.{name}.weight"] = shape
    torch.manual_seed(2)
    weights = {name: torch.randn(shape) for name, shape in shapes.items()}
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    sizes = {
        "n_layer": L,
        "n_head": 2,
        "n_embd": C,
        "block_size": T,
        "bias": False,
        "vocab_size": V,
        "dropout": 0.0,
    }
    checkpoint = {
        "model": {f"_orig_mod.{name}": value for name, value in weights.items()},
        "optimizer": {"state": {}, "param_groups": []}, "model_args": sizes, "iter_num": 5,
        "best_val_loss": torch.tensor(1.5), "config": {"dataset": "shakespeare_char"},
    }  # fmt: skip
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    return tmp_path / "ckpt.pt", weights


@needs_bash
@pytest.mark.slow
def test_the_lines_for_nanogpt_work(nanogpt, published, tmp_path):
    """As printed they give its exact GELU, refused by name; with the tanh form said, the model is imported."""
    pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")
    path, weights = nanogpt
    message = refusal(path)
    assert "nanoGPT computes the exact GELU" in message
    assert 'say "gelu_new"' in message
    said, out = convert(message, tmp_path)
    assert "unexpected_keys=[]" in said
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (out / name).write_bytes((published(f"for-{name}") / name).read_bytes())
    with pytest.raises(UserError, match=r"activation_function is 'gelu' \(the exact-erf GELU"):
        import_folder(out)
    edit_json(out / "config.json", activation_function="gelu_new")
    found = import_folder(out).weights
    for layer in range(2):
        for ours, theirs in (
            ("attention.query_key_value", "attn.c_attn"),
            ("feed_forward.down", "mlp.c_proj"),
        ):
            np.testing.assert_array_equal(
                found[f"blocks.{layer}.{ours}.weight"],
                weights[f"transformer.h.{layer}.{theirs}.weight"].numpy(),
            )
    assert not any(value.any() for name, value in found.items() if name.endswith("bias"))
