"""The other side of `train_tokenizer`: learns byte-pair merges in a process of its own.

    python -P merging.py PARENT VOCAB_SIZE PATTERN

rustbpe merges for minutes without returning to Python, so its process does not see Ctrl-C; the parent ends this one.
Reads the pieces of the text from stdin, then None, and writes the tokens in the order of their ranks, by `marshal`.
"""

import marshal
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
    pieces = iter(lambda: marshal.load(sys.stdin.buffer), None)
    trainer = rustbpe.Tokenizer()
    # buffer_size counts strings that are held at once: rustbpe's own 8192 would be 8 GiB of our pieces.
    trainer.train_from_iterator(pieces, vocab_size, buffer_size=os.cpu_count() or 1, pattern=pattern)
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda item: item[1])
    marshal.dump([bytes(token) for token, _ in ranks], sys.stdout.buffer)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
