"""Decoding, one token at a time, with a cache of the keys and values already computed."""

from collections.abc import Iterator

import torch

from contract.decoding import decode
from contract.sampling import Sampling


class KeyValueCache:
    """The keys and values of the tokens seen so far, for every attention layer.

    A token's key and value depend on it and on those before it, so they stay valid as long as no token
    changes its place. Memory: 2 · L · K · D · context_length numbers.

    Twin: numpy_llm.generate.KeyValueCache
    """

    def __init__(self, config, dtype, device=None):
        shape = (config.n_layer, 2, 1, config.n_kv_head, config.context_length, config.head_size)
        layers = torch.empty(shape, dtype=dtype, device=device)
        self._layers = {f"blocks.{layer}.attention": layers[layer] for layer in range(config.n_layer)}
        self.length = 0  # tokens whose keys and values every layer holds

    def extend(self, name, key, value):
        """Append the new tokens' keys and values to the layer called `name`.

        key, value: float (1, K, T, D); returns: key, value (1, K, length + T, D), earlier tokens included
        """
        stop = self.length + key.shape[2]
        keys, values = self._layers[name]
        keys[:, :, self.length : stop] = key
        values[:, :, self.length : stop] = value
        return keys[:, :, :stop], values[:, :, :stop]


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
    use_cache=True,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` tokens that continue `tokens`, each as soon as it is drawn.

    The model sees the last `context_length` tokens. Once there are more, the oldest slides out at every
    step and all others change their place, so that their keys and values are computed anew: with the cache
    and without it, the same tokens come out.

    tokens: sequence of at least one token id, from 0 to V - 1; it is not changed
    temperature, top_k, top_p, seed, sequence: see `contract.sampling.sample`
    use_cache: False computes every step from the whole window, to prove that the cache changes nothing
    Raises ConfigError, at the call itself, for an empty or impossible prompt or impossible settings; while
        tokens are drawn, for logits that are not finite.
    Twin: numpy_llm.generate.generate
    """
    return decode(
        tokens,
        max_new_tokens,
        config=model.config,
        sampling=Sampling(temperature, top_k, top_p, seed, sequence),
        next_logits=lambda unseen, kv_cache: next_token_logits(model, unseen, kv_cache).cpu().numpy(),
        new_cache=lambda: KeyValueCache(model.config, model.dtype, model.device),
        use_cache=use_cache,
    )


@torch.inference_mode()  # here rather than around the loop, whose caller goes on between two tokens
def next_token_logits(model, tokens, kv_cache):
    """The logits after `tokens`, which follow those in `kv_cache` and are added to it.

    returns: float (V,)
    Twin: numpy_llm.generate.next_token_logits
    """
    x = model.stream_forward(torch.tensor([tokens], device=model.device), kv_cache=kv_cache)
    kv_cache.length += len(tokens)
    return x[0, -1] @ model.get_parameter(model.output_name).T  # only the last token's logits are needed
