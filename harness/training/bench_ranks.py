"""How much faster several processes train than one, by each of the ways to share a training."""

import numpy as np

from contract.errors import ConfigError
from harness.training.backend import Backend, BackendSettings, open_backend
from harness.training.bench import TURN_SECONDS, Measured, Result, check_turns
from harness.training.contestants import Conditions, peak_flops, timed, to_the_end, training_step
from harness.training.following import WAYS, open_leader
from harness.training.ranks import Ranks
from harness.training.recipes import Recipe

ONE_PROCESS = "one process"


def run_ways(recipe: Recipe, ranks: Ranks, conditions: Conditions, *, turns: int) -> Result:
    """Measure a training step of one process, the leader, while the others wait, and of all by each of `WAYS`.

    The step is the same: a batch in as many micro-batches as there are processes. They take turns in these processes,
    but for shards, which come last; so no memory is told. The peak is that of the leader, times the processes.
    Raises ConfigError for a recipe that generates, one whose batch cannot be shared, or an impossible number of turns.
    """
    check_turns(turns)
    if recipe.new_tokens or recipe.batch_size % ranks.size:
        raise ConfigError(
            f"recipe {recipe.name!r} has no batch that {ranks.size} processes can share; choose another, or another "
            "number of processes"
        )
    random = np.random.default_rng(0)
    tokens = random.integers(
        recipe.config.vocab_size, size=(recipe.batch_size, recipe.config.context_length + 1)
    )
    measured = [Measured(name, recipe, []) for name in (ONE_PROCESS, *WAYS)]
    # A process that has been a shard returns freed memory, which costs time: shards come last.
    *others, shard = measured
    for each in [*others * turns, *[shard] * turns]:
        backend = _opened(each.name, recipe, ranks, conditions)
        step = to_the_end(training_step(backend, tokens, accumulate=ranks.size), conditions.device)
        step()  # the warm-up
        each.turns.append(list(timed(step, TURN_SECONDS)))
        del backend, step  # before the next takes memory
    return Result(recipe, measured, ranks.size * peak_flops(conditions, TURN_SECONDS))


def _opened(name: str, recipe: Recipe, ranks: Ranks, conditions: Conditions) -> Backend:
    how = {"threads": conditions.threads, "device": conditions.device, "dtype": conditions.dtype}
    if name == ONE_PROCESS:
        return open_backend("torch", recipe.config, **how)
    ranks.way = name
    return open_leader(ranks, recipe.config, None, BackendSettings(**how))
