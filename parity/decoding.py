"""Decoding: both twins write the tokens of the definition, with the key/value cache and without it."""

from collections.abc import Sequence
from functools import cache, lru_cache
from importlib import import_module
from itertools import product
from types import ModuleType

import numpy as np
import torch

import numpy_llm
from contract.randomness import uniform
from contract.sampling import sample
from contract.weights import Weights
from numpy_llm.attend import softmax_forward
from parity.cases import Case, lively_weights, small
from parity.compare import Comparison, ParityError, compare
from parity.passes import Twins
from parity.tolerances import limit, observe

PROMPTS, NEW_TOKENS, SEED = 50, 64, 2
_PIECES = (2, 1, 4, 1, 1)  # how `check_cache` cuts a text
# Several at once: prompts of both decoders, from one token to more than the context; ids at which a sample stops.
SAMPLES, SAMPLED_PROMPTS, STOP = 6, (0, 9, 22, 29), frozenset({3, 11})
FLOAT32_SAMPLING = {"temperature": 1.2, "seed": 3}
SAMPLINGS = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 1.2, "top_k": 20, "top_p": 0.95, "seed": 3, "repetition_penalty": 1.1},
}
CONTEXT, V = 24, 23
# Untied, because a tied model with random weights mostly repeats its last token. Prompts take turns.
DECODERS = (
    small(V, CONTEXT, L=2, H=2, C=16, F=24, tie_embeddings=False),
    small(
        V, CONTEXT, L=3, H=4, C=16, F=24, tie_embeddings=False, activation="silu", position="rotary", norm="rms_norm",
        feed_forward="gated", bias=False, n_kv_head=2, query_key_norm="head", logit_cap=9.0, window=5,
        layer_pattern=("sliding", "full"),
    ),
)  # fmt: skip


def prompts() -> list[list[int]]:
    """Prompts of 1 token to more than the context holds."""
    random = np.random.default_rng(SEED)
    return [random.integers(0, V, 1 + number % 30).tolist() for number in range(PROMPTS)]


def write_texts(package: ModuleType, dtype: str, sampling: str, use_cache: bool) -> list[list[int]]:
    """What a model of either package writes after each prompt."""
    return [_text(package, dtype, number, sampling, use_cache) for number in range(PROMPTS)]


def _text(package: ModuleType, dtype: str, number: int, sampling: str, use_cache: bool) -> list[int]:
    """What it writes after prompt `number`."""
    model = _decoder(package, dtype, number)
    settings = SAMPLINGS[sampling] | {"use_cache": use_cache}
    return model.generate(prompts()[number], NEW_TOKENS, sequence=number, **settings)


def _decoder(package: ModuleType, dtype: str, number: int):
    """The model that continues prompt `number`."""
    return package.GPT(DECODERS[number % 2], _weights(dtype, number % 2))


@cache
def _weights(dtype: str, which: int) -> Weights:
    return lively_weights(DECODERS[which], SEED, dtype)


# Many changed references are held against the same twin. The reference's own texts are never kept: what `made` changes
# in it is no other package.
_twin_text = lru_cache(maxsize=16 * PROMPTS)(_text)


@cache
def _defined_text(number: int, sampling: str, sequence: int) -> list[int]:
    """What decoding means, without the loop that the twins share: a pass over the last window, a draw, and again."""
    model, tokens = _decoder(numpy_llm, "float64", number), prompts()[number]
    for _ in range(NEW_TOKENS):
        logits = model.forward(np.array([tokens[-CONTEXT:]]))[0][0, -1]
        place = {"sequence": sequence, "position": len(tokens), "seen": tokens}
        tokens.append(sample(logits, **SAMPLINGS[sampling], **place))
    return tokens[-NEW_TOKENS:]


def check_generation(twins: Twins, numbers: Sequence[int] = range(PROMPTS)):
    """In float64 both twins write the tokens of the definition, greedy and sampled, cache or not.

    Prompts are shorter and longer than the context, and what is written goes beyond its edge.

    numbers: of the prompts
    """
    every = prompts()
    for number in numbers:
        prompt = every[number]
        for sampling, use_cache, package in product(SAMPLINGS, (True, False), twins):
            write = _twin_text if package is twins.twin else _text
            found = write(package, "float64", number, sampling, use_cache)
            wanted = _defined_text(number, sampling, sequence=number)
            at = first_difference(found, wanted)
            if at is not None:
                raise ParityError(
                    f"{sampling}, cache {use_cache}, seed {SEED}, prompt {number} {prompt}: new token {at} "
                    f"is {found[at]} in {package.__name__}, expected {wanted[at]}",
                    f"token {at} of prompt {number}, {sampling}",
                )


def check_samples(twins: Twins):
    """In float64 each of several samples at once gets the tokens of its definition, whenever it and the others stop."""
    for number, sampling, package in product(SAMPLED_PROMPTS, SAMPLINGS, twins):
        found = write_samples(package, "float64", number, SAMPLINGS[sampling])
        for sequence, tokens in enumerate(found):
            wanted = until_stop(_defined_text(number, sampling, sequence))
            at = first_difference(tokens, wanted)
            if at is not None:
                raise ParityError(
                    f"{sampling}, seed {SEED}, prompt {number}: {package.__name__} writes {tokens} as sample "
                    f"{sequence} of {SAMPLES} at once, expected {wanted}; they differ at token {at}",
                    f"token {at} of sample {sequence} of prompt {number}, {sampling}",
                )


def write_samples(package: ModuleType, dtype: str, number: int, sampling: dict) -> list[list[int]]:
    """What a model of either package writes after prompt `number` in several samples at once."""
    model = _decoder(package, dtype, number)
    return model.generate_samples(prompts()[number], NEW_TOKENS, SAMPLES, stop=STOP, **sampling)


def until_stop(tokens: list[int]) -> list[int]:
    """The tokens up to the first that stops."""
    end = next((at for at, token in enumerate(tokens) if token in STOP), len(tokens))
    return tokens[: end + 1]


def check_samples_in_float32(twins: Twins) -> int:
    """In float32 a sample among others differs from it alone only where the draw was closer than float32 tells.

    returns: how many of the samples differ
    """
    differing = 0
    for number, package in product(SAMPLED_PROMPTS, twins):
        prompt, found = prompts()[number], write_samples(package, "float32", number, FLOAT32_SAMPLING)
        for sequence, tokens in enumerate(found):
            alone = _decoder(package, "float32", number).generate(
                prompt, NEW_TOKENS, sequence=sequence, **FLOAT32_SAMPLING
            )
            at = first_difference(tokens, until_stop(alone))
            if at is not None:
                model = _decoder(twins.reference, "float32", number)
                require_close_draw(model, prompt + alone[:at], sequence, tokens[at], alone[at])
                differing += 1
    return differing


def require_close_draw(model, tokens: list[int], sequence: int, ours: int, theirs: int):
    """Raise ParityError unless the draw after `tokens` lies within the margin of both tokens' shares, or they tie."""
    logits = model.forward(np.array([tokens[-CONTEXT:]]))[0][0, -1].astype(np.float64)
    order = np.argsort(-logits, kind="stable").tolist()
    ends = np.cumsum(softmax_forward(logits[order] / FLOAT32_SAMPLING["temperature"])[0])
    u = uniform(FLOAT32_SAMPLING["seed"], "sampling", sequence, len(tokens))
    places = [order.index(token) for token in (ours, theirs)]
    away = max(max(ends[place - 1] - u if place else 0, u - ends[place]) for place in places)
    apart = min(away, abs(logits[ours] - logits[theirs]) / np.abs(logits).max())
    allowed = limit("logit margin", "float32")
    if not apart <= allowed:
        raise ParityError(
            f"after {tokens}, seed {SEED}, sequence {sequence}: {ours} among other samples, {theirs} alone; the draw "
            f"is {away:.3g} from one of them, and rounding moves it by at most {allowed:g}",
            f"token {len(tokens)}",
        )


def check_generation_in_float32(twins: Twins) -> int:
    """In float32 greedy texts differ only where the two best logits are closer than float32 tells them apart.

    returns: how many of the texts differ
    """
    ours, theirs = (write_texts(package, "float32", "greedy", use_cache=True) for package in twins)
    differing = 0
    for number, (prompt, found, wanted) in enumerate(zip(prompts(), ours, theirs, strict=True)):
        at = first_difference(found, wanted)
        if at is not None:
            require_tie(
                _decoder(twins.reference, "float32", number), prompt + found[:at], found[at], wanted[at]
            )
            differing += 1
    return differing


def require_tie(model, tokens: list[int], ours: int, theirs: int):
    """Raise ParityError unless `ours` and `theirs` are the two best next tokens, within the margin allowed."""
    logits = model.forward(np.array([tokens[-CONTEXT:]]))[0][0, -1]
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
    """The index of the first differing token, None where the texts are equal."""
    if len(ours) != len(theirs):
        return min(len(ours), len(theirs))
    return next((at for at, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), None)


@torch.no_grad()
def check_cache(twins: Twins):
    """A text fed in pieces, with a key/value cache, gives the stream of the text taken whole."""
    for config, package in product(DECODERS, twins):
        inputs = Case("pieces", config, B=1, T=9).inputs("float64")
        whole = twins.twin.GPT(config, inputs.weights).stream_forward(torch.tensor(inputs.tokens)).numpy()
        model, pieces, is_twin = package.GPT(config, inputs.weights), [], package is twins.twin
        kv_cache = import_module(f"{package.__name__}.generate").KeyValueCache(config)
        for piece in np.split(inputs.tokens, np.cumsum(_PIECES)[:-1], axis=1):
            stream = model.stream_forward(torch.tensor(piece) if is_twin else piece, kv_cache=kv_cache)
            pieces.append(stream.numpy() if is_twin else np.array(stream[0]))
            kv_cache.length += piece.shape[1]
        found = {"stream": np.concatenate(pieces, axis=1)}
        rows = compare("activation", {"stream": whole}, found, "float64")
        title = f"a text in pieces, {config.position} positions, in {package.__name__}"
        Comparison(title, "float64", 1, rows).require()
