"""How far an honest float32 pass strays from a pack: what the twin itself does, summing in several orders.

The channels of the residual stream and the width of the feed-forward layer have no order of their own: a model with
both shuffled computes the same numbers, shuffled, and adds up each product's terms in another order. In one of the
orders two things are done as other programs do them:

- The angles of rotary positions are in float32; the twin has them in float64.
- The exponentials of the loss are added up one after another, as a plain loop does and PyTorch on a CPU: of 49,152
  the sum is off by some 1e-5, and with it the gradients of a row. NumPy adds up in pairs.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import numpy as np

from contract.config import ModelConfig
from contract.numbers import magnitude, relative_error
from contract.randomness import generator
from contract.weights import Weights
from numpy_llm.losses import cross_entropy_forward
from numpy_llm.positions import rotary_frequencies, rotary_table
from operations.operation import replaced
from parity.golden.undetermined import dimensions, undetermined

ORDERS = 2
# A plain loop adds one by one, and strays further than a BLAS library, which adds in blocks.
ROOM = 3


def float32_limit(least: float, stray: float) -> float:
    """The largest float32 error that passes, in two digits: `least`, or more where an honest pass strays further."""
    return max(least, float(f"{ROOM * stray:.1e}"))


def strays(
    config: ModelConfig, given: Weights, golden: Mapping[str, np.ndarray], compute: Callable
) -> dict[str, float]:
    """The largest error of each tensor over `ORDERS` orders, relative to its largest magnitude.

    given: the weights; golden: the tensors in float64; compute: weights in float32 -> the same tensors
    """
    worst = {}
    for order in range(ORDERS):
        random = generator(order, "golden.rounding")
        sizes = {"C": config.d_model, "F": config.d_ff}
        # Sinusoids belong to channels, which have an order there; the first pass keeps every order.
        free = "F" if config.position == "sinusoidal" else "CF"
        shuffled = {letter: random.permutation(sizes[letter]) for letter in free if order}
        weights = Weights.zeros(config, "float32")
        for name, weight in given.items():
            weights[name][...] = _taken(config, name, weight, shuffled)
        back = {letter: np.argsort(places) for letter, places in shuffled.items()}
        with ExitStack() as as_others:
            for ours, theirs in _AS_OTHERS.items() if order else ():
                as_others.enter_context(replaced(ours, theirs))
            computed = compute(weights)
        for name, tensor in computed.items():
            if tensor.dtype.kind != "i":
                error = stray(config, name, _taken(config, name, tensor, back), golden[name])
                worst[name] = max(worst.get(name, 0.0), error)
    return worst


def stray(config: ModelConfig, name: str, found: np.ndarray, golden: np.ndarray) -> float:
    """The largest error of a tensor where the loss determines it, relative to its largest magnitude."""
    free = undetermined(config, name, golden.shape)
    found = found if free is None else np.where(free, golden, found)
    return relative_error(found, golden, magnitude(golden) or 1.0)


def _table_in_float32(rotary, head_size, length, dtype):
    """`rotary_table` of angles that are products in float32."""
    frequencies = rotary_frequencies(rotary, head_size).astype(np.float32)
    angle = np.arange(length, dtype=np.float32)[:, None] * frequencies
    return np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)


def _cross_entropy_in_a_loop(logits, targets):
    """`cross_entropy_forward` whose exponentials are added up one after another."""
    loss, cache = cross_entropy_forward(logits, targets)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    totals = np.add.accumulate(exponentials, axis=-1)[..., -1:]
    ratio = totals / exponentials.sum(axis=-1, keepdims=True)
    return loss + np.log(ratio).mean(), cache._replace(probabilities=cache.probabilities / ratio)


_AS_OTHERS = {rotary_table: _table_in_float32, cross_entropy_forward: _cross_entropy_in_a_loop}


def _taken(config: ModelConfig, name: str, tensor: np.ndarray, shuffled: Mapping[str, np.ndarray]):
    """A tensor with its shuffled dimensions in their new order."""
    for axis, letter in enumerate(dimensions(config, name)):
        if letter in shuffled:
            tensor = np.take(tensor, shuffled[letter], axis)
    return tensor
