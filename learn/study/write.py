"""What `python cli.py study` does: from a run and a text to the page."""

import re
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from contract.errors import ConfigError, visible
from contract.files import require_free, write_file
from contract.presets import preset
from data.prepare import DEFAULT_RANKS
from data.tokenizers import Tokenizer, encode, load_ranks, token_bytes
from harness.training.checkpoint import load_checkpoint
from harness.training.lora import merged
from harness.training.run_folder import find_checkpoint
from learn.study.page import Subject, study_page
from parity.cases import lively_weights

MAX_TOKENS = (
    128  # that predict one: attention written out keeps T · T numbers a head in both twins and precisions
)


def write_study(
    out: Path, run: Path | None, text: str, *, layers: str = "", overwrite: bool = False
) -> Subject:
    """Write the study page of a run, or of the default model with random weights, over a text.

    layers: the blocks whose tensors are shown, such as "0,5,10-12"; "" for as many as fit
    Raises UserError where the run cannot be read, the text has fewer than two tokens or symbols that the
    tokenizer lacks, or the file cannot be written or is there already and `overwrite` is not set.
    """
    require_free(out, overwrite)
    subject = open_subject(run, text)
    chosen = parse_layers(layers, subject.config.n_layer) if layers else None
    # One sentence is too little work to share: on a busy machine threads that wait took 4 to 14 s for these 3.
    with threadpool_limits(1):
        page = study_page(subject, chosen)
    with write_file(out, overwrite=overwrite) as file:
        file.write(page.encode("utf-8"))
    return subject


def parse_layers(text: str, n_layer: int) -> list[int]:
    """The numbers of "0,5,10-12", in order. Raises ConfigError for what is no such list, or no block of the model."""
    spans = [re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip(), re.ASCII) for part in text.split(",")]
    ends = [(int(span[1]), int(span[2] or span[1])) for span in spans if span]
    if len(ends) < len(spans) or any(not first <= last < n_layer for first, last in ends):
        raise ConfigError(
            f"--layers {visible(text)!r} does not fit a model of {n_layer} blocks; give numbers from 0 to "
            f"{n_layer - 1} such as 0,{n_layer - 1} or 0-{min(2, n_layer - 1)}"
        )
    return sorted({layer for first, last in ends for layer in range(first, last + 1)})


def open_subject(run: Path | None, text: str) -> Subject:
    """The model and the tokens of a page."""
    if run is not None:
        folder = find_checkpoint(run)
        loaded = load_checkpoint(folder)
        checkpoint = merged(loaded)  # the derivations are those of a model without pairs
        title = f"the checkpoint {folder.name} of {folder.parent.name}, step {checkpoint.step:,}"
        title += ", its low-rank pairs merged" * (checkpoint is not loaded)
        config, weights, encoding = checkpoint.config, checkpoint.weights, checkpoint.tokenizer
    else:
        encoding = load_ranks(DEFAULT_RANKS)
        config = preset("tense", vocab_size=encoding.n_vocab)
        # At their initial values attention would be nearly even and biases 0: little to look at.
        title, weights = "the default model with random weights", lively_weights(config, 0, "float32")
    tokens = np.asarray(encode(encoding, text), np.int64)
    if len(tokens) < 2:
        raise ConfigError(
            f"--text {text!r} has {len(tokens)} tokens, and at least 2 are needed: one to see and one to "
            "predict; give a longer text"
        )
    note, most = "", min(config.context_length, MAX_TOKENS) + 1
    if len(tokens) > most:
        why = "which fill the model's context" if most <= MAX_TOKENS else "as many as a page can hold"
        note = f"the text has {len(tokens):,} tokens; the page shows the first {most}, {why}"
        tokens = tokens[:most]
        text = encoding.decode(tokens.tolist()).rstrip("\ufffd") + "…"  # the cut may go through a character
    return Subject(title, config, weights, tokens, labels(encoding), text, note)


def labels(encoding: Tokenizer) -> list[str]:
    """The text of every token: a space as "␣", whatever cannot be shown as its bytes."""
    shown = []
    for token in token_bytes(encoding):
        try:
            text = token.decode()
        except UnicodeDecodeError:
            text = ""
        if not text or not all(c == " " or c.isprintable() for c in text):
            text = "\\n" if token == b"\n" else "".join(f"\\x{byte:02x}" for byte in token)
        shown.append(text.replace(" ", "␣"))
    return shown
