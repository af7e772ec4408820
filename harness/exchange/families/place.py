"""The place of a weight in a published file."""

from typing import NamedTuple

from contract.config import ModelConfig


class Place(NamedTuple):
    """The tensors that a weight of ours is made of.

    names: without the family's prefix; our weight holds their rows one below the other
    transposed: stored (in, out), as the Conv1D of GPT-2's first code had it
    """

    names: tuple[str, ...]
    transposed: bool = False

    @property
    def name(self) -> str:
        """The one tensor, or all."""
        return ", ".join(self.names)


def row_counts(place: Place, config: ModelConfig, shape: tuple[int, ...]) -> list[int]:
    """How many rows of a weight of this shape each tensor of `place` has: query, key and value if it is three."""
    if len(place.names) == 1:
        return [shape[0]]
    key_rows = config.n_kv_head * config.head_size
    return [config.n_head * config.head_size, key_rows, key_rows]
