"""Texts to tokens in a file, piece by piece."""

import hashlib
from array import array
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

from data.chat import learnt_tokens
from data.conversation import Conversation
from data.published import PublishedTokenizer
from data.sources import Texts
from data.text import BETWEEN_LINES, BETWEEN_WORDS
from data.token_store import TokenForm
from data.tokenizers import Tokenizer, around_document, encode, is_bytewise, token_dtype

BLANK_LINE = "\n\n"  # between documents, for a tokenizer without an end token
BLOCK = 1 << 20  # tokens that are counted at a time


class TokenWriter:
    """Streams texts as tokens into a file.

    form: of the tokens; documents: the first token of each, in order
    """

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer, masked: bool):
        self.form = TokenForm(token_dtype(tokenizer, spare_bits=int(masked)).newbyteorder("<"), masked)
        self.tokens, self.documents = 0, array("q")
        self._file, self._tokenizer = file, tokenizer
        self._text_hash, self._text_bytes = hashlib.sha256(), 0
        self._cuts = BETWEEN_LINES if isinstance(tokenizer, PublishedTokenizer) else BETWEEN_WORDS
        self._cuts = None if is_bytewise(tokenizer) else self._cuts

    def add(self, texts: Texts, progress: Callable[[int], None] | None) -> int:
        """Write the tokens of all documents. returns: the tokens in the file now"""
        begin, end = ([], []) if texts.has_conversations else around_document(self._tokenizer)
        self._begin(begin)
        after_line = False
        for piece, ends in texts.pieces(progress, cuts=self._cuts):
            if isinstance(piece, Conversation):
                self._write_conversation(piece)
            else:
                self._write(self._encode(piece, after_line))
            after_line = not ends
            if ends:
                if not texts.has_conversations:  # their templates say what stands around them
                    # Only now: the tokenizer of a single document may lack it.
                    end = end or encode(self._tokenizer, texts.separator or BLANK_LINE).tolist()
                self._write(end)
                self._begin(begin)
        return self.tokens

    def counts(self) -> dict[str, int | str]:
        """What has been written, and the hashes of tokens and text."""
        self._file.seek(0)
        return {
            "tokens": self.tokens,
            "tokens_sha256": hashlib.file_digest(self._file, "sha256").hexdigest(),
            "text_bytes": self._text_bytes,
            "text_sha256": self._text_hash.hexdigest(),
            "documents": len(self.documents),
        }

    def targets(self, split: int) -> dict[str, int]:
        """How many tokens count as targets before `split` and behind it, if tokens are masked."""
        if not self.form.masked:
            return {}
        found, size = [], self.form.dtype.itemsize
        for start, stop in ((0, split), (split, self.tokens)):
            self._file.seek(start * size)
            blocks = (min(BLOCK, stop - at) for at in range(start, stop, BLOCK))
            stored = (np.fromfile(self._file, self.form.dtype, block) for block in blocks)
            found.append(sum(int(self.form.counts(block).sum()) for block in stored))
        return {"train_targets": found[0], "validation_targets": found[1]}

    def _begin(self, ids: list[int]):
        self.documents.append(self.tokens)
        self._write(ids)

    def _write_conversation(self, conversation: Conversation):
        self._count_text(conversation)
        for ids, counts in learnt_tokens(self._tokenizer, conversation):
            self._write(np.where(counts, ids, ids | self.form.mask))

    def _count_text(self, piece: str):
        data = piece.encode()
        self._text_hash.update(data)
        self._text_bytes += len(data)

    def _encode(self, piece: str, after_line: bool):
        self._count_text(piece)
        if isinstance(self._tokenizer, PublishedTokenizer):
            return self._tokenizer.encode(piece, after_line=after_line)
        return encode(self._tokenizer, piece)

    def _write(self, ids):
        self._file.write(np.asarray(ids).astype(self.form.dtype, copy=False))
        self.tokens += len(ids)
