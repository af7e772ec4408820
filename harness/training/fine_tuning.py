"""Training that starts from trained weights: what it may change of their model, and how long its sequences are."""

from dataclasses import replace
from pathlib import Path

from contract.config import ModelConfig
from contract.errors import ConfigError
from contract.weights import Weights
from data.prepare import TokenFileInfo
from harness.training.backend import thread_count
from harness.training.checkpoint import Checkpoint
from harness.training.memory import fitting_length
from harness.training.settings import Machine, TrainingSettings


def overridden(config: ModelConfig, overrides: dict, start: Path) -> ModelConfig:
    """The configuration of trained weights with another dropout or a shorter context; all else is refused."""
    for name, value in overrides.items():
        shorter = name == "context_length" and 1 <= value < config.context_length
        if name != "dropout" and not shorter and value != getattr(config, name):
            raise ConfigError(
                f"--{name.replace('_', '-')} {value} contradicts --from {start}, whose weights are of "
                f"{name} {getattr(config, name)}; omit it"
            )
    return replace(config, **overrides)


def starting_weights(base: Checkpoint | None, config: ModelConfig) -> Weights | None:
    """The weights to start from; of learned positions, those that a shorter context has."""
    if base is None or config.context_length == base.config.context_length:
        return base and base.weights
    weights = Weights.zeros(config, base.weights.flat.dtype)
    for name, weight in weights.items():
        weight[...] = base.weights[name][: len(weight)]
    return weights


def with_length(training: dict, machine: Machine, config: ModelConfig, info: TokenFileInfo) -> dict:
    """The settings of further training, with a length of sequences that this machine and the text can take."""
    if training.get("sequence_length") is not None:
        return training
    possible = TrainingSettings(**{name: value for name, value in training.items() if name != "epochs"})
    threads = thread_count(machine.threads)
    length = fitting_length(machine.backend, config, possible, threads, info.train_tokens)
    return training | {"sequence_length": length}
