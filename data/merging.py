"""The other side of `train_tokenizer`: learns byte-pair merges in a process of its own.

    python -P merging.py PARENT VOCAB_SIZE PATTERN

rustbpe merges for minutes without returning to Python, so its process does not see Ctrl-C; the parent ends this one.
Reads the text's pieces from stdin, each after its length in bytes (8 bytes, little endian), and
a length of 0; writes the tokens to stdout in the same form, in the order of their ranks.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import rustbpe


def write_piece(file: BinaryIO, piece: bytes):
    """Write a piece after its length; an empty one marks the end."""
    file.write(len(piece).to_bytes(8, "little") + piece)


def read_pieces(file: BinaryIO) -> Iterator[bytes]:
    """The pieces up to the end that was written. Raises EOFError if they break off before it."""
    while size := int.from_bytes(_read(file, 8), "little"):
        yield _read(file, size)


def _read(file: BinaryIO, size: int) -> bytes:
    piece = file.read(size)
    if len(piece) < size:
        raise EOFError("the pieces break off")
    return piece


def main():
    """Train on the pieces that the parent sends."""
    sys.path.append(str(Path(__file__).parents[1]))
    from contract.process import end_with_parent

    parent, vocab_size, pattern = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    end_with_parent(parent)
    pieces = (piece.decode() for piece in read_pieces(sys.stdin.buffer))
    trainer = rustbpe.Tokenizer()
    # buffer_size counts strings that are held at once: rustbpe's own 8192 would be 8 GiB of our pieces.
    trainer.train_from_iterator(pieces, vocab_size, buffer_size=os.cpu_count() or 1, pattern=pattern)
    for token, _ in sorted(trainer.get_mergeable_ranks(), key=lambda item: item[1]):
        write_piece(sys.stdout.buffer, bytes(token))
    write_piece(sys.stdout.buffer, b"")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
