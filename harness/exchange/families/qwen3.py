"""Qwen3, as Hugging Face publishes it: heads of a size of their own, queries and keys normed by head."""

from harness.exchange.families.decoder import Decoder, sizes_of
from harness.exchange.families.qwen2 import read_windows, write_windows

QWEN3 = Decoder(
    model_type="qwen3",
    title="Qwen3",
    class_name="Qwen3",
    defaults=sizes_of("151936 4096 22016 32 32 32 128 32768") | {"tie_word_embeddings": False},
    ours={"query_key_norm": "head"},
    read=read_windows,
    write=lambda config: write_windows(config) | {"attention_bias": False},
)
