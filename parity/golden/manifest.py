"""What a golden pack says about its tensors: origin, layout, limits."""

from hashlib import sha256

import numpy as np

from contract.components import Weight, letters, rows
from contract.config import ModelConfig
from contract.numbers import magnitude
from contract.weights import weight_table
from operations.adamw import STEPS
from parity.golden.origins import CONTINUATIONS, LOSS, NORM, STEP_LOSS, Origin, given_names, pass_origins
from parity.golden.rounding import float32_limit
from parity.tolerances import limit

FORMAT = "golden-1"

_GIVEN = {"tokens": "batch, time", "targets": "batch, time", "positions": "place, channel"}
_AXES = {
    "B": "batch", "T": "time", "C": "channel", "F": "hidden", "V": "vocabulary", "P": "place",
    "H": "head", "K": "head", "D": "channel of the head",
}  # fmt: skip
_ROWS = {"(H+2K)·D": "out (query then key then value; each head after head)"}
_CONTINUED = {
    "prompt": "token",
    "draws": "new token",
    "logits": "new token, vocabulary",
    "tokens": "new token",
}


def layout(name: str, config: ModelConfig) -> str:
    """What the axes of a tensor mean, outermost first; the last varies fastest in memory."""
    group, _, rest = name.partition(".")
    if group in ("greedy", "sampled"):
        return _CONTINUED[rest]
    if group == "gradient":
        return layout(rest, config)
    if group == "adamw":
        weight = rest.partition(".")[2]
        return f"step, {layout(weight, config)}" if weight else "step"
    if name in _GIVEN:
        return _GIVEN[name]
    axes, row = letters(config, name), rows(config)[name]
    if isinstance(row, Weight) and row.linear:
        words = [_ROWS.get(axes[0], "out"), "in"][: len(axes)]
    elif "S" in axes:
        words = ["batch", "head", "query", "key"]
    else:
        words = [_AXES[letter] for letter in axes]
    return ", ".join(words) or "a number, nats per token"


def quantity(name: str, config: ModelConfig) -> str:
    """Which of `parity.tolerances.LIMITS` a tensor is held to."""
    group, _, rest = name.partition(".")
    if group == "adamw":
        return "golden steps"
    if group == "gradient":
        return "weight gradient" if isinstance(rows(config)[rest], Weight) else "gradient"
    return "activation"


def origins(config: ModelConfig, names) -> dict[str, Origin | None]:
    """What made each tensor of a pack, all steps of AdamW together, in dataflow order; None for what it starts from."""
    order = dict.fromkeys(given_names(config)) | pass_origins(config)[1]
    order["adamw.learning_rate"] = None
    weights = ["adamw.weights.* of the step before"]
    order["adamw.loss"] = Origin(LOSS, STEP_LOSS, weights)
    order["adamw.gradient_norm"] = Origin(NORM, STEPS[NORM].equation, weights)
    for kind, title in (("m", "AdamW mean"), ("v", "AdamW mean square"), ("weights", "AdamW weight")):
        for name in weight_table(config):
            inputs = [f"gradient.{name}", "adamw.gradient_norm"]
            if kind == "weights":
                inputs = [f"adamw.m.{name}", f"adamw.v.{name}", "adamw.learning_rate"]
            inputs.append(f"adamw.{kind}.{name} of the step before")
            order[f"adamw.{kind}.{name}"] = Origin(title, STEPS[title].equation, inputs)
    order |= dict.fromkeys(("greedy.prompt", "sampled.prompt", "sampled.draws")) | CONTINUATIONS
    return {name: origin for name, origin in order.items() if name in names}


def manifest(
    name: str,
    config: ModelConfig,
    seed: int,
    adamw: dict,
    sampling: dict,
    tensors: dict,
    strays: dict,
    coarse: dict[str, dict[str, float]],
) -> dict:
    """The record that describes a pack, ready for JSON, its tensors in dataflow order.

    strays: by name, how far honest float32 is from a tensor; coarse: the limits of each type in 16 bits, by name
    """
    known = origins(config, tensors)
    described, scale = [], 0.0
    for each, origin in known.items():
        # A tensor of zeros is a difference of terms that cancel: its error is relative to the tensor before it.
        scale = magnitude(tensors[each]) or scale
        row = _row(each, tensors[each], origin, config, scale)
        row["float32"] = float32_limit(row["float32"], strays.get(each, 0.0))
        described.append(row | {kind: limits[each] for kind, limits in coarse.items() if each in limits})
    return {
        "format": FORMAT,
        "name": name,
        "about": "reference values of numpy_llm in float64; weights are float32 numbers; little-endian, C order; "
        "an error is |yours - golden| / scale, at most the tolerance of your precision; sha256 has 16 digits; "
        "adamw.* has a row for each step, all on the same batch; no dropout",
        "config": config.to_dict(),
        "seed": seed,
        "adamw": adamw,
        "sampling": sampling,
        "operations": {origin.title: origin.equation for origin in known.values() if origin},
        "tensors": described,
    }


def _row(name: str, tensor: np.ndarray, origin: Origin | None, config: ModelConfig, scale: float) -> dict:
    exact, kind = tensor.dtype.kind == "i", quantity(name, config)
    return {
        "name": name,
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype),
        "layout": layout(name, config),
        "operation": origin.title if origin else "given",
        "inputs": origin.inputs if origin else [],
        "float32": 0.0 if exact else limit(kind, "float32"),
        "float64": 0.0 if exact else limit(kind, "float64"),
        "scale": scale,
        "sha256": digest(tensor),
    }


def digest(tensor: np.ndarray) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a tensor's little-endian bytes in C order."""
    return sha256(tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()).hexdigest()[:16]
