"""Numbers of a traced tensor that no loss depends on: a right program may have anything there, or compute none.

A query attends to the tokens that its mask lets through. The scores of the others, before the mask, go nowhere, and the
gradients of their probabilities meet a probability of 0. A kernel computes neither: what stands there is 0, -inf, a
large negative number, or whatever the memory held. The probabilities themselves, which are 0 there, are determined.
"""

import re
from collections.abc import Mapping

import numpy as np

from contract.components import letters
from contract.config import ModelConfig
from operations.dataflow import GRADIENT

_MASKED = re.compile(
    rf"blocks\.(\d+)\.attention\.(?:capped_)?scores"
    rf"|{re.escape(GRADIENT)}blocks\.(\d+)\.attention\.probabilities(?:_dropout)?"
)


def undetermined(config: ModelConfig, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Which numbers of a tensor the loss does not determine: bool (T, S), to broadcast; None where it does all."""
    if not (found := _MASKED.fullmatch(name)):
        return None
    T, S = shape[-2:]
    behind = np.arange(S - T, S)[:, None] - np.arange(S)  # how far a token lies before the query's own
    window = config.layer(int(found[1] or found[2])).window
    return (behind < 0) | (behind >= (window or S))


def dimensions(config: ModelConfig, name: str) -> tuple[str, ...]:
    """The dimension letters of a pack's tensor; N counts steps of AdamW or new tokens."""
    group, _, rest = name.partition(".")
    if group == "gradient":
        return letters(config, rest)
    if group == "adamw":
        weight = rest.partition(".")[2]
        return ("N", *letters(config, weight)) if weight else ("N",)
    if group in ("greedy", "sampled"):
        return ("N", "V") if rest == "logits" else ("N",)
    return {"tokens": ("B", "T"), "targets": ("B", "T"), "positions": ("P", "C")}.get(name) or letters(
        config, name
    )


def without_padding(
    dump: Mapping[str, np.ndarray], golden: Mapping[str, np.ndarray], config: ModelConfig
) -> tuple[dict[str, np.ndarray], list[str]]:
    """A dump without rows beyond the vocabulary and the context, which programs add to reach a round size: no token
    reads them. And the names of the tensors that had some.
    """
    cut = {}
    for name, tensor in dump.items():
        wanted, axes = golden[name].shape, dimensions(config, name)
        if tensor.ndim == len(wanted) and tensor.shape != wanted:
            more = [
                have > want and axis in "VP"
                for have, want, axis in zip(tensor.shape, wanted, axes, strict=True)
            ]
            same = [have == want for have, want in zip(tensor.shape, wanted, strict=True)]
            if all(a or b for a, b in zip(more, same, strict=True)):
                cut[name] = tensor[tuple(slice(size) for size in wanted)]
    return {**dump, **cut}, list(cut)
