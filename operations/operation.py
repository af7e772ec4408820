"""What is known of an operation, and its known mistakes as functions that can be called or put in its place."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from inspect import signature, unwrap
from typing import NamedTuple

import numpy as np


class Mistake(NamedTuple):
    """What people get wrong in an operation.

    name: of the function; text: what is wrong and what would be right, for an engineer who ports the model
    hint: the same for a student who writes the operation; "" where the text will do
    backward: whether it is a mistake of the backward function
    compute: called like the right function; returns what a program with this mistake computes, one form of it or a
        list of forms: forward the result, or a tuple of several; backward a dict, argument -> gradient, of what is
        wrong. None where the mistake cannot be made with such arguments
    """

    name: str
    text: str
    hint: str
    backward: bool
    compute: Callable

    def forms(self, *arguments, **others) -> list:
        """What the mistake computes, in each of its forms; may hold numbers that are not finite.

        others: tensors beside the arguments, by the names of the keyword-only parameters of `compute`
        """
        with np.errstate(all="ignore"):
            found = self.compute(*arguments, **others)
        found = found if isinstance(found, list) else [found]
        return [each for each in found if each is not None]


def wrong_forward(text: str, hint: str = "") -> Callable:
    """A decorator: the function below is a mistake of a forward pass."""
    return lambda compute: Mistake(compute.__name__, text, hint, False, compute)


def wrong_backward(text: str, hint: str = "") -> Callable:
    """A decorator: the function below is a mistake of a backward pass."""
    return lambda compute: Mistake(compute.__name__, text, hint, True, compute)


class Gradient(NamedTuple):
    """equation: of the gradient of one argument; needs: the arguments that it is made of, "y" for the result"""

    equation: str
    needs: tuple[str, ...] = ()


class Operation(NamedTuple):
    """What is known of one operation of the model.

    name: the stem of its pair, as a trace records it
    forward, backward: the pair in `numpy_llm`
    equation: what it computes, in a line
    gradients: argument -> its gradient, in the order in which `backward` returns them
    mistakes: what people get wrong, the likeliest first
    cache: results -> cache, where the backward pass needs nothing but the results
    rich: the forward function with more in its cache, where the mistakes of the backward pass need it
    """

    name: str
    forward: Callable
    backward: Callable | None
    equation: str
    gradients: Mapping[str, Gradient] = {}
    mistakes: tuple[Mistake, ...] = ()
    cache: Callable | None = None
    rich: Callable | None = None

    @property
    def roles(self) -> list[str]:
        """The names of the forward function's arguments, buffers to write to left out."""
        return [each.name for each in signature(self.forward).parameters.values() if each.name != "out"]

    def run(self, *arguments) -> tuple:
        """The results of the forward pass, without the cache."""
        return self.forward(*arguments)[:-1]

    def differentiate(self, dresults: tuple, cache) -> dict[str, np.ndarray]:
        """The gradients by argument."""
        found = self.backward(*dresults, cache)
        return dict(zip(self.gradients, found if isinstance(found, tuple) else (found,), strict=True))

    def find(self, name: str) -> Mistake:
        """The mistake called `name`."""
        return next(each for each in self.mistakes if each.name == name)


@contextmanager
def made(operation: Operation, mistake: Mistake, form: int = 0, **others) -> Iterator[list[int]]:
    """Make a mistake wherever `numpy_llm` calls the operation; undone at the end.

    form: which of the mistake's forms; a call with arguments that do not allow it is made rightly
    others: what the mistake reads beside the arguments, such as scale
    yields: a list that gets, of each call in which the mistake was made, how many forms it has there
    """
    made_in = []
    function = unwrap(operation.forward)

    def forward(*arguments, out=None):
        right = operation.forward(*arguments)
        forms = mistake.forms(*arguments, **others)
        if len(forms) <= form:
            return right if function is operation.forward else right[0]
        made_in.append(len(forms))
        wrong = forms[form] if isinstance(forms[form], tuple) else (forms[form],)
        results = [_like(each, beside) for each, beside in zip(wrong, right, strict=False)]
        if function is not operation.forward:  # a function that keeps no cache
            return results[0]
        return *results, operation.cache(*results) if operation.cache else right[-1]

    def backward(*arguments, **buffers):
        right = operation.backward(*arguments)
        several = isinstance(right, tuple)
        gradients = dict(zip(operation.gradients, right if several else (right,), strict=True))
        forms = mistake.forms(*arguments, **others)
        if len(forms) > form:
            made_in.append(len(forms))
            gradients |= {
                role: _like(value, gradients[role])
                for role, value in forms[form].items()
                if gradients[role] is not None
            }
        return tuple(gradients.values()) if several else gradients[next(iter(gradients))]

    with ExitStack() as stack:
        if mistake.backward and operation.rich:
            stack.enter_context(replaced(operation.forward, operation.rich))
        right, wrong = (operation.backward, backward) if mistake.backward else (function, forward)
        stack.enter_context(replaced(right, wrong))
        yield made_in


def _like(wrong: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The wrong result in the right precision."""
    return np.asarray(wrong).astype(np.asarray(right).dtype, copy=False)


@contextmanager
def replaced(right: Callable, wrong: Callable) -> Iterator[None]:
    """Put a function in the place of another wherever a module of `numpy_llm` holds it, its tables included."""
    undo = []
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "numpy_llm"]:
        for name, value in list(vars(module).items()):
            if value is right:
                undo.append((vars(module), name, value))
                setattr(module, name, wrong)
            elif name.isupper() and isinstance(value, dict):
                for key, pair in value.items():
                    if isinstance(pair, tuple) and right in pair:
                        undo.append((value, key, pair))
                        value[key] = tuple(wrong if each is right else each for each in pair)
    try:
        yield
    finally:
        for place, name, value in undo:
            place[name] = value
