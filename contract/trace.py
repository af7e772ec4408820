"""The record of every named tensor of a pass and of its gradient.

The model calls `trace.record(name, tensor)` going forward and `trace.record_gradient(name, gradient)` going
back. Both twins use the same names, in the same order of dataflow, so that one trace can be held against
the other tensor by tensor. With `NO_TRACE`, the default, both calls do nothing.
"""

import numpy as np


class Trace:
    """Copies of the tensors of one pass.

    activations: dict, dotted name -> tensor, in the order computed
    gradients: dict, dotted name -> gradient of the loss with respect to that tensor, in backward order
    """

    def __init__(self):
        self.activations: dict[str, np.ndarray] = {}
        self.gradients: dict[str, np.ndarray] = {}

    def record(self, name: str, tensor: np.ndarray):
        """Keep a copy of `tensor`, because the model reuses its memory; a name is recorded once."""
        self._keep(self.activations, name, tensor)

    def record_gradient(self, name: str, gradient: np.ndarray):
        """Keep a copy of the loss's gradient with respect to the tensor called `name`."""
        self._keep(self.gradients, name, gradient)

    @staticmethod
    def _keep(record: dict, name: str, value: np.ndarray):
        if name in record:
            raise KeyError(f"{name} is traced twice")
        record[name] = np.array(value)


class _NoTrace(Trace):
    def record(self, name, tensor):
        pass

    def record_gradient(self, name, gradient):
        pass


NO_TRACE = _NoTrace()
