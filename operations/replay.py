"""A recorded pass, computed again from the tensors that are known: rightly, or as a program with one mistake would.

Nothing here knows what may be wrong: `Dataflow` proposes changes, and this computes what would come of one.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from contract.trace import Named, Node
from operations.catalogue import OPERATIONS
from operations.operation import Mistake
from operations.uses import WRONG_SUMS

GRADIENT = "gradient."


class Change(NamedTuple):
    """What a program does otherwise.

    mistake, form: one of a mistake's forms; at: where it is made, ids of nodes, or names of gradients that are sums
    reads: by id of a node and name of a tensor that it reads, the name of the one that is read in its place
    backward: whether only the backward passes read it
    """

    mistake: Mistake | None = None
    form: int = 0
    at: frozenset = frozenset()
    reads: Mapping[tuple[int, str], str] = {}
    backward: bool = False


class Replay:
    """One computation of a graph's hidden tensors. made: whether the change could be made anywhere

    graph: a `Dataflow`; base: a replay without a change, whose numbers serve where the change makes no difference
    """

    def __init__(self, graph, change: Change = Change(), base: "Replay | None" = None):  # noqa: B008
        self.graph, self.change, self.base, self.made = graph, change, base, bool(change.reads)
        self._misreading = {node for node, _ in change.reads}
        self._results: dict[int, tuple] = {}
        self._caches: dict[int, object] = {}
        self._gradients: dict[int, dict[str, np.ndarray]] = {}
        changed = [graph.place(at) for at in (*change.at, *(node for node, _ in change.reads))]
        self._first, self._last = min(changed, default=len(graph.nodes)), max(changed, default=-1)
        backward = change.mistake.backward if change.mistake else change.backward
        if backward:
            self._first = len(graph.nodes)
        elif change.mistake or change.reads:
            self._last = len(graph.nodes)

    def get(self, name: str) -> np.ndarray:
        """A tensor or gradient as the operations read it: the known one, or computed."""
        return self._computed(name) if self.graph.hidden(name) else self.graph.value(name)

    def make(self, name: str) -> np.ndarray:
        """A tensor or gradient, computed from the known ones before it."""
        # In order, so that each finds what it reads: a deep model would exceed Python's recursion.
        forward, backward = self.graph.needed(name)
        for node in forward:
            self.results(node)
        for node in backward:
            self.gradients(node)
        return self._computed(name)

    def run(self):
        """Compute everything, forward and then backward, for `get`."""
        for node in self.graph.nodes:
            self.results(node)
        for node in reversed(self.graph.nodes):
            if OPERATIONS[node.operation].backward:
                self.gradients(node)

    def _computed(self, name: str) -> np.ndarray:
        if name.startswith(GRADIENT):
            return self._sum(name)
        node = self.graph.makers[name]
        return self.results(node)[node.results.index(name)]

    def arguments(self, node: Node, *, backward: bool = False) -> list:
        changed = backward or not self.change.backward
        reads = {name: other for (at, name), other in self.change.reads.items() if at == id(node) and changed}
        return [
            self.get(reads.get(each.name, each.name)) if isinstance(each, Named) else each
            for each in node.arguments
        ]

    def results(self, node: Node) -> tuple:
        """What a node makes forward."""
        if self.base and self.graph.index[id(node)] < self._first:
            return self.base.results(node)
        if id(node) not in self._results:
            arguments, right = self.arguments(node), None
            wrong = self._wrong(node, False, arguments)
            if wrong is None:
                right = OPERATIONS[node.operation].run(*arguments)
            self._results[id(node)] = right or (wrong if isinstance(wrong, tuple) else (wrong,))
        return self._results[id(node)]

    def gradients(self, node: Node) -> dict[str, np.ndarray]:
        """What a node makes backward, by argument."""
        if self.base and self.graph.index[id(node)] > self._last:
            return self.base.gradients(node)
        if id(node) not in self._gradients:
            operation, cache = OPERATIONS[node.operation], self.cache(node)
            dresults = [self._gradient_read(node, each) for each in node.results]
            found = operation.differentiate(*dresults, cache)
            found |= self._wrong(node, True, [*dresults, cache]) or {}
            self._gradients[id(node)] = found
        return self._gradients[id(node)]

    def _gradient_read(self, node: Node, result: str) -> np.ndarray:
        name = GRADIENT + result
        return self.get(self.change.reads.get((id(node), name), name))

    def cache(self, node: Node):
        """What a node keeps for its backward pass."""
        if self.base and self._first == len(self.graph.nodes) and id(node) not in self._misreading:
            return self.base.cache(node)
        if id(node) not in self._caches:
            self._caches[id(node)] = self._kept(node)
        return self._caches[id(node)]

    def _kept(self, node: Node):
        operation = OPERATIONS[node.operation]
        if operation.cache_of:
            reads = self.change.reads
            return operation.cache_of(*(self.get(reads.get((id(node), each), each)) for each in node.results))
        return operation.run_keeping(*self.arguments(node, backward=True))[-1]

    def _wrong(self, node: Node, backward: bool, arguments: list):
        """What the mistake makes of a node's arguments, None where it is not made there."""
        mistake = self.change.mistake
        if mistake is None or mistake.backward != backward or id(node) not in self.change.at:
            return None
        others = {
            name: self.get(each.name) if isinstance(each, Named) else each
            for name, each in self.graph.others(mistake, node).items()
        }
        return self._form(mistake.forms(*arguments, **others))

    def _form(self, forms: list):
        if len(forms) <= self.change.form:
            return None
        self.made = True
        return forms[self.change.form]

    def _sum(self, gradient: str) -> np.ndarray:
        """The gradient of a tensor: those by its uses added up."""
        uses = self.graph.backward_uses(gradient)
        if not uses:
            return np.ones(())
        parts = [self.gradients(node)[role] for node, role in uses]
        if gradient in self.change.at and self.change.mistake in WRONG_SUMS and len(parts) > 1:
            near = [self.get(each) for each in self.graph.near(gradient) if self.graph.known(each)]
            if (wrong := self._form(self.change.mistake.forms(parts, near))) is not None:
                return wrong
        return sum(parts[1:], start=parts[0])


def changed(graph, name: str, change: Change, base: Replay) -> np.ndarray | None:
    """What a change makes of a tensor or gradient, None where it cannot be made."""
    replay = Replay(graph, change, base)
    try:
        value = replay.make(name)
    except (ValueError, IndexError, KeyError):
        return None  # the wrong tensor has a shape that nothing downstream can read
    return value if replay.made else None
