"""Data parallel training that is not exact: gradients are added up while others are computed.

PyTorch's `DistributedDataParallel` does it, in buckets and in an order that depends on the number of ranks, so that the
last bits differ from those of `replicas`.
"""

from contextlib import nullcontext

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from contract.config import ModelConfig
from contract.randomness import DropoutKey
from contract.targets import counted
from harness.training.backend import BackendSettings
from harness.training.ranks import Ranks
from harness.training.replicas import Leader, Replica
from harness.training.torch_backend import placed


class Overlapping(Replica):
    """The model on one rank."""

    def __init__(self, ranks: Ranks, config: ModelConfig, weights, settings: BackendSettings):
        super().__init__(ranks, config, weights, settings)
        self._parallel = DistributedDataParallel(self.model)

    def share(self, tokens, targets, *, step, first, parts, count) -> torch.Tensor:
        self.model.zero_grad()
        total = torch.zeros((), dtype=self.model.dtype, device=self.model.device)
        pieces = [np.array_split(array, parts) for array in (tokens, targets)]
        for place, inputs, outputs in placed(first, *pieces):
            last = place + len(inputs) == first + len(tokens)
            with nullcontext() if last else self._parallel.no_sync():
                dropout = DropoutKey(self.seed, step, first_sequence=place)
                with self._precision:
                    _, loss = self._parallel(torch.tensor(inputs), torch.tensor(outputs), dropout=dropout)
                loss = loss * (counted(outputs) / count)
                (
                    loss * self._ranks.size
                ).backward()  # it takes the mean over ranks, and these are shares of a sum
            total += loss.detach()
        self._ranks.add([total])
        return total


class OverlappingLeader(Leader, Overlapping):
    """That of rank 0. Its methods raise UserError if another rank has ended."""
