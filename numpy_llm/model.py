"""The GPT: a list of calls forward, and the same list reversed.

    tokens -> embedding + position -> L x [ x + attention(norm(x)),  x + feed_forward(norm(x)) ]
           -> final norm -> output -> cross-entropy

The dimension letters are explained in `contract/config.py`.
"""

from contextlib import nullcontext

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
from numpy_llm.attention import attention_backward, attention_forward
from numpy_llm.generate import generate
from numpy_llm.layers import (
    cross_entropy_backward,
    cross_entropy_forward,
    dropout_backward,
    dropout_forward,
    embedding_backward,
    embedding_forward,
    gelu_backward,
    gelu_forward,
    layer_norm_backward,
    layer_norm_forward,
    linear_backward,
    linear_forward,
    position_backward,
    position_forward,
    relu_backward,
    relu_forward,
    sinusoidal_positions,
)

ACTIVATIONS = {"relu": (relu_forward, relu_backward), "gelu_tanh": (gelu_forward, gelu_backward)}


def feed_forward_forward(x, weights, name, config, trace=NO_TRACE):
    """Widen each token to F channels, apply the activation, and narrow it to C again.

        y = activation(x W_upᵀ + b_up) W_downᵀ + b_down

    x: float (B, T, C); weights: mapping that holds this layer's under `name`, such as "blocks.0.feed_forward"
    returns: y (B, T, C), cache
    Source: Vaswani et al. 2017, section 3.3. Twin: torch_llm.model.feed_forward
    """
    activation_forward, activation_backward = ACTIVATIONS[config.activation]
    hidden, up_cache = linear_forward(x, weights[f"{name}.up.weight"], weights.get(f"{name}.up.bias"))
    trace.record(f"{name}.up", hidden)
    active, activation_cache = activation_forward(hidden)
    trace.record(f"{name}.activation", active)
    y, down_cache = linear_forward(active, weights[f"{name}.down.weight"], weights.get(f"{name}.down.bias"))
    trace.record(f"{name}.down", y)
    return y, (name, up_cache, activation_backward, activation_cache, down_cache)


def feed_forward_backward(dy, cache, trace=NO_TRACE):
    """The forward pass reversed. returns: dx (B, T, C), gradients by weight name"""
    name, up_cache, activation_backward, activation_cache, down_cache = cache
    trace.record_gradient(f"{name}.down", dy)
    dactive, ddown_weight, ddown_bias = linear_backward(dy, down_cache)
    trace.record_gradient(f"{name}.activation", dactive)
    dhidden = activation_backward(dactive, activation_cache)
    trace.record_gradient(f"{name}.up", dhidden)
    dx, dup_weight, dup_bias = linear_backward(dhidden, up_cache)
    return dx, {
        f"{name}.up.weight": dup_weight,
        f"{name}.up.bias": dup_bias,
        f"{name}.down.weight": ddown_weight,
        f"{name}.down.bias": ddown_bias,
    }


def norm_forward(x, weights, name, config, trace=NO_TRACE):
    """The layer norm called `name`. returns: y (B, T, C), cache"""
    y, cache = layer_norm_forward(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), config.norm_eps)
    trace.record(name, y)
    return y, (name, cache)


def norm_backward(dy, cache, trace=NO_TRACE):
    """The forward pass reversed. returns: dx (B, T, C), gradients by weight name"""
    name, layer_norm_cache = cache
    trace.record_gradient(name, dy)
    dx, dweight, dbias = layer_norm_backward(dy, layer_norm_cache)
    return dx, {f"{name}.weight": dweight, f"{name}.bias": dbias}


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
    branch, dropout_1_cache = dropout_forward(branch, config.dropout, dropout, f"{name}.dropout_1")
    trace.record(f"{name}.dropout_1", branch)
    x = x + branch
    trace.record(f"{name}.residual_1", x)

    normed, norm_2_cache = norm_forward(x, weights, f"{name}.norm_2", config, trace)
    branch, feed_forward_cache = feed_forward_forward(normed, weights, f"{name}.feed_forward", config, trace)
    branch, dropout_2_cache = dropout_forward(branch, config.dropout, dropout, f"{name}.dropout_2")
    trace.record(f"{name}.dropout_2", branch)
    y = x + branch
    trace.record(f"{name}.residual_2", y)
    return y, (
        name,
        norm_1_cache,
        attention_cache,
        dropout_1_cache,
        norm_2_cache,
        feed_forward_cache,
        dropout_2_cache,
    )


def block_backward(dy, cache, trace=NO_TRACE):
    """The forward pass reversed; where the stream forked, the gradients of both ways are added.

    returns: dx (B, T, C), gradients by weight name
    """
    (
        name,
        norm_1_cache,
        attention_cache,
        dropout_1_cache,
        norm_2_cache,
        feed_forward_cache,
        dropout_2_cache,
    ) = cache
    trace.record_gradient(f"{name}.residual_2", dy)
    trace.record_gradient(f"{name}.dropout_2", dy)  # y = x + branch
    dbranch = dropout_backward(dy, dropout_2_cache)
    dnormed, feed_forward_gradients = feed_forward_backward(dbranch, feed_forward_cache, trace)
    dx, norm_2_gradients = norm_backward(dnormed, norm_2_cache, trace)
    dx += dy

    trace.record_gradient(f"{name}.residual_1", dx)
    trace.record_gradient(f"{name}.dropout_1", dx)  # x = x + branch
    dbranch = dropout_backward(dx, dropout_1_cache)
    dnormed, attention_gradients = attention_backward(dbranch, attention_cache, trace)
    dstream = dx
    dx, norm_1_gradients = norm_backward(dnormed, norm_1_cache, trace)
    dx += dstream
    return dx, norm_1_gradients | attention_gradients | norm_2_gradients | feed_forward_gradients


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
        if config.position == "sinusoidal":
            self.positions = sinusoidal_positions(config.context_length, config.d_model, self.dtype)
        else:
            self.positions = self.weights["position_embedding.weight"]
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
        x, stream_cache = self.stream_forward(tokens, dropout=dropout, trace=trace)
        logits, output_cache = linear_forward(x, self.weights[self.output_name], None)
        trace.record("logits", logits)
        if targets is None:
            return logits, None, None
        loss, loss_cache = cross_entropy_forward(logits, targets)
        trace.record("loss", loss)
        return logits, loss, (stream_cache, output_cache, loss_cache)

    def stream_forward(self, tokens, *, dropout=None, kv_cache=None, trace: Trace = NO_TRACE):
        """The residual stream from the embedding to the final norm.

        kv_cache: keys and values of the tokens before these, see `numpy_llm.generate.KeyValueCache`
        returns: x (B, T, C), cache
        """
        config, weights = self.config, self.weights
        start = kv_cache.length if kv_cache is not None else 0
        x, embedding_cache = embedding_forward(tokens, weights["token_embedding.weight"])
        trace.record("token_embedding", x)
        x, position_cache = position_forward(x, self.positions, start)
        trace.record("embedding", x)
        x, dropout_cache = dropout_forward(x, config.dropout, dropout, "embedding_dropout")
        trace.record("embedding_dropout", x)
        block_caches = []
        for layer in range(config.n_layer):
            x, block_cache = block_forward(x, weights, f"blocks.{layer}", config, dropout, kv_cache, trace)
            block_caches.append(block_cache)
        x, norm_cache = norm_forward(x, weights, "final_norm", config, trace)
        return x, (embedding_cache, position_cache, dropout_cache, block_caches, norm_cache)

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
        (
            (embedding_cache, position_cache, dropout_cache, block_caches, norm_cache),
            output_cache,
            loss_cache,
        ) = cache
        trace.record_gradient("loss", np.asarray(dloss, self.dtype))
        dlogits = cross_entropy_backward(dloss, loss_cache)
        trace.record_gradient("logits", dlogits)
        dx, doutput, _ = linear_backward(dlogits, output_cache)
        # A tied matrix is used twice, at the output and at the embedding: both gradients are added to it.
        _add(gradients, {self.output_name: doutput}, turn)
        dx, norm_gradients = norm_backward(dx, norm_cache, trace)
        _add(gradients, norm_gradients, turn)
        for block_cache in reversed(block_caches):
            dx, block_gradients = block_backward(dx, block_cache, trace)
            _add(gradients, block_gradients, turn)
        trace.record_gradient("embedding_dropout", dx)
        dx = dropout_backward(dx, dropout_cache)
        trace.record_gradient("embedding", dx)
        dx, dpositions = position_backward(dx, position_cache)
        if self.config.position == "learned":
            _add(gradients, {"position_embedding.weight": dpositions}, turn)
        trace.record_gradient("token_embedding", dx)
        _add(gradients, {"token_embedding.weight": embedding_backward(dx, embedding_cache)}, turn)
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
