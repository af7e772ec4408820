"""Files that an earlier version started: names and caches as numpy_llm had them then."""

import functools


def accept_earlier_files():
    """Run files that an earlier version started: names that numpy_llm.layers had, and caches that have no names."""
    from numpy_llm import attend, attention, feed_forward, layers, losses, norms, positions

    for module, stem, named in (
        (attend, "softmax", attend.SoftmaxCache),
        (layers, "linear", layers.LinearCache),
        (layers, "embedding", layers.EmbeddingCache),
    ):
        name = f"{stem}_backward"
        setattr(module, name, _with_any_cache(getattr(module, name), named))
    attention.attention_forward = _with_any_config(attention.attention_forward)
    attention.softmax_forward, attention.softmax_backward = attend.softmax_forward, attend.softmax_backward
    for module in (attend, attention, feed_forward, losses, norms, positions):
        for name, value in vars(module).items():
            if name.endswith(("_forward", "_backward")):
                vars(layers).setdefault(name, value)
    layers.gelu_forward, layers.gelu_backward = layers.gelu_tanh_forward, layers.gelu_tanh_backward


def _with_any_cache(backward, named):
    """A backward function that takes its cache as a plain tuple or array too."""

    @functools.wraps(backward)
    def accepting(dy, cache):
        if not isinstance(cache, named):
            cache = named(*cache) if isinstance(cache, tuple) else named(cache)
        return backward(dy, cache)

    return accepting


def _with_any_config(forward):
    """`attention_forward` that takes its configuration as a few attributes too."""
    from contract.config import ModelConfig

    @functools.wraps(forward)
    def accepting(x, weights, name, config, *others):
        if not isinstance(config, ModelConfig):
            config = ModelConfig(
                vocab_size=1, context_length=x.shape[1], n_layer=1, n_head=config.n_head, d_model=x.shape[2], d_ff=1,
                activation="relu", position="learned",
            )  # fmt: skip
        return forward(x, weights, name, config, *others)

    return accepting
