"""A golden pack and a dump, tensor by tensor, in dataflow order."""

from collections.abc import Mapping

import numpy as np

from contract.numbers import magnitude
from contract.weights import weight_table
from parity.golden.origins import (
    CONTINUATIONS,
    Origin,
    continuation_origins,
    given_names,
    gradient_of_step,
    pass_of_step,
    pass_origins,
    step_origins,
    whole,
)
from parity.golden.packs import Pack
from parity.golden.undetermined import undetermined

_CUT = ("adamw.", "sampled.draws", *CONTINUATIONS)


def split_steps(tensors: Mapping[str, np.ndarray], pack: Pack) -> dict[str, np.ndarray]:
    """The tensors, those with a row for each step of AdamW or new token cut into `NAME[1]`, `NAME[2]`, ...

    A dump may end after fewer steps or tokens than the pack.
    """
    split = {}
    for name, tensor in tensors.items():
        shape = pack.tensors[name].shape
        stepwise = name.startswith(_CUT) and tensor.ndim and 0 < len(tensor) <= shape[0]
        if stepwise and tensor.shape[1:] == shape[1:]:
            split |= {f"{name}[{step}]": row for step, row in enumerate(tensor, 1)}
        else:
            # Many libraries have no scalars: a loss of shape [1] is as good.
            split[name] = tensor.reshape(()) if not shape and tensor.size == 1 else tensor
    return split


class Tensors:
    """The tensors of a pack and of a dump, and what made each of them.

    dtype: "float32" or "float64", whose limits to apply; dump: by name, some or all of the pack's names

    order: names, those of AdamW's steps and of new tokens one by one; origins: what made each, by name
    given: names of what a pack starts from; golden, found: tensors of the pack and of the dump
    limits, scales: the largest error allowed, and what it is relative to; graph: of the forward pass
    """

    def __init__(self, pack: Pack, dtype: str, dump: Mapping[str, np.ndarray]):
        config, manifest = pack.config, pack.manifest
        golden = split_steps(pack.tensors, pack)
        rows_given = [name for name in golden if name.startswith(("adamw.learning_rate[", "sampled.draws["))]
        self.pack = pack
        self.given = [*given_names(config), *rows_given, "greedy.prompt", "sampled.prompt"]
        self.graph, self.origins = pass_origins(config, self.tensor)
        self.origins |= step_origins(config, manifest["adamw"], self.tensor)
        count = len(pack.tensors["greedy.tokens"])
        self.origins |= continuation_origins(config, count, manifest["sampling"], self.tensor) | CONTINUATIONS
        # The uncut ones too: a dump's may have a shape that cannot be cut.
        self.golden, self.found = golden | pack.tensors, split_steps(dump, pack)
        order = dict.fromkeys([*self.given, *self.origins, *self.golden])
        self.order = [name for name in order if name in self.golden]
        rows = {row["name"]: row for row in manifest["tensors"]}
        rows = {name: rows[whole(name)] for name in self.order}
        self.limits = {name: float(row[dtype]) for name, row in rows.items()}
        self.scales = {n: magnitude(self.golden[n]) or float(row["scale"]) for n, row in rows.items()}
        self._gradients = {}

    def repeatable(self, origin: Origin | None) -> bool:
        """Whether a tensor can be made again, from the dump's tensors where the dump has them."""
        if origin is None or origin.right is None:
            return False
        return all(self._usable(name) for name in origin.inputs if name in self.found)

    def _usable(self, name: str) -> bool:
        """Whether a tensor of the dump has the right shape, and token ids that exist."""
        golden, found = self.golden[name], self.found[name]
        if golden.shape != found.shape:
            return False
        if golden.dtype.kind != "i":
            return True
        return bool(found.min() >= 0 and found.max() < self.pack.config.vocab_size and (found % 1 == 0).all())

    def tensor(self, name: str) -> np.ndarray:
        """A tensor in float64 or int64: the dump's where it can be used, the pack's where not."""
        if name not in self.golden:
            return self._gradient(name)
        golden = self.golden[name]
        usable = name in self.found and self._usable(name)
        tensor = np.asarray(self.found[name] if usable else golden, golden.dtype)
        free = undetermined(self.pack.config, name, golden.shape)
        return tensor if free is None else np.where(free & ~np.isfinite(tensor), golden, tensor)

    def determined(self, name: str, tensor: np.ndarray) -> np.ndarray:
        """A tensor of that name with 0 where the loss determines nothing."""
        golden = self.golden[name]
        free = undetermined(self.pack.config, name, golden.shape)
        return tensor if free is None or tensor.shape != golden.shape else np.where(free, 0, tensor)

    def _gradient(self, name: str) -> np.ndarray:
        """A gradient of a later step, which no pack holds: it follows from the weights before that step."""
        if name not in self._gradients:
            config, step = self.pack.config, int(name.rpartition("[")[2].rstrip("]"))
            _, gradients = pass_of_step(config, self.tensor, step)
            self._gradients |= {
                gradient_of_step(each, step): gradients[each] for each in weight_table(config)
            }
        return self._gradients[name]
