"""Adam and AdamW by hand against `torch.optim`, over many steps with weight decay and clipping."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch

from contract.config import ModelConfig
from contract.weights import Weights, weight_table
from parity.cases import lively_weights, small
from parity.compare import Comparison, compare
from parity.passes import Twins

STEPS = 200
_LOOKED_AT = (1, 2, 3, 5, 10, 20, 50, 100, STEPS)
_BETAS, _EPS, _DECAY = (0.8, 0.95), 1e-6, 0.3
_SETTINGS = {"beta1": _BETAS[0], "beta2": _BETAS[1], "eps": _EPS, "weight_decay": _DECAY}
_MODELS = (
    small(V=5, context=3, L=1, H=1, C=4, F=6, activation="relu"),
    small(
        V=5, context=3, L=1, H=2, C=4, F=6, activation="silu", position="rotary", norm="rms_norm",
        feed_forward="gated", bias=False, n_kv_head=1, query_key_norm="head",
    ),
)  # fmt: skip


def check_adam(twins: Twins):
    """Adam over 200 steps with decay and clipping."""
    _check_optimizer(twins, "Adam")


def check_adamw(twins: Twins):
    """AdamW over 200 steps with decay and clipping."""
    _check_optimizer(twins, "AdamW")


def _check_optimizer(twins: Twins, kind: str):
    """Norms, clipped gradients, moments and weights of three: by hand, the twin's, and plain `torch.optim`."""
    for config in _MODELS:
        plain = _plain_snapshots(kind, config)
        for take in (_reference(twins.reference, kind, config), _twin(twins.twin, kind, config)):
            for step, wanted, found in zip(_LOOKED_AT, plain, _snapshots(take, config), strict=True):
                rows = compare("optimizer", found, wanted, "float64")
                title = f"{kind}, {config.position} positions, step {step}"
                Comparison(title, "float64", 0, rows).require()


def _snapshots(take: Callable, config: ModelConfig) -> Iterator[dict[str, np.ndarray]]:
    """What an optimiser leaves behind in the steps looked at, copied, in the order in which it is computed.

    Elements differ in size by seven orders of magnitude, so that for some of them eps is what decides. Every
    fourth step is not clipped.

    take: gradients, largest norm and learning rate of a step -> steps done, norm, clipped gradients, m, v, weights
    """
    random, table = np.random.default_rng(0), weight_table(config)
    size = Weights.zeros(config, "float64").flat.size
    sizes = 10.0 ** random.uniform(-7, 0, size)
    for step in range(1, STEPS + 1):
        gradients = Weights(table, random.standard_normal(size) * sizes)
        done, norm, *tensors = take(gradients, 1e3 if step % 4 == 0 else 1.0, 0.01 / (1 + 0.1 * step))
        if step in _LOOKED_AT:
            found = {"gradient norm": np.array([norm]), "steps done": np.array([float(done)])}
            kinds = ("clipped gradient", "mean", "mean square", "weight")
            for kind, named in zip(kinds, tensors, strict=True):
                for name, tensor in named.items():
                    array = tensor.detach().numpy() if torch.is_tensor(tensor) else tensor
                    found[f"{kind} {name}"] = np.array(array)
            yield found


def _reference(package: ModuleType, kind: str, config: ModelConfig) -> Callable:
    weights, table = lively_weights(config, 0, "float64"), weight_table(config)
    optimizer = getattr(package, kind)(weights, **_SETTINGS)

    def take(gradients, max_norm, learning_rate):
        norm = package.clip_gradients(gradients, max_norm)
        optimizer.update(gradients, learning_rate)
        m, v = Weights(table, optimizer.m), Weights(table, optimizer.v)
        return optimizer.step, norm, gradients, m, v, weights

    return take


def _parameters(config: ModelConfig) -> dict[str, torch.nn.Parameter]:
    weights = lively_weights(config, 0, "float64")
    return {name: torch.nn.Parameter(torch.tensor(weight)) for name, weight in weights.items()}


def _gradients(weights: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in weights.items()}


def _twin(package: ModuleType, kind: str, config: ModelConfig) -> Callable:
    weights = _parameters(config)
    optimizer = getattr(package, kind)(weights, **_SETTINGS)

    def take(gradients, max_norm, learning_rate):
        for name, weight in weights.items():
            weight.grad = torch.tensor(gradients[name])
        norm = package.clip_gradients(weights, max_norm)
        optimizer.update(learning_rate)
        return optimizer.step, norm, _gradients(weights), optimizer.m, optimizer.v, weights

    return take


@lru_cache
def _plain_snapshots(kind: str, config: ModelConfig) -> list[dict[str, np.ndarray]]:
    """The same with `torch.optim` alone, a weight at a time, and clipping written as its definition."""
    weights = _parameters(config)
    groups = [{"params": [each], "weight_decay": _DECAY * (each.ndim > 1)} for each in weights.values()]
    optimizer = getattr(torch.optim, kind)(groups, betas=_BETAS, eps=_EPS, foreach=False, fused=False)

    def take(gradients, max_norm, learning_rate):
        norm = sum(float((gradient**2).sum()) for gradient in gradients.values()) ** 0.5
        for name, weight in weights.items():
            weight.grad = torch.tensor(gradients[name]) * min(1.0, max_norm / norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        states = {name: optimizer.state[weight] for name, weight in weights.items()}
        moments = ({n: each[moment] for n, each in states.items()} for moment in ("exp_avg", "exp_avg_sq"))
        done = next(iter(states.values()))["step"]
        return done, norm, _gradients(weights), *moments, weights

    return list(_snapshots(take, config))
