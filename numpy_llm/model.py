"""The GPT: a list of calls forward, and the same list reversed.

    tokens -> embedding + position -> L x [ x + attention(norm(x)),  x + feed_forward(norm(x)) ]
           -> final norm -> output -> cross-entropy

The dimension letters are explained in `contract/config.py`.
"""

from contextlib import nullcontext
from typing import NamedTuple

import numpy as np

from contract.checks import check_batch
from contract.config import ModelConfig
from contract.errors import ConfigError
from contract.randomness import DropoutKey
from contract.trace import NO_TRACE, Trace
from contract.weights import (
    Weights,
    check_layout,
    check_weights,
    flat_layout,
    initial_weights,
    weight_table,
)
from numpy_llm.attention import AttentionCache, attention_backward, attention_forward
from numpy_llm.feed_forward import FeedForwardCache, feed_forward_backward, feed_forward_forward
from numpy_llm.generate import generate
from numpy_llm.layers import (
    DropoutCache,
    EmbeddingCache,
    LinearCache,
    dropout_backward,
    dropout_forward,
    embedding_backward,
    embedding_forward,
    linear_backward,
    linear_forward,
    residual_backward,
    residual_forward,
)
from numpy_llm.losses import CrossEntropyCache, cross_entropy_backward, cross_entropy_forward
from numpy_llm.norms import NormCache, norm_backward, norm_forward
from numpy_llm.positions import POSITIONS, PositionCache, position_backward, position_forward


class BlockCache(NamedTuple):
    name: str
    norm_1: NormCache
    attention: AttentionCache
    dropout_1: DropoutCache
    residual_1: None
    norm_2: NormCache
    feed_forward: FeedForwardCache
    dropout_2: DropoutCache
    residual_2: None


def block_forward(x, weights, name, config, dropout=None, kv_cache=None, trace=NO_TRACE):
    """One transformer block: two branches, each of which reads a normed copy and adds to the stream.

        x = x + dropout(attention(norm_1(x)))
        y = x + dropout(feed_forward(norm_2(x)))

    x: float (B, T, C); weights: mapping that holds this block's under `name`, such as "blocks.0"
    returns: y (B, T, C), cache
    Source: Radford et al. 2019, section 2.3 (the norm moved to each branch's input).
    Twin: torch_llm.model.block
    """
    normed, norm_1_cache = norm_forward(x, weights, f"{name}.norm_1", config, trace)
    branch, attention_cache = attention_forward(
        normed, weights, f"{name}.attention", config, dropout, kv_cache, trace
    )
    branch, dropout_1_cache = _dropout(branch, config, dropout, f"{name}.dropout_1", trace)
    stream, residual_1_cache = residual_forward(x, branch)
    trace.record(f"{name}.residual_1", stream, "residual", x, branch)

    normed, norm_2_cache = norm_forward(stream, weights, f"{name}.norm_2", config, trace)
    branch, feed_forward_cache = feed_forward_forward(normed, weights, f"{name}.feed_forward", config, trace)
    branch, dropout_2_cache = _dropout(branch, config, dropout, f"{name}.dropout_2", trace)
    y, residual_2_cache = residual_forward(stream, branch)
    trace.record(f"{name}.residual_2", y, "residual", stream, branch)
    return y, BlockCache(
        name, norm_1_cache, attention_cache, dropout_1_cache, residual_1_cache,
        norm_2_cache, feed_forward_cache, dropout_2_cache, residual_2_cache,
    )  # fmt: skip


def _dropout(x, config, key, site, trace):
    """Dropout at one of the model's places, recorded under its name."""
    arguments = x, config.dropout, key, site
    y, cache = dropout_forward(*arguments)
    trace.record(site, y, "dropout", *arguments)
    return y, cache


def block_backward(dy, cache, trace=NO_TRACE):
    """The forward pass reversed; where the stream forked, the gradients of both ways are added.

    returns: dx (B, T, C), gradients by weight name
    """
    name = cache.name
    trace.record_gradient(f"{name}.residual_2", dy)
    dstream, dbranch = residual_backward(dy, cache.residual_2)
    trace.record_gradient(f"{name}.dropout_2", dbranch)
    dbranch = dropout_backward(dbranch, cache.dropout_2)
    dnormed, feed_forward_gradients = feed_forward_backward(dbranch, cache.feed_forward, trace)
    dx, norm_2_gradients = norm_backward(dnormed, cache.norm_2, trace)
    dx += dstream

    trace.record_gradient(f"{name}.residual_1", dx)
    dstream, dbranch = residual_backward(dx, cache.residual_1)
    trace.record_gradient(f"{name}.dropout_1", dbranch)
    dbranch = dropout_backward(dbranch, cache.dropout_1)
    dnormed, attention_gradients = attention_backward(dbranch, cache.attention, trace)
    dx, norm_1_gradients = norm_backward(dnormed, cache.norm_1, trace)
    dx += dstream
    return dx, norm_1_gradients | attention_gradients | norm_2_gradients | feed_forward_gradients


class StreamCache(NamedTuple):
    embedding: EmbeddingCache
    position: PositionCache
    dropout: DropoutCache
    blocks: list[BlockCache]
    norm: NormCache


class GPTCache(NamedTuple):
    stream: StreamCache
    output: LinearCache
    loss: CrossEntropyCache


class GPT:
    """A GPT whose gradients are written by hand.

    config: the function to compute
    weights: what to compute it with; None draws `initial_weights(config, seed, dtype)`
    dtype: "float32" to train, "float64" to prove; the dtype of `weights` where they are given

    Raises ConfigError for weights of another model or that are not finite, a seed or a dtype out of range.
    Twin: torch_llm.model.GPT
    """

    def __init__(self, config: ModelConfig, weights: Weights | None = None, *, seed=0, dtype="float32"):
        if not isinstance(config, ModelConfig):
            raise ConfigError(f"config must be a ModelConfig, got {type(config).__name__}")
        self.config = config
        if weights is None:
            weights = initial_weights(config, seed, dtype)
        else:
            check_weights(weights, config)
            check_layout("weights", weights, flat_layout(weight_table(config)))
        self.weights = weights
        self.dtype = self.weights.flat.dtype
        self.positions = POSITIONS[config.position](config, self.weights)
        self.output_name = "token_embedding.weight" if config.tie_embeddings else "output.weight"

    def forward(self, tokens, targets=None, *, dropout: DropoutKey | None = None, trace: Trace = NO_TRACE):
        """From tokens to the logits of each next token, and to the loss where the targets are known.

        tokens: int (B, T), T at most `context_length`; targets: int (B, T), the token after each, or None
        dropout: what the masks are drawn from, None for evaluation
        trace: records every intermediate tensor
        returns: logits (B, T, V); loss (), nats per token, or None; cache for `backward`, or None
        Raises ConfigError for tokens and targets of another kind or shape, or outside the vocabulary.
        """
        check_batch(tokens, targets, self.config)
        trace.give(tokens=tokens, targets=targets, positions=self.positions, **self.weights)
        x, stream_cache = self.stream_forward(tokens, dropout=dropout, trace=trace)
        output = self.weights[self.output_name], None
        logits, output_cache = linear_forward(x, *output)
        trace.record("logits", logits, "linear", x, *output)
        if targets is None:
            return logits, None, None
        loss, loss_cache = cross_entropy_forward(logits, targets)
        trace.record("loss", loss, "cross_entropy", logits, targets)
        return logits, loss, GPTCache(stream_cache, output_cache, loss_cache)

    def stream_forward(self, tokens, *, dropout=None, kv_cache=None, trace: Trace = NO_TRACE):
        """The residual stream from the embedding to the final norm.

        kv_cache: keys and values of the tokens before these, see `numpy_llm.generate.KeyValueCache`
        returns: x (B, T, C), cache
        """
        config, weights = self.config, self.weights
        start = kv_cache.length if kv_cache is not None else 0
        x, embedding_cache = embedding_forward(tokens, weights["token_embedding.weight"])
        trace.record("token_embedding", x, "embedding", tokens, weights["token_embedding.weight"])
        embedding, position_cache = position_forward(x, self.positions, start)
        trace.record("embedding", embedding, "position", x, self.positions, start)
        x, dropout_cache = _dropout(embedding, config, dropout, "embedding_dropout", trace)
        block_caches = []
        for layer in range(config.n_layer):
            x, block_cache = block_forward(x, weights, f"blocks.{layer}", config, dropout, kv_cache, trace)
            block_caches.append(block_cache)
        x, norm_cache = norm_forward(x, weights, "final_norm", config, trace)
        return x, StreamCache(embedding_cache, position_cache, dropout_cache, block_caches, norm_cache)

    def backward(
        self, cache, *, dloss=1.0, gradients: Weights | None = None, turn=nullcontext, trace: Trace = NO_TRACE
    ):
        """The forward pass reversed: the gradient of the loss with respect to every weight.

        cache: what `forward` returned
        dloss: gradient of the total loss with respect to this one: a part's share of a larger batch
        gradients: where to add them, in the weights' layout; None starts from zeros
        turn: makes the context of each addition: waits where several threads add to the same `gradients`
        returns: gradients
        Raises ConfigError for gradients of another layout.
        """
        if gradients is None:
            gradients = Weights.zeros(self.config, self.dtype)
        check_layout("gradients", gradients, self.weights.layout)
        stream = cache.stream
        trace.record_gradient("loss", np.asarray(dloss, self.dtype))
        dlogits = cross_entropy_backward(dloss, cache.loss)
        trace.record_gradient("logits", dlogits)
        dx, doutput, _ = linear_backward(dlogits, cache.output)
        # A tied matrix is used twice, at the output and at the embedding: both gradients are added to it.
        _add(gradients, {self.output_name: doutput}, turn)
        dx, norm_gradients = norm_backward(dx, stream.norm, trace)
        _add(gradients, norm_gradients, turn)
        for block_cache in reversed(stream.blocks):
            dx, block_gradients = block_backward(dx, block_cache, trace)
            _add(gradients, block_gradients, turn)
        trace.record_gradient("embedding_dropout", dx)
        dx = dropout_backward(dx, stream.dropout)
        trace.record_gradient("embedding", dx)
        dx, dpositions = position_backward(dx, stream.position)
        if self.config.position == "learned":
            _add(gradients, {"position_embedding.weight": dpositions}, turn)
        trace.record_gradient("token_embedding", dx)
        _add(gradients, {"token_embedding.weight": embedding_backward(dx, stream.embedding)}, turn)
        return gradients

    def generate(self, tokens, max_new_tokens, **sampling):
        """The tokens that the model adds to `tokens`; see `numpy_llm.generate.generate`."""
        return list(generate(self, tokens, max_new_tokens, **sampling))


def _add(gradients, part, turn):
    with turn():
        for name, gradient in part.items():
            if gradient is not None:
                total = gradients[name]
                total += gradient
