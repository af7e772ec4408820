"""Fetching a model from the hub, of which nothing is asked here."""

import sys
from pathlib import Path

import pytest

from contract.errors import ConfigError, UserError
from harness.exchange.hub import find_source, origin
from harness.exchange.huggingface_import import import_folder
from tests.harness.published_models import (
    MODEL,
)


@pytest.fixture
def hub(monkeypatch):
    """`huggingface_hub`, and a function that sets what its `snapshot_download` does."""
    module = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub (pip install -e '.[dev]')")
    # the progress bars' switch is the process's
    monkeypatch.setattr("huggingface_hub.utils.disable_progress_bars", lambda: None)
    return lambda download: monkeypatch.setattr(module, "snapshot_download", download)


def test_fetching(hub, published):
    """A hub name is fetched, at a revision where one is given, its weights for other programs left there."""
    folder, calls = published(), []

    def download(name, *, revision, allow_patterns):
        calls.append((name, revision, allow_patterns))
        return str(folder)

    hub(download)
    assert find_source("openai-community/gpt2") == find_source("openai-community/gpt2", "v1") == folder
    (name, revision, patterns), (_, second, _) = calls
    assert (name, revision, second) == ("openai-community/gpt2", None, "v1")
    where = origin("openai-community/gpt2", folder)
    assert where == {"source": "openai-community/gpt2", "revision": folder.name}
    assert import_folder(folder, origin=where).training["source"] == "openai-community/gpt2"
    with pytest.raises(ConfigError, match="omit it"):
        find_source(str(folder), "v1")
    from huggingface_hub.utils import filter_repo_objects

    listed = [
        "config.json", "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
        "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "added_tokens.json",
        "generation_config.json", "chat_template.jinja", "special_tokens_map.json",
        "pytorch_model.bin", "tf_model.h5", "onnx/decoder.onnx", "64.tflite", "README.md",
    ]  # fmt: skip
    assert list(filter_repo_objects(listed, allow_patterns=patterns)) == listed[:12]


@pytest.mark.parametrize(
    "error", ["LocalEntryNotFoundError", "OfflineModeIsEnabled", "RepositoryNotFoundError"]
)
def test_no_network(hub, error):
    """Without a network, or without such a model, one line says so."""
    import huggingface_hub.errors

    kind = getattr(huggingface_hub.errors, error)

    def download(name, **options):
        raise kind.__new__(kind)

    hub(download)
    with pytest.raises(UserError, match="no folder nobody/nothing here, and") as raised:
        find_source("nobody/nothing")
    assert "\n" not in str(raised.value)


def test_without_the_hub_package(monkeypatch):
    """The extra to install is named."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"huggingface_hub, which is not installed.*\[hub\]"):
        find_source("gpt2")


@pytest.mark.parametrize("source", ["./absent", "/absent", "a/b/c", "../x", "", "a b", ".", "..x/y"])
def test_neither_folder_nor_name(hub, source, tmp_path, monkeypatch):
    """A path that is not there is never asked of the hub."""
    monkeypatch.chdir(tmp_path)
    hub(lambda name, **options: pytest.fail(f"the hub was asked for {name}"))
    if source in ("", "."):  # the current folder
        assert find_source(source) == Path(source)
        return
    with pytest.raises(ConfigError, match="no hub name"):
        find_source(source)


def test_a_file_is_no_source(published):
    """The weights' file in place of its folder is named."""
    with pytest.raises(ConfigError, match=r"is no \.gguf file; name the folder"):
        find_source(str(published() / MODEL))
