"""Gemma 2, as Hugging Face publishes it: norms of 1 + w on both sides of each branch, soft caps, sliding layers."""

from contract.config import ModelConfig
from contract.errors import UserError
from contract.schema import shortened
from harness.exchange.families.decoder import Decoder, layer_types, sizes_of, windows
from harness.exchange.families.fields import Fields
from harness.exchange.hub import CONFIG

BLOCK = {"norm": "rms_norm_plus_one", "block": "sandwich"}


def read_gemma(fields: Fields, sizes: dict, pattern: tuple[str, ...], logit_cap: float | None) -> dict:
    """What Gemma 2 and 3 share; pattern: of the layers where the file does not list them; logit_cap: the default."""
    fields.take("hidden_act")  # a leftover of Gemma 1, which these classes do not read
    scalar = fields.take("query_pre_attn_scalar", 256)
    if type(scalar) not in (int, float) or not 0 < scalar < 1e30:
        raise UserError(f"{CONFIG}: query_pre_attn_scalar must be a number above 0, got {shortened(scalar)}")
    return {
        "attention_scale": scalar**-0.5,
        "logit_cap": fields.take("final_logit_softcapping", logit_cap),
        "embedding_scale": sizes["d_model"] ** 0.5,
        **windows(fields.layers(sizes["n_layer"], pattern), fields.take("sliding_window", 4096)),
    }


def write_gemma(config: ModelConfig) -> dict:
    """The same fields of a configuration."""
    return {
        "query_pre_attn_scalar": round(config.score_scale**-2),
        "attn_logit_softcapping": config.score_cap,
        "final_logit_softcapping": config.logit_cap,
        # transformers asks for a window even where no layer slides
        "sliding_window": config.window or config.context_length,
        "layer_types": layer_types(config),
        "attention_bias": False,
    }


GEMMA2 = Decoder(
    model_type="gemma2",
    title="Gemma 2",
    class_name="Gemma2",
    defaults=sizes_of("256000 2304 9216 26 8 4 256 8192")
    | {"tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh"},
    ours=BLOCK,
    read=lambda fields, sizes: (
        read_gemma(fields, sizes, ("sliding", "full")[: sizes["n_layer"]], 30.0)
        | {"score_cap": fields.take("attn_logit_softcapping", 50.0)}
    ),
    write=write_gemma,
    whole_heads=True,
    activation_field="hidden_activation",
)
