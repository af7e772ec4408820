"""The PyTorch twin as a backend, on the CPU or an accelerator."""

from collections.abc import Iterator, Mapping
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
from torch_llm.adam import AdamW, clip_gradients, gradient_norm
from torch_llm.generate import generate, generate_samples
from torch_llm.model import GPT


class TorchBackend:
    """See `harness.training.backend.Backend`.

    Weights and moments come and go as NumPy arrays, whatever device keeps them.

    Raises ConfigError for a device that this machine or its PyTorch lacks, or that cannot compute in `dtype`.
    """

    name = "torch"

    def __init__(self, config: ModelConfig, weights, settings: BackendSettings):
        dtype, self.device = settings.dtype, settings.device
        device = open_device(self.device, dtype)
        self.config, self.seed, self.threads = config, settings.seed, settings.threads
        torch.set_num_threads(self.threads)
        if weights is not None:
            weights = {name: np.asarray(value, dtype) for name, value in weights.items()}
        self.model = GPT(config, weights, seed=self.seed, dtype=dtype).to(device)
        self._weights = dict(self.model.named_parameters())
        self._adam, frozen = settings.adam, frozen_names(self._weights, settings.freeze)
        for name in frozen:
            self._weights[name].requires_grad_(False)
        self._trained = {name: weight for name, weight in self._weights.items() if weight.requires_grad}

    @cached_property
    def optimizer(self) -> AdamW:
        """AdamW over the model's weights; its moments exist from the first use on."""
        return AdamW(self._trained, **self._adam)

    def loss_and_gradients(self, tokens, targets, *, step, accumulate) -> float:
        self.model.zero_grad()
        first, total = 0, torch.zeros((), device=self.device)
        parts = min(accumulate, len(tokens))
        pieces = (np.array_split(array, parts) for array in (tokens, targets))
        for inputs, outputs in zip(*pieces, strict=True):
            dropout = DropoutKey(self.seed, step, first_sequence=first)
            # Taking the loss alone frees the logits before the backward pass.
            loss = self.model.loss(torch.tensor(inputs), torch.tensor(outputs), dropout=dropout)
            loss = loss * (counted(outputs) / counted(targets))  # this part's share of the batch's mean
            loss.backward()
            total = total + loss.detach()
            first += len(inputs)
        return float(total)

    def trace(self, tokens, targets, *, step) -> Trace:
        trace = Trace()
        self.model.zero_grad()
        dropout = DropoutKey(self.seed, step)
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
