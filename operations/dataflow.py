"""A recorded pass as a graph: what made each tensor, each gradient, and what a mistake would make of them.

Forward, a tensor is made by one operation. Backward, its gradient is the sum over all operations that read it, each
of which turns the gradients of its results into that of the tensor. So the way back follows from the way forward.
Tensors that the pass only notes, such as query, key and value before they are split, are computed on the way.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from contract.config import ModelConfig
from contract.trace import Named, Node, Trace
from contract.weights import Weights
from numpy_llm import GPT
from operations.catalogue import OPERATIONS
from operations.operation import Mistake, Operation
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
            for role, argument in zip(self.operation(node).roles, node.arguments, strict=True):
                if isinstance(argument, Named):
                    self.uses.setdefault(argument.name, []).append((node, role))

    @staticmethod
    def operation(node: Node) -> Operation:
        """What is known of a node's operation."""
        return OPERATIONS[node.operation]

    # What made a tensor

    def steps(self, name: str) -> list[tuple[Node, str]]:
        """The operations between known tensors and this one, first to last, each with the argument that a gradient is
        taken by, "" forward.
        """
        if name.startswith(GRADIENT):
            found = []
            for node, role in self._differentiable(name.removeprefix(GRADIENT)):
                for result in node.results:
                    found += [] if self.known(GRADIENT + result) else self.steps(GRADIENT + result)
                found.append((node, role))
            return list({id(node): (node, role) for node, role in found}.values())
        node = self.makers[name]
        before = [step for each in node.inputs if self._hidden(each) for step in self.steps(each)]
        return [*before, (node, "")]

    def _hidden(self, name: str) -> bool:
        return name in self.makers and not self.known(name)

    def _differentiable(self, name: str) -> list[tuple[Node, str]]:
        return [
            (node, role) for node, role in self.uses.get(name, []) if role in self.operation(node).gradients
        ]

    def inputs(self, name: str) -> list[str]:
        """The known tensors that this one is made of."""
        if not name.startswith(GRADIENT):
            return self._visible(self.makers[name].inputs)
        found = []
        for node, role in self._differentiable(name.removeprefix(GRADIENT)):
            for result in node.results:
                gradient = GRADIENT + result
                found += [gradient] if self.known(gradient) else self.inputs(gradient)
            roles = dict(zip(self.operation(node).roles, node.arguments, strict=True))
            for need in self.operation(node).gradients[role].needs:
                if need == "y":
                    found += node.results
                elif isinstance(roles[need], Named):
                    found += self._visible([roles[need].name])
        return list(dict.fromkeys(found))

    def _visible(self, names: list[str]) -> list[str]:
        found = [each for name in names for each in (self.inputs(name) if self._hidden(name) else [name])]
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
            self.operation(node).gradients[role].equation if role else self.operation(node).equation
            for node, role in self.steps(name)
        ]
        return "; ".join(dict.fromkeys(equations))

    # Computing it again, rightly and wrongly

    def right(self, name: str) -> np.ndarray:
        """The tensor or gradient, computed from known ones."""
        return self._right_gradient(name) if name.startswith(GRADIENT) else self._right_forward(name)

    def wrong(self, name: str) -> Iterator[Wrong]:
        """What each known mistake makes of it, in one of the operations that made it."""
        return self._wrong_gradient(name) if name.startswith(GRADIENT) else self._wrong_forward(name)

    def readers(self, name: str) -> list[str]:
        """The known tensors that are made of this one."""
        results = [result for node, _ in self.uses.get(name, []) for result in node.results]
        found = [
            each
            for result in results
            for each in (self.readers(result) if self._hidden(result) else [result])
        ]
        return list(dict.fromkeys(found))

    def _get(self, name: str) -> np.ndarray:
        return self.value(name) if self.known(name) or name not in self.makers else self._right_forward(name)

    def _arguments(self, node: Node) -> list:
        return [self._get(each.name) if isinstance(each, Named) else each for each in node.arguments]

    def _right_forward(self, name: str) -> np.ndarray:
        node = self.makers[name]
        return self.operation(node).run(*self._arguments(node))[node.results.index(name)]

    def _wrong_forward(self, name: str) -> Iterator[Wrong]:
        node = self.makers[name]
        operation, arguments = self.operation(node), self._arguments(node)
        place = node.results.index(name)
        for mistake in operation.mistakes:
            if not mistake.backward:
                for form in mistake.forms(*arguments, **self._others(mistake, node)):
                    yield Wrong(operation.name, mistake, form[place] if isinstance(form, tuple) else form)
        for wrong, changed in self._wrong_arguments(node):
            yield wrong._replace(value=operation.run(*changed)[place])

    def _wrong_arguments(self, node: Node) -> Iterator[tuple[Wrong, list]]:
        """A node's arguments with one that is computed on the way made wrong, and what is wrong with it."""
        arguments = self._arguments(node)
        for at, argument in enumerate(node.arguments):
            if isinstance(argument, Named) and self._hidden(argument.name):
                for wrong in self._wrong_forward(argument.name):
                    if np.shape(wrong.value) == np.shape(arguments[at]):
                        yield wrong, [*arguments[:at], wrong.value, *arguments[at + 1 :]]

    def _others(self, mistake: Mistake, node: Node) -> dict:
        """The values of what a program with the mistake reads beside the arguments."""
        others = self.others(mistake, node)
        return {
            role: self._get(each.name) if isinstance(each, Named) else each for role, each in others.items()
        }

    def others(self, mistake: Mistake, node: Node) -> dict:
        """What a program with the mistake reads beside the arguments, by the names that it has for it.

        normed: of the norm that reads the stream at this place; an argument, such as scale, of the operation that
        made the first argument; or any tensor by its name.
        """
        names = getattr(mistake.compute, "__kwdefaults__", None) or {}
        return {name: self._other(name, node) for name in names}

    def _other(self, name: str, node: Node):
        first = node.arguments[0]
        if name == "normed":
            norms = [each.results[0] for each, _ in self.uses[first.name] if "norm" in each.operation]
            return Named(norms[0]) if norms else None
        maker = self.makers.get(first.name)
        arguments = dict(zip(self.operation(maker).roles, maker.arguments, strict=True)) if maker else {}
        return arguments.get(name, Named(name))

    def _cache(self, node: Node):
        operation = self.operation(node)
        if operation.cache:
            return operation.cache(*map(self._get, node.results))
        return (operation.rich or operation.forward)(*self._arguments(node))[-1]

    def _gradient_of_result(self, name: str) -> np.ndarray:
        return self.value(GRADIENT + name) if self.known(GRADIENT + name) else self._right_gradient(name)

    def _right_parts(self, tensor: str) -> list[np.ndarray]:
        parts = []
        for node, role in self._differentiable(tensor):
            dresults = tuple(map(self._gradient_of_result, node.results))
            parts.append(self.operation(node).differentiate(dresults, self._cache(node))[role])
        return parts

    def _right_gradient(self, name: str) -> np.ndarray:
        tensor = name.removeprefix(GRADIENT)
        return sum(self._right_parts(tensor)) if self._differentiable(tensor) else np.ones(())

    def _wrong_gradient(self, name: str) -> Iterator[Wrong]:
        tensor = name.removeprefix(GRADIENT)
        parts = self._right_parts(tensor)
        for at, (node, role) in enumerate(self._differentiable(tensor)):
            rest = sum(parts[:at] + parts[at + 1 :])
            for wrong in self._wrong_part(node, role):
                if len(parts) == 1 or np.shape(wrong.value) == np.shape(rest):
                    yield wrong._replace(value=wrong.value + rest)
        if len(parts) > 1:
            near = [self._get(GRADIENT + each) for each in self._near(tensor) if self.known(GRADIENT + each)]
            for mistake in WRONG_SUMS:
                for form in mistake.forms(parts, near):
                    yield Wrong("uses", mistake, form)

    def _wrong_part(self, node: Node, role: str) -> Iterator[Wrong]:
        operation, cache = self.operation(node), self._cache(node)
        dresults = tuple(map(self._gradient_of_result, node.results))
        for mistake in operation.mistakes:
            if mistake.backward:
                for form in mistake.forms(*dresults, cache, **self._others(mistake, node)):
                    if role in form:
                        yield Wrong(operation.name, mistake, form[role])
        for wrong, changed in self._wrong_arguments(node):
            wrong_cache = (operation.rich or operation.forward)(*changed)[-1]
            yield wrong._replace(value=operation.differentiate(dresults, wrong_cache)[role])
        for at, result in enumerate(node.results):
            if not self.known(GRADIENT + result):
                for wrong in self._wrong_gradient(GRADIENT + result):
                    if np.shape(wrong.value) == np.shape(dresults[at]):
                        changed = (*dresults[:at], wrong.value, *dresults[at + 1 :])
                        yield wrong._replace(value=operation.differentiate(changed, cache)[role])

    def _near(self, tensor: str) -> list[str]:
        """The tensors whose gradients are at hand where those of `tensor`'s uses are added up."""
        results = [name for node, _ in self.uses[tensor] for name in node.results]
        after = [name for each in results for node, _ in self.uses.get(each, []) for name in node.results]
        return [*results, *after]
