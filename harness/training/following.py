"""Who leads and who follows when several ranks train one model."""

from contract.config import ModelConfig
from harness.training.backend import Backend, BackendSettings
from harness.training.ranks import Ranks
from harness.training.replicas import Leader, Replica
from harness.training.shards import Shard, ShardLeader


def open_leader(ranks: Ranks, config: ModelConfig, weights, settings: BackendSettings) -> Backend:
    """The backend of rank 0, which all others follow."""
    ranks.call("open", [{"config": config, "settings": settings, "shard": ranks.shard}] * ranks.size)
    return (ShardLeader if ranks.shard else Leader)(ranks, config, weights, settings)


def follow(ranks: Ranks):
    """Do what the leader calls, until it is done. Raises UserError if another rank has ended."""
    backend = None
    while True:
        method, arguments = ranks.next_call()
        if method == "done":
            return
        if method == "open":
            kind = Shard if arguments.pop("shard") else Replica
            backend = kind(ranks, weights=None, **arguments)
        else:
            getattr(backend, method)(**arguments)
