"""The GPT: a list of calls forward; autograd goes through it backward.

    tokens -> embedding (+ position) -> L x [ x + attention(norm(x)),  x + feed_forward(norm(x)) ]
           -> final norm -> output -> cross-entropy

The dimension letters are explained in `contract/config.py`. Modules hold the weights, and their attributes
spell the weights' dotted names; what is computed with them is said by the functions of the other files.
Dropout is asked for with a key at each call, so `train()` and `eval()` change nothing.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from contract.checks import check_batch, check_targets
from contract.config import ModelConfig
from contract.errors import ConfigError
from contract.randomness import DropoutKey
from contract.trace import NO_TRACE, Trace
from contract.weights import check_weights, initial_weights, weight_table
from torch_llm.block import Block
from torch_llm.generate import generate, generate_samples
from torch_llm.layers import dropout as drop
from torch_llm.layers import embedding, linear, scale, soft_cap
from torch_llm.losses import MAX_LOGITS, cross_entropy, linear_cross_entropy
from torch_llm.norms import Norm
from torch_llm.positions import POSITIONS, position
from torch_llm.precision import full_precision


class GPT(nn.Module):
    """A GPT whose gradients autograd finds. `state_dict()` has the keys, shapes and order of the weight table.

    config: the function to compute
    weights: what to compute it with, arrays by name, copied; None draws `initial_weights(config, seed, dtype)`
    dtype: "float32" to train, "float64" to prove; the dtype of `weights` where they are given

    Raises ConfigError for weights of another model or that are not finite, a seed or a dtype out of range.
    Twin: numpy_llm.model.GPT
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, np.ndarray] | None = None,
        *,
        seed=0,
        dtype="float32",
    ):
        if not isinstance(config, ModelConfig):
            raise ConfigError(f"config must be a ModelConfig, got {type(config).__name__}")
        if weights is None:
            weights = initial_weights(config, seed, dtype)
        else:
            check_weights(weights, config)
        values = {name: torch.from_numpy(np.array(weights[name])) for name in weight_table(config)}
        self._build(config, values[next(iter(values))].dtype)
        self.load_state_dict(values, assign=True)

    @classmethod
    def without_weights(cls, config: ModelConfig, dtype="float32") -> "GPT":
        """The model with weights that have shapes alone, until `load_state_dict(..., assign=True)` gives it numbers."""
        model = cls.__new__(cls)
        model._build(config, getattr(torch, dtype))
        return model

    def _build(self, config, dtype):
        super().__init__()
        self.config = config
        with torch.device("meta"):  # shapes alone: PyTorch's own initial values would be drawn for nothing
            self._build_layers()
        self.to(dtype)
        if config.position == "sinusoidal":
            table = POSITIONS[config.position](
                config, {"token_embedding.weight": torch.zeros((), dtype=dtype)}
            )
            self.register_buffer("sinusoids", table, persistent=False)
        self.output_name = "token_embedding.weight" if config.tie_embeddings else "output.weight"

    def _build_layers(self):
        config, C = self.config, self.config.d_model
        self.token_embedding = nn.Embedding(config.vocab_size, C)
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.context_length, C)
        self.blocks = nn.ModuleList(
            Block(f"blocks.{place}", config, config.layer(place)) for place in range(config.n_layer)
        )
        self.final_norm = Norm("final_norm", config)
        if not config.tie_embeddings:
            self.output = nn.Linear(C, config.vocab_size, bias=False)

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self.token_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.token_embedding.weight.device

    @property
    def positions(self) -> torch.Tensor | None:
        """The table of position encodings (context_length, C), fixed or learned; None where none is added."""
        if self.config.position == "learned":
            return self.position_embedding.weight
        return self.sinusoids if self.config.position == "sinusoidal" else None

    def forward(self, tokens, targets=None, *, dropout: DropoutKey | None = None, trace: Trace = NO_TRACE):
        """From tokens to the logits of each next token, and to the loss where the targets are known.

        Tokens and targets on the CPU are checked there and then moved to the model's device; the numbers of
        those that are on an accelerator already are not checked, because reading them would wait for it. Nor are they
        in a graph of `torch.compile`, which reads no numbers: check them before.

        tokens: int (B, T), T at most `context_length`; targets: int (B, T), the token after each, or None
        dropout: what the masks are drawn from, None for evaluation
        trace: records every intermediate tensor and, in `loss.backward()`, its gradient
        returns: logits (B, T, V); loss (), nats per token, or None
        Raises ConfigError for tokens and targets of another kind or shape, or outside the vocabulary.
        """
        _check_batch(tokens, targets, self.config)
        tokens = self._on_device(tokens)
        trace = trace if trace is NO_TRACE else _AutogradTrace(trace)
        x = self.stream_forward(tokens, dropout=dropout, trace=trace)
        logits = self.logits_forward(x, trace)
        if targets is None:
            return logits, None
        targets = self._on_device(targets)
        loss = cross_entropy(logits, targets)
        trace.record("loss", loss)
        return logits, loss

    def loss(self, tokens, targets, *, dropout: DropoutKey | None = None):
        """The loss of the last tokens' predictions, without the logits, which may be too many to hold at once.

        tokens: int (B, T); targets: int (B, T) or fewer, (B, n), the token after each of the last n; the rest and the
        errors as in `forward`
        returns: loss (), nats per token
        """
        _check_batch(tokens, None, self.config)
        _check_targets(targets, tuple(tokens[:, -targets.shape[-1] :].shape), self.config)
        if targets.numel() * self.config.vocab_size <= MAX_LOGITS and targets.shape == tokens.shape:
            return self.forward(tokens, targets, dropout=dropout)[1]
        x = self.stream_forward(self._on_device(tokens), dropout=dropout)[:, -targets.shape[1] :]
        output = self.get_parameter(self.output_name)
        return linear_cross_entropy(x, output, self._on_device(targets), self.config.logit_cap)

    def stream_forward(self, tokens, *, dropout=None, kv_cache=None, trace: Trace = NO_TRACE):
        """The residual stream from the embedding to the final norm.

        kv_cache: keys and values of the tokens before these, see `torch_llm.generate.KeyValueCache`
        returns: x (B, T, C)
        """
        config = self.config
        start = kv_cache.length if kv_cache is not None else 0
        x = embedding(tokens, self.token_embedding.weight)
        trace.record("token_embedding", x)
        if config.embedding_scale != 1:
            x = scale(x, config.embedding_scale)
            trace.record("scaled_embedding", x)
        if self.positions is not None:
            x = position(x, self.positions, start)
            trace.record("embedding", x)
        x = drop(x, config.dropout, dropout, "embedding_dropout")
        trace.record("embedding_dropout", x)
        for block in self.blocks:
            x = block(x, dropout, kv_cache, trace)
        return self.final_norm(x, trace)

    def logits_forward(self, x, trace: Trace = NO_TRACE):
        """The logits of the normed stream. x: float (..., C); returns: logits (..., V)"""
        logits = linear(x, self.get_parameter(self.output_name), None)
        if self.config.logit_cap is not None:
            trace.record("uncapped_logits", logits)
            logits = soft_cap(logits, self.config.logit_cap)
        trace.record("logits", logits)
        return logits

    def generate(self, tokens, max_new_tokens, **sampling):
        """The tokens that the model adds to `tokens`; see `torch_llm.generate.generate`."""
        return list(generate(self, tokens, max_new_tokens, **sampling))

    def generate_samples(self, tokens, max_new_tokens, num_samples, **sampling):
        """The tokens of each of `num_samples` samples; see `torch_llm.generate.generate_samples`."""
        steps = generate_samples(self, tokens, max_new_tokens, num_samples, **sampling)
        samples = [[] for _ in range(num_samples)]
        for sample, token in steps:
            samples[sample].append(token)
        return samples

    def _on_device(self, ids):
        # Blocking, the copy to a GPU would wait until it has done all earlier work.
        return ids.to(self.device, torch.int64, non_blocking=self.device.type == "cuda")


def _check_batch(tokens, targets, config):
    check_batch(tokens, targets, config, torch.Tensor, _values_on_cpu)


def _check_targets(targets, shape, config):
    check_targets(targets, shape, config, torch.Tensor, _values_on_cpu)


def _values_on_cpu(ids):
    """The numbers of a tensor on the CPU as an array, without a copy; None on an accelerator or in a compiled graph."""
    return ids.numpy() if ids.device.type == "cpu" and not torch.compiler.is_compiling() else None


class _AutogradTrace:
    """Fills a trace from autograd: a tensor's value now, its gradient when the backward pass gets to it.

    Where two names stand for one tensor, such as a branch and its dropout that is off, both get its gradient.
    """

    def __init__(self, trace: Trace):
        self.trace = trace

    def record(self, name, tensor):
        self.trace.record(name, full_precision(tensor.detach()).cpu().numpy())
        if tensor.requires_grad:
            tensor.register_hook(
                lambda gradient: self.trace.record_gradient(name, full_precision(gradient).cpu().numpy())
            )
