"""Low-rank pairs (LoRA): begun beside the weights of a trained model, and merged into them."""

from dataclasses import replace

import numpy as np

from contract.errors import ConfigError
from contract.weights import Weights, fill_initial, weight_table
from harness.training.checkpoint import Checkpoint

FIELDS = ("lora_rank", "lora_alpha", "lora_targets")


def merged(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as a model without pairs that computes the same: W + alpha / R · B A.

    Computed in float64 and rounded once, to the weights' dtype.
    """
    config = checkpoint.config
    if config.lora_rank is None:
        return checkpoint
    plain = replace(config, **dict.fromkeys(FIELDS))
    weights = Weights.zeros(plain, next(iter(checkpoint.weights.values())).dtype)
    for name, weight in weights.items():
        weight[...] = checkpoint.weights[name]
        pair = [name.removesuffix("weight") + role for role in ("lora_a", "lora_b")]
        if pair[0] in checkpoint.weights:
            a, b = (checkpoint.weights[each].astype(np.float64) for each in pair)
            weight[...] = checkpoint.weights[name] + config.lora_scale * (b @ a)
    return replace(checkpoint, config=plain, weights=weights, optimizer=None)


def with_pairs(checkpoint: Checkpoint, fields: dict, seed: int) -> Checkpoint:
    """The checkpoint with new pairs, which add nothing yet; those that it has are merged first.

    fields: values for `FIELDS`; without any the checkpoint stays as it is, and a rank of 0 is for no pairs
    seed: what A is drawn from
    Raises ConfigError for fields without a rank, or that do not fit.
    """
    if not fields:
        return checkpoint
    if fields.get("lora_rank") is None:
        name = next(iter(fields)).replace("_", "-")
        raise ConfigError(f"--{name} is of new low-rank pairs; give --lora-rank too, 8 for instance")
    checkpoint = merged(checkpoint)
    config = replace(checkpoint.config, **fields | {"lora_rank": fields["lora_rank"] or None})
    weights = Weights.zeros(config, next(iter(checkpoint.weights.values())).dtype)
    for name, spec in weight_table(config).items():
        if name in checkpoint.weights:
            weights[name][...] = checkpoint.weights[name]
        else:
            fill_initial(weights[name], name, spec, seed)
    return replace(checkpoint, config=config, weights=weights)
