"""Adam and AdamW, and the clipping of gradients, as `torch.optim` has them.

Autograd leaves a weight's gradient in its `grad`, where everything here finds it: what is `gradients` in the
NumPy twin is `weights` here.
"""

from collections.abc import Mapping
from math import isfinite

import torch
from torch.nn.utils import get_total_norm

from contract.checks import check_adam, check_learning_rate, check_max_norm
from contract.errors import ConfigError

_FUSED_DEVICES = ("cpu", "cuda")  # one kernel a step instead of a dozen; the same numbers


class Adam:
    """Adam: a step along the running mean of the gradients, scaled by their running root mean square.

        g = gradient + weight_decay · weight                       (matrices only)
        m = beta1 · m + (1 - beta1) · g
        v = beta2 · v + (1 - beta2) · g²
        weight -= learning_rate · (m / (1 - beta1^t)) / (√(v / (1 - beta2^t)) + eps)

    m and v start at 0 and are therefore too small at first; the two divisions undo exactly that.

    weights: what to train, by name, on one device: `dict(model.named_parameters())`; changed in place
    beta1, beta2: decay of the running means, in [0, 1)
    eps: keeps the division finite, above 0
    weight_decay: strength of the pull towards 0 on matrices, at least 0; biases and norms are left alone
    frozen: names of weights that stay as they are

    Raises ConfigError for a setting out of its range.
    Source: Kingma & Ba 2015, algorithm 1. Twin: numpy_llm.adam.Adam
    """

    _optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam

    def __init__(
        self,
        weights: Mapping[str, torch.nn.Parameter],
        *,
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
        weight_decay=0.0,
        frozen=(),
    ):
        check_adam(beta1, beta2, eps, weight_decay)
        self.weights = trained = {name: weight for name, weight in weights.items() if name not in frozen}
        self.m = {name: torch.zeros_like(weight) for name, weight in trained.items()}
        self.v = {name: torch.zeros_like(weight) for name, weight in trained.items()}
        matrices = [weight for weight in trained.values() if weight.ndim > 1]
        vectors = [weight for weight in trained.values() if weight.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        fused = all(weight.device.type in _FUSED_DEVICES for weight in weights.values())
        self._optimizer = self._optimizer_class(groups, betas=(beta1, beta2), eps=eps, fused=fused)
        for name, weight in trained.items():
            # What the optimiser would make at its first step: made here, the moments can be read and set before.
            step = torch.zeros((), device=weight.device if fused else "cpu")
            moments = {"exp_avg": self.m[name], "exp_avg_sq": self.v[name]}
            self._optimizer.state[weight] = {"step": step, **moments}

    @property
    def step(self) -> int:
        """Updates done, t of the formulas."""
        return int(next(iter(self._optimizer.state.values()))["step"])

    @step.setter
    def step(self, step: int):
        for state in self._optimizer.state.values():
            state["step"].fill_(step)

    def update(self, learning_rate: float):
        """Take one step; the gradients are left as they are.

        Raises ConfigError for a weight without a gradient, or a learning rate that is negative or not finite.
        """
        check_learning_rate(learning_rate)
        _gradients(self.weights)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()


class AdamW(Adam):
    """Adam with decoupled weight decay: the pull towards 0 bypasses the running means.

        weight -= learning_rate · weight_decay · weight            (matrices only)

    and then Adam's step with g = gradient.

    Source: Loshchilov & Hutter 2019, algorithm 2. Twin: numpy_llm.adam.AdamW
    """

    _optimizer_class = torch.optim.AdamW


def clip_gradients(weights: Mapping[str, torch.nn.Parameter], max_norm: float) -> float:
    """Scale all gradients down together where their joint Euclidean norm exceeds `max_norm`.

    Not `clip_grad_norm_`, which divides by norm + 1e-6 and so scales to a little less than `max_norm`.

    max_norm: above 0; infinity clips nothing
    returns: the norm before clipping; where it is not finite, the gradients are left as they are
    Raises ConfigError for a `max_norm` that is not above 0, or a weight without a gradient.
    Source: Pascanu et al. 2013, algorithm 1. Twin: numpy_llm.adam.clip_gradients
    """
    check_max_norm(max_norm)
    norm = gradient_norm(weights)
    if norm > max_norm and isfinite(norm):
        for weight in weights.values():
            weight.grad *= max_norm / norm
    return norm


def gradient_norm(weights: Mapping[str, torch.nn.Parameter]) -> float:
    """The Euclidean norm over all gradients together, infinity or nan where one of them is.

    Raises ConfigError for a weight without a gradient. Twin: numpy_llm.adam.gradient_norm
    """
    gradients = _gradients(weights)
    norm = float(get_total_norm(gradients))
    if norm == 0 or not isfinite(norm):  # the squares vanished or overflowed: scale them
        largest = float(torch.stack([gradient.abs().max() for gradient in gradients]).max())
        if not 0 < largest < torch.inf:
            return largest
        norm = largest * float(get_total_norm([gradient / largest for gradient in gradients]))
    return norm


def _gradients(weights):
    """The gradients of the weights, each with its own."""
    missing = [name for name, weight in weights.items() if weight.grad is None]
    if missing:
        raise ConfigError(f"{missing[0]} has no gradient; call backward() on a loss first")
    return [weight.grad for weight in weights.values()]
