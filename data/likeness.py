"""How unlike the rest the end of a text is, which is held out where nothing else is asked for.

The end of a text that is sorted, by topic for instance, is made of what stands nowhere before it. The loss there tells
how a model does on something else, and looks as if the model had learnt nothing.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import BinaryIO

import numpy as np

from data.overlap import passage_hashes
from data.token_store import TokenForm

CONTEXT_BYTES = 4  # about, of the tokens that a token is predicted from and itself together
# Times as hard to predict, to warn of. Ordinary prose, code and manuals came to 0.86 to 1.20, the default corpus, its
# lines sorted, to 1.84 and more, notes sorted by topic to 2.8 and more, prose with 12 % of code behind it to 1.55.
UNLIKE = 1.4
BLOCKS = 900  # of the text before its end
READ = 4096  # tokens of each: from all over, in bounded time
EVERY = 9  # of these blocks is predicted from the others, as the end is
SHORTEST = 64  # tokens of a block
LEAST = 512  # tokens of an end, and of the blocks predicted, that say anything
_BITS = 20  # of a table of counts
_PRIOR = 4.0  # how often a context must be seen until it counts more than the tokens' own frequencies


def end_surprise(
    file: BinaryIO, form: TokenForm, split: int, tokens: int, text_bytes: int, vocab_size: int
) -> float | None:
    """How many times as hard to predict the end of a text is as blocks from all over the text before it.

    file: of tokens, of which those from `split` on are the end; text_bytes: of all `tokens`
    returns: the ratio of two losses, about 1 for a text that is the same throughout; None for a short text, or one of a
        single symbol. Both are those of a model that counts: how often a token follows the few before it
        (`CONTEXT_BYTES`) in the other blocks, mixed with how often it stands there at all
    """
    length = max(SHORTEST, split // BLOCKS)
    blocks = _blocks(file, form, 0, split, length)
    size = max(2, round(CONTEXT_BYTES * tokens / text_bytes))
    counts, predicted = _Counts(size, vocab_size), []
    for place, block in enumerate(blocks):
        if place % EVERY == EVERY // 2:
            predicted.append(block)
        else:
            counts.add(block)
    end = list(_blocks(file, form, split, tokens, max(SHORTEST, EVERY * (tokens - split) // BLOCKS)))
    if min(sum(map(len, part)) for part in (end, predicted)) < LEAST:
        return None
    known = counts.loss(predicted)
    return counts.loss(end) / known if known else None


def _blocks(file: BinaryIO, form: TokenForm, start: int, stop: int, length: int) -> Iterator[np.ndarray]:
    """The first tokens, at most `READ`, of each block between two tokens."""
    for first, behind in pairwise([*range(start, stop, length), stop]):
        file.seek(first * form.dtype.itemsize)
        yield form.ids(np.fromfile(file, form.dtype, min(READ, behind - first)))


class _Counts:
    """Counts of tokens and of `size` neighbours, those in tables of `_BITS` bits, where few share a place."""

    def __init__(self, size: int, vocab_size: int):
        self._size = size
        self._alone = np.full(vocab_size, 0.5)
        self._contexts, self._whole = (np.zeros(1 << _BITS, np.int32) for _ in range(2))

    def add(self, tokens: np.ndarray):
        """Count a block's tokens."""
        self._alone += np.bincount(tokens, minlength=len(self._alone))
        contexts, whole, _ = self._places(tokens)
        np.add.at(self._contexts, contexts, 1)
        np.add.at(self._whole, whole, 1)

    def _places(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where each token's context is counted, and where the two together; the tokens themselves."""
        followed = tokens[: max(0, len(tokens) - 1)]
        contexts, whole = (
            (passage_hashes(each, size) >> np.uint64(64 - _BITS)).astype(np.intp)
            for each, size in ((followed, self._size - 1), (tokens, self._size))
        )
        return contexts, whole, tokens[self._size - 1 :]

    def loss(self, blocks: list[np.ndarray]) -> float:
        """The mean of −log p over the tokens of blocks, in nats."""
        alone, losses = self._alone / self._alone.sum(), []
        for block in blocks:
            contexts, whole, tokens = self._places(block)
            seen = self._contexts[contexts]
            found = np.minimum(self._whole[whole], seen)  # others may share its place
            losses.append(-np.log((found + _PRIOR * alone[tokens]) / (seen + _PRIOR)))
        return float(np.concatenate(losses).mean())
