"""A recorded pass as a graph: what made each tensor, each gradient, and what a mistake would make of them.

Forward, a tensor is made by one operation. Backward, its gradient is the sum over all operations that read it, each
of which turns the gradients of its results into that of the tensor. So the way back follows from the way forward.
Tensors that the pass only notes, such as query, key and value before they are split, are computed on the way.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from contract.config import ModelConfig
from contract.trace import Named, Node, Trace
from contract.weights import Weights
from numpy_llm import GPT
from operations.catalogue import OPERATIONS
from operations.operation import Mistake
from operations.uses import WRONG_SUMS

GRADIENT = "gradient."


class Wrong(NamedTuple):
    """operation: of which the mistake is one; mistake; value: what it makes of the tensor"""

    operation: str
    mistake: Mistake
    value: np.ndarray


def record(config: ModelConfig) -> Trace:
    """A traced pass of this model, forward and back: its nodes, in the order in which the NumPy twin runs them."""
    trace, model = Trace(), GPT(config, Weights.zeros(config, "float32"))
    tokens, targets = np.zeros((2, 1, 1), np.int64)
    _, _, cache = model.forward(tokens, targets, trace=trace)
    model.backward(cache, trace=trace)
    if config.position == "sinusoidal":
        table = config.context_length, config.d_model, "float64"
        trace.nodes.insert(0, Node("sinusoidal_positions", table, ("positions",)))
    return trace


class Dataflow:
    """nodes: of a forward pass; known: the names of the tensors that have values, all others are computed

    value: name -> tensor, for every known name and for `gradient.NAME` of every tensor that has a gradient
    """

    def __init__(self, nodes: list[Node], known: Callable[[str], bool], value: Callable[[str], np.ndarray]):
        self.nodes, self.known, self.value = nodes, known, value
        self.makers = {name: node for node in nodes for name in node.results}
        self.uses: dict[str, list[tuple[Node, str]]] = {}
        for node in nodes:
            for role, argument in zip(OPERATIONS[node.operation].roles, node.arguments, strict=True):
                if isinstance(argument, Named):
                    self.uses.setdefault(argument.name, []).append((node, role))

    # What made a tensor

    def steps(self, name: str) -> list[tuple[Node, str]]:
        """The operations between known tensors and this one, first to last, each with the argument that a gradient is
        taken by, "" forward.
        """
        if not name.startswith(GRADIENT):
            node = self.makers[name]
            return [*self._steps_to(node.inputs), (node, "")]
        found = []
        for node, role in self._backward_uses(name):
            found += [*self._steps_to([GRADIENT + each for each in node.results]), (node, role)]
        return list({id(node): (node, role) for node, role in found}.values())

    def _steps_to(self, names: Iterable[str]) -> list[tuple[Node, str]]:
        return [step for name in names if self._hidden(name) for step in self.steps(name)]

    def _hidden(self, name: str) -> bool:
        """Whether a tensor or gradient is computed on the way."""
        return not self.known(name) and (name in self.makers or name.startswith(GRADIENT))

    def _backward_uses(self, gradient: str) -> list[tuple[Node, str]]:
        """The operations whose backward passes make this gradient, and the arguments by which they read the tensor."""
        uses = self.uses.get(gradient.removeprefix(GRADIENT), [])
        return [(node, role) for node, role in uses if role in OPERATIONS[node.operation].gradients]

    def inputs(self, name: str) -> list[str]:
        """The known tensors that this one is made of."""
        if not name.startswith(GRADIENT):
            return self._visible(self.makers[name].inputs)
        found = []
        for node, role in self._backward_uses(name):
            found += [GRADIENT + each for each in node.results]
            arguments = dict(zip(OPERATIONS[node.operation].roles, node.arguments, strict=True))
            for need in OPERATIONS[node.operation].gradients[role].needs:
                if need == "y":
                    found += node.results
                elif isinstance(arguments[need], Named):
                    found.append(arguments[need].name)
        return self._visible(found)

    def _visible(self, names: list[str]) -> list[str]:
        """These tensors, or what they are made of where they are hidden."""
        found = [each for name in names for each in (self.inputs(name) if self._hidden(name) else [name])]
        return list(dict.fromkeys(found))

    def readers(self, name: str) -> list[str]:
        """The known tensors that are made of this one."""
        results = [result for node, _ in self.uses.get(name, []) for result in node.results]
        found = [each for made in results for each in (self.readers(made) if self._hidden(made) else [made])]
        return list(dict.fromkeys(found))

    def title(self, name: str) -> str:
        """The operations that made a tensor, such as "linear, split heads" or "layer norm backward to x"."""
        parts = [
            node.operation.replace("_", " ") + (f" backward to {role}" if role else "")
            for node, role in self.steps(name)
        ]
        return ", ".join(dict.fromkeys(parts))

    def equation(self, name: str) -> str:
        """The equations of these operations."""
        equations = [
            (OPERATIONS[node.operation].gradients[role] if role else OPERATIONS[node.operation]).equation
            for node, role in self.steps(name)
        ]
        return "; ".join(dict.fromkeys(equations))

    # Computing it again, rightly and wrongly

    def right(self, name: str) -> np.ndarray:
        """The tensor or gradient, computed from known ones."""
        if name.startswith(GRADIENT):
            return sum(self._parts(name)) if self._backward_uses(name) else np.ones(())
        node = self.makers[name]
        return OPERATIONS[node.operation].run(*self._values(node.arguments))[node.results.index(name)]

    def wrong(self, name: str) -> Iterator[Wrong]:
        """What each known mistake makes of it, in one of the operations that made it."""
        return self._wrong_gradient(name) if name.startswith(GRADIENT) else self._wrong_forward(name)

    def _get(self, name: str) -> np.ndarray:
        return self.right(name) if self._hidden(name) else self.value(name)

    def _values(self, arguments: Iterable) -> list:
        return [self._get(each.name) if isinstance(each, Named) else each for each in arguments]

    def _wrong_forward(self, name: str) -> Iterator[Wrong]:
        node = self.makers[name]
        operation, place = OPERATIONS[node.operation], node.results.index(name)
        for mistake, form in self._forms(node, False, *self._values(node.arguments)):
            yield Wrong(operation.name, mistake, form[place] if isinstance(form, tuple) else form)
        for wrong, changed in self._wrong_arguments(node):
            yield wrong._replace(value=operation.run(*changed)[place])

    def _forms(self, node: Node, backward: bool, *arguments) -> Iterator[tuple[Mistake, object]]:
        """The known mistakes of a node's operation in one direction, and what each makes of the arguments."""
        for mistake in OPERATIONS[node.operation].mistakes:
            if mistake.backward == backward:
                others = self.others(mistake, node)
                values = dict(zip(others, self._values(others.values()), strict=True))
                for form in mistake.forms(*arguments, **values):
                    yield mistake, form

    def _wrong_arguments(self, node: Node) -> Iterator[tuple[Wrong, list]]:
        """A node's arguments with one that is computed on the way made wrong, and what is wrong with it."""
        names = [each.name if isinstance(each, Named) else "" for each in node.arguments]
        return self._one_wrong(names, self._values(node.arguments))

    def _one_wrong(self, names: list[str], values: list) -> Iterator[tuple[Wrong, list]]:
        """The values of these tensors with one hidden one made wrong, and what is wrong with it."""
        for at, name in enumerate(names):
            for wrong in self.wrong(name) if self._hidden(name) else ():
                if np.shape(wrong.value) == np.shape(values[at]):
                    yield wrong, [*values[:at], wrong.value, *values[at + 1 :]]

    def others(self, mistake: Mistake, node: Node) -> dict:
        """What a program with the mistake reads beside the arguments, by the names that it has for it.

        normed: of the norm that reads the stream at this place; an argument, such as scale, of the operation that
        made the first argument, or of the one before that; or any tensor by its name.
        """
        first, known = getattr(node.arguments[0], "name", ""), {}
        maker = self.makers.get(first)
        for _ in range(2):
            if maker:
                known = dict(zip(OPERATIONS[maker.operation].roles, maker.arguments, strict=True)) | known
                maker = self.makers.get(getattr(maker.arguments[0], "name", ""))
        norms = [Named(each.results[0]) for each, _ in self.uses.get(first, []) if "norm" in each.operation]
        known["normed"] = norms[0] if norms else None
        return {name: known.get(name, Named(name)) for name in mistake.reads}

    def _cache(self, node: Node):
        operation = OPERATIONS[node.operation]
        if operation.cache_of:
            return operation.cache_of(*map(self._get, node.results))
        return operation.run_keeping(*self._values(node.arguments))[-1]

    def _dresults(self, node: Node) -> list[np.ndarray]:
        return [self._get(GRADIENT + result) for result in node.results]

    def _parts(self, gradient: str) -> list[np.ndarray]:
        """The parts of a gradient, one for each use of the tensor."""
        return [
            OPERATIONS[node.operation].differentiate(*self._dresults(node), self._cache(node))[role]
            for node, role in self._backward_uses(gradient)
        ]

    def _wrong_gradient(self, name: str) -> Iterator[Wrong]:
        parts = self._parts(name)
        for at, (node, role) in enumerate(self._backward_uses(name)):
            rest = sum(parts[:at] + parts[at + 1 :])
            for wrong in self._wrong_part(node, role):
                if len(parts) == 1 or np.shape(wrong.value) == np.shape(rest):
                    yield wrong._replace(value=wrong.value + rest)
        if len(parts) > 1:
            near = [self._get(each) for each in self._near(name) if self.known(each)]
            for mistake in WRONG_SUMS:
                for form in mistake.forms(parts, near):
                    yield Wrong("uses", mistake, form)

    def _wrong_part(self, node: Node, role: str) -> Iterator[Wrong]:
        operation, cache, dresults = OPERATIONS[node.operation], self._cache(node), self._dresults(node)
        for mistake, form in self._forms(node, True, *dresults, cache):
            if role in form:
                yield Wrong(operation.name, mistake, form[role])
        for wrong, changed in self._wrong_arguments(node):
            wrong_cache = operation.run_keeping(*changed)[-1]
            yield wrong._replace(value=operation.differentiate(*dresults, wrong_cache)[role])
        for wrong, changed in self._one_wrong([GRADIENT + each for each in node.results], dresults):
            yield wrong._replace(value=operation.differentiate(*changed, cache)[role])

    def _near(self, gradient: str) -> list[str]:
        """The gradients that are at hand where those of a tensor's uses are added up."""
        results = [name for node, _ in self.uses[gradient.removeprefix(GRADIENT)] for name in node.results]
        after = [name for each in results for node, _ in self.uses.get(each, []) for name in node.results]
        return [GRADIENT + each for each in (*results, *after)]
