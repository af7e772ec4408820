"""Steps that need a derivation on paper: cross-entropy, the layer norm and GELU."""

import numpy as np

from learn.exercises.exercise import Exercise, Trial, pair
from numpy_llm import feed_forward, losses, norms
from operations.catalogue import OPERATIONS

# Cross-entropy


def _draw_cross_entropy(random, sizes):
    B, T, V = (sizes[letter] for letter in "BTV")
    return {"logits": random.normal(size=(B, T, V)), "targets": random.integers(V, size=(B, T))}


def _cross_entropy_terms(trial: Trial):
    targets = trial.inputs["targets"]
    probabilities = losses.cross_entropy_forward(**trial.inputs)[1].probabilities
    scale = trial.dy / targets.size
    return {
        "dlogits": {
            "softmax(logits), the path through log Σ exp,": probabilities * scale,
            "the one-hot target, the path through logits[target],": -np.eye(probabilities.shape[-1])[targets]
            * scale,
        }
    }


CROSS_ENTROPY = Exercise(
    "cross-entropy",
    "cross-entropy: why softmax and logarithm belong together",
    _draw_cross_entropy,
    *pair(losses, "cross_entropy", "dlogits"),
    hints=(
        "For one token the loss is log Σ_v exp(z[v]) - z[target]. Differentiate the two parts by z[v].",
        "The first part gives softmax(z)[v]; the second gives -1 where v is the target and 0 elsewhere.",
        "The loss is the mean over all B·T tokens, and what comes back is dloss, not 1.",
    ),
    terms=_cross_entropy_terms,
    operations=(OPERATIONS["cross_entropy"],),
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


def _layer_norm_terms(trial: Trial):
    _, cache = norms.layer_norm_forward(**trial.inputs)
    normal, s, dnormal = cache.normal, cache.inverse_deviation, trial.dy * cache.weight
    return {
        "dx": {
            "the value itself": s * dnormal,
            "the path through the mean": np.broadcast_to(-s * dnormal.mean(-1, keepdims=True), normal.shape),
            "the path through the deviation": -s * normal * (dnormal * normal).mean(-1, keepdims=True),
        }
    }


LAYER_NORM = Exercise(
    "layer-norm",
    "the layer norm: one input, three paths",
    _draw_layer_norm,
    *pair(norms, "layer_norm", "dx", "dweight", "dbias"),
    hints=(
        "Begin at the end: y = normal · weight + bias gives dnormal, dweight and dbias in a line each.",
        "x[j] moves normal[i] in three ways: as the value itself (i = j), through the mean, through the deviation.",
        "∂normal[i]/∂x[j] = s (δ[i, j] - 1/C - normal[i] normal[j] / C) with s = inverse_deviation.",
        "Multiply by dnormal[i] and sum over i: two means over the channels of a token come out of it.",
    ),
    terms=_layer_norm_terms,
    operations=(OPERATIONS["layer_norm"],),
    withheld=("layer_norm_backward",),
)


# RMS norm


def _rms_norm_terms(trial: Trial):
    _, cache = norms.rms_norm_forward(**trial.inputs)
    normal, s, dnormal = cache.normal, cache.inverse_rms, trial.dy * cache.weight
    through = -s * normal * (dnormal * normal).mean(-1, keepdims=True)
    return {"dx": {"the value itself": s * dnormal, "the path through the root mean square": through}}


RMS_NORM = Exercise(
    "rms-norm",
    "RMS norm: the layer norm without a mean, two paths",
    lambda random, sizes: {
        "x": random.normal(1.0, 2.0, size=(sizes["B"], sizes["T"], sizes["C"])),
        "weight": random.normal(1.0, 0.5, size=sizes["C"]),
        "eps": 1e-5,
    },
    *pair(norms, "rms_norm", "dx", "dweight"),
    hints=(
        "Begin at the end: y = normal · weight gives dnormal and dweight in a line each.",
        "x[j] moves normal[i] in two ways: as the value itself (i = j), and through the root mean square.",
        "∂normal[i]/∂x[j] = s (δ[i, j] - normal[i] normal[j] / C) with s = inverse_rms; multiply by dnormal[i], sum.",
    ),
    terms=_rms_norm_terms,
    operations=(OPERATIONS["rms_norm"],),
    withheld=("rms_norm_backward",),
)


# GELU


def _gelu_terms(trial: Trial):
    x, root = trial.inputs["x"], (2 / np.pi) ** 0.5
    tanh, du = np.tanh(root * (x + 0.044715 * x**3)), root * (1 + 3 * 0.044715 * x**2)
    return {
        "dx": {
            "the path through the factor x/2": trial.dy * (1 + tanh) / 2,
            "the path through tanh(u)": trial.dy * x / 2 * (1 - tanh**2) * du,
        }
    }


GELU = Exercise(
    "gelu",
    "GELU in its tanh form: product rule and chain rule",
    lambda random, sizes: {"x": 2 * random.normal(size=(sizes["B"], sizes["T"], sizes["C"]))},
    *pair(feed_forward, "gelu_tanh", "dx"),
    hints=(
        "y = x/2 · (1 + tanh(u)) is a product: differentiate one factor, then the other, and add.",
        "The slope of tanh(u) is 1 - tanh²(u), times du/dx.",
        "u = √(2/π) (x + 0.044715 x³), so du/dx = √(2/π) (1 + 3 · 0.044715 x²).",
    ),
    terms=_gelu_terms,
    operations=(OPERATIONS["gelu_tanh"],),
    withheld=("gelu_tanh_backward",),
)

DERIVED = (CROSS_ENTROPY, GELU, LAYER_NORM, RMS_NORM)
