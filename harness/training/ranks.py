"""The processes that `torchrun` starts to train one model: who this one is, and how they reach each other."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

from contract.errors import ConfigError, UserError
from harness.training.settings import Machine

# How long one may wait for another: the leader evaluates and saves while the others have nothing to do. A process that
# has ended is noticed at once, since its connection closes.
PATIENCE = timedelta(days=30)
EXCHANGED = 1 << 22  # numbers sent at a time, but for a larger tensor
_ENDED = []  # groups of processes that this one has left


class Sharing(NamedTuple):
    """How processes share a training.

    way: one of `harness.training.following.WAYS`; ranks: how many; here: of them, those in this machine's memory
    leads: whether this is the process that also keeps what all share
    """

    way: str = "exact"
    ranks: int = 1
    here: int = 1
    leads: bool = True


ALONE = Sharing()


def rank_count() -> int:
    """How many processes `torchrun` has started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_leader() -> bool:
    """Whether this is the process that writes, prints and decides: rank 0, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def local_ranks(device: str) -> int:
    """How many processes share this machine's memory: those that compute on its CPUs."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device == "cpu" else 1


class Ranks:
    """All ranks of a training, of which rank 0 leads: the others do what it calls.

    rank, size: of this process, and how many there are; complete: whether none was found to have ended
    way: how they share the work, one of `harness.training.following.WAYS`
    Raises UserError, in every method, if another process has ended.
    """

    def __init__(self, way: str = "exact"):
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a closed connection is told once, below
        import torch
        import torch.distributed as dist

        self._dist, self._torch, self.complete, self.way = dist, torch, True, way
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        with self._all_there():
            self._store, self.rank, self.size = next(dist.rendezvous("env://"))
            dist.init_process_group(
                backend, store=self._store, rank=self.rank, world_size=self.size, timeout=PATIENCE
            )

    def sharing(self, device: str) -> Sharing:
        """How they share a training on their devices."""
        return Sharing(self.way, self.size, local_ranks(device), self.rank == 0)

    def call(self, method: str, arguments: list[dict]) -> dict:
        """Have every rank call a method with the arguments at its place. returns: this rank's"""
        mine = [None]
        with self._all_there():
            self._dist.scatter_object_list(mine, [(method, each) for each in arguments])
        return mine[0][1]

    def next_call(self) -> tuple[str, dict]:
        """What the leader calls next."""
        mine = [None]
        with self._all_there():
            self._dist.scatter_object_list(mine)
        return mine[0]

    def share(self, tensor):
        """Give every rank the leader's numbers, in place."""
        with self._all_there():
            self._dist.broadcast(tensor, src=0)

    def gather(self, value) -> list | None:
        """The values of all ranks, for the leader."""
        values = [None] * self.size if self.rank == 0 else None
        with self._all_there():
            self._dist.gather_object(value, values)
        return values

    def add(self, tensors: Iterable):
        """Add up the ranks' tensors in place, in the order of `tree_sum`: neighbours, then neighbouring pairs.

        Both partners add the same two numbers, and a + b is b + a, so all ranks have the same bits.
        """
        for few in self._together(tensors):
            mine, distance = self._torch.cat([tensor.reshape(-1) for tensor in few]), 1
            while distance < self.size:
                mine += self._exchanged(mine, self.rank ^ distance)
                distance *= 2
            for tensor, added in zip(few, mine.split([tensor.numel() for tensor in few]), strict=True):
                tensor.copy_(added.view_as(tensor))

    def _exchanged(self, mine, partner: int):
        """What a partner has, which gets ours."""
        theirs = self._torch.empty_like(mine)
        both = (
            self._dist.P2POp(self._dist.isend, mine, partner),
            self._dist.P2POp(self._dist.irecv, theirs, partner),
        )
        with self._all_there():
            for work in self._dist.batch_isend_irecv(list(both)):
                work.wait()
        return theirs

    @staticmethod
    def _together(tensors: Iterable) -> Iterator[list]:
        """Tensors in lists of up to `EXCHANGED` numbers, a larger one alone."""
        few, count = [], 0
        for tensor in tensors:
            if few and count + tensor.numel() > EXCHANGED:
                yield few
                few, count = [], 0
            few.append(tensor)
            count += tensor.numel()
        if few:
            yield few

    def tell(self, problem: str):
        """Leave word of why this rank ends."""
        self._store.set("problem", problem)

    def dismiss(self):
        """Let the others go, and end the connection."""
        self.call("done", [{}] * self.size)
        self.leave()

    def leave(self):
        """End this rank's connection."""
        # Kept, or the reducer of `--overlap` may be the last to let it go: that waits for threads of the group without
        # releasing Python's lock, for which they may wait.
        _ENDED.append(self._dist.group.WORLD)
        self._dist.destroy_process_group()

    @contextmanager
    def _all_there(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # a closed connection
            self.complete = False
            raise UserError(f"{self._word()}; go on from the last checkpoint with --resume") from error

    def _word(self) -> str:
        """What a rank that has ended left word of."""
        try:
            if self._store.check(["problem"]):
                return self._store.get("problem").decode()
        except RuntimeError:  # the store has ended too
            pass
        return "another of the processes has ended without a word: it was killed, or its machine is gone"


def check_ranks(ranks: Ranks, machine: Machine, accumulate: int):
    """Raise ConfigError unless these ranks can share the micro-batches of a step."""
    if machine.backend != "torch":
        raise ConfigError(
            f"torchrun started {ranks.size} processes, which --backend torch alone uses; add it"
        )
    if machine.compile and ranks.way != "exact":
        raise ConfigError(f"--compile does not go with --{ranks.way}; give one of them")
    fitting = [1 << power for power in range(accumulate.bit_length()) if accumulate % (1 << power) == 0]
    if accumulate & (accumulate - 1) or ranks.size not in fitting:
        raise ConfigError(
            f"{ranks.size} processes cannot share the {accumulate} micro-batches of a step (--accumulate), whose "
            f"gradients are added up in a tree; start {' or '.join(map(str, fitting))} of them"
        )
