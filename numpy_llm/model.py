"""The GPT: a list of calls forward, and the same list reversed.

    tokens -> embedding (+ position) -> L x [ x + attention(norm(x)),  x + feed_forward(norm(x)) ]
           -> final norm -> output -> cross-entropy

The dimension letters are explained in `contract/config.py`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from contract.checks import check_batch, check_targets
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
from numpy_llm.block import BlockCache, block_backward, block_forward
from numpy_llm.generate import generate, generate_samples
from numpy_llm.gradients import GradientSum
from numpy_llm.layers import (
    DropoutCache,
    EmbeddingCache,
    LinearCache,
    ScaleCache,
    SoftCapCache,
    dropout_backward,
    dropout_forward,
    embedding_backward,
    embedding_forward,
    linear_backward,
    linear_forward,
    scale_backward,
    scale_forward,
    soft_cap_backward,
    soft_cap_forward,
)
from numpy_llm.losses import (
    MAX_LOGITS,
    CrossEntropyCache,
    LinearCrossEntropyCache,
    cross_entropy_backward,
    cross_entropy_forward,
    linear_cross_entropy_backward,
    linear_cross_entropy_forward,
)
from numpy_llm.norms import NormCache, norm_backward, norm_forward
from numpy_llm.positions import POSITIONS, PositionCache, position_backward, position_forward


class StreamCache(NamedTuple):
    embedding: EmbeddingCache
    scale: ScaleCache | None
    position: PositionCache | None
    dropout: DropoutCache
    blocks: list[BlockCache]
    norm: NormCache


class GPTCache(NamedTuple):
    stream: StreamCache
    output: LinearCache | None  # None where the loss has it in its own
    cap: SoftCapCache | None
    loss: CrossEntropyCache | LinearCrossEntropyCache


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
        self.team = None  # `numpy_llm.threads.Team` that prompts are read with, if any
        self.output_name = "token_embedding.weight" if config.tie_embeddings else "output.weight"

    def forward(
        self, tokens, targets=None, *, dropout: DropoutKey | None = None, trace: Trace = NO_TRACE, keep=True
    ):
        """From tokens to the logits of each next token, and to the loss where the targets are known.

        tokens: int (B, T), T at most `context_length`; targets: int (B, T), the token after each, or None
        dropout: what the masks are drawn from, None for evaluation
        trace: records every intermediate tensor
        keep: whether to keep what `backward` needs, most of the memory of a pass
        returns: logits (B, T, V); loss (), nats per token, or None; cache for `backward`, or None
        Raises ConfigError for tokens and targets of another kind or shape, or outside the vocabulary.
        """
        check_batch(tokens, targets, self.config)
        if self.positions is not None:
            trace.give(positions=self.positions)  # learned ones are named as the weight that they are
        trace.give(tokens=tokens, targets=targets, **self.weights)
        x, stream_cache = self.stream_forward(tokens, dropout=dropout, trace=trace, keep=keep)
        logits, output_cache, cap_cache = self.logits_forward(x, trace)
        if targets is None:
            return logits, None, None
        loss, loss_cache = cross_entropy_forward(logits, targets)
        trace.record("loss", loss, "cross_entropy", logits, targets)
        return logits, loss, GPTCache(stream_cache, output_cache, cap_cache, loss_cache) if keep else None

    def loss(self, tokens, targets, *, dropout: DropoutKey | None = None, keep=True):
        """The loss of the last tokens' predictions, without the logits, which may be too many to hold at once.

        tokens: int (B, T); targets: int (B, T) or fewer, (B, n), the token after each of the last n; the rest and the
        errors as in `forward`
        returns: loss (), nats per token; cache for `backward`, None where n < T or nothing was kept
        """
        check_batch(tokens, None, self.config)
        check_targets(targets, tokens[:, -targets.shape[-1] :].shape, self.config)
        if targets.size * self.config.vocab_size <= MAX_LOGITS and targets.shape == tokens.shape:
            return self.forward(tokens, targets, dropout=dropout, keep=keep)[1:]
        x, stream_cache = self.stream_forward(tokens, dropout=dropout, keep=keep)
        x = x[:, -targets.shape[1] :]
        loss, cache = linear_cross_entropy_forward(
            x, self.weights[self.output_name], targets, self.config.logit_cap
        )
        return loss, GPTCache(
            stream_cache, None, None, cache
        ) if keep and targets.shape == tokens.shape else None

    def stream_forward(self, tokens, *, dropout=None, kv_cache=None, trace: Trace = NO_TRACE, keep=False):
        """The residual stream from the embedding to the final norm.

        kv_cache: keys and values of the tokens before these, see `numpy_llm.generate.KeyValueCache`
        keep: whether the cache holds the blocks' for `backward`
        returns: x (B, T, C), cache
        """
        config, weights = self.config, self.weights
        start = kv_cache.length if kv_cache is not None else 0
        x, embedding_cache = embedding_forward(tokens, weights["token_embedding.weight"])
        trace.record("token_embedding", x, "embedding", tokens, weights["token_embedding.weight"])
        scale_cache = position_cache = None
        if config.embedding_scale != 1:
            scaled, scale_cache = scale_forward(x, config.embedding_scale)
            trace.record("scaled_embedding", scaled, "scale", x, config.embedding_scale)
            x = scaled
        if self.positions is not None:
            placed, position_cache = position_forward(x, self.positions, start)
            trace.record("embedding", placed, "position", x, self.positions, start)
            x = placed
        dropping = config.dropout, dropout, "embedding_dropout"
        kept, dropout_cache = dropout_forward(x, *dropping)
        trace.record("embedding_dropout", kept, "dropout", x, *dropping)
        x = kept
        block_caches = []
        for place in range(config.n_layer):
            name, layer = f"blocks.{place}", config.layer(place)
            x, block_cache = block_forward(x, weights, name, config, layer, dropout, kv_cache, trace)
            if keep:
                block_caches.append(block_cache)
            del block_cache  # where it isn't kept, the next block takes its memory
        x, norm_cache = norm_forward(x, weights, "final_norm", config, trace)
        return x, StreamCache(
            embedding_cache, scale_cache, position_cache, dropout_cache, block_caches, norm_cache
        )

    def logits_forward(self, x, trace: Trace = NO_TRACE):
        """The logits of the normed stream.

        x: float (..., C); returns: logits (..., V), cache of the output layer, cache of the soft cap or None
        """
        output = self.weights[self.output_name], None
        cap = self.config.logit_cap
        logits, output_cache = linear_forward(x, *output)
        trace.record("logits" if cap is None else "uncapped_logits", logits, "linear", x, *output)
        if cap is None:
            return logits, output_cache, None
        capped, cap_cache = soft_cap_forward(logits, cap)
        trace.record("logits", capped, "soft_cap", logits, cap)
        return capped, output_cache, cap_cache

    def backward(self, cache, *, dloss=1.0, gradients: Weights | None = None, trace: Trace = NO_TRACE):
        """The forward pass reversed: the gradient of the loss with respect to every weight.

        cache: what `forward` returned; dloss: gradient of the total loss with respect to this one
        gradients: where to add them, in the weights' layout; None starts from zeros
        returns: gradients
        Raises ConfigError for gradients of another layout.
        """
        empty = gradients is None
        gradients = Weights.zeros(self.config, self.dtype) if empty else gradients
        check_layout("gradients", gradients, self.weights.layout)
        total = GradientSum(gradients, empty=empty)
        for layer in self.backward_layers(cache, dloss, trace):
            for add in total.work([layer]):
                add()
        return gradients

    def backward_layers(self, cache, dloss=1.0, trace: Trace = NO_TRACE, *, later=False) -> Iterator[dict]:
        """The same, one layer after another, the last one first.

        dloss: gradient of the total loss with respect to this one: a part's share of a larger batch
        later: whether the products of weights' gradients wait until they can be taken for all parts
        yields: gradients by weight name, for `numpy_llm.gradients.GradientSum`
        """
        stream = cache.stream
        trace.record_gradient("loss", np.asarray(dloss, self.dtype))
        dx, doutput = self._output_backward(dloss, cache, trace, later)
        # A tied matrix is used twice, at the output and at the embedding: both gradients are added up.
        yield {self.output_name: doutput}
        dx, norm_gradients = norm_backward(dx, stream.norm, trace)
        yield norm_gradients
        for block_cache in reversed(stream.blocks):
            dx, block_gradients = block_backward(dx, block_cache, trace, later)
            yield block_gradients
        trace.record_gradient("embedding_dropout", dx)
        dx = dropout_backward(dx, stream.dropout)
        if stream.position is not None:
            trace.record_gradient("embedding", dx)
            dx, dpositions = position_backward(dx, stream.position)
            if self.config.position == "learned":
                yield {"position_embedding.weight": dpositions}
        if stream.scale is not None:
            trace.record_gradient("scaled_embedding", dx)
            dx = scale_backward(dx, stream.scale)
        trace.record_gradient("token_embedding", dx)
        # Only a traced pass, which is there to be read, makes the whole matrix: few of its rows are not 0.
        dweight = embedding_backward(dx, stream.embedding, later=trace is NO_TRACE)
        yield {"token_embedding.weight": dweight}

    def _output_backward(self, dloss, cache, trace, later):
        """From the loss back to the normed stream. returns: dx (B, T, C), gradient of the output matrix"""
        if cache.output is None:
            dx, doutput = linear_cross_entropy_backward(dloss, cache.loss)
            return dx.reshape(*cache.stream.embedding.tokens.shape, -1), doutput
        dlogits = cross_entropy_backward(dloss, cache.loss)
        trace.record_gradient("logits", dlogits)
        if cache.cap is not None:
            dlogits = soft_cap_backward(dlogits, cache.cap)
            trace.record_gradient("uncapped_logits", dlogits)
        dx, doutput, _ = linear_backward(dlogits, cache.output, later=later)
        return dx, doutput

    def generate(self, tokens, max_new_tokens, **sampling):
        """The tokens that the model adds to `tokens`; see `numpy_llm.generate.generate`."""
        return list(generate(self, tokens, max_new_tokens, **sampling))

    def generate_samples(self, tokens, max_new_tokens, num_samples, **sampling):
        """The tokens of each of `num_samples` samples; see `numpy_llm.generate.generate_samples`."""
        steps = generate_samples(self, tokens, max_new_tokens, num_samples, **sampling)
        samples = [[] for _ in range(num_samples)]
        for sample, token in steps:
            samples[sample].append(token)
        return samples
