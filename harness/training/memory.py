"""Whether a training fits into memory, estimated before it begins."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from math import prod

import numpy as np

from contract.components import sizes
from contract.config import ModelConfig
from contract.errors import UserError
from contract.randomness import DropoutKey
from contract.weights import Weights, frozen_names, parameter_count, weight_table
from harness.training.machine import available_memory
from harness.training.numpy_backend import part_count, products_wait
from harness.training.ranks import ALONE, Sharing
from harness.training.settings import DTYPES, TrainingSettings
from numpy_llm.attend_in_blocks import BLOCKS_FROM
from numpy_llm.losses import MAX_LOGITS
from numpy_llm.model import GPT

SHORTEST = 16  # tokens of a sequence that further training is begun with unasked
MAX_ACCUMULATE = 1024  # more micro-batches than anybody would wait for
# Python with all that a training run imports, the plot at its end included.
PROCESS_BYTES = {"numpy": 105 << 20, "torch": 370 << 20}


def check_memory(
    backend: str, config: ModelConfig, settings: TrainingSettings, threads: int, sharing: Sharing = ALONE
):
    """Raise UserError, with a way out, if a training would take more memory than its processes here may use."""
    memory = available_memory()
    who = "this process" if sharing.here == 1 else f"its {sharing.here} processes here"
    has = f"and {who} may use {memory / 1e9:,.1f} GB"
    # The blocks alone, with gradients and moments: the whole weight table could be too large to make.
    one, two = (parameter_count(config.with_layers(layers)) for layers in (1, 2))
    copies = 1 if settings.freeze or config.lora_rank else 4 * sharing.here
    if sharing.way == "shard":
        copies = max(1, copies // sharing.ranks)
    needed = copies * config.n_layer * (two - one) * np.dtype(DTYPES[settings.dtype]).itemsize
    if needed > memory:
        raise UserError(
            f"the model alone takes {needed / 1e9:,.0f} GB of memory to train, {has}; choose a smaller one"
        )

    def estimate(parts: int) -> int:
        leader, other = (
            estimate_memory(backend, config, replace(settings, accumulate=parts), threads, each)
            for each in (sharing, sharing._replace(leads=False))
        )
        return leader + (sharing.here - 1) * other

    if (needed := estimate(settings.accumulate)) <= memory:
        return
    way = "choose a smaller --batch-size"
    if estimate(settings.batch_size) > memory:
        way = "choose a smaller model, a shorter --sequence-length or a smaller vocabulary"
    else:
        for parts in range(settings.accumulate + 1, min(settings.batch_size, MAX_ACCUMULATE) + 1):
            if sharing.ranks > 1 and parts & (parts - 1):
                continue  # they share powers of two
            if settings.batch_size % parts == 0 and (less := estimate(parts)) <= memory:
                way = f"with --accumulate {parts} it takes {less / 1e9:,.1f} GB and gives the same result"
                break
    raise UserError(f"training takes about {needed / 1e9:,.1f} GB of memory, {has}; {way}")


def fitting_length(
    backend: str, config: ModelConfig, settings: TrainingSettings, threads: int, text: int
) -> int | None:
    """Tokens of a sequence for further training: what a model can see, halved until memory and the text hold it.

    text: its tokens. None for all that the model can see, or where nothing fits.
    Half of the memory is left, to other programs and to the user who asks for more.
    """
    room = available_memory() // 2

    def fits(T: int) -> bool:
        shorter = replace(settings, sequence_length=T)
        return text > T and estimate_memory(backend, config, shorter, threads) <= room

    lengths = [config.context_length >> halvings for halvings in range(config.context_length.bit_length())]
    length = next((T for T in lengths if T >= SHORTEST and fits(T)), None)
    return None if length == config.context_length else length


def estimate_memory(
    backend: str, config: ModelConfig, settings: TrainingSettings, threads: int, sharing: Sharing = ALONE
) -> int:
    """Bytes that training takes at its peak: the process, weights, moments and gradients, and what a pass keeps.

    Of P parameters, of which Q are trained, on N processes with m micro-batches each, one process holds, in numbers,

        alone, exact    P + 2 Q + max((1 + log2 m) Q + pass,  Q + 2 largest)
        overlap         P + 2 Q + 2 Q + pass
        shard           (P + 2 Q + (1 + log2 m) Q) / N + 2 (rest + 2 block) + pass
          the leader    at least (P + 3 Q) / N + P + largest

    weights, two moments, and gradients: sums of the tree beside those that are being computed. An exchange holds a
    tensor twice, when nothing of the pass is left. Of a model in parts, two blocks and the rest are together at a time,
    with their gradients; the leader puts all together to begin and to write samples.
    """
    table, count = weight_table(config), parameter_count(config)
    frozen = frozen_names(table, settings.freeze)
    trained = count - sum(prod(table[name].shape) for name in frozen)
    largest = max(prod(spec.shape) for spec in table.values())
    sums = (settings.accumulate // sharing.ranks).bit_length()  # of gradients, see `tree_sum`
    state, gradients = count + 2 * trained, sums * trained
    kept, more = _pass(backend, config, settings, threads, trained, frozen)
    if sharing.way == "shard":
        one, two = (parameter_count(config.with_layers(layers)) for layers in (1, 2))
        together = count - (config.n_layer - 2) * (two - one)
        numbers = (state + gradients) / sharing.ranks + 2 * together + kept
        if sharing.leads:
            numbers = max(numbers, (state + trained) / sharing.ranks + count + largest)
    elif sharing.way == "overlap":
        numbers = state + 2 * trained + kept + more
    else:
        exchanged = trained + 2 * largest if sharing.ranks > 1 else 0
        numbers = state + max(gradients + kept + more, exchanged)
    # Steps in bfloat16 took 0.88 to 1.03 times as much as in float32: weights cast, against numbers of half the size.
    return int(numbers) * np.dtype(DTYPES[settings.dtype]).itemsize + PROCESS_BYTES[backend]


def _pass(
    backend: str,
    config: ModelConfig,
    settings: TrainingSettings,
    threads: int,
    trained: int,
    frozen: list[str],
) -> tuple[int, int]:
    """The numbers that a pass over a micro-batch keeps, and those of gradients that are not added up yet.

    trained: parameters; frozen: weights
    """
    T, sequences = settings.tokens_per_sequence(config), -(-settings.batch_size // settings.accumulate)
    size = sizes(config, T=T)
    per_token, per_pair = cached_numbers(config)
    per_token += 2 * size["C"]  # the residual stream
    parts = part_count(sequences, T, config.d_model) if backend == "numpy" else 1
    waiting = backend == "numpy" and products_wait(sequences, T, config.d_model, bool(frozen))
    held = parts if waiting else min(parts, threads)  # parts whose caches are held at once
    blocks = matrices = gradients = 0
    logits = size["V"]
    if -(-sequences // parts) * T * size["V"] > MAX_LOGITS:  # then no more than a block of them is held
        per_token, logits, blocks = per_token - size["V"], 0, 3 * held * MAX_LOGITS
    if backend == "numpy":
        # Gradients of the logits, or of a layer, or of two where those of the one before are not added up yet.
        layer = (1 + waiting) * (5 * size["C"] + size["F"])
        if T >= BLOCKS_FROM and not config.dropout:
            per_pair, layer = 0, layer + 2 * size["H·D"] + size["H"]
        else:
            layer += 2 * size["H"] * size["T"]
        per_token += max(logits, layer)
        matrices = parts * bool(blocks) * waiting
        gradients = 0 if waiting else parts  # of each part, until they are added up
    else:
        per_token += 2 * logits + 3 * size["F"]
        # Attention is one kernel that keeps no probabilities, unless dropout or a soft cap makes us write it out.
        per_pair = per_pair + 2 * size["H"] if config.dropout or config.score_cap else 0
        # A second one of the embedding while it is added: a tied output's, another micro-batch's.
        matrices = config.tie_embeddings + (settings.accumulate > 1)
        matrices *= "token_embedding.weight" not in frozen
    kept = sequences * held * size["T"] * (per_token + size["T"] * per_pair) // parts
    return kept + blocks, gradients * trained + matrices * size["V"] * size["C"]


@lru_cache(maxsize=2)
def cached_numbers(config: ModelConfig) -> tuple[float, float]:
    """How many numbers the caches of `numpy_llm` keep for the backward pass: per token, and per pair of tokens."""
    # What does not grow with the text, such as 1 + weight of a norm, falls out of the differences.
    two, four, eight = (_cached(config, tokens) for tokens in (2, 4, 8))
    pairs = ((eight - four) - 2 * (four - two)) / 24
    return (four - two) / 2 - 6 * pairs, pairs


def _cached(config: ModelConfig, T: int) -> int:
    """The numbers that a pass over T tokens keeps; one layer runs and is counted L times."""
    small = replace(config.with_layers(1), context_length=T)
    flat = np.broadcast_to(np.float32(0), parameter_count(small))  # a single zero, whatever the model's size
    model = GPT(small, Weights(weight_table(small), flat))
    tokens = np.zeros((1, T), np.int64)
    _, _, cache = model.forward(tokens, tokens, dropout=DropoutKey(0, 0))
    return _size(cache) + (config.n_layer - 1) * _size(cache.stream.blocks)


def _size(cache) -> int:
    """The numbers in a cache's arrays of more than one, views of the same memory counted once."""

    def owners(cache) -> Iterator[np.ndarray]:
        if isinstance(cache, np.ndarray):
            yield cache if cache.base is None else cache.base
        elif isinstance(cache, tuple | list):
            for each in cache:
                yield from owners(each)

    counts = {id(array): array.size for array in owners(cache)}
    return sum(count for count in counts.values() if count > 1)
