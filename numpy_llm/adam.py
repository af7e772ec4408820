"""Adam and AdamW, and the clipping of gradients, over one flat buffer of weights."""

import numpy as np

from contract.checks import check_adam, check_learning_rate, check_max_norm
from contract.weights import Weights, check_buffer, check_layout
from numpy_llm.threads import each, pieces


class Adam:
    """Adam: a step along the running mean of the gradients, scaled by their running root mean square.

        g = gradient + weight_decay · weight                       (matrices only)
        m = beta1 · m + (1 - beta1) · g
        v = beta2 · v + (1 - beta2) · g²
        weight -= learning_rate · (m / (1 - beta1^t)) / (√(v / (1 - beta2^t)) + eps)

    m and v start at 0 and are therefore too small at first; the two divisions undo exactly that.

    weights: what to train, changed in place
    beta1, beta2: decay of the running means, in [0, 1)
    eps: keeps the division finite, above 0
    weight_decay: strength of the pull towards 0 on matrices, at least 0; biases and norms are left alone
    frozen: names of weights that stay as they are

    Raises ConfigError for a setting out of its range.
    Source: Kingma & Ba 2015, algorithm 1. Twin: torch_llm.adam.Adam
    """

    decoupled = False

    def __init__(self, weights: Weights, *, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, frozen=()):
        check_adam(beta1, beta2, eps, weight_decay)
        check_buffer("weights", weights)
        self.weights = weights
        self.beta1, self.beta2, self.eps, self.weight_decay = beta1, beta2, eps, weight_decay
        self._layout = tuple(row for row in weights.layout if row[0] not in frozen)
        trained = sum(int(np.prod(shape)) for _, shape in self._layout)
        self.m, self.v = np.zeros((2, trained), weights.flat.dtype)  # of the layout of the gradients
        self.step = 0  # updates done, t of the formulas
        self._pieces = _trained_pieces(weights, frozen)

    def update(self, gradients: Weights, learning_rate: float):
        """Take one step; `gradients` has the layout of the weights that are not frozen, and is left as it is.

        Raises ConfigError for gradients of another layout, or a learning rate that is negative or not finite.
        """
        check_learning_rate(learning_rate)
        check_layout("gradients", gradients, self._layout)
        self.step += 1
        weights, decaying = self.weights.flat, self.weights.decaying

        def update(pieces):
            piece, trained = pieces
            others = self.m[trained], self.v[trained], gradients.flat[trained]
            update_piece(self, weights[piece], *others, learning_rate, piece.start < decaying)

        each(update, self._pieces)


class AdamW(Adam):
    """Adam with decoupled weight decay: the pull towards 0 bypasses the running means.

        weight -= learning_rate · weight_decay · weight            (matrices only)

    and then Adam's step with g = gradient.

    Source: Loshchilov & Hutter 2019, algorithm 2. Twin: torch_llm.adam.AdamW
    """

    decoupled = True


def _trained_pieces(weights: Weights, frozen) -> list[tuple[slice, slice]]:
    """Pieces of the flat buffer without the frozen weights, each of numbers that all decay or all do not.

    returns: of each its place in the buffer, and in one that holds no frozen weights
    """
    spans, start = [], 0
    for name, shape in weights.layout:
        stop = start + int(np.prod(shape))
        if name not in frozen:
            goes_on = spans and spans[-1][1] == start != weights.decaying
            spans.append((spans.pop()[0] if goes_on else start, stop))
        start = stop
    found, trained = [], 0
    for first, stop in spans:
        for piece in pieces(first, stop):
            found.append((piece, slice(trained, trained := trained + piece.stop - piece.start)))
    return found


def update_piece(optimizer: Adam, weight, m, v, g, learning_rate, decays):
    """Take an optimiser's present step on a piece of its weights: `weight`, `m` and `v` are changed in place.

    weight, m, v, g: float (n,); g: the gradient; decays: whether these weights do
    """
    beta1, beta2, eps, step = optimizer.beta1, optimizer.beta2, optimizer.eps, optimizer.step
    decay = optimizer.weight_decay if decays else 0.0
    if decay and optimizer.decoupled:
        weight *= 1 - learning_rate * decay
    elif decay:
        g = g + decay * weight
    m *= beta1
    m += (1 - beta1) * g
    v *= beta2
    v += (1 - beta2) * (g * g)
    # √(v / (1 - beta2^t)) is taken as √v / √(1 - beta2^t), one division of a scalar.
    denominator = np.sqrt(v)
    denominator /= (1 - beta2**step) ** 0.5
    denominator += eps
    np.divide(m, denominator, out=denominator)
    denominator *= learning_rate / (1 - beta1**step)
    weight -= denominator


def clip_gradients(gradients: Weights, max_norm: float) -> float:
    """Scale all gradients down together where their joint Euclidean norm exceeds `max_norm`.

    max_norm: above 0; infinity clips nothing
    returns: the norm before clipping; where it is not finite, the gradients are left as they are
    Raises ConfigError for a `max_norm` that is not above 0.
    Source: Pascanu et al. 2013, algorithm 1. Twin: torch_llm.adam.clip_gradients
    """
    check_max_norm(max_norm)
    check_buffer("gradients", gradients)
    norm = gradient_norm(gradients)
    if norm > max_norm and np.isfinite(norm):
        flat, factor = gradients.flat, max_norm / norm
        each(lambda piece: np.multiply(flat[piece], factor, out=flat[piece]), pieces(0, flat.size))
    return norm


def gradient_norm(gradients: Weights) -> float:
    """The Euclidean norm over all gradients together, infinity or nan where one of them is.

    Twin: torch_llm.adam.gradient_norm
    """
    flat = gradients.flat
    norm = float(np.sqrt(_sum_of_squares(flat)))
    if norm == 0 or not np.isfinite(norm):  # the squares vanished or overflowed: scale them
        largest = float(max(flat.max(), -flat.min()))
        norm = largest * _sum_of_squares(flat, largest) ** 0.5 if 0 < largest < np.inf else largest
    return norm


def _sum_of_squares(flat, unit=None):
    """The sum over a flat buffer, whose numbers are counted in `unit`; in the order of its pieces."""

    def of(piece):
        numbers = flat[piece] if unit is None else flat[piece] / unit
        return float(numbers @ numbers)

    with np.errstate(all="ignore"):
        return sum(each(of, pieces(0, flat.size)))
