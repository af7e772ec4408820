"""Steps that need a derivation on paper: cross-entropy, the layer norm and GELU."""

from itertools import combinations
from math import erf, pi

import numpy as np

from exercises.elementary import named
from exercises.exercise import Exercise, Mistake, Trial
from numpy_llm import layers

# Cross-entropy


def _draw_cross_entropy(random, sizes):
    B, T, V = (sizes[letter] for letter in "BTV")
    return {"logits": random.normal(size=(B, T, V)), "targets": random.integers(V, size=(B, T))}


def _cross_entropy_parts(trial: Trial):
    """returns: softmax of the logits, one-hot targets, and dloss over the number of tokens"""
    logits, targets = trial.inputs["logits"], trial.inputs["targets"]
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities, np.eye(logits.shape[-1])[targets], trial.dy / targets.size


def _cross_entropy_terms(trial: Trial):
    probabilities, onehot, scale = _cross_entropy_parts(trial)
    return {
        "dlogits": {
            "softmax(logits), the path through log Σ exp,": probabilities * scale,
            "the one-hot target, the path through logits[target],": -onehot * scale,
        }
    }


def _targets_in_every_row(trial: Trial):
    """What `dlogits[:, targets] -= 1` on rows does: each row loses the targets of all rows."""
    probabilities, onehot, scale = _cross_entropy_parts(trial)
    named_somewhere = onehot.reshape(-1, onehot.shape[-1]).any(axis=0)
    return {"dlogits": (probabilities - named_somewhere) * scale}


def _target_unscaled(trial: Trial):
    probabilities, onehot, scale = _cross_entropy_parts(trial)
    return {"dlogits": probabilities * scale - onehot}


CROSS_ENTROPY = Exercise(
    "cross-entropy",
    "cross-entropy: why softmax and logarithm belong together",
    _draw_cross_entropy,
    layers.cross_entropy_forward,
    named(layers.cross_entropy_backward, "dlogits"),
    hints=(
        "For one token the loss is log Σ_v exp(z[v]) - z[target]. Differentiate the two parts by z[v].",
        "The first part gives softmax(z)[v]; the second gives -1 where v is the target and 0 elsewhere.",
        "The loss is the mean over all B·T tokens, and what comes back is dloss, not 1.",
    ),
    terms=_cross_entropy_terms,
    mistakes=(
        Mistake(
            _targets_in_every_row,
            "1 is subtracted at every token's target in every row; row n loses 1 at its own target alone: "
            "[np.arange(N), targets]",
        ),
        Mistake(
            _target_unscaled,
            "1 is subtracted after dloss and the mean have been put in; they scale the whole of softmax minus one-hot",
        ),
    ),
    withheld=("cross_entropy_backward",),
)


# Layer norm


def _draw_layer_norm(random, sizes):
    B, T, C = (sizes[letter] for letter in "BTC")
    return {
        "x": random.normal(1.0, 2.0, size=(B, T, C)),
        "weight": random.normal(1.0, 0.5, size=C),
        "bias": random.normal(size=C),
        "eps": 1e-5,
    }


def _layer_norm_parts(trial: Trial):
    """returns: normal, inverse_deviation, dnormal"""
    x = trial.inputs["x"]
    inverse_deviation = 1 / np.sqrt(x.var(axis=-1, keepdims=True) + trial.inputs["eps"])
    normal = (x - x.mean(axis=-1, keepdims=True)) * inverse_deviation
    return normal, inverse_deviation, trial.dy * trial.inputs["weight"]


LAYER_NORM_PATHS = ("the value itself", "the path through the mean", "the path through the deviation")


def _layer_norm_terms(trial: Trial):
    normal, s, dnormal = _layer_norm_parts(trial)
    values = (
        s * dnormal,
        np.broadcast_to(-s * dnormal.mean(-1, keepdims=True), normal.shape),
        -s * normal * (dnormal * normal).mean(-1, keepdims=True),
    )
    return {"dx": dict(zip(LAYER_NORM_PATHS, values, strict=True))}


def _unweighted_terms(trial: Trial):
    """The terms of dx with dy in the place of dnormal."""
    return _layer_norm_terms(trial._replace(inputs=trial.inputs | {"weight": 1.0}))["dx"]


def _without_weight(trial: Trial):
    return {"dx": sum(_unweighted_terms(trial).values())}


def _weight_last(trial: Trial):
    return {"dx": _without_weight(trial)["dx"] * trial.inputs["weight"]}


def _unweighted(*names: str) -> Mistake:
    """The mistake of taking dy in these terms, and dnormal in the others."""

    def wrong(trial: Trial):
        bare = _unweighted_terms(trial)
        return {"dx": sum((_layer_norm_terms(trial)["dx"] | {name: bare[name] for name in names}).values())}

    verb = "takes" if len(names) == 1 else "take"
    return Mistake(
        wrong, f"{' and '.join(names)} {verb} dy where dnormal is meant: dnormal = dy · weight, in every term"
    )


def _without_deviation(trial: Trial):
    _, s, _ = _layer_norm_parts(trial)
    return {"dx": sum(_layer_norm_terms(trial)["dx"].values()) / s}


def _sums_for_means(trial: Trial):
    itself, mean, deviation = _layer_norm_terms(trial)["dx"].values()
    return {"dx": itself + (mean + deviation) * trial.sizes["C"]}


def _weight_by_centred(trial: Trial):
    normal, s, _ = _layer_norm_parts(trial)
    return {"dweight": (trial.dy * normal / s).sum(axis=(0, 1))}


def _means_over(axis):
    """Means over another axis than the channels, or over all (None)."""

    def wrong(trial: Trial):
        normal, s, dnormal = _layer_norm_parts(trial)
        mean, correlation = (each.mean(axis, keepdims=True) for each in (dnormal, dnormal * normal))
        return {"dx": s * (dnormal - mean - normal * correlation)}

    return wrong


def _deviation_twice(trial: Trial):
    _, s, _ = _layer_norm_parts(trial)
    return {"dx": sum(_layer_norm_terms(trial)["dx"].values()) * s}


def _without_normal(trial: Trial):
    normal, s, dnormal = _layer_norm_parts(trial)
    itself, mean, _ = _layer_norm_terms(trial)["dx"].values()
    return {"dx": itself + mean - s * (dnormal * normal).mean(-1, keepdims=True)}


LAYER_NORM = Exercise(
    "layer-norm",
    "the layer norm: one input, three paths",
    _draw_layer_norm,
    layers.layer_norm_forward,
    named(layers.layer_norm_backward, "dx", "dweight", "dbias"),
    hints=(
        "Begin at the end: y = normal · weight + bias gives dnormal, dweight and dbias in a line each.",
        "x[j] moves normal[i] in three ways: as the value itself (i = j), through the mean, through the deviation.",
        "∂normal[i]/∂x[j] = s (δ[i, j] - 1/C - normal[i] normal[j] / C) with s = inverse_deviation.",
        "Multiply by dnormal[i] and sum over i: two means over the channels of a token come out of it.",
    ),
    terms=_layer_norm_terms,
    mistakes=(
        Mistake(
            _without_weight,
            "weight is left out: y = normal · weight + bias, so what reaches normal is dy · weight, not dy",
        ),
        Mistake(
            _weight_last,
            "weight is multiplied last; it differs from channel to channel, so no mean over the channels may come "
            "before it: begin with dnormal = dy · weight",
        ),
        *(_unweighted(*names) for count in (1, 2) for names in combinations(LAYER_NORM_PATHS, count)),
        Mistake(
            _without_deviation,
            "the factor inverse_deviation is left out: normal = (x - mean) · inverse_deviation, so every path to x "
            "passes it",
        ),
        Mistake(
            _sums_for_means,
            "you sum over the channels where the mean is meant: mean and variance have a factor 1/C",
        ),
        Mistake(
            _means_over(None),
            "your means run over the whole array; each token has its own mean and deviation: axis=-1, keepdims=True",
        ),
        Mistake(
            _means_over(0),
            "your means run over the batch; each token has its own mean and deviation, over its channels: axis=-1",
        ),
        Mistake(
            _deviation_twice,
            "the factor inverse_deviation counts twice; normal already holds it, so every path has it only once more",
        ),
        Mistake(
            _without_normal,
            "the path through the deviation lacks a factor: mean(dnormal · normal) is multiplied by normal once more, "
            "for each channel moves the deviation by its own normal",
        ),
        Mistake(
            _weight_by_centred,
            "dy is multiplied by x - mean; weight was multiplied with normal, which is divided by the deviation too",
        ),
    ),
    withheld=("layer_norm_backward",),
)


# GELU

SLOPE, CUBIC = (2 / pi) ** 0.5, 0.044715


def _gelu_parts(trial: Trial):
    """returns: x, tanh(u), du/dx"""
    x = trial.inputs["x"]
    return x, np.tanh(SLOPE * (x + CUBIC * x**3)), SLOPE * (1 + 3 * CUBIC * x**2)


def _gelu_terms(trial: Trial):
    x, tanh, du = _gelu_parts(trial)
    return {
        "dx": {
            "the path through the factor x/2": trial.dy * (1 + tanh) / 2,
            "the path through tanh(u)": trial.dy * x / 2 * (1 - tanh**2) * du,
        }
    }


def _gelu_with(slope_of_tanh=None, du=None):
    """The wrong derivative that comes of another slope of tanh or another du/dx."""

    def wrong(trial: Trial):
        x, tanh, right_du = _gelu_parts(trial)
        inner = slope_of_tanh(tanh) if slope_of_tanh else 1 - tanh**2
        outer = du(x) if du else right_du
        return {"dx": trial.dy * ((1 + tanh) / 2 + x / 2 * inner * outer)}

    return wrong


def _gelu_by_erf(trial: Trial):
    x = trial.inputs["x"]
    below = (1 + np.vectorize(erf)(x / 2**0.5)) / 2
    return {"dx": trial.dy * (below + x * np.exp(-(x**2) / 2) / (2 * pi) ** 0.5)}


GELU = Exercise(
    "gelu",
    "GELU in its tanh form: product rule and chain rule",
    lambda random, sizes: {"x": 2 * random.normal(size=(sizes["B"], sizes["T"], sizes["C"]))},
    layers.gelu_forward,
    named(layers.gelu_backward, "dx"),
    hints=(
        "y = x/2 · (1 + tanh(u)) is a product: differentiate one factor, then the other, and add.",
        "The slope of tanh(u) is 1 - tanh²(u), times du/dx.",
        "u = √(2/π) (x + 0.044715 x³), so du/dx = √(2/π) (1 + 3 · 0.044715 x²).",
    ),
    terms=_gelu_terms,
    mistakes=(
        Mistake(
            _gelu_with(du=lambda x: SLOPE * (1 + CUBIC * x**2)),
            "the 3 of the cube is lost: x³ has the slope 3x², so du/dx = √(2/π) (1 + 3 · 0.044715 x²)",
        ),
        Mistake(
            _gelu_with(du=np.ones_like),
            "du/dx is missing: tanh(u) changes by (1 - tanh²(u)) · du/dx when x changes",
        ),
        Mistake(
            _gelu_with(du=lambda x: SLOPE),
            "du/dx lacks the cubic term: u = √(2/π) (x + 0.044715 x³) has a slope that depends on x",
        ),
        Mistake(
            _gelu_with(slope_of_tanh=lambda tanh: 1 - tanh),
            "the slope of tanh is 1 - tanh², with a square; yours is 1 - tanh",
        ),
        Mistake(
            _gelu_by_erf,
            "this is the derivative of the exact GELU with erf; the forward pass is its tanh form, another function",
        ),
    ),
    withheld=("gelu_backward",),
)
