"""Mistral, as Hugging Face publishes it: Llama with a window in all layers, or in none."""

from contract.config import ModelConfig
from harness.exchange.families.decoder import Decoder, sizes_of, windows
from harness.exchange.families.fields import Fields


def _read(fields: Fields, sizes: dict) -> dict:
    window = fields.take("sliding_window", 4096)
    return windows(("full",) if window is None else ("sliding",), window)


def _write(config: ModelConfig) -> dict:
    return {"sliding_window": config.window}


MISTRAL = Decoder(
    model_type="mistral",
    title="Mistral",
    class_name="Mistral",
    defaults=sizes_of("32000 4096 14336 32 32 8 - 131072") | {"tie_word_embeddings": False},
    read=_read,
    write=_write,
)
