"""Adam and AdamW by hand against `torch.optim`, over many steps with weight decay and clipping."""

from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch

from contract.config import ModelConfig
from contract.weights import Weights, weight_table
from parity.cases import lively_weights
from parity.compare import Comparison, compare
from parity.passes import Twins

STEPS = 200
_LOOKED_AT = {1, 2, 3, 5, 10, 20, 50, 100, STEPS}
_BETAS, _EPS, _DECAY = (0.8, 0.95), 1e-6, 0.3
_SETTINGS = {"beta1": _BETAS[0], "beta2": _BETAS[1], "eps": _EPS, "weight_decay": _DECAY}
_OPTIMIZED = ModelConfig(
    vocab_size=5, context_length=3, n_layer=1, n_head=1, d_model=4, d_ff=6, activation="relu", position="learned"
)  # fmt: skip


def check_adam(twins: Twins):
    """Adam over 200 steps with decay and clipping."""
    _check_optimizer(twins, "Adam")


def check_adamw(twins: Twins):
    """AdamW over 200 steps with decay and clipping."""
    _check_optimizer(twins, "AdamW")


def _check_optimizer(twins: Twins, kind: str):
    """Norms, clipped gradients, moments and weights of three: by hand, the twin's, and plain `torch.optim`."""
    plain = _plain_steps(kind)
    for steps in (_reference_steps(twins.reference, kind), _twin_steps(twins.twin, kind)):
        for step, wanted, found in zip(sorted(_LOOKED_AT), plain, steps, strict=True):
            rows = compare("optimizer", found, wanted, "float64")
            Comparison(f"{kind}, step {step}", "float64", 0, rows).require()


def _steps() -> Iterator[tuple]:
    """Gradients, largest norm and learning rate of each step.

    Elements differ in size by seven orders of magnitude, so that for some of them eps is what decides. Every
    fourth step is not clipped.
    """
    random, table = np.random.default_rng(0), weight_table(_OPTIMIZED)
    size = Weights.zeros(_OPTIMIZED, "float64").flat.size
    sizes = 10.0 ** random.uniform(-7, 0, size)
    for step in range(1, STEPS + 1):
        gradients = Weights(table, random.standard_normal(size) * sizes)
        yield step, gradients, 1e3 if step % 4 == 0 else 1.0, 0.01 / (1 + 0.1 * step)


def _snapshot(step: float, norm: float, gradients, m, v, weights) -> dict[str, np.ndarray]:
    """What an optimiser's step left behind, copied, in the order in which it was computed."""
    found = {"gradient norm": np.array([norm]), "steps done": np.array([float(step)])}
    kinds = {"clipped gradient": gradients, "mean": m, "mean square": v, "weight": weights}
    for kind, tensors in kinds.items():
        found |= {f"{kind} {name}": np.array(_array(tensor)) for name, tensor in tensors.items()}
    return found


def _reference_steps(package: ModuleType, kind: str) -> Iterator[dict]:
    weights = lively_weights(_OPTIMIZED, 0, "float64")
    optimizer = getattr(package, kind)(weights, **_SETTINGS)
    table = weight_table(_OPTIMIZED)
    for step, gradients, max_norm, learning_rate in _steps():
        norm = package.clip_gradients(gradients, max_norm)
        optimizer.update(gradients, learning_rate)
        if step in _LOOKED_AT:
            m, v = Weights(table, optimizer.m), Weights(table, optimizer.v)
            yield _snapshot(optimizer.step, norm, gradients, m, v, weights)


def _parameters() -> dict[str, torch.nn.Parameter]:
    weights = lively_weights(_OPTIMIZED, 0, "float64")
    return {name: torch.nn.Parameter(torch.tensor(weight)) for name, weight in weights.items()}


def _array(tensor) -> np.ndarray:
    return tensor.detach().numpy() if torch.is_tensor(tensor) else tensor


def _twin_steps(package: ModuleType, kind: str) -> Iterator[dict]:
    weights = _parameters()
    optimizer = getattr(package, kind)(weights, **_SETTINGS)
    for step, gradients, max_norm, learning_rate in _steps():
        for name, weight in weights.items():
            weight.grad = torch.tensor(gradients[name])
        norm = package.clip_gradients(weights, max_norm)
        optimizer.update(learning_rate)
        if step in _LOOKED_AT:
            clipped = {name: weight.grad for name, weight in weights.items()}
            yield _snapshot(optimizer.step, norm, clipped, optimizer.m, optimizer.v, weights)


@lru_cache
def _plain_steps(kind: str) -> list[dict]:
    """The same with `torch.optim` alone, a weight at a time, and clipping written as its definition."""
    weights, snapshots = _parameters(), []
    groups = [
        {"params": [weight], "weight_decay": _DECAY if weight.ndim > 1 else 0.0}
        for weight in weights.values()
    ]
    optimizer = getattr(torch.optim, kind)(groups, betas=_BETAS, eps=_EPS, foreach=False, fused=False)
    for step, gradients, max_norm, learning_rate in _steps():
        norm = sum(float((gradient**2).sum()) for gradient in gradients.values()) ** 0.5
        for name, weight in weights.items():
            weight.grad = torch.tensor(gradients[name]) * min(1.0, max_norm / norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        if step in _LOOKED_AT:
            clipped = {name: weight.grad for name, weight in weights.items()}
            m, v = (
                {name: optimizer.state[weight][moment] for name, weight in weights.items()}
                for moment in ("exp_avg", "exp_avg_sq")
            )
            snapshots.append(_snapshot(step, norm, clipped, m, v, weights))
    return snapshots
