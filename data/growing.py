"""The tokenizer of a trained model, grown by what a new text needs: its own tokens keep their ids and their meaning.

New tokens stand behind the old ones: first the bytes that the tokenizer lacks, then an end token if the text is several
documents and there is none, then merges that are learned on the text as it is after the tokenizer's own merges. Since
every new merge has a higher rank than all old ones, no text is merged in another way than before until these are done.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import regex
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from contract.errors import ConfigError, UserError
from data.published import PublishedTokenizer
from data.sources import Texts
from data.text import BETWEEN_LINES
from data.tokenizer_training import MAX_VOCAB_SIZE
from data.tokenizers import END_OF_TEXT, Tokenizer, bytes_in, encode, encoding_of, end_token, token_bytes
from data.vocabulary import merged_parts

ENOUGH = 2  # times that a pair must stand in the text to become a token
Words = Mapping[tuple, int]  # the tokens of a word, bytes or text -> how often it stands in the text


def grown(
    tokenizer: Tokenizer,
    texts: Sequence[Texts],
    merges: int,
    progress: Callable[[int], None] | None = None,
) -> Tokenizer:
    """The tokenizer with what it lacks for these texts; itself if that is nothing.

    texts: the one to learn from, then others that it must be able to write
    merges: how many tokens to learn beside the symbols that are missing; a small text gives fewer
    progress: called with the number of bytes of the first text read so far, in one pass or two
    Raises ConfigError for an impossible number, UserError if a text cannot be read, or not twice.
    """
    if not 0 <= merges <= MAX_VOCAB_SIZE - tokenizer.n_vocab:
        most = MAX_VOCAB_SIZE - tokenizer.n_vocab
        raise ConfigError(f"--grow-vocabulary must be from 0 to {most:,}, got {merges:,}")
    learned_from = texts[0]
    if merges and learned_from.read_once:
        raise UserError(
            f"{learned_from.name} is a pipe, which can be read only once, and new tokens are learned before it is "
            "tokenised; write it to a file, or give --grow-vocabulary 0"
        )
    if isinstance(tokenizer, PublishedTokenizer):  # it can write every text
        if not merges:
            return tokenizer
        words = Counter()
        for piece, _ in learned_from.pieces(progress, cuts=BETWEEN_LINES):
            words.update(tokenizer.words(piece))
        return tokenizer.grown(learn_merges(words, set(tokenizer.vocabulary), merges))
    complete = _with_symbols(tokenizer, texts, progress)
    return _with_merges(complete, learned_from, merges, progress) if merges else complete


def _with_symbols(tokenizer: tiktoken.Encoding, texts: Sequence[Texts], progress) -> tiktoken.Encoding:
    """The tokenizer with a token for every byte of the texts, and with an end token if they need one."""
    tokens, known = token_bytes(tokenizer), np.zeros(256, bool)
    known[[token[0] for token in tokens if len(token) == 1]] = True
    seen = bytes_in(texts, known, progress)
    ends = end_token(tokenizer) is None and any(each.has_documents for each in texts)
    if ends:
        seen[list(END_OF_TEXT.encode())] = True
    new = [bytes([byte]) for byte in np.flatnonzero(seen & ~known)] + [END_OF_TEXT.encode()] * ends
    return encoding_of(_name(tokenizer), tokens + new) if new else tokenizer


def _name(tokenizer: tiktoken.Encoding) -> str:
    """What a grown tokenizer is called: no longer "gpt2", whose ranks are kept in no file."""
    return "ranks" if tokenizer.name == "gpt2" else tokenizer.name


def _with_merges(tokenizer: tiktoken.Encoding, texts: Texts, merges: int, progress) -> tiktoken.Encoding:
    pattern, found = regex.compile(r50k_pat_str), Counter()
    for piece, _ in texts.pieces(progress):
        found.update(pattern.findall(piece))
    tokens = token_bytes(tokenizer)
    words = {tuple(tokens[id] for id in encode(tokenizer, word)): count for word, count in found.items()}
    ranks = {token: rank for rank, token in enumerate(tokens)}

    def fits(pair: tuple[bytes, bytes]) -> bool:
        # tiktoken merges any two neighbours whose bytes together are a token: they must always be these two.
        return merged_parts(b"".join(pair), ranks) == list(pair)

    for left, right in _merges(words, ranks, fits):
        ranks[left + right] = len(ranks)
        if len(ranks) == len(tokens) + merges:
            break
    return encoding_of("ranks", list(ranks)) if len(ranks) > len(tokens) else tokenizer


def learn_merges(words: Words, known: set, count: int) -> list[tuple]:
    """The most frequent pairs of neighbours, one after the other, each merged before the next is counted.

    words: what is merged, each by itself; known: tokens that exist already, which no pair makes again
    returns: at most `count` pairs, each standing in the text at least `ENOUGH` times when it is merged
    """
    return [pair for pair, _ in zip(_merges(words, known, lambda pair: True), range(count), strict=False)]


def _merges(words: Words, known, fits: Callable[[tuple], bool]) -> Iterator[tuple]:
    """The pairs of `learn_merges` that `fits` accepts; equally frequent ones come in the order of their tokens."""
    known = set(known)
    words = [[list(word), count] for word, count in words.items() if len(word) > 1]
    counts, places = Counter(), defaultdict(set)
    for place, (word, count) in enumerate(words):
        for pair in pairwise(word):
            counts[pair] += count
            places[pair].add(place)
    queue = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(queue)
    while queue:
        count, pair = heapq.heappop(queue)
        if -count < ENOUGH:
            return
        if -count != counts[pair]:  # it was counted again since, and stands in the queue anew
            continue
        if pair[0] + pair[1] in known or not fits(pair):
            continue
        yield pair
        known.add(pair[0] + pair[1])
        changed = set()
        for place in places.pop(pair):
            word, times = words[place]
            merged = _merged(word, pair)
            for step, each in ((-times, word), (times, merged)):
                for neighbours in pairwise(each):
                    counts[neighbours] += step
                    changed.add(neighbours)
            for neighbours in pairwise(merged):
                places[neighbours].add(place)
            words[place][0] = merged
        for each in changed:
            heapq.heappush(queue, (-counts[each], each))


def _merged(word: list, pair: tuple) -> list:
    """The word with the pair merged wherever it stands, from the left."""
    found, at = [], 0
    while at < len(word):
        two = word[at : at + 2] == list(pair)
        found.append(pair[0] + pair[1] if two else word[at])
        at += 1 + two
    return found
