"""Packs as folders in Hugging Face's form: `transformers` loads them and computes what the pack holds."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from contract.errors import UserError
from harness.exchange.families import family_for
from parity.golden.export import export_pack
from parity.golden.packs import committed

FAMILIES = {"gemma3": "gemma3_text", "gpt2-tied": "gpt2", "llama": "llama", "modern": "gemma2", "qwen2": "qwen2",
            "qwen3": "qwen3", "relu-sinusoidal": "gpt2", "untied-no-bias": "gpt2"}  # fmt: skip


def test_the_others_have_no_published_form(packs, tmp_path):
    """They are refused in a line that names the forms there are."""
    others = sorted({*committed()} - {*FAMILIES})
    assert others == ["low-rank", "rms-norm"]
    for name in others:
        with pytest.raises(UserError, match=f"^{name} has no form of Hugging Face's; choose --format raw"):
            export_pack(packs[name], "huggingface", tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_computes_the_pack(name, packs, tmp_path):
    """Logits and loss of the folder's tokens, to float32's rounding, at the published class's own spelling."""
    torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
    transformers = pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")
    pack = packs[name]
    export_pack(pack, "huggingface", tmp_path / "out")
    batch = json.loads((tmp_path / "out" / "batch.json").read_text())
    model, problems = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, local_files_only=True
    )
    assert model.config.model_type == FAMILIES[name] == family_for(pack.config).model_type
    assert not any(problems.values())
    assert model.dtype == torch.float32
    with torch.no_grad():
        logits = model(torch.tensor(batch["tokens"])).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(batch["targets"]).flatten())
    rows = {row["name"]: row for row in pack.manifest["tensors"]}
    for each, found in (("logits", logits.numpy()), ("loss", loss.numpy())):
        error = np.abs(found - pack.tensors[each]).max() / rows[each]["scale"]
        assert error < rows[each]["float32"], each


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_the_export_of_a_pack(dtype, tmp_path, run_cli, packs):
    """Its config says the type of its tensors; it is replaced with --overwrite alone, and a tied head is not in it."""
    arguments = ("golden", "export", "qwen3", "--format", "huggingface", "--out", tmp_path / "out")
    code, _, stderr = run_cli(*arguments, "--dtype", dtype)
    assert (code, "batch.json, config.json, model.safetensors" in stderr) == (0, True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], config["model_type"], config["pad_token_id"]) == (dtype, "qwen3", None)
    if dtype != "bfloat16":  # NumPy has none
        stored = load_file(tmp_path / "out" / "model.safetensors")
        assert "lm_head.weight" not in stored
        key = packs["qwen3"].tensors["blocks.1.attention.query_key_value.weight"][16:24]
        assert np.array_equal(stored["model.layers.1.self_attn.k_proj.weight"], key)
        assert stored["model.norm.weight"].dtype == dtype
    assert run_cli(*arguments)[0] == 1
    assert run_cli(*arguments, "--overwrite")[0] == 0


def test_wrong_types_are_refused(tmp_path, run_cli):
    for format, dtype in (("huggingface", "int8"), ("raw", "bfloat16")):
        arguments = ("golden", "export", "qwen3", "--format", format, "--dtype", dtype)
        code, _, stderr = run_cli(*arguments, "--out", tmp_path / "out")
        assert (code, f"--dtype of {format} must be one of float" in stderr) == (2, True)
