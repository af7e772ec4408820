"""A golden pack and a dump, tensor by tensor, in dataflow order."""

from collections.abc import Mapping

import numpy as np

from contract.numbers import SIXTEEN_BITS, magnitude, relative_error
from contract.weights import weight_table
from operations.dataflow import GRADIENT
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

OWN_ROUNDING = (
    1e-4  # of one operation in float32, relative to the largest magnitude: ten times the usual limit
)
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

    precision: whose limits to apply, "float64", "float32", "float16" or "bfloat16"; None goes by each tensor's own,
        float32 or float64
    dump: by name, some or all of the pack's names

    order: names, those of AdamW's steps and of new tokens one by one; origins: what made each, by name
    given: names of what a pack starts from; golden, found: tensors of the pack and of the dump
    dtypes: whose limits apply; limits, scales: the largest error allowed, and what it is relative to; tensors that have
        no limit of that precision have none here
    graph: of the pass, in which what the dump has is known; coarse: the type in 16 bits that limits are of, or None
    right: names found right, strange: those that do not follow, though in their limits, and why; a check fills in both
    """

    def __init__(self, pack: Pack, precision: str | None, dump: Mapping[str, np.ndarray]):
        config, manifest = pack.config, pack.manifest
        golden = split_steps(pack.tensors, pack)
        rows_given = [name for name in golden if name.startswith(("adamw.learning_rate[", "sampled.draws["))]
        self.pack = pack
        self.given = [*given_names(config), *rows_given, "greedy.prompt", "sampled.prompt"]
        # The uncut ones too: a dump's may have a shape that cannot be cut.
        self.golden, self.found = golden | pack.tensors, split_steps(dump, pack)
        usable = {name: self.usable(name) for name in self.found}
        self.graph, self.origins = pass_origins(config, self.tensor, usable)
        self.origins |= step_origins(config, manifest["adamw"], self.tensor)
        counts = {kind: len(pack.tensors[f"{kind}.tokens"]) for kind in ("greedy", "sampled")}
        self.origins |= continuation_origins(config, counts, manifest["sampling"], self.tensor)
        self.origins |= CONTINUATIONS
        rows = {row["name"]: row for row in manifest["tensors"]}
        of_pass = [name for name in rows if name in golden]
        order = dict.fromkeys([*self.given, *of_pass, *self.origins, *self.golden])
        self.order = [name for name in order if name in self.golden]
        rows = {name: rows[whole(name)] for name in self.order}
        self.dtypes = self._dtypes() if precision is None else dict.fromkeys(self.order, precision)
        self.coarse = precision if precision in SIXTEEN_BITS else None
        limits = {name: row.get(self.dtypes[name]) for name, row in rows.items()}
        self.limits = {name: float(limit) for name, limit in limits.items() if limit is not None}
        self.scales = {n: magnitude(self.golden[n]) or float(row["scale"]) for n, row in rows.items()}
        self.right: set[str] = set()
        self.strange: dict[str, str] = {}
        self._gradients = {}

    def _dtypes(self) -> dict[str, str]:
        """The precision of each tensor: the coarsest of its own and of those in the dump that it is made of."""
        dtypes = dict.fromkeys(self.order, "float64")
        # The pack's weights are float32 numbers: to dump them as such says nothing of the computation.
        coarse = {n for n, each in self.found.items() if each.dtype == np.float32 and n not in self.given}
        for name in self.order:
            origin = self.origins.get(name)
            inputs = origin.inputs if origin else ()
            # Programs in float32 often keep a loss or a norm in double.
            number = bool(coarse) and not self.golden[name].shape
            if number or name in coarse or any(dtypes.get(each) == "float32" for each in inputs):
                dtypes[name] = "float32"
        return dtypes

    def repeatable(self, origin: Origin | None) -> bool:
        """Whether a tensor can be made again, from the dump's tensors where the dump has them."""
        if origin is None or origin.right is None:
            return False
        return all(self.usable(name) for name in origin.inputs if name in self.found)

    def usable(self, name: str) -> bool:
        """Whether the dump has a tensor, of the right shape, and token ids that exist."""
        if name not in self.found:
            return False
        golden, found = self.golden[name], self.found[name]
        if golden.shape != found.shape:
            return False
        if golden.dtype.kind != "i":
            return True
        return bool(found.min() >= 0 and found.max() < self.pack.config.vocab_size and (found % 1 == 0).all())

    def of_pass(self, name: str) -> bool:
        """Whether a tensor is one of the pass forward and back, which the graph holds."""
        return name in self.graph.makers or name.startswith(GRADIENT)

    def bridged(self, name: str) -> bool:
        """Whether between a tensor and those in the dump lie others that the dump lacks."""
        if not self.of_pass(name):
            return False
        forward, backward = self.graph.needed(name)
        made = [each for node in forward for each in node.results]
        made += [GRADIENT + each for node in backward for each in node.results]
        return any(each in self.golden and each != name and not self.usable(each) for each in made)

    def apart(self) -> dict[str, str]:
        """In float32 the tensors that are too far from what their inputs in the dump give: why, by name.

        In deep models and large vocabularies rounding grows, and limits with it. What one operation adds does not.
        """
        found = {}
        for name, limit in self.limits.items():
            origin = self.origins.get(name)
            wide = limit > OWN_ROUNDING and self.dtypes[name] == "float32" and self.of_pass(name)
            if not wide or not self.usable(name) or not self.repeatable(origin) or self.bridged(name):
                continue
            if "cross_entropy" in origin.operations:
                continue  # it adds up a vocabulary
            right = self.determined(name, self.graph.right(name))
            error = relative_error(self.determined(name, self.tensor(name)), right, self.scales[name])
            if error > OWN_ROUNDING:
                found[name] = f"{error:.2g} of the largest magnitude from what its inputs in the dump give"
        return found

    def tensor(self, name: str) -> np.ndarray:
        """A tensor in float64 or int64: the dump's where it can be used, the pack's where not."""
        if name not in self.golden:
            return self._gradient(name)
        golden = self.golden[name]
        tensor = np.asarray(self.found[name] if self.usable(name) else golden, golden.dtype)
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
