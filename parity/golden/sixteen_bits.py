"""Programs in bfloat16 or float16: how far an honest one may stray from a pack, and what betrays one that is not.

A number in 16 bits is off by up to half of the spacing there, 1/512 of it in bfloat16. Passes that round every result
are made here by Monte Carlo arithmetic (Parker 1997): each number goes up or down by chance, so that several passes
show how far any choice of what to round may lead. Errors so large hide mistakes. But honest roundings know nothing of
each other, so two things are asked of every tensor beside its limit:

- that its operation, from the inputs in the dump, is not much further off than such passes are;
- that the channels of a token have no error in common, as they have where the mean of squares that divides them all
  was rounded: of independent errors, the mean over C channels has 1/C of the variance.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from contract.config import ModelConfig
from contract.numbers import SIXTEEN_BITS, rounded, spacing
from contract.randomness import generator
from contract.trace import Node
from contract.weights import parameter_count
from operations.dataflow import GRADIENT, Dataflow, record
from operations.replay import Change, Replay
from parity.compare import Row
from parity.golden.origins import given_names
from parity.golden.rounding import stray
from parity.golden.tensors import Tensors

PASSES = 8  # of small models; in large ones the worst of many numbers is much the same in every pass
# The worst of a few passes is not the worst of all.
ROOM = 4


class RoundedReplay(Replay):
    """A pass whose every result and gradient is rounded as soon as it is made. round: tensor -> tensor"""

    def __init__(self, graph: Dataflow, round: Callable[[np.ndarray], np.ndarray], change: Change = Change()):  # noqa: B008
        super().__init__(graph, change)
        self._round = round

    def results(self, node: Node) -> tuple:
        if id(node) not in self._results:
            self._results[id(node)] = tuple(map(self._round, super().results(node)))
        return self._results[id(node)]

    def gradients(self, node: Node) -> dict[str, np.ndarray]:
        if id(node) not in self._gradients:
            found = super().gradients(node)
            self._gradients[id(node)] = {
                role: self._round(each) for role, each in found.items() if each is not None
            }
        return self._gradients[id(node)]

    def _sum(self, gradient: str) -> np.ndarray:
        return self._round(super()._sum(gradient))


def limits(config: ModelConfig, tensors: Mapping[str, np.ndarray], precision: str) -> dict[str, float]:
    """How far an honest program may be from each tensor of a pass and each weight, relative to its largest magnitude.

    tensors: a pack's, by name; precision: "bfloat16" or "float16"
    """
    nodes, given = record(config).nodes, given_names(config)
    worst: dict[str, float] = {}
    for number in range(_passes(config)):
        round = partial(rounded, precision=precision, random=generator(number, "golden.sixteen_bits"))
        known = {name: _as_given(tensors[name], round) for name in given}
        graph = Dataflow(nodes, known.__contains__, known.__getitem__)
        replay = RoundedReplay(graph, round)
        replay.run()
        for name, right in tensors.items():
            of_pass = name in known or name in graph.makers or name.startswith(GRADIENT)
            if right.dtype.kind == "f" and of_pass:
                worst[name] = max(worst.get(name, 0.0), stray(config, name, replay.get(name), right))
    # Whether one number is off by much or little is chance: a loss may be off as far as what it is made of.
    worst["loss"] = max(worst["loss"], worst["logits"])
    worst |= dict.fromkeys(("tokens", "targets"), 0.0)
    return {name: float(f"{ROOM * error:.1e}") for name, error in worst.items()}


def _passes(config: ModelConfig) -> int:
    return max(1, min(PASSES, (1 << 24) // parameter_count(config)))


def _as_given(tensor: np.ndarray, round: Callable) -> np.ndarray:
    return round(tensor.astype(np.float32)) if tensor.dtype.kind == "f" else tensor


def looks_like(tensors: Tensors, rows: list[Row]) -> dict:
    """What the numbers of a program say of the precision it was run in, single ones aside: a loss is often kept wider.

    stored: the type in 16 bits that all of them are of, where some are too coarse for their limits; else ""
    finer: whether limits of 16 bits were applied to tensors of which none is of that type
    """
    made = [row for row in rows if row.shape and row.name not in tensors.given]
    made = [row for row in made if np.any(tensors.found[row.name])]
    found = [tensors.found[row.name] for row in made]
    if tensors.coarse:
        return {"finer": bool(found) and not any(_is_of(each, tensors.coarse) for each in found)}
    if all(row.holds or row.problem for row in made):
        return {}
    kinds = (kind for kind in SIXTEEN_BITS if all(_is_of(each, kind) for each in found))
    return {"stored": next(kinds, "")}


def _is_of(tensor: np.ndarray, precision: str) -> bool:
    return np.array_equal(tensor, rounded(tensor, precision))


# What a tensor's operation adds

TIMES = 3  # how much larger than in passes that round everything an operation's error may be
SHARED = 5  # how much more variance a token's common error may have than independent errors leave there
LEAST_ROWS = 10  # tokens, for a variance that means something
# What divides or multiplies a whole row by a number of its own, which must not be rounded.
BY_ROWS = ("layer_norm", "rms_norm", "rms_norm_plus_one", "masked_softmax")


def strange(tensors: Tensors, precision: str) -> dict[str, str]:
    """The tensors of a dump that no honest rounding makes of the inputs in the dump: why, by name."""
    again = [
        name
        for name, origin in tensors.origins.items()
        if name in tensors.found
        and tensors.of_pass(name)
        and tensors.repeatable(origin)
        and tensors.usable(name)
        and np.isfinite(tensors.tensor(name)).all()
    ]
    right = {name: tensors.determined(name, tensors.graph.right(name)) for name in again}
    noise, found = _noise(tensors, right, precision), {}
    for name in again:
        error = tensors.determined(name, tensors.tensor(name)) - right[name]
        apart = root_mean_square(error)
        if apart > TIMES * noise[name]:
            found[name] = (
                f"{apart / noise[name]:.2g} times as far from what its inputs in the dump give as passes that round "
                f"every number to {precision}"
            )
        elif common := _common_error(tensors, name, error, precision):
            found[name] = f"the numbers of a row are off together, by {common:.1g} of themselves"
    return found


def root_mean_square(error: np.ndarray) -> float:
    """The root of the mean of the squares."""
    return float(np.sqrt(np.mean(np.square(error, dtype=np.float64))))


def _noise(tensors: Tensors, right: Mapping[str, np.ndarray], precision: str) -> dict[str, float]:
    """The root mean square by which passes that round everything miss each tensor, from the inputs in the dump.

    right: what the inputs in the dump give
    """
    # Where terms cancel to nothing, an error in proportion to them is none.
    unit = 2.0 ** -SIXTEEN_BITS[precision].digits
    worst = {name: 0.01 * unit * tensors.scales[name] for name in right}
    for number in range(_passes(tensors.pack.config)):
        random = generator(number, "golden.sixteen_bits")
        known: dict[str, np.ndarray] = {}

        def value(name: str, random=random, known=known) -> np.ndarray:
            if name not in known:
                tensor = tensors.tensor(name)
                if tensor.dtype.kind == "f":
                    # Any number that is rounded to the one in the dump may be what the program went on with.
                    tensor = tensor + (random.random(tensor.shape) - 0.5) * spacing(tensor, precision)
                known[name] = tensor
            return known[name]

        replay = RoundedReplay(
            tensors.graph.reading(value), partial(rounded, precision=precision, random=random)
        )
        for name, wanted in right.items():
            error = tensors.determined(name, replay.make(name)) - wanted
            worst[name] = max(worst[name], root_mean_square(error))
    return worst


def _common_error(tensors: Tensors, name: str, error: np.ndarray, precision: str) -> float:
    """By how much of themselves the numbers of a row are off together; 0 where their errors are independent.

    An analysis of variance: a row's error is fitted by a multiple of the row, `error = a y`, and the variance of a from
    row to row is held against what is left of the errors, of which it is the C-th part if they are independent.
    """
    node = tensors.graph.makers.get(name)
    if node is None or node.operation not in BY_ROWS or tensors.bridged(name):
        return 0.0
    bias = tensors.graph.pass_again.arguments(node)[2] if node.operation == "layer_norm" else None
    bias = np.zeros(()) if bias is None else bias
    y = tensors.graph.right(name) - bias
    size = np.abs(y) + np.abs(bias)  # to which the rounding of each number is in proportion
    y, error = (np.divide(each, size, where=size > 0, out=np.zeros(y.shape)) for each in (y, error))
    y, error = (each.reshape(-1, y.shape[-1]) for each in (y, error))
    weight = np.square(y).sum(axis=-1)
    y, error, weight = y[weight > 0], error[weight > 0], weight[weight > 0]
    free = np.count_nonzero(y) - len(y)
    if len(y) < LEAST_ROWS or free < LEAST_ROWS:
        return 0.0
    a = (error * y).sum(axis=-1) / weight
    left = np.square(error - a[:, None] * y).sum() / free
    between = (np.square(a - a.mean()) * weight).sum() / (len(y) - 1)
    # What float32 leaves in common is none of this.
    enough = between > SHARED * left and a.std() > 2.0 ** -SIXTEEN_BITS[precision].digits / 8
    return float(a.std()) if enough else 0.0
