"""Adding up the gradients of a batch whose parts were differentiated apart.

A weight's gradient is a sum over all tokens of the batch. Most of it is matrix products, and the product of a part is
a matrix as large as the weight, which would be written and read again to add it: at GPT-2's size that took longer than
the product. So a part hands on the two factors (`LinearGradient`), and the products of all parts are added up here,
some rows of the weight at a time, which stay in a core's cache.
"""

from collections.abc import Callable, Sequence
from functools import partial

from contract.weights import Weights
from numpy_llm.layers import (
    EmbeddingGradient,
    LinearGradient,
    embedding_weight_gradient,
    linear_weight_gradient,
)
from numpy_llm.threads import cut

# Rows of a weight whose gradient is computed at a time: 768 kB of GPT-2's, 384 kB of a model of 384 channels.
ROWS = 256


class GradientSum:
    """The sum over parts of a batch, in the weights' layout.

    total: where to add; gradients of weights that it does not have are left out, and products for them not taken
    empty: whether it holds nothing yet; then what is first added to a weight overwrites it
    """

    def __init__(self, total: Weights, *, empty: bool):
        self._total = total
        self._begun = set() if empty else set(total)

    def work(self, parts: Sequence[dict]) -> list[Callable[[], None]]:
        """The pieces of work that add the parts' gradients of some weights, in the order of the parts.

        parts: of each part the gradients by weight name: arrays, what `later` makes of them, or None
        """
        pieces, vectors = [], []
        for name, first in parts[0].items():
            if first is None or name not in self._total:
                continue
            total, gradients = self._total[name], [part[name] for part in parts]
            add = name in self._begun
            self._begun.add(name)
            if isinstance(first, LinearGradient):
                pieces += [
                    partial(_add_products, total, gradients, rows, add) for rows in cut(len(total), ROWS)
                ]
            elif isinstance(first, EmbeddingGradient):
                pieces.append(partial(_add_rows, total, gradients, add))
            else:
                vectors.append(partial(_add_arrays, total, gradients, add))
        return [*pieces, partial(_call_all, vectors)]


def _add_products(total, gradients, rows, add):
    for dy, x in gradients:
        if add:
            total[rows] += linear_weight_gradient(dy[:, rows], x)
        else:
            linear_weight_gradient(dy[:, rows], x, out=total[rows])
            add = True


def _add_rows(total, gradients, add):
    if not add:
        total.fill(0)
    for gradient in gradients:
        rows, sums = embedding_weight_gradient(*gradient)
        total[rows] += sums


def _add_arrays(total, gradients, add):
    for gradient in gradients:
        if add:
            total += gradient
        else:
            total[...] = gradient
            add = True


def _call_all(works):
    for work in works:
        work()
