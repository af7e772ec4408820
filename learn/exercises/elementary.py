"""The first steps: layers that treat each token by itself, from ReLU to the softmax and the residual connection."""

import numpy as np

from learn.exercises.exercise import Exercise, Trial, pair
from numpy_llm import attend, attention, feed_forward, layers, positions
from operations.catalogue import OPERATIONS

# Linear


def _draw_linear(random, sizes):
    B, T, C, F = (sizes[letter] for letter in "BTCF")
    return {
        "x": random.normal(size=(B, T, C)),
        "weight": random.normal(size=(F, C)),
        "bias": random.normal(size=F),
    }


LINEAR = Exercise(
    "linear",
    "a linear layer: two matrix products and a sum",
    _draw_linear,
    *pair(layers, "linear", "dx", "dweight", "dbias"),
    hints=(
        "Write y[n, o] = Σ_i x[n, i] weight[o, i] + bias[o] for one n and one o, and ask where x[n, i] occurs.",
        "Each gradient has the shape of its tensor; there is only one way to multiply dy with what gives it.",
        "B and T are one long list of rows: reshape dy to (B·T, out) first. weight and bias meet every row, so "
        "their gradients sum over all rows.",
    ),
    operations=(OPERATIONS["linear"],),
    withheld=("linear_backward",),
)


# Embedding


def draw_tokens(random, sizes):
    """Token ids (B, T), one of them repeated within a sequence and between sequences."""
    tokens = random.integers(1, sizes["V"] - 2, size=(sizes["B"], sizes["T"]))
    tokens[1, 0] = tokens[0, 1] = tokens[0, 0]
    return tokens


EMBEDDING = Exercise(
    "embedding",
    "a table lookup: one row used in many places",
    lambda random, sizes: {
        "tokens": draw_tokens(random, sizes),
        "weight": random.normal(size=(sizes["V"], sizes["C"])),
    },
    *pair(layers, "embedding", "dweight"),
    hints=(
        "The tokens are whole numbers and have no gradient; only the table has one, a row for each token.",
        "A row that was used in three places gets the sum of what comes back from the three.",
        "dweight[tokens] += dy adds once for each row, however often it occurs in tokens. np.add.at counts all.",
    ),
    operations=(OPERATIONS["embedding"],),
    withheld=("embedding_backward",),
)


# Position


def _draw_position(random, sizes):
    B, T, C = (sizes[letter] for letter in "BTC")
    return {
        "x": random.normal(size=(B, T, C)),
        "table": random.normal(size=(T + 4, C)),
        "start": 2,
    }


POSITION = Exercise(
    "position",
    "a table added to every sequence: broadcasting is a sum on the way back",
    _draw_position,
    *pair(positions, "position", "dx", "dtable"),
    hints=(
        "x is added as it is. What is its gradient, then?",
        "Row start + t of the table is added to token t of every sequence of the batch.",
        "What broadcasting copies going forward, the gradient sums going back; rows that nobody used stay 0.",
    ),
    operations=(OPERATIONS["position"],),
    withheld=("position_backward",),
)


# ReLU


def _draw_relu(random, sizes):
    """Numbers pushed away from 0, where ReLU has its kink."""
    x = random.normal(size=tuple(sizes[letter] for letter in "BTC"))
    return {"x": x + 0.1 * np.sign(x)}


RELU = Exercise(
    "relu",
    "ReLU: a gate that is open or shut",
    _draw_relu,
    *pair(feed_forward, "relu", "dx"),
    hints=(
        "Draw max(x, 0). What is its slope left of 0, and what right of it?",
        "dx is dy times that slope, element by element. The cache tells which side each element is on.",
    ),
    operations=(OPERATIONS["relu"],),
    withheld=("relu_backward",),
)


# Softmax


def _softmax_terms(trial: Trial):
    y, _ = attend.softmax_forward(trial.inputs["x"])
    through_sum = (trial.dy * y).sum(axis=-1, keepdims=True)
    return {
        "dx": {"the path through the numerator": y * trial.dy, "the path through the sum": -y * through_sum}
    }


SOFTMAX = Exercise(
    "softmax",
    "softmax: every output depends on every input of its row",
    lambda random, sizes: {"x": random.normal(size=(sizes["B"], sizes["T"], sizes["C"]))},
    *pair(attention, "softmax", "dx"),
    hints=(
        "y[i] = exp(x[i]) / Σ_k exp(x[k]). x[j] moves y[j] through the numerator and every y[i] through the sum.",
        "∂y[i]/∂x[j] = y[i] (δ[i, j] - y[j]). Multiply by dy[i] and sum over i.",
        "The sum has two parts: i = j gives y[j] dy[j], and all i together give -y[j] Σ_i dy[i] y[i].",
    ),
    terms=_softmax_terms,
    # A mask changes nothing on the way back, so the mistakes are the same.
    operations=(OPERATIONS["masked_softmax"]._replace(backward=attend.softmax_backward),),
    withheld=("softmax_backward",),
)


# Residual


def _residual_forward(x, weight, bias):
    branch, cache = layers.linear_forward(x, weight, bias)
    return x + branch, cache


def _residual_backward(dy, cache):
    dx, dweight, dbias = layers.linear_backward(dy, cache)
    return {"dx": dx + dy, "dweight": dweight, "dbias": dbias}


def _draw_residual(random, sizes):
    B, T, C = (sizes[letter] for letter in "BTC")
    return {
        "x": random.normal(size=(B, T, C)),
        "weight": random.normal(size=(C, C)),
        "bias": random.normal(size=C),
    }


RESIDUAL = Exercise(
    "residual",
    "a residual connection: where the stream forks, gradients add",
    _draw_residual,
    _residual_forward,
    _residual_backward,
    hints=(
        "x is used twice: it goes into the linear branch and it goes straight on.",
        "A tensor that is used twice gets the sum of the gradients of both uses.",
        "The branch is a linear layer whose output's gradient is dy itself: addition passes it to both sides.",
    ),
    terms=lambda trial: {
        "dx": {
            "the shortcut, x itself,": trial.dy,
            "the path through the branch": trial.dy @ trial.inputs["weight"],
        }
    },
    operations=(OPERATIONS["linear"],),
)
