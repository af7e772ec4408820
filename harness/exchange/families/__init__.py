"""Families of published models by `model_type`: what their configurations and tensors are called.

Each offers the same names: `config_from_published`, `published_config`, `published_terms`, `published_places`,
`is_buffer` and `finish`, with `title`, `prefix`, `output` and `layers_field`.
"""

from contract.config import ModelConfig
from contract.errors import UserError
from contract.schema import shortened
from harness.exchange.families import gpt2
from harness.exchange.families.decoder import Decoder
from harness.exchange.families.gemma2 import GEMMA2
from harness.exchange.families.gemma3 import GEMMA3
from harness.exchange.families.llama import LLAMA
from harness.exchange.families.mistral import MISTRAL
from harness.exchange.families.qwen2 import QWEN2
from harness.exchange.families.qwen3 import QWEN3
from harness.exchange.hub import CONFIG

_DECODERS: tuple[Decoder, ...] = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3)
FAMILIES = {"gpt2": gpt2, **{family.model_type: family for family in _DECODERS}}


def family_of(published: dict):
    """The family of a published configuration. Raises UserError for a model type that is not read."""
    kind = published.get("model_type")
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    inside = ": its text model lies in text_config, beside an image encoder" * ("text_config" in published)
    raise UserError(
        f"{CONFIG}: model_type is {shortened(kind)}{inside}; the families that can be imported are "
        f"{', '.join(FAMILIES)}"
    )


def family_for(config: ModelConfig, model_type: str | None = None):
    """The family to publish a model as: the one of `model_type` if that can express it, else the first that can.

    Raises UserError with what each family cannot express if none can.
    """
    refusals = []
    for name in dict.fromkeys([model_type, *FAMILIES]):
        if name not in FAMILIES:
            continue
        try:
            FAMILIES[name].published_terms(config)
        except UserError as error:
            refusals.append(str(error).partition(";")[0])
        else:
            return FAMILIES[name]
    raise UserError(
        f"no family of published models fits; choose --format npz or torch: {'; '.join(refusals)}"
    )
