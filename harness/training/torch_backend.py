"""The PyTorch twin as a backend, on the CPU or an accelerator."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import cached_property

import numpy as np
import torch

from contract.config import ModelConfig
from contract.errors import ConfigError
from contract.randomness import DropoutKey
from contract.targets import counted
from contract.trace import Trace
from contract.weights import frozen_names
from harness.training.backend import BackendSettings
from harness.training.compiled import compiled_loss
from harness.training.ranks import ALONE
from harness.training.tree_sum import tree_sum
from torch_llm.adam import AdamW, clip_gradients, gradient_norm
from torch_llm.generate import generate, generate_samples
from torch_llm.model import GPT


class TorchBackend:
    """See `harness.training.backend.Backend`.

    Weights and moments come and go as NumPy arrays, whatever device keeps them. In "bfloat16" training steps compute by
    autocast, see `torch_llm.precision`; weights, gradients and moments are float32, and so is what evaluates and
    generates, which therefore gives what the checkpoint gives anywhere.

    Raises ConfigError for a device that this machine or its PyTorch lacks, or that cannot compute in `dtype`, and if
    the model cannot be compiled; UserError if nothing can be compiled here.
    """

    name, sharing = "torch", ALONE
    sharing = ALONE

    def __init__(self, config: ModelConfig, weights, settings: BackendSettings):
        self.dtype, self.device = settings.weights_dtype, settings.device
        self._place = open_device(self.device, self.dtype)
        self.config, self.seed, self.threads = config, settings.seed, settings.threads
        torch.set_num_threads(self.threads)
        self._adam, self._frozen = settings.adam, settings.freeze
        self.model = self._open_model(weights)
        half = settings.dtype == "bfloat16"
        self._precision = torch.autocast(self._place.type, torch.bfloat16) if half else nullcontext()
        self.compile = settings.compile
        self._loss = compiled_loss(self.model) if self.compile else self.model.loss
        self._weights = dict(self.model.named_parameters())
        self._trained = {name: weight for name, weight in self._weights.items() if weight.requires_grad}

    def _open_model(self, weights) -> GPT:
        if weights is not None:
            weights = {name: np.asarray(value, self.dtype) for name, value in weights.items()}
        return self._freeze(GPT(self.config, weights, seed=self.seed, dtype=self.dtype).to(self._place))

    def _freeze(self, model: GPT) -> GPT:
        """Take the frozen weights out of training."""
        weights = dict(model.named_parameters())
        for name in frozen_names(weights, self._frozen):
            weights[name].requires_grad_(False)
        return model

    @cached_property
    def optimizer(self) -> AdamW:
        """AdamW over the model's weights; its moments exist from the first use on."""
        return AdamW(self._trained, **self._adam)

    def loss_and_gradients(self, tokens, targets, *, step, accumulate) -> float:
        share = self.share(tokens, targets, step=step, first=0, parts=accumulate, count=counted(targets))
        return float(share)

    def share(self, tokens, targets, *, step: int, first: int, parts: int, count: int) -> torch.Tensor:
        """The share of some rows in the loss of a batch, in which `count` targets count; keeps their gradients.

        first: the place of these rows in the batch; parts: micro-batches, whose gradients are added up in a tree
        """
        pieces = [np.array_split(array, min(parts, len(tokens))) for array in (tokens, targets)]
        found = (self._differentiate(*piece, step, count) for piece in placed(first, *pieces))
        loss, gradients = tree_sum(found, _add)
        for weight, gradient in zip(self._trained.values(), gradients, strict=True):
            weight.grad = gradient
        return loss

    def _differentiate(self, first, tokens, targets, step, count) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The share of a micro-batch in the loss, and its gradients."""
        self.model.zero_grad()
        dropout = DropoutKey(self.seed, step, first_sequence=first) if self.config.dropout else None
        with self._precision:
            # Taking the loss alone frees the logits before the backward pass.
            loss = self._loss(torch.tensor(tokens), torch.tensor(targets), dropout=dropout)
        loss = loss * (counted(targets) / count)
        self._backward(loss)
        return loss.detach(), [weight.grad for weight in self._trained.values()]

    def _backward(self, loss: torch.Tensor):
        loss.backward()

    def trace(self, tokens, targets, *, step) -> Trace:
        trace = Trace()
        self.model.zero_grad()
        dropout = DropoutKey(self.seed, step)
        with self._precision:
            _, loss = self.model(torch.tensor(tokens), torch.tensor(targets), dropout=dropout, trace=trace)
        loss.backward()
        return trace

    def clip(self, max_norm) -> float:
        return gradient_norm(self._trained) if max_norm is None else clip_gradients(self._trained, max_norm)

    def update(self, learning_rate):
        self.optimizer.update(learning_rate)

    @torch.inference_mode()
    def evaluate(self, tokens, targets) -> float:
        return float(self.model.loss(torch.tensor(tokens), torch.tensor(targets)))

    def evaluate_each(self, batches):
        return ((batch, self.evaluate(*batch)) for batch in batches)

    @torch.inference_mode()
    def logits(self, tokens, last, rows) -> Iterator[np.ndarray]:
        x = self.model.stream_forward(torch.tensor(tokens, device=self.device))
        for block in x[0, -last:].split(rows):
            yield self.model.logits_forward(block).cpu().numpy()

    def weights(self) -> Mapping[str, np.ndarray]:
        return _arrays(self._weights)

    def optimizer_state(self) -> Mapping[str, np.ndarray]:
        moments = (("m", self.optimizer.m), ("v", self.optimizer.v))
        return {f"{moment}.{name}": value for moment, of in moments for name, value in _arrays(of).items()}

    def load_optimizer_state(self, state, step):
        for moment, of in (("m", self.optimizer.m), ("v", self.optimizer.v)):
            for name, value in of.items():
                value.copy_(torch.tensor(state[f"{moment}.{name}"]))
        self.optimizer.step = step

    def generate(self, tokens, max_new_tokens, **sampling) -> Iterator[int]:
        return generate(self.model, tokens, max_new_tokens, **sampling)

    def generate_samples(self, tokens, max_new_tokens, num_samples, **sampling) -> Iterator[tuple[int, int]]:
        return generate_samples(self.model, tokens, max_new_tokens, num_samples, **sampling)


def placed(first: int, inputs, outputs) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Micro-batches, each with the place of its first row in the batch."""
    for tokens, targets in zip(inputs, outputs, strict=True):
        yield first, tokens, targets
        first += len(tokens)


def _add(one, other):
    """The sum of two losses, and of two lists of gradients in the place of the first."""
    torch._foreach_add_(one[1], other[1])
    return one[0] + other[0], one[1]


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Tensors of any device as arrays; those on the CPU share their memory."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def open_device(name: str, dtype: str) -> torch.device:
    """The device called `name`. Raises ConfigError if it is missing or cannot compute in `dtype`."""
    accelerators = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    devices = ["cpu", *(device for device, is_available in accelerators.items() if is_available())]
    if name not in devices:
        raise ConfigError(
            f"no device {name!r} for PyTorch {torch.__version__} here; choose {' or '.join(devices)}"
        )
    if name == "mps" and dtype == "float64":
        raise ConfigError("mps computes no float64; choose --dtype float32 or --device cpu")
    return torch.device(name)
