"""The first steps: layers that treat each token by itself, from ReLU to the softmax and the residual connection."""

import numpy as np

from exercises.exercise import Exercise, Mistake, Trial
from numpy_llm import layers
from numpy_llm.attention import softmax_backward, softmax_forward


def named(backward, *names: str):
    """The project's backward pass with its results by name."""

    def run(dy, cache):
        found = backward(dy, cache)
        return dict(zip(names, found if isinstance(found, tuple) else (found,), strict=True))

    return run


def apart(draw):
    """Normal numbers pushed away from 0, where ReLU has its kink."""
    return draw + 0.1 * np.sign(draw)


# Linear


def _draw_linear(random, sizes):
    B, T, C, F = (sizes[letter] for letter in "BTCF")
    return {
        "x": random.normal(size=(B, T, C)),
        "weight": random.normal(size=(F, C)),
        "bias": random.normal(size=F),
    }


def _linear_weight_of_first_sequence(trial: Trial):
    return {"dweight": trial.dy[0].T @ trial.inputs["x"][0]}


LINEAR = Exercise(
    "linear",
    "a linear layer: two matrix products and a sum",
    _draw_linear,
    layers.linear_forward,
    named(layers.linear_backward, "dx", "dweight", "dbias"),
    hints=(
        "Write y[n, o] = Σ_i x[n, i] weight[o, i] + bias[o] for one n and one o, and ask where x[n, i] occurs.",
        "Each gradient has the shape of its tensor; there is only one way to multiply dy with what gives it.",
        "B and T are one long list of rows: reshape dy to (B·T, out) first. weight and bias meet every row, so "
        "their gradients sum over all rows.",
    ),
    mistakes=(
        Mistake(
            _linear_weight_of_first_sequence,
            "only the first sequence of the batch is counted; every row of the batch used this weight: sum over "
            "B too",
        ),
        Mistake(
            lambda trial: {"dbias": np.ones_like(trial.inputs["bias"])},
            "1 is the slope of y by its bias; multiply by dy and sum over all rows that the bias was added to",
        ),
    ),
    withheld=("linear_backward",),
)


# Embedding


def _draw_embedding(random, sizes):
    B, T, C, V = (sizes[letter] for letter in "BTCV")
    tokens = random.integers(1, V - 2, size=(B, T))
    tokens[1, 0] = tokens[0, 1] = tokens[0, 0]  # repeated within a sequence and between sequences
    return {"tokens": tokens, "weight": random.normal(size=(V, C))}


def _overwritten(trial: Trial):
    dweight = np.zeros_like(trial.inputs["weight"])
    dweight[trial.inputs["tokens"]] = trial.dy
    return {"dweight": dweight}


def _overwritten_within_a_sequence(trial: Trial):
    dweight = np.zeros_like(trial.inputs["weight"])
    for tokens, dy in zip(trial.inputs["tokens"], trial.dy, strict=True):
        dweight[tokens] += dy
    return {"dweight": dweight}


def _averaged_by_token(trial: Trial):
    tokens, dweight = trial.inputs["tokens"], np.zeros_like(trial.inputs["weight"])
    np.add.at(dweight, tokens, trial.dy)
    counts = np.bincount(tokens.reshape(-1), minlength=len(dweight))
    return {"dweight": dweight / np.maximum(counts, 1)[:, None]}


EMBEDDING = Exercise(
    "embedding",
    "a table lookup: one row used in many places",
    _draw_embedding,
    layers.embedding_forward,
    named(layers.embedding_backward, "dweight"),
    hints=(
        "The tokens are whole numbers and have no gradient; only the table has one, a row for each token.",
        "A row that was used in three places gets the sum of what comes back from the three.",
        "dweight[tokens] += dy adds once for each row, however often it occurs in tokens. np.add.at counts all.",
    ),
    mistakes=(
        Mistake(
            _overwritten,
            "right for tokens that occur once; a token that occurs again overwrites what was there: its places "
            "must be summed (np.add.at, or a loop)",
        ),
        Mistake(
            _overwritten_within_a_sequence,
            "a token that occurs again within its sequence counts once: dweight[tokens] += dy adds to each row only "
            "once, in a loop over the sequences too; np.add.at counts all",
        ),
        Mistake(
            _averaged_by_token,
            "you take the mean over the places of a token; its row was used in each of them: take the sum",
        ),
    ),
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


def _position_from_zero(trial: Trial):
    dtable = np.zeros_like(trial.inputs["table"])
    dtable[: trial.sizes["T"]] = trial.dy.sum(axis=0)
    return {"dtable": dtable}


def _position_of_last_sequence(trial: Trial):
    dtable, start = np.zeros_like(trial.inputs["table"]), trial.inputs["start"]
    dtable[start : start + trial.sizes["T"]] = trial.dy[-1]
    return {"dtable": dtable}


POSITION = Exercise(
    "position",
    "a table added to every sequence: broadcasting is a sum on the way back",
    _draw_position,
    layers.position_forward,
    named(layers.position_backward, "dx", "dtable"),
    hints=(
        "x is added as it is. What is its gradient, then?",
        "Row start + t of the table is added to token t of every sequence of the batch.",
        "What broadcasting copies going forward, the gradient sums going back; rows that nobody used stay 0.",
    ),
    mistakes=(
        Mistake(
            _position_from_zero,
            "the sums are right but begin at row 0; token t used row start + t: dtable[start : start + T]",
        ),
        Mistake(
            _position_of_last_sequence,
            "only the last sequence of the batch is left: each one overwrites the one before; sum over B",
        ),
    ),
    withheld=("position_backward",),
)


# ReLU

RELU = Exercise(
    "relu",
    "ReLU: a gate that is open or shut",
    lambda random, sizes: {"x": apart(random.normal(size=(sizes["B"], sizes["T"], sizes["C"])))},
    layers.relu_forward,
    named(layers.relu_backward, "dx"),
    hints=(
        "Draw max(x, 0). What is its slope left of 0, and what right of it?",
        "dx is dy times that slope, element by element. The cache tells which side each element is on.",
    ),
    mistakes=(
        Mistake(
            lambda trial: {"dx": np.maximum(trial.dy, 0)},
            "you let dy through where dy is positive; the gate is open where x was positive",
        ),
        Mistake(
            lambda trial: {"dx": np.float64(trial.inputs["x"] > 0)},
            "this is the slope alone; the chain rule multiplies it by dy",
        ),
        Mistake(
            lambda trial: {"dx": trial.dy * np.maximum(trial.inputs["x"], 0)},
            "you multiply dy by max(x, 0); the slope of max(x, 0) is 1 where x > 0, not x",
        ),
        Mistake(
            lambda trial: {"dx": trial.dy * (trial.inputs["x"] < 0)},
            "the gate is upside down: the gradient passes where x > 0",
        ),
        Mistake(
            lambda trial: {"dx": trial.dy},
            "dy passes everywhere; where x was below 0 the output did not move, and nothing comes back",
        ),
    ),
    withheld=("relu_backward",),
)


# Softmax


def _softmax_terms(trial: Trial):
    y, _ = softmax_forward(trial.inputs["x"])
    through_sum = (trial.dy * y).sum(axis=-1, keepdims=True)
    return {
        "dx": {"the path through the numerator": y * trial.dy, "the path through the sum": -y * through_sum}
    }


def _softmax_diagonal(trial: Trial):
    y, _ = softmax_forward(trial.inputs["x"])
    return {"dx": trial.dy * y * (1 - y)}


def _softmax_summed_over_all(trial: Trial):
    y, _ = softmax_forward(trial.inputs["x"])
    return {"dx": y * (trial.dy - (trial.dy * y).sum())}


def _softmax_summed_over_batch(trial: Trial):
    y, _ = softmax_forward(trial.inputs["x"])
    return {"dx": y * (trial.dy - (trial.dy * y).sum(axis=0, keepdims=True))}


def _softmax_unweighted(trial: Trial):
    y, _ = softmax_forward(trial.inputs["x"])
    return {"dx": y * (trial.dy - trial.dy.sum(axis=-1, keepdims=True))}


SOFTMAX = Exercise(
    "softmax",
    "softmax: every output depends on every input of its row",
    lambda random, sizes: {"x": random.normal(size=(sizes["B"], sizes["T"], sizes["C"]))},
    softmax_forward,
    named(softmax_backward, "dx"),
    hints=(
        "y[i] = exp(x[i]) / Σ_k exp(x[k]). x[j] moves y[j] through the numerator and every y[i] through the sum.",
        "∂y[i]/∂x[j] = y[i] (δ[i, j] - y[j]). Multiply by dy[i] and sum over i.",
        "The sum has two parts: i = j gives y[j] dy[j], and all i together give -y[j] Σ_i dy[i] y[i].",
    ),
    terms=_softmax_terms,
    mistakes=(
        Mistake(
            _softmax_diagonal,
            "y (1 - y) is the slope of y[j] by its own x[j] alone; x[j] moves the other outputs of its row too, "
            "through the sum",
        ),
        Mistake(
            _softmax_summed_over_all,
            "Σ dy · y runs over the whole array; each row has its own sum: axis=-1, keepdims=True",
        ),
        Mistake(
            _softmax_summed_over_batch,
            "Σ dy · y runs along the first axis; softmax runs along the last one, and so does its sum: axis=-1",
        ),
        Mistake(
            _softmax_unweighted,
            "you subtract Σ dy; the sum is of dy · y, each dy[i] weighted by its y[i]",
        ),
    ),
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
    mistakes=(
        Mistake(
            lambda trial: {"dx": trial.dy + trial.dy @ trial.inputs["weight"].T},
            "weight is transposed on the branch's way back: forward is x weightᵀ, so backward is dy weight",
        ),
    ),
)
