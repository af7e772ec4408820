"""The family that a model was imported from: recorded, kept through training, and exported again."""

import json
from dataclasses import replace

import pytest

from harness.exchange.export import export
from harness.exchange.huggingface_import import import_folder
from harness.training import trainer as trainer_module
from harness.training.checkpoint import load_checkpoint, save_checkpoint
from harness.training.runs import resume_run, start_run
from tests.harness.published_models import edit_json
from tests.harness.small_runs import BACKENDS

# What Llama's files can say too, so that only the record tells the families apart.
SHARED = {
    "position": "rotary", "norm": "rms_norm", "feed_forward": "gated", "activation": "silu", "bias": False,
    "n_head": 3, "n_kv_head": 1, "head_size": 4, "tie_embeddings": False,
}  # fmt: skip
OTHER = {
    "attention_bias": ...,
    "mlp_bias": ...,
    "architectures": ["MistralForCausalLM"],
    "sliding_window": None,
}


def exported(checkpoint, out):
    export(checkpoint, "huggingface", out)
    return json.loads((out / "config.json").read_text())["model_type"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_through_training_and_back(published, tmp_path, monkeypatch, backend):
    """Import, training from it, resuming and export: Mistral's all the way; without the record it would be Llama's."""
    monkeypatch.setattr(trainer_module, "plot_metrics", lambda metrics, image: None)
    folder, text = published(**SHARED), tmp_path / "text.txt"
    edit_json(folder / "config.json", model_type="mistral", **OTHER)
    text.write_text("abcdefgfedcba" * 100)
    imported = import_folder(folder)
    assert imported.training["model_type"] == "mistral"
    save_checkpoint(tmp_path / "imported" / "latest", imported)
    options = {"backend": backend, "threads": 1}
    settings = {"steps": 1, "batch_size": 2, "warmup_steps": 0}
    run = tmp_path / "run"
    start_run(run, text=text, start=tmp_path / "imported", training=settings, **options).train()
    assert load_checkpoint(run / "latest").training["model_type"] == "mistral"
    resume_run(run, training={"steps": 2}, **options).train()
    trained = load_checkpoint(run / "latest")
    assert (trained.step, trained.training["model_type"]) == (2, "mistral")
    assert exported(trained, tmp_path / "out") == "mistral"
    assert import_folder(tmp_path / "out").training["model_type"] == "mistral"
    unknown = {name: value for name, value in trained.training.items() if name != "model_type"}
    assert exported(replace(trained, training=unknown), tmp_path / "unknown") == "llama"


def test_a_family_that_can_no_longer_say_it(published, tmp_path):
    """A record of a family whose files cannot express the model gives way to the first whose files can."""
    imported = import_folder(published(**SHARED))
    assert imported.training["model_type"] == "llama"
    other = replace(imported, training=imported.training | {"model_type": "gemma2"})
    assert exported(other, tmp_path / "out") == "llama"
