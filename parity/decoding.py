"""Decoding: both twins write the tokens of the definition, with the key/value cache and without it."""

from functools import cache, lru_cache
from importlib import import_module
from itertools import product
from types import ModuleType

import numpy as np
import torch

import numpy_llm
from contract.config import ModelConfig
from contract.sampling import sample
from parity.cases import Case, lively_weights
from parity.compare import Comparison, ParityError, compare
from parity.passes import Twins
from parity.tolerances import limit, observe

PROMPTS, NEW_TOKENS, SEED = 50, 64, 2
_PIECES = (2, 1, 4, 1, 1)  # how `check_cache` cuts a text
SAMPLINGS = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 1.2, "top_k": 20, "top_p": 0.95, "seed": 3},
}
# Untied, because a tied model with random weights mostly repeats its last token.
DECODER = ModelConfig(
    vocab_size=23, context_length=24, n_layer=2, n_head=2, d_model=16, d_ff=24, activation="gelu_tanh",
    position="learned", tie_embeddings=False,
)  # fmt: skip


def prompts() -> list[list[int]]:
    """Prompts of 1 token to more than the context holds."""
    random = np.random.default_rng(SEED)
    return [random.integers(0, DECODER.vocab_size, 1 + number % 30).tolist() for number in range(PROMPTS)]


def write_texts(package: ModuleType, dtype: str, sampling: str, use_cache: bool) -> list[list[int]]:
    """What a model of either package writes after each prompt."""
    model = _decoder(package, dtype)
    return [_text(model, number, sampling, use_cache) for number in range(PROMPTS)]


@lru_cache(maxsize=8)
def _decoder(package: ModuleType, dtype: str):
    return package.GPT(DECODER, lively_weights(DECODER, SEED, dtype))


@lru_cache(maxsize=16 * PROMPTS)  # many changed twins are held against the same other one
def _text(model, number: int, sampling: str, use_cache: bool) -> list[int]:
    """What a model writes after prompt `number`."""
    settings = SAMPLINGS[sampling] | {"use_cache": use_cache}
    return model.generate(prompts()[number], NEW_TOKENS, sequence=number, **settings)


@cache
def _defined_text(number: int, sampling: str) -> list[int]:
    """What decoding means, without the loop that the twins share: a pass over the last window, a draw, and again."""
    model, tokens = _decoder(numpy_llm, "float64"), prompts()[number]
    for _ in range(NEW_TOKENS):
        logits = model.forward(np.array([tokens[-DECODER.context_length :]]))[0][0, -1]
        place = {"sequence": number, "position": len(tokens)}
        tokens.append(sample(logits, **SAMPLINGS[sampling], **place))
    return tokens[-NEW_TOKENS:]


def check_generation(twins: Twins):
    """In float64 both twins write the tokens of the definition, greedy and sampled, cache or not.

    Prompts are shorter and longer than the context, and what is written goes beyond its edge.
    """
    for number, prompt in enumerate(prompts()):
        for sampling, use_cache, package in product(SAMPLINGS, (True, False), twins):
            found = _text(_decoder(package, "float64"), number, sampling, use_cache)
            wanted = _defined_text(number, sampling)
            at = first_difference(found, wanted)
            if at is not None:
                raise ParityError(
                    f"{sampling}, cache {use_cache}, seed {SEED}, prompt {number} {prompt}: new token {at} "
                    f"is {found[at]} in {package.__name__}, expected {wanted[at]}",
                    f"token {at} of prompt {number}, {sampling}",
                )


def check_generation_in_float32(twins: Twins) -> int:
    """In float32 greedy texts part only where the two best logits are closer than float32 tells them apart.

    returns: how many of the texts part
    """
    ours, theirs = (write_texts(package, "float32", "greedy", use_cache=True) for package in twins)
    model = twins.reference.GPT(DECODER, lively_weights(DECODER, SEED, "float32"))
    parted = 0
    for prompt, found, wanted in zip(prompts(), ours, theirs, strict=True):
        at = first_difference(found, wanted)
        if at is not None:
            require_tie(model, prompt + found[:at], found[at], wanted[at])
            parted += 1
    return parted


def require_tie(model, tokens: list[int], ours: int, theirs: int):
    """Raise ParityError unless `ours` and `theirs` are the two best next tokens, within the margin allowed."""
    logits = model.forward(np.array([tokens[-DECODER.context_length :]]))[0][0, -1]
    best, second = np.argsort(-logits, kind="stable")[:2]
    margin = float((logits[best] - logits[second]) / np.abs(logits).max())
    allowed = limit("logit margin", "float32")
    if {ours, theirs} != {best, second} or not margin <= allowed:
        raise ParityError(
            f"after {tokens}, seed {SEED}: the reference writes {ours}, the twin {theirs}; the two best tokens are "
            f"{best} and {second}, {margin:.3g} of the largest logit apart, and a tie is at most {allowed:g}",
            f"token {len(tokens)}",
        )
    observe("logit margin", "float32", margin)


def first_difference(ours: list[int], theirs: list[int]) -> int | None:
    """Where two texts part, None where they are equal."""
    if len(ours) != len(theirs):
        return min(len(ours), len(theirs))
    return next((at for at, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), None)


def check_cache(twins: Twins):
    """A text fed in pieces, with a key/value cache, gives the stream of the text taken whole."""
    inputs = Case("pieces", DECODER, B=1, T=9).inputs("float64")
    model = twins.twin.GPT(DECODER, inputs.weights)
    with torch.no_grad():
        whole = {"stream": model.stream_forward(torch.tensor(inputs.tokens)).numpy()}
    for package, stream_in_pieces in ((twins.reference, _stream), (twins.twin, _stream_twin)):
        kv_cache = import_module(f"{package.__name__}.generate").KeyValueCache
        found = {"stream": stream_in_pieces(package, inputs, kv_cache)}
        title = f"a text in pieces in {package.__name__}"
        Comparison(title, "float64", 1, compare("activation", whole, found, "float64")).require()


def _stream(package, inputs, kv_cache) -> np.ndarray:
    model, kv_cache, pieces = package.GPT(DECODER, inputs.weights), kv_cache(DECODER, "float64"), []
    for piece in np.split(inputs.tokens, np.cumsum(_PIECES)[:-1], axis=1):
        pieces.append(np.array(model.stream_forward(piece, kv_cache=kv_cache)[0]))
        kv_cache.length += piece.shape[1]
    return np.concatenate(pieces, axis=1)


@torch.no_grad()
def _stream_twin(package, inputs, kv_cache) -> np.ndarray:
    model, pieces = package.GPT(DECODER, inputs.weights), []
    kv_cache = kv_cache(DECODER, model.dtype)
    for piece in torch.tensor(inputs.tokens).split(_PIECES, dim=1):
        pieces.append(model.stream_forward(piece, kv_cache=kv_cache))
        kv_cache.length += piece.shape[1]
    return torch.cat(pieces, dim=1).numpy()
