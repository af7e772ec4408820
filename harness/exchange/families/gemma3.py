"""Gemma 3's text models, as Hugging Face publishes them: Gemma 2 with norms of query and key, and two rotations."""

from contract.config import ModelConfig
from contract.errors import UserError
from contract.rotary import Rotary
from contract.schema import shortened
from harness.exchange.families.decoder import Decoder, sizes_of
from harness.exchange.families.fields import Fields
from harness.exchange.families.gemma2 import BLOCK, read_gemma, write_gemma
from harness.exchange.families.rotary import read_rotary, written_rotary
from harness.exchange.hub import CONFIG


def _read(fields: Fields, sizes: dict) -> dict:
    period = fields.whole("sliding_window_pattern", 6)
    # attn_logit_softcapping, which transformers reads but does not apply, is left: only null is accepted
    pattern = ("sliding",) * (min(period, 10_000) - 1) + ("full",)
    ours = read_gemma(fields, sizes, pattern[: sizes["n_layer"]], None)
    said, scaling = fields.take("rope_parameters") or {}, fields.take("rope_scaling") or {}
    if not isinstance(said, dict) or said.keys() - {"full_attention", "sliding_attention"}:
        raise UserError(
            f"{CONFIG}: rope_parameters must have full_attention and sliding_attention, got {shortened(said)}"
        )
    full = said.get("full_attention") or {}
    if isinstance(full, dict):
        full = full | scaling if isinstance(scaling, dict) else scaling
    thetas = fields.take("rope_theta", 1e6), fields.take("rope_local_base_freq", 1e4)
    rotary = read_rotary(full, "rope_parameters.full_attention", thetas[0], sizes["context_length"])
    local = said.get("sliding_attention") or {}
    local = read_rotary(local, "rope_parameters.sliding_attention", thetas[1], sizes["context_length"])
    sliding = "sliding" in ours["layer_pattern"]
    return ours | {"rotary": rotary, "local_rotary": local if sliding and local != rotary else None}


def _write(config: ModelConfig) -> dict:
    rotary = config.rotary or Rotary()
    ropes = {"full_attention": rotary, "sliding_attention": config.local_rotary or rotary}
    ropes = {kind: written_rotary(each) for kind, each in ropes.items()}
    return write_gemma(config) | {"rope_parameters": ropes, "use_bidirectional_attention": False}


GEMMA3 = Decoder(
    model_type="gemma3_text",
    title="Gemma 3",
    class_name="Gemma3",
    defaults=sizes_of("262208 2304 9216 26 8 4 256 131072")
    | {"tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh"},
    ours=BLOCK | {"query_key_norm": "head"},
    read=_read,
    write=_write,
    whole_heads=True,
    activation_field="hidden_activation",
)
