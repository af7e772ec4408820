"""What is known of an operation, and its known mistakes as functions that can be called or put in its place."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from inspect import signature
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

# Asked for at every step of every wrong pass, and slow.
_signature = cache(signature)


class Mistake(NamedTuple):
    """What people get wrong in an operation.

    name: as a check tells it; text: what is wrong and what would be right, for an engineer who ports the model
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

    @property
    def reads(self) -> list[str]:
        """What it reads beside the arguments: the keyword-only parameters of `compute`."""
        return list(getattr(self.compute, "__kwdefaults__", None) or {})

    def forms(self, *arguments, **others) -> list:
        """What the mistake computes, in each of its forms; numbers may not be finite. others: those that it `reads`"""
        with np.errstate(all="ignore"):
            found = self.compute(*arguments, **others)
        found = found if isinstance(found, list) else [found]
        return [each for each in found if each is not None]


def wrong_forward(name: str, compute: Callable, text: str, hint: str = "") -> Mistake:
    """A mistake of a forward pass: `compute` is called like the right function."""
    return Mistake(name, text, hint, False, compute)


def wrong_backward(name: str, compute: Callable, text: str, hint: str = "") -> Mistake:
    """A mistake of a backward pass: `compute` is called like the right function, with the cache of `run_keeping`."""
    return Mistake(name, text, hint, True, compute)


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
    roundings: what programs in 16 bits round that must not be
    cache_of: results -> cache, where the backward pass needs nothing but the results
    """

    name: str
    forward: Callable
    backward: Callable | None
    equation: str
    gradients: Mapping[str, Gradient] = {}
    mistakes: tuple[Mistake, ...] = ()
    cache_of: Callable | None = None
    roundings: tuple[Mistake, ...] = ()

    @property
    def roles(self) -> list[str]:
        """The names of the forward function's arguments."""
        return list(_signature(self.forward).parameters)

    def run(self, *arguments) -> tuple:
        """The results of the forward pass, without the cache."""
        return self.run_keeping(*arguments)[:-1]

    def run_keeping(self, *arguments, **named) -> tuple:
        """Results and cache; beside what the forward pass keeps the arguments by name: mistakes are made with both."""
        read = _signature(self.forward).bind(*arguments, **named).arguments
        *results, kept = self.forward(**read) if self.backward else (self.forward(**read), None)
        return *results, SimpleNamespace(**read | (kept._asdict() if kept else {}))

    def differentiate(self, *arguments) -> dict[str, np.ndarray]:
        """The gradients by argument, from those of the results and the cache."""
        found = self.backward(*arguments)
        return dict(zip(self.gradients, found if isinstance(found, tuple) else (found,), strict=True))

    def find(self, name: str) -> Mistake:
        """The mistake called `name`."""
        return next(each for each in self.mistakes if each.name == name)


def one_form(mistake: Mistake, form: int, made_in: list[int], **others) -> Callable:
    """A function that computes one of a mistake's forms, None where the arguments do not allow it.

    made_in: gets, of each call that allows it, how many forms the mistake has there
    others: what the mistake reads beside the arguments, such as scale
    """

    def compute(*arguments, **more):
        forms = mistake.forms(*arguments, **others, **more)
        if len(forms) <= form:
            return None
        made_in.append(len(forms))
        return forms[form]

    return compute


@contextmanager
def made(operation: Operation, mistake: Mistake, form: int = 0, **others) -> Iterator[list[int]]:
    """Make a mistake wherever `numpy_llm` calls the operation; undone at the end.

    form, others: as in `one_form`; a call that does not allow the form is made rightly
    yields: a list that gets, of each call in which the mistake was made, how many forms it has there
    """
    made_in = []
    compute = one_form(mistake, form, made_in, **others)

    def forward(*arguments, **named):
        *results, cache = operation.run_keeping(*arguments, **named)
        wrong = None if mistake.backward else compute(*arguments, **named)
        if wrong is not None:
            results = [*map(_like, wrong if isinstance(wrong, tuple) else (wrong,), results)]
            cache = operation.cache_of(*results) if operation.cache_of else cache
        return (*results, cache) if operation.backward else results[0]

    def backward(*arguments, **buffers):
        right = operation.differentiate(*arguments)
        for role, gradient in (compute(*arguments) or {}).items():
            if right[role] is not None:
                right[role] = _like(gradient, right[role])
        return tuple(right.values()) if len(right) > 1 else right[next(iter(right))]

    both = replaced(operation.backward, backward) if mistake.backward else nullcontext()
    with replaced(operation.forward, forward), both:
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
