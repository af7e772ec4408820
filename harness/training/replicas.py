"""Data parallel training: every rank has the whole model and computes its rows of each batch.

Rank 0 leads: it alone runs the training loop, and `Leader` is a backend like any other there. What needs all ranks it
calls on the others too, which wait in `follow`. So the loop, its files and its messages know nothing of ranks.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch

from contract.config import ModelConfig
from contract.targets import counted
from harness.training.backend import BackendSettings, Batch
from harness.training.ranks import Ranks, Sharing
from harness.training.torch_backend import TorchBackend


class Replica(TorchBackend):
    """The model on one rank: the same weights, gradients and moments on all of them, bit for bit.

    A rank computes as many micro-batches as any other, neighbouring ones; their gradients are added up in one tree.
    """

    def __init__(self, ranks: Ranks, config: ModelConfig, weights, settings: BackendSettings):
        super().__init__(config, weights, settings)
        self._ranks = ranks
        for weight in self._weights.values():
            ranks.share(weight.data)

    def share(self, tokens, targets, **place) -> torch.Tensor:
        """The whole batch's loss; its gradients are kept."""
        loss = super().share(tokens, targets, **place)
        self._ranks.add([loss, *(weight.grad for weight in self._trained.values())])
        return loss

    def evaluate_one(self, batch: Batch | None) -> list[float | None] | None:
        """Evaluate a batch, or none. returns: the losses of all ranks, for the leader"""
        return self._ranks.gather(None if batch is None else self.evaluate(*batch))

    def share_moments(self, step: int):
        """Take over the leader's moments after `step` updates."""
        for moments in (self.optimizer.m, self.optimizer.v):
            for moment in moments.values():
                self._ranks.share(moment)
        self.optimizer.step = step


class Leading:
    """What a leader's class adds to that of the other ranks: it calls them, and then does the same."""

    _ranks: Ranks

    @property
    def sharing(self) -> Sharing:
        """See `harness.training.backend.Backend`."""
        return self._ranks.sharing(self.device)

    def loss_and_gradients(self, tokens, targets, *, step, accumulate) -> float:
        rows = len(tokens) // self._ranks.size
        common = {"step": step, "parts": accumulate // self._ranks.size, "count": counted(targets)}
        arguments = [
            common
            | {
                "tokens": tokens[first : first + rows],
                "targets": targets[first : first + rows],
                "first": first,
            }
            for first in range(0, len(tokens), rows)
        ]
        return float(self.share(**self._ranks.call("share", arguments)))

    def clip(self, max_norm) -> float:
        self._everywhere("clip", max_norm=max_norm)
        return super().clip(max_norm)

    def update(self, learning_rate):
        self._everywhere("update", learning_rate=learning_rate)
        super().update(learning_rate)

    def _everywhere(self, method: str, **arguments):
        self._ranks.call(method, [arguments] * self._ranks.size)


class Leader(Leading, Replica):
    """The replica of rank 0. Its methods raise UserError if another rank has ended."""

    def evaluate_each(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
        """A batch on each rank, so that a loss has the same bits on any number of them."""
        batches = iter(batches)
        while found := list(islice(batches, self._ranks.size)):
            given = [*found, *[None] * (self._ranks.size - len(found))]
            self._ranks.call("evaluate_one", [{"batch": batch} for batch in given])
            yield from zip(found, self.evaluate_one(given[0]), strict=False)

    def load_optimizer_state(self, state, step):
        super().load_optimizer_state(state, step)
        self._everywhere("share_moments", step=step)
        self.share_moments(step)
