"""Decoding, one token at a time, with a cache of the keys and values already computed."""

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np

from contract.decoding import decode
from contract.sampling import Sampling


class KeyValueCache:
    """The keys and values of the tokens seen so far, for every attention layer; it grows as the text does.

    A token's key and value depend on it and on those before it, so they stay valid as long as no token
    changes its place. Keys are kept as scores read them, turned. A layer with a window of W keeps the last tokens
    alone, with room for 2 W of them. Memory: see `contract.decoding.kv_cache_numbers`.
    """

    def __init__(self, config):
        self._layers = {
            f"blocks.{place}.attention": _LayerCache(config.layer(place).window)
            for place in range(config.n_layer)
        }
        self.length = 0  # tokens whose keys and values every layer holds

    def extend(self, name, key, value):
        """Append the new tokens' keys and values to the layer called `name`.

        key, value: float (B, K, T, D), B the same at each call; returns: key, value (B, K, S, D), the earlier tokens
            that a query sees included
        """
        return self._layers[name].extend(key, value)

    def select(self, rows):
        """Go on with the sequences `rows` of the batch alone, in their order; one named twice is there twice.

        rows: list of numbers from 0 to B - 1
        """
        for layer in self._layers.values():
            layer.select(rows)


class _LayerCache:
    """The keys and values of one layer, in an array that is twice as large as it must be when it is made."""

    def __init__(self, window):
        self._window = window
        self._kept = None  # (2, B, K, room, D)
        self._length = 0  # of what is kept

    def extend(self, key, value):
        stop = self._length + key.shape[2]
        if self._kept is None:
            return self._keep(np.stack([key, value]))
        seen = self._length if self._window is None else min(self._length, self._window - 1)
        if stop > self._kept.shape[3]:
            earlier = self._kept[:, :, :, self._length - seen : self._length]
            return self._keep(np.concatenate([earlier, np.stack([key, value])], axis=3))
        for kept, new in zip(self._kept, (key, value), strict=True):
            kept[:, :, self._length : stop] = new
        first, self._length = self._length - seen, stop
        return tuple(self._kept[:, :, :, first:stop])

    def _keep(self, both):
        """Keep of keys and values, (2, B, K, S, D), what later queries may see, with as much room again."""
        kept = both if self._window is None else both[:, :, :, -self._window :]
        self._length = kept.shape[3]
        self._kept = np.empty((*kept.shape[:3], 2 * self._length, kept.shape[4]), kept.dtype)
        self._kept[:, :, :, : self._length] = kept
        return tuple(both)

    def select(self, rows):
        if rows != list(range(self._kept.shape[1])):
            self._kept = self._kept[:, rows]


def generate(
    model,
    tokens,
    max_new_tokens,
    *,
    temperature=1.0,
    top_k=None,
    top_p=None,
    seed=0,
    sequence=0,
    repetition_penalty=1.0,
    use_cache=True,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` tokens that continue `tokens`, each as soon as it is drawn.

    The model sees the last `context_length` tokens. Once there are more, the oldest slides out at every
    step and all others change their place, so that their keys and values are computed anew: with the cache
    and without it, the same tokens come out.

    tokens: sequence of at least one token id, from 0 to V - 1; it is not changed
    temperature, top_k, top_p, seed, sequence, repetition_penalty: see `contract.sampling.sample`
    use_cache: False computes every step from the whole window, to prove that the cache changes nothing
    Raises ConfigError, at the call itself, for an empty or impossible prompt or impossible settings; while
        tokens are drawn, for logits that are not finite.
    Twin: torch_llm.generate.generate
    """
    sampling = Sampling(temperature, top_k, top_p, seed, sequence, repetition_penalty)._asdict()
    steps = generate_samples(model, tokens, max_new_tokens, 1, use_cache=use_cache, **sampling)
    return (token for _, token in steps)


def generate_samples(
    model, tokens, max_new_tokens, num_samples, *, stop=(), use_cache=True, **sampling
) -> Iterator[tuple[int, int]]:
    """Yield (sample, token) for each token of `num_samples` texts that continue `tokens`, as soon as it is drawn.

    The samples share the pass over the prompt and step together: a step of many costs little more than that of one.
    Sample n draws as sequence `sequence` + n and so gets the tokens that `generate` yields for that sequence.
    Tokens come step by step, those of a step in the order of samples.

    stop: token ids that end a sample; the one that it drew is its last
    the rest as in `generate`
    Twin: torch_llm.generate.generate_samples
    """
    return decode(
        tokens,
        max_new_tokens,
        num_samples,
        config=model.config,
        sampling=Sampling(**sampling),
        stop=stop,
        next_logits=lambda unseen, kv_cache: next_token_logits(model, unseen, kv_cache),
        new_cache=lambda: KeyValueCache(model.config),
        use_cache=use_cache,
    )


def next_token_logits(model, tokens, kv_cache):
    """The logits after `tokens`, which follow those in `kv_cache` and are added to it.

    tokens: B lists of T token ids; returns: float (B, V)
    """
    tokens = np.asarray(tokens)
    # A single token is bound by reading the weights, which BLAS's own threads do best.
    with model.team.working() if model.team and tokens.shape[1] > 1 else nullcontext():
        x, _ = model.stream_forward(tokens, kv_cache=kv_cache)
    kv_cache.length += tokens.shape[1]
    logits, *_ = model.logits_forward(x[:, -1])  # only the last token's are needed
    return logits
