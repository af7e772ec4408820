"""Importing GGUF files, llama.cpp's format: a model, its configuration and its tokenizer in one file."""

import json
from pathlib import Path

from data.published import PublishedTokenizer
from harness.exchange.gguf.file import open_gguf, quantisation
from harness.exchange.gguf.model import read_gguf
from harness.exchange.gguf.tokenizer import tokenizer_of
from harness.exchange.published import import_model
from harness.training.checkpoint import Checkpoint


def import_gguf(path: Path, *, note=lambda line: None, **options) -> Checkpoint:
    """The model in a file, dequantised; see `import_model` for the options and errors."""
    file = open_gguf(path)
    published = read_gguf(file)
    if line := quantisation(file):
        note(line)

    def tokenizer() -> PublishedTokenizer:
        content, settings, ends = tokenizer_of(file)
        return PublishedTokenizer(json.loads(content), settings, ends)

    return import_model(published, tokenizer, note=note, **options)
