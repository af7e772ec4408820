"""Who leads and who follows when several ranks train one model."""

from contract.config import ModelConfig
from harness.training.backend import Backend, BackendSettings
from harness.training.overlapping import Overlapping, OverlappingLeader
from harness.training.ranks import Ranks
from harness.training.replicas import Leader, Replica
from harness.training.shards import Shard, ShardLeader

# What a rank is: the leader, and the others.
WAYS = {
    "exact": (Leader, Replica),
    "overlap": (OverlappingLeader, Overlapping),
    "shard": (ShardLeader, Shard),
}


def open_leader(ranks: Ranks, config: ModelConfig, weights, settings: BackendSettings) -> Backend:
    """The backend of rank 0, which all others follow."""
    ranks.call("open", [{"way": ranks.way, "config": config, "settings": settings}] * ranks.size)
    return WAYS[ranks.way][0](ranks, config, weights, settings)


def follow(ranks: Ranks):
    """Do what the leader calls, until it is done. Raises UserError if another rank has ended."""
    backend = None
    while True:
        method, arguments = ranks.next_call()
        if method == "done":
            ranks.leave()
            return
        if method == "open":
            backend, ranks.way = None, arguments.pop("way")
            backend = WAYS[ranks.way][1](ranks, weights=None, **arguments)
        else:
            getattr(backend, method)(**arguments)
