"""`train` under `torchrun`: the leader trains, the others follow it in silence."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import typer

from commands.interruption import ignore_signals
from contract.errors import ConfigError, UserError
from harness.training.ranks import Ranks, is_leader, rank_count

ALONE = ("find_rate", "dry_run")  # options of `train` for one process


@contextmanager
def all_ranks(given: dict) -> Iterator[Ranks | None]:
    """The ranks, for their leader, or None without `torchrun`. A follower does not come back from here.

    given: the options of the command line
    """
    ways = [name for name in ("shard", "overlap") if name in given]
    if rank_count() == 1:
        if ways:
            raise ConfigError(f"--{ways[0]} is of several processes; start them with torchrun, or omit it")
        yield None
        return
    if len(ways) > 1:
        raise ConfigError("--shard does not go with --overlap; give one of them")
    for name in ALONE:
        if name in given:
            raise ConfigError(
                f"--{name.replace('_', '-')} is of one process, and torchrun started {rank_count()}; leave torchrun out"
            )
    ranks = Ranks(*ways)
    if not is_leader():
        raise typer.Exit(_follow(ranks))
    try:
        yield ranks
    finally:
        if ranks.complete:
            with suppress(UserError):
                ranks.dismiss()
        else:
            ignore_signals()  # torchrun ends the others now: one message is enough


def end_rank(code: int):
    """End this process at once.

    Threads of PyTorch's groups may still let go of tensors, for which they need the interpreter: one that is ending
    ends them, and that aborts the process (seen in 2 of 30 runs with --shard, after everything was saved).
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _follow(ranks: Ranks) -> int:
    """Work until the leader is done. returns: the exit code"""
    from harness.training.following import follow

    ignore_signals()  # the leader saves, and then ends all
    try:
        follow(ranks)
    except Exception as error:
        if ranks.complete:  # or else it is another that has failed
            ranks.tell(f"rank {ranks.rank} has failed: {error}")
        return 1
    return 0
