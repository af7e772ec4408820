"""The other side of `train_tokenizer`: learns byte-pair merges in a process of its own.

    python -P merging.py PARENT VOCAB_SIZE PATTERN

rustbpe merges for minutes without returning to Python, so its process does not see Ctrl-C; the parent ends this one.
Reads the text's pieces from stdin, a JSON string per line, then null; writes the tokens in the order of their ranks as
a JSON list, a character per byte.
"""

import json
import os
import sys
from pathlib import Path

import rustbpe


def main():
    """Train on the pieces that the parent sends."""
    sys.path.append(str(Path(__file__).parents[1]))
    from contract.process import end_with_parent

    parent, vocab_size, pattern = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    end_with_parent(parent)
    pieces = (json.loads(line) for line in iter(sys.stdin.buffer.readline, b"null\n"))
    trainer = rustbpe.Tokenizer()
    # buffer_size counts strings that are held at once: rustbpe's own 8192 would be 8 GiB of our pieces.
    trainer.train_from_iterator(pieces, vocab_size, buffer_size=os.cpu_count() or 1, pattern=pattern)
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda item: item[1])
    print(json.dumps([bytes(token).decode("latin-1") for token, _ in ranks]))


if __name__ == "__main__":
    main()
