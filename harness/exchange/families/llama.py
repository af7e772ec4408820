"""Llama (2, 3, SmolLM2 and many others), as Hugging Face publishes it."""

from contract.config import ModelConfig
from contract.errors import UserError
from contract.schema import shortened
from harness.exchange.families.decoder import Decoder, sizes_of
from harness.exchange.families.fields import Fields
from harness.exchange.hub import CONFIG


def _read(fields: Fields, sizes: dict) -> dict:
    attention, mlp = fields.take("attention_bias", False), fields.take("mlp_bias", False)
    if attention != mlp:
        raise UserError(
            f"{CONFIG}: attention_bias is {shortened(attention)} and mlp_bias {shortened(mlp)}; this project has "
            "models with both or neither"
        )
    return {"bias": attention}


def _write(config: ModelConfig) -> dict:
    return {"attention_bias": config.bias, "mlp_bias": config.bias}


LLAMA = Decoder(
    model_type="llama",
    title="Llama",
    class_name="Llama",
    defaults=sizes_of("32000 4096 11008 32 32 - - 2048") | {"tie_word_embeddings": False},
    read=_read,
    write=_write,
    whole_heads=True,
)
