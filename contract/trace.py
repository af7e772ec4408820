"""The record of one pass: every named tensor, its gradient, and which operation made it from which others.

Both twins use the same names, in dataflow order, so that one trace can be held against the other tensor by tensor.
With `NO_TRACE`, the default, every call does nothing.
"""

from typing import NamedTuple

import numpy as np


class Named(NamedTuple):
    """An argument of an operation that is a traced tensor, a weight or the batch."""

    name: str


class Node(NamedTuple):
    """One operation that the forward pass ran.

    operation: the stem of its pair, such as "layer_norm" of `layer_norm_forward` and `layer_norm_backward`
    arguments: those of the forward function in order, tensors as `Named`, anything else as it was
    results: the names of what it made
    """

    operation: str
    arguments: tuple
    results: tuple[str, ...]

    @property
    def inputs(self) -> list[str]:
        """The names of the tensors among the arguments."""
        return [each.name for each in self.arguments if isinstance(each, Named)]


class Trace:
    """Copies of the tensors of one pass, and its dataflow.

    activations: dotted name -> tensor, in the order computed
    gradients: dotted name -> gradient of the loss with respect to that tensor, in backward order
    nodes: the operations in the order in which the NumPy twin ran them; PyTorch's graph is its own
    """

    def __init__(self):
        self.activations: dict[str, np.ndarray] = {}
        self.gradients: dict[str, np.ndarray] = {}
        self.nodes: list[Node] = []
        # By the array's id; the array is kept too, so that no other gets its id.
        self._names: dict[int, tuple[str, object]] = {}

    def give(self, **tensors: np.ndarray):
        """Name what the pass starts from: the batch and the weights."""
        for name, tensor in tensors.items():
            self._names[id(tensor)] = name, tensor

    def record(self, name, tensor, operation: str = "", *arguments):
        """Keep a copy of `tensor`; `operation` and `arguments` are the stem of the pair that made it, and its input."""
        self.record_all({name: tensor}, operation, *arguments)

    def record_all(self, tensors: dict[str, np.ndarray], operation: str = "", *arguments):
        """The same for an operation with several results, by name."""
        for name, tensor in tensors.items():
            self._keep(self.activations, name, tensor)
        if operation:
            self._add(tensors, operation, arguments)

    def note(self, name: str, tensor: np.ndarray, operation: str, *arguments):
        """Record what made a tensor, without a copy of it."""
        self._add({name: tensor}, operation, arguments)

    def _add(self, tensors, operation, arguments):
        # An argument is recognised as the very array that was recorded: record an operation that changes an array in
        # place before another reads it.
        self.nodes.append(Node(operation, tuple(map(self._named, arguments)), tuple(tensors)))
        self.give(**tensors)

    def _named(self, argument):
        if not isinstance(argument, np.ndarray):
            return argument
        if id(argument) not in self._names:
            raise KeyError(f"an operation reads an array of shape {argument.shape} that was not recorded")
        return Named(self._names[id(argument)][0])

    def record_gradient(self, name: str, gradient: np.ndarray):
        """Keep a copy of the loss's gradient with respect to the tensor called `name`."""
        self._keep(self.gradients, name, gradient)

    @staticmethod
    def _keep(record: dict, name: str, value: np.ndarray):
        if name in record:
            raise KeyError(f"{name} is traced twice")
        record[name] = np.array(value)


class _NoTrace(Trace):
    def _ignore(self, *arguments, **tensors):
        pass

    give = record = record_all = note = record_gradient = _ignore


NO_TRACE = _NoTrace()
