"""`import`, `export`, `train --from` and `evaluate --stride`, as a person uses them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from contract.config import ModelConfig
from contract.errors import UserError
from contract.weights import initial_weights
from data.prepare import DEFAULT_RANKS, DEFAULT_TEXT
from data.tokenizers import encode, encoding_of, load_ranks
from harness.exchange.export import export
from harness.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from harness.training.runs import open_model

ROOT = Path(__file__).parents[2]
CONFIG = ModelConfig(
    vocab_size=768,
    context_length=16,
    n_layer=1,
    n_head=2,
    d_model=12,
    d_ff=10,
    activation="gelu_tanh",
    position="learned",
)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as Hugging Face publishes it."""
    folder = tmp_path_factory.mktemp("published") / "model"
    weights = initial_weights(CONFIG, 2, "float32")
    export(Checkpoint(CONFIG, weights, load_ranks(DEFAULT_RANKS)), "huggingface", folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(DEFAULT_TEXT.read_text(encoding="utf-8")[:8000], encoding="utf-8")
    return path


@pytest.fixture
def fail(run_cli):
    """A function that runs what must fail with this exit code; its one line of complaint."""

    def run(code, *arguments):
        found, out, err = run_cli(*arguments)
        assert found == code, err
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return run


@pytest.fixture
def imported(succeed, published, tmp_path):
    run = tmp_path / "imported"
    succeed("import", published, "--out", run)
    return run


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_import_gives_a_run_that_every_command_takes(succeed, imported, published, text, tmp_path):
    """generate, evaluate and info work on it, from a moved folder and without the published one."""
    moved = imported.rename(tmp_path / "moved")
    info = json.loads(succeed("info", moved, "--json")[0])
    assert info["model"] == CONFIG.to_dict()
    assert info["training"] == {"dtype": "float32", "source": "model", "model_type": "gpt2"}
    out, _ = succeed("generate", moved, "--prompt", "The baby", "--max-new-tokens", "8", "--temperature", "0")
    assert out.startswith("The baby")
    result = json.loads(succeed("evaluate", moved, "--text", text, "--json")[0])
    assert result["tokens"] == len(encode(load_ranks(DEFAULT_RANKS), text.read_text(encoding="utf-8"))) - 1
    assert result["perplexity"] == pytest.approx(768, rel=0.2)  # nothing learnt: every token as likely


def test_stride_is_seen(succeed, fail, imported, text):
    """--stride changes what is measured, up to the context length, which is the default."""
    plain = succeed("evaluate", imported, "--text", text, "--json")[0]
    assert succeed("evaluate", imported, "--text", text, "--json", "--stride", "16")[0] == plain
    narrow = succeed("evaluate", imported, "--text", text, "--json", "--stride", "4")[0]
    plain, narrow = json.loads(plain), json.loads(narrow)
    assert narrow["tokens"] == plain["tokens"]
    assert narrow["nats_per_token"] != plain["nats_per_token"]
    for stride in (0, 17, -1):
        assert "length of a sequence) must be a whole number from 1 to 16" in fail(
            2, "evaluate", imported, "--text", text, "--stride", stride
        )


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_fine_tuning(succeed, imported, text, tmp_path, backend):
    """`train --from` starts from the weights, keeps model and tokenizer, and can be resumed."""
    if backend == "torch":
        pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
    run = tmp_path / "tuned"
    before = load_checkpoint(imported / "latest")
    flags = ("--text", text, "--out", run, "--backend", backend, "--warmup-steps", "0", "--dropout", "0.25")
    succeed("train", "--from", imported, "--steps", "1", "--learning-rate", "1e-4", *flags)
    tuned = load_checkpoint(run / "latest")
    assert tuned.config == ModelConfig(**CONFIG.to_dict() | {"dropout": 0.25})
    assert tuned.training["from"] == "imported"
    assert tuned.training["batch_size"] == 4
    assert tuned.training["min_learning_rate"] == 1e-5
    moved = max(np.abs(tuned.weights[name] - before.weights[name]).max() for name in before.weights)
    assert 0 < moved < 2e-4  # Adam's first step is the learning rate, from these very weights
    succeed("train", "--resume", "--out", run, "--steps", "2", "--backend", backend)
    resumed = load_checkpoint(run / "latest")
    assert (resumed.step, resumed.training["from"], resumed.config) == (2, "imported", tuned.config)
    for path, content in files_of(imported).items():
        assert (imported / path).read_bytes() == content


def test_fine_tuning_on_a_token_file(succeed, fail, imported, text, tmp_path):
    """A token file serves where the model's own tokenizer made it, and is refused otherwise."""
    for tokenizer, name in ((DEFAULT_RANKS, "right.bin"), ("bytes", "wrong.bin")):
        succeed("prepare", text, "--tokenizer", tokenizer, "--out", tmp_path / name)
    run = tmp_path / "tuned"
    succeed("train", "--from", imported, "--text", tmp_path / "right.bin", "--steps", "1", "--out", run)
    assert load_checkpoint(run / "latest").config == CONFIG
    error = fail(1, "train", "--from", imported, "--text", tmp_path / "wrong.bin", "--out", tmp_path / "no")
    assert "made by another tokenizer" in error
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--n-layer 2", "--n-layer 2 contradicts --from"),
        ("--n-head 3", "--n-head 3"),
        ("--d-model 24", "--d-model 24"),
        ("--d-ff 11", "--d-ff 11"),
        ("--context-length 32", "--context-length 32"),
        ("--activation relu", "--activation relu"),
        ("--position sinusoidal", "--position sinusoidal"),
        ("--preset nano", "--preset does not go with --from"),
        ("--tokenizer bytes", "--tokenizer does not go with --from"),
        ("--resume", "--from does not go with --resume"),
        ("--dropout 1", "dropout"),
    ],
)
def test_flags_that_contradict_the_weights(fail, imported, text, tmp_path, flags, words):
    """A flag that asks for another model than the weights' is refused by its name; nothing is written."""
    run = tmp_path / "tuned"
    error = fail(2, "train", "--from", imported, "--text", text, "--out", run, *flags.split())
    assert words in error
    assert not run.exists()


def test_flags_that_agree_with_the_weights(succeed, imported, text, tmp_path):
    """Saying again what the weights are is no contradiction."""
    flags = ["--n-layer", "1", "--d-ff", "10", "--context-length", "16", "--steps", "1"]
    succeed("train", "--from", imported, "--text", text, "--out", tmp_path / "tuned", *flags)
    assert load_checkpoint(tmp_path / "tuned" / "latest").config == CONFIG


def test_import_overwrites_only_when_told(succeed, fail, imported, published):
    """A run is replaced with --overwrite alone, and stays when the import fails."""
    before = files_of(imported)
    assert "already holds a run" in fail(1, "import", published, "--out", imported)
    assert "dropout" in fail(1, "import", published, "--out", imported, "--overwrite", "--dropout", "2")
    assert files_of(imported) == before
    succeed("import", published, "--out", imported, "--overwrite", "--dropout", "0.5")
    assert load_checkpoint(imported / "latest").config.dropout == 0.5


def test_a_failing_import_writes_nothing(fail, published, tmp_path):
    """A model that is refused leaves no trace, whatever was wrong with it."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in published.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.ln_f.bias"][3] = np.nan
    save_file(tensors, folder / "model.safetensors")
    assert "ln_f.bias holds nan" in fail(1, "import", folder, "--out", tmp_path / "run")
    (folder / "model.safetensors").write_bytes(b"\x80\x04N.")
    assert "model.safetensors cannot be read" in fail(1, "import", folder, "--out", tmp_path / "run")
    assert "no hub name" in fail(2, "import", tmp_path / "absent", "--out", tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged"]


# --- export ---


def test_export_and_import_give_the_same_bits(succeed, imported, tmp_path):
    """Out to Hugging Face's layout and in again: the weights' file is the same, byte for byte."""
    succeed("export", imported, "--format", "huggingface", "--out", tmp_path / "out")
    succeed("import", tmp_path / "out", "--out", tmp_path / "again")
    again, original = (run / "latest" / "model.safetensors" for run in (tmp_path / "again", imported))
    assert again.read_bytes() == original.read_bytes()


def test_export_torch(succeed, imported, tmp_path):
    """A `state_dict` that is read without running code, and that the twin loads strictly."""
    torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
    from torch_llm import GPT

    succeed("export", imported, "--format", "torch", "--out", tmp_path / "out")
    state = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    config = ModelConfig.from_dict(json.loads((tmp_path / "out" / "config.json").read_text()))
    model = GPT(config, seed=9)
    model.load_state_dict(state, strict=True)
    tokens = np.arange(10)[None] * 7
    backend, _ = open_model(imported)
    expected, _, _ = backend.model.forward(tokens)
    np.testing.assert_allclose(model(torch.tensor(tokens))[0].detach().numpy(), expected, atol=1e-5)


def test_export_npz(succeed, imported, tmp_path):
    """Arrays under the same names, without a pickle, with configuration and ranks beside."""
    succeed("export", imported, "--format", "npz", "--out", tmp_path / "out")
    checkpoint = load_checkpoint(imported / "latest")
    with np.load(tmp_path / "out" / "model.npz", allow_pickle=False) as arrays:
        assert set(arrays) == set(checkpoint.weights)
        for name, value in checkpoint.weights.items():
            np.testing.assert_array_equal(arrays[name], value, strict=True)
    assert ModelConfig.from_dict(json.loads((tmp_path / "out" / "config.json").read_text())) == CONFIG
    ranks = load_ranks(tmp_path / "out" / "tokenizer.tiktoken")
    assert encode(ranks, "The baby is").tolist() == encode(checkpoint.tokenizer, "The baby is").tolist()


@pytest.mark.parametrize("format", ["huggingface", "torch", "npz"])
def test_export_overwrites_only_an_export(succeed, fail, imported, tmp_path, format):
    """An export is replaced when told, whole; a folder with anything else in it never is."""
    if format == "torch":
        pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
    out = tmp_path / "out"
    arguments = ("export", imported, "--format", format, "--out", out)
    out.mkdir()  # an empty folder is no loss
    succeed(*arguments)
    written = files_of(out)
    assert "replace an earlier export with --overwrite" in fail(1, *arguments)
    succeed(*arguments, "--overwrite")
    assert files_of(out).keys() == written.keys()
    (out / "config.json").write_text("{}")
    assert "holds config.json, which was changed since it was exported" in fail(1, *arguments, "--overwrite")
    (out / "config.json").write_bytes(written[Path("config.json")])
    (out / "notes.txt").write_text("mine")
    assert "notes.txt" in fail(1, *arguments, "--overwrite")
    assert (out / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imported", "out"]
    (tmp_path / "file").write_text("mine")
    assert "is a file" in fail(1, "export", imported, "--format", format, "--out", tmp_path / "file")


def test_a_failing_export_leaves_no_trace(fail, tmp_path):
    """Ranks that no merges express are refused with a way out, and an earlier export stays."""
    tokenizer = encoding_of("ranks", [b"a", b"b", b"c", b"abc"])
    config = ModelConfig(**CONFIG.to_dict() | {"vocab_size": 4})
    save_checkpoint(tmp_path / "run", Checkpoint(config, initial_weights(config, 0, "float32"), tokenizer))
    export(load_checkpoint(tmp_path / "run"), "npz", tmp_path / "out")
    before = files_of(tmp_path / "out")
    error = fail(
        1, "export", tmp_path / "run", "--format", "huggingface", "--out", tmp_path / "out", "--overwrite"
    )
    assert "export to torch or npz" in error
    assert files_of(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    assert "choose huggingface, torch, npz" in fail(
        2, "export", tmp_path / "run", "--format", "onnx", "--out", tmp_path / "new"
    )


def test_an_interrupted_rename_keeps_the_earlier_export(imported, tmp_path, monkeypatch):
    """Where the new folder cannot take its place, the old one takes it again."""
    checkpoint, out = load_checkpoint(imported / "latest"), tmp_path / "out"
    export(checkpoint, "npz", out)
    before, replace = files_of(out), os.replace

    def refuse(path, target):
        if Path(path).parent.name == "go" and Path(target) == out / "model.npz":
            raise PermissionError(13, "Permission denied", str(target))
        return replace(path, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        export(checkpoint, "npz", out, overwrite=True)
    assert files_of(out) == before


def test_import_needs_neither_torch_nor_transformers(published, tmp_path):
    """Import, use and export in NumPy alone load no library that they do not need."""
    program = (
        "import sys, cli\n"
        "source, run, out = sys.argv[1:]\n"
        "for arguments in (['import', source, '--out', run], ['generate', run, '--max-new-tokens', '2'],\n"
        "                  ['export', run, '--format', 'huggingface', '--out', out]):\n"
        "    sys.argv[1:] = arguments\n"
        "    assert cli.main() == 0\n"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
    )
    arguments = [sys.executable, "-c", program, published, tmp_path / "run", tmp_path / "out"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_published_model_is_no_run(fail, succeed, published, tmp_path, monkeypatch):
    """Who generates from a published folder is told the command that imports it, which works; so for a hub's name."""
    monkeypatch.chdir(tmp_path)
    for source in (published, Path("openai-community/gpt2")):
        error = fail(1, "generate", source, "--prompt", "A")
        name = source.name
        assert f"import it first: python cli.py import {source} --out runs/{name}" in error
    succeed("import", published, "--out", "runs/model")
    succeed("generate", "runs/model", "--prompt", "The", "--max-new-tokens", "2")
    error = fail(1, "import", published, "--out", "runs/model")
    assert "already holds a run; replace it with --overwrite" in error
    assert "--resume" not in error
    succeed("import", published, "--out", "runs/model", "--overwrite")


def test_a_configuration_that_claims_more_layers_than_its_file(fail, published, tmp_path):
    """Thousands of layers beside the weights of one are refused at once."""
    folder = tmp_path / "model"
    shutil.copytree(published, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 9999}))
    assert "says n_layer 9,999, but the weights are" in fail(1, "import", folder, "--out", tmp_path / "run")
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 10**6}))
    assert "n_layer must be at most" in fail(1, "import", folder, "--out", tmp_path / "run")
