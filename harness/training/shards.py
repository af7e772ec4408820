"""Sharded training, for a model that does not fit one device: every rank keeps a part of each tensor.

PyTorch's `fully_shard` cuts weights, and with them gradients and moments, into as many parts as there are ranks. A
layer's weights are put together on every rank while it computes, and freed after it; its gradients are added up where
their parts are kept. In what order is the library's business: sums differ in the last bits from those of `replicas`.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from contract.config import ModelConfig
from contract.weights import initial_weights
from harness.training.backend import BackendSettings
from harness.training.machine import return_freed_memory
from harness.training.ranks import Ranks
from harness.training.replicas import Leading
from harness.training.torch_backend import TorchBackend
from torch_llm.model import GPT


class Shard(TorchBackend):
    """The part of the model on one rank. What it computes, all ranks compute together."""

    def __init__(self, ranks: Ranks, config: ModelConfig, weights, settings: BackendSettings):
        self._ranks = ranks
        return_freed_memory()
        super().__init__(config, weights, settings)

    def _open_model(self, weights) -> GPT:
        """The model, cut into parts before it has numbers: a follower never holds it whole."""
        model, mesh = (
            GPT.without_weights(self.config, self.dtype),
            init_device_mesh(self.device, (self._ranks.size,)),
        )
        self._freeze(model)
        for part in (*model.blocks, model):
            fully_shard(part, mesh=mesh)
        register_fsdp_forward_method(model, "loss")
        parts = {
            name: self._taken(weight, weights and weights[name]) for name, weight in model.named_parameters()
        }
        model.load_state_dict(parts, assign=True)
        return model.to(self.device)

    def _taken(self, like: DTensor, values: np.ndarray | None) -> DTensor:
        """This rank's part of a tensor whose values the leader has, cut as `like` is."""
        whole = torch.empty(like.shape, dtype=like.dtype, device=self.device)
        if values is not None:
            whole.copy_(torch.tensor(values))
        self._ranks.share(whole)
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)

    def _backward(self, loss):
        (
            loss * self._ranks.size
        ).backward()  # `fully_shard` takes the mean over ranks, and these are shares of a sum

    def share(self, tokens, targets, **place) -> torch.Tensor:
        """The whole batch's loss; this rank's part of its gradients is kept."""
        loss = super().share(tokens, targets, **place)
        self._ranks.add([loss])
        return loss

    @torch.no_grad()  # not `inference_mode`, whose tensors training could not use again
    def evaluate(self, tokens, targets) -> float:
        loss = float(self.model.loss(torch.tensor(tokens), torch.tensor(targets)))
        self.model.reshard()  # the outermost part stays whole otherwise, and the next gradients are wrong
        return loss

    def take_moments(self, step: int, state: Mapping[str, np.ndarray] | None = None):
        """Take over the leader's moments after `step` updates."""
        for name, moment in _moments(self).items():
            moment.copy_(self._taken(moment, state and state[name]))
        self.optimizer.step = step

    def gather(self, kind: str, name: str) -> np.ndarray:
        """A whole tensor, of the weights or the moments, by its name."""
        tensors = self._weights if kind == "weights" else _moments(self)
        return tensors[name].detach().full_tensor().cpu().numpy()


class ShardLeader(Leading, Shard):
    """The shard of rank 0, whose calls reach all ranks. They raise UserError if another rank has ended."""

    def _open_model(self, weights):
        return super()._open_model(weights or initial_weights(self.config, self.seed, self.dtype))

    def evaluate(self, tokens, targets) -> float:
        self._everywhere("evaluate", tokens=tokens, targets=targets)
        return super().evaluate(tokens, targets)

    def trace(self, tokens, targets, *, step):
        return self._whole().trace(tokens, targets, step=step)

    def weights(self) -> Mapping[str, np.ndarray]:
        return _Gathered(self._weights, lambda name: self._gathered("weights", name))

    def optimizer_state(self) -> Mapping[str, np.ndarray]:
        return _Gathered(_moments(self), lambda name: self._gathered("moments", name))

    def load_optimizer_state(self, state, step):
        self._everywhere("take_moments", step=step)
        self.take_moments(step, state)

    def generate(self, tokens, max_new_tokens, **sampling) -> Iterator[int]:
        return self._whole().generate(tokens, max_new_tokens, **sampling)

    def generate_samples(self, tokens, max_new_tokens, num_samples, **sampling) -> Iterator[tuple[int, int]]:
        return self._whole().generate_samples(tokens, max_new_tokens, num_samples, **sampling)

    def _gathered(self, kind: str, name: str) -> np.ndarray:
        self._everywhere("gather", kind=kind, name=name)
        return self.gather(kind, name)

    def _whole(self) -> TorchBackend:
        """The whole model in this process's own memory, to generate with."""
        settings = BackendSettings(seed=self.seed, dtype=self.dtype, threads=self.threads)
        return _Whole(self.config, self.weights(), settings)


class _Whole(TorchBackend):
    """A model that is put together tensor by tensor, and never held twice."""

    def _open_model(self, weights) -> GPT:
        return GPT(self.config, weights)


class _Gathered(Mapping):
    """Tensors that are put together one by one, each when it is asked for."""

    def __init__(self, names: Mapping, gather: Callable[[str], np.ndarray]):
        self._names, self._gather = list(names), gather

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        return self._gather(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _moments(backend: TorchBackend) -> dict[str, torch.Tensor]:
    """Adam's moments by the names of a checkpoint."""
    moments = (("m", backend.optimizer.m), ("v", backend.optimizer.v))
    return {f"{moment}.{name}": value for moment, of in moments for name, value in of.items()}
