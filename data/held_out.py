"""What a text holds out to validate on: its end, or documents or blocks from all over it, drawn by a seed.

A text that is sorted by topic, as many are, ends with what the rest of it says nothing of. Then its end tells how a
model does on something else, and a draw how it does on such text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import numpy as np

from contract.errors import ConfigError, UserError
from contract.randomness import generator
from data.token_store import TokenForm
from data.tokenizers import Tokenizer, token_bytes

WAYS = ("end", "documents", "blocks")
SPLIT_REACH = 4096  # tokens that a boundary may move back, see `_Boundaries`
BLOCKS = 100  # held out, so that they come from everywhere; fewer if they would be shorter than `SHORTEST`
SHORTEST = 256  # tokens of a block: several lines
TOLERANCE = 0.1  # of the share asked for, by which the held-out part may exceed it
ENOUGH = 0.99  # of that share
COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class HeldOut:
    """What is held out of a text.

    fraction: of the tokens, 0 to less than 1
    way: one of `WAYS`; None for documents if some of them make at least half of that share, else the end
    seed: of the draw
    text: a text of its own instead, of which nothing is trained on
    Raises ConfigError for what is impossible.
    """

    fraction: float = 0.1
    way: str | None = None
    seed: int = 0
    text: Path | None = None

    def __post_init__(self):
        if not 0 <= self.fraction < 1:
            raise ConfigError(
                f"a validation fraction of {self.fraction} is impossible; give 0 or more, less than 1"
            )
        if self.way not in (*WAYS, None):
            raise ConfigError(f"unknown --held-out {self.way!r}; choose {', '.join(WAYS[:-1])} or {WAYS[-1]}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--held-out-seed must be from 0 to 2^63 - 1, got {self.seed}")


def hold_out(
    file: BinaryIO,
    form: TokenForm,
    documents: Sequence[int],
    tokens: int,
    tokenizer: Tokenizer,
    held_out: HeldOut,
) -> tuple[int, dict]:
    """Order the tokens in a file so that those held out are its last.

    form: of the tokens; documents: the first token of each; tokens: of all of them
    returns: the tokens to train on, at least 1; `held_out`, `held_out_parts` and `held_out_seed` of a token file's JSON
    Raises UserError if the documents are too long to be drawn.
    """
    boundaries = _Boundaries(file, form, tokenizer)
    if held_out.fraction and held_out.way != "end":
        blocks = held_out.way == "blocks"
        edges = _blocks(tokens, held_out.fraction) if blocks else np.append(np.asarray(documents), tokens)
        drawn = _draw(np.diff(edges), held_out)
        found = int(np.diff(edges)[drawn].sum())
        if found >= held_out.fraction * tokens / 2:
            way = held_out.way or "documents"
            edges = boundaries.adjusted(edges, drawn) if blocks else edges
            split = tokens - int(np.diff(edges)[drawn].sum())
            _move_to_end(file, edges * form.dtype.itemsize, drawn)
            return split, {
                "held_out": way,
                "held_out_parts": int(drawn.sum()),
                "held_out_seed": held_out.seed,
            }
        if held_out.way:
            shortest = 100 * np.diff(edges).min() / tokens
            raise UserError(
                f"no {held_out.way} make {100 * held_out.fraction:.3g} % of the text: it has {len(drawn):,}, the "
                f"shortest with {shortest:.3g} %; name another --held-out, or a text for --validation"
            )
    target = max(1, round(tokens * (1 - held_out.fraction)))
    reach = int((1 + TOLERANCE) * held_out.fraction * tokens) - (tokens - target)
    return boundaries.before(target, reach), {"held_out": "end"}


def _blocks(tokens: int, fraction: float) -> np.ndarray:
    """The edges of blocks as long as each other, but for the last."""
    smaller = int(min(fraction, 1 - fraction) * tokens)  # of the two parts
    length = max(1, min(smaller, SHORTEST), smaller // BLOCKS)
    return np.append(np.arange(0, tokens, length), tokens)


def _draw(lengths: np.ndarray, held_out: HeldOut) -> np.ndarray:
    """Which parts are held out, bool: their length together is about the share that was asked for, never all."""
    target = held_out.fraction * lengths.sum()
    most = min((1 + TOLERANCE) * target, lengths.sum() - 1)
    drawn, total = np.zeros(len(lengths), bool), 0
    for place in generator(held_out.seed, "held-out").permutation(len(lengths)):
        if total + lengths[place] <= most:
            drawn[place] = True
            total += lengths[place]
        if total >= ENOUGH * target:
            break
    return drawn


def _move_to_end(file: BinaryIO, edges: np.ndarray, drawn: np.ndarray):
    """Move the drawn parts of a file behind the others, each in their order. edges: of all parts, in bytes"""
    turns = np.flatnonzero(np.diff(drawn)) + 1  # where the parts drawn, or those not drawn, come to an end
    runs = [0, *turns.tolist(), len(drawn)]
    end = 0
    with TemporaryFile(dir=Path(file.name).parent) as aside:
        for first, behind in pairwise(runs):
            start, stop = int(edges[first]), int(edges[behind])
            if drawn[first]:
                _copy(file, start, stop, aside, aside.tell())
            else:
                _copy(file, start, stop, file, end)
                end += stop - start
        _copy(aside, 0, aside.tell(), file, end)


def _copy(source: BinaryIO, start: int, stop: int, target: BinaryIO, place: int):
    """Copy bytes to `place`, which in the same file is never behind `start`."""
    for at in range(start, stop, COPY_BYTES):
        source.seek(at)
        data = source.read(min(COPY_BYTES, stop - at))
        target.seek(place + at - start)
        target.write(data)


# Where to split a text, best first: after a match in its UTF-8 bytes.
_BOUNDARIES = {
    "line": re.compile(rb"\n|\r(?!\n)"),
    # Of the last ones: 。！？
    "sentence": re.compile(rb"[.!?](?:[\"')\]]|\xe2\x80[\x99\x9d])*(?=\s)|\xe3\x80\x82|\xef\xbc[\x81\x9f]"),
    "word": re.compile(rb"\S(?=\s)"),
    "character": re.compile(rb"(?![\x80-\xbf])"),
}


class _Boundaries:
    """Finds where to split the tokens of a file: after a line if one is in reach, else a sentence, word, character."""

    def __init__(self, file: BinaryIO, form: TokenForm, tokenizer: Tokenizer):
        self._file, self._form, self._bytes = file, form, token_bytes(tokenizer)

    def before(self, target: int, reach: int) -> int:
        """The last place to split at, up to `target` and not further before it than `reach` and `SPLIT_REACH`."""
        reach = min(SPLIT_REACH, reach)
        if reach <= 0:
            return target
        # Boundaries look at a few tokens before the first position and one after the last.
        start = max(0, target - reach - 8)
        self._file.seek(start * self._form.dtype.itemsize)
        stored = np.fromfile(self._file, self._form.dtype, target + 1 - start)
        pieces = [self._bytes[token] for token in self._form.ids(stored)]
        text = b"".join(pieces)
        places = np.arange(max(1, target - reach), target + 1)
        ends = np.cumsum([0, *map(len, pieces)])[places - start]  # the same places, in bytes of `text`
        for boundary in _BOUNDARIES.values():
            found = places[np.isin(ends, [match.end() for match in boundary.finditer(text)])]
            if found.size:
                return int(found[-1])
        return target

    def adjusted(self, edges: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """The edges of blocks, those around a drawn one each moved back to a boundary by half a block at most."""
        reach = int(edges[1] - edges[0]) // 2
        around = np.flatnonzero(np.append(drawn, False) | np.append(False, drawn))
        edges = edges.copy()
        for place in around[(around > 0) & (around < len(edges) - 1)]:
            edges[place] = self.before(int(edges[place]), reach)
        return edges
