"""The limits of every comparison, in one place, by quantity and precision.

An error is the largest difference of a tensor divided by the largest magnitude of its reference, so that a
small gradient is held to as many digits as a large one; it is never scaled by a tensor's size. Each limit
stands beside the largest error observed, which `pytest parity/ -m ""` measures again and prints at its end. The
room between the two is for other processors, BLAS libraries and releases of PyTorch. A limit is never
loosened to let a test pass: a larger error has a cause.
"""

from typing import NamedTuple


class Limit(NamedTuple):
    """value: the largest error that passes; observed: the largest error met so far"""

    value: float
    observed: float


LIMITS = {
    # What the twins compute from the same weights and batch, traced: activations, their gradients, the weights'.
    ("activation", "float64"): Limit(1e-12, 9.8e-14),
    ("activation", "float32"): Limit(1e-5, 1.8e-6),
    ("gradient", "float64"): Limit(1e-11, 2.7e-13),
    ("gradient", "float32"): Limit(1e-5, 5.9e-6),
    ("weight gradient", "float64"): Limit(1e-11, 3.8e-13),
    ("weight gradient", "float32"): Limit(1e-5, 3.9e-6),
    # The path that training takes: logits, loss and gradients with fused attention or a compiled model.
    ("untraced output", "float64"): Limit(1e-12, 1.2e-14),
    ("untraced output", "float32"): Limit(1e-5, 1.1e-6),
    ("untraced gradient", "float64"): Limit(1e-11, 2.6e-13),
    ("untraced gradient", "float32"): Limit(1e-5, 6.2e-6),
    # A batch in micro-batches against the whole; 200 steps of Adam and AdamW.
    ("accumulation", "float64"): Limit(1e-12, 1.6e-15),
    ("optimizer", "float64"): Limit(1e-12, 1.4e-14),
    # Golden packs: the same made again on another machine; ten steps of AdamW in float32.
    ("golden", "float64"): Limit(1e-12, 1.1e-14),
    ("golden steps", "float64"): Limit(1e-11, 1.1e-14),
    ("golden steps", "float32"): Limit(3e-5, 3.6e-6),
    # The losses of 300 training steps. Rounding grows from step to step, so float32 drifts.
    ("trajectory", "float64"): Limit(1e-9, 1.6e-15),
    ("trajectory", "float32"): Limit(1e-4, 1.2e-6),
    # How far apart the two best logits may be where greedy float32 texts part.
    ("logit margin", "float32"): Limit(1e-5, 0),
    # Central differences have an error of their own, of order h⁴ and rounding / h.
    ("central difference", "float64"): Limit(1e-8, 1.8e-10),
    ("directional difference", "float64"): Limit(1e-9, 1.6e-11),
    # Logits, loss and gradients of GPT2LMHeadModel.
    ("transformers", "float64"): Limit(1e-12, 1.3e-15),
    ("transformers", "float32"): Limit(1e-6, 1.9e-7),
    # Logits, loss and gradients of Hugging Face's classes of the modern families, as published and with casts lifted.
    ("family output", "float64"): Limit(1e-12, 2.4e-15),
    ("family output", "float32"): Limit(1e-5, 2.1e-6),
    ("family gradient", "float64"): Limit(1e-11, 1.2e-14),
    ("family gradient", "float32"): Limit(3e-5, 5.5e-6),
    # The same of both twins, once its files were imported, and of what was exported, each in its own precision.
    ("published model", "float64"): Limit(1e-12, 3.4e-15),
    ("published model", "float32"): Limit(1e-5, 3.1e-6),
}

# A trained model's gradient can be what is left of terms that cancel; float32 then leaves more open than LIMITS.
# How much shows in PyTorch alone, in how far its own float32 is from its own float64 on the weights given and on
# so many neighbours of them: ROUNDING times that passes too, up to MOST_ROUNDING, where a user's model is compared.
ROUNDING, NEIGHBOURS, MOST_ROUNDING = 4, 3, 1e-3

_observed: dict[tuple[str, str], float] = {}


def limit(quantity: str, dtype: str) -> float:
    """The largest error that passes for `quantity` computed in `dtype`."""
    return LIMITS[quantity, dtype].value


def observe(quantity: str, dtype: str, error: float):
    """Remember an error that passed, for `observed`."""
    _observed[quantity, dtype] = max(error, _observed.get((quantity, dtype), 0.0))


def observed() -> dict[tuple[str, str], float]:
    """The largest errors of this process, by quantity and precision, in the order of `LIMITS`."""
    return {key: _observed[key] for key in LIMITS if key in _observed}
