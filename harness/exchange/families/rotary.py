"""Rotary settings as published: `rope_parameters`, or `rope_theta` beside `rope_scaling`, to and from `Rotary`."""

from contract.errors import ConfigError, UserError
from contract.rotary import Rotary
from contract.schema import shortened
from harness.exchange.families.fields import Fields
from harness.exchange.hub import CONFIG

_SCALINGS = {"default": "none", "linear": "linear", "llama3": "llama3"}
_FIELDS = {
    "factor": "factor",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "original_max_position_embeddings": "original_context_length",
}
_READ = {"none": 0, "linear": 1, "llama3": 4}  # how many of them a scaling reads


def take_rotary(fields: Fields, context_length: int) -> Rotary:
    """One rotation for all layers. As in `transformers`, `rope_scaling` wins over `rope_parameters`."""
    scaling, new = fields.take("rope_scaling"), fields.take("rope_parameters")
    theta, partial = fields.take("rope_theta", 10_000.0), fields.take("partial_rotary_factor", 1.0)
    name = "rope_scaling" if scaling else "rope_parameters"
    return read_rotary(scaling or new or {}, name, theta, context_length, partial)


def read_rotary(said, name: str, theta, context_length: int, partial=1.0) -> Rotary:
    """The rotation that an object describes.

    name: of the object, for messages; theta, partial: where it does not say them; context_length: what `llama3`
    stretches, where it does not say that
    Raises UserError for a scaling that is not computed here.
    """
    if not isinstance(said, dict):
        raise UserError(f"{CONFIG}: {name} must be an object, got {shortened(said)}")
    said = dict(said)
    kind = said.pop("type", None)
    kind = said.pop("rope_type", kind or "default")
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise UserError(
            f"{CONFIG}: {name} has rope_type {shortened(kind)}; this project computes {', '.join(_SCALINGS)}"
        )
    partial = said.pop("partial_rotary_factor", partial)
    if partial not in (None, 1):
        raise UserError(
            f"{CONFIG}: partial_rotary_factor is {shortened(partial)}; this project turns whole heads"
        )
    ours = {"theta": said.pop("rope_theta", theta), "scaling": _SCALINGS[kind]}
    for place, (theirs, our) in enumerate(_FIELDS.items()):
        value = said.pop(theirs, context_length if our == "original_context_length" else None)
        if place < _READ[ours["scaling"]]:
            ours[our] = value
    if unknown := [key for key, value in said.items() if value]:
        raise UserError(f"{CONFIG}: {name} has an unknown {unknown[0]} {shortened(said[unknown[0]])}")
    try:
        return Rotary(**ours)
    except ConfigError as error:
        raise UserError(f"{CONFIG}: {name}: {error}") from None


def written_rotary(rotary: Rotary) -> dict:
    kind = next(theirs for theirs, ours in _SCALINGS.items() if ours == rotary.scaling)
    read = list(_FIELDS.items())[: _READ[rotary.scaling]]
    numbers = {theirs: getattr(rotary, ours) for theirs, ours in read}
    return {"rope_type": kind, "rope_theta": rotary.theta, **numbers}
