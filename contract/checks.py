"""What valid arguments are, known once: both twins call these at their public entries.

Each check raises ConfigError naming the argument or the place in it, what was found and what fits.
"""

from collections.abc import Callable
from math import inf
from numbers import Real
from operator import index

import numpy as np

from contract.errors import ConfigError
from contract.targets import NO_TARGET

MAX_WHOLE = (1 << 63) - 1  # of seeds, steps and sizes: what 64 bits with a sign hold


def check_whole(name: str, value, low: int = 0, high: int = MAX_WHOLE):
    """Accept a whole number, NumPy's included, from `low` to `high`."""
    try:
        fits = not isinstance(value, bool) and low <= index(value) <= high
    except TypeError:
        fits = False
    if not fits:
        to = "2^63 - 1" if high == MAX_WHOLE else high
        raise ConfigError(f"{name} must be a whole number from {low} to {to}, got {value!r}")


def check_number(name: str, value, fits: Callable[[float], bool], wanted: str, advice: str = ""):
    """Accept a real number, NumPy's included, that `fits`; `wanted` says which do."""
    if not isinstance(value, Real) or isinstance(value, bool) or not fits(value):
        raise ConfigError(f"{name} must be {wanted}, got {value!r}{advice}")


def check_adam(beta1, beta2, eps, weight_decay):
    """Accept settings with which Adam's update stays finite."""
    for name, value in (("beta1", beta1), ("beta2", beta2)):
        check_number(name, value, lambda beta: 0 <= beta < 1, "a number of at least 0 and below 1")
    check_number("eps", eps, lambda eps: 0 < eps < inf, "a finite number above 0")
    _check_not_negative("weight_decay", weight_decay)


def _check_not_negative(name: str, value):
    """Accept a finite number of at least 0."""
    check_number(name, value, lambda value: 0 <= value < inf, "a finite number of at least 0")


def check_learning_rate(learning_rate):
    """Accept a finite number of at least 0."""
    _check_not_negative("learning rate", learning_rate)


def check_max_norm(max_norm):
    """Accept a number above 0; infinity clips nothing."""
    check_number("max_norm", max_norm, lambda norm: norm > 0, "a number above 0")


def check_batch(tokens, targets, config, array_type=np.ndarray, as_numpy=lambda array: array):
    """Accept what a model's `forward` takes: tokens int (B, T), and targets int (B, T) or None, ids from 0 to V - 1.

    array_type: the twin's kind of array
    as_numpy: a function from such an array to NumPy's, or to None if reading it would wait for a device
    """
    shape, context = _integer_shape(tokens, array_type), config.context_length
    if not shape or len(shape) != 2 or shape[0] < 1 or not 1 <= shape[1] <= context:
        wanted = f", (B, T) with B at least 1 and T from 1 to the context length, {context}"
        raise _no_integers("tokens", wanted, tokens, array_type)
    _check_ids("tokens", as_numpy(tokens), config)
    if targets is not None:
        check_targets(targets, shape, config, array_type, as_numpy)


def check_targets(targets, shape, config, array_type=np.ndarray, as_numpy=lambda array: array):
    """Accept integers from 0 to V - 1, or `NO_TARGET`, in an array of the given shape; the rest as in `check_batch`."""
    if _integer_shape(targets, array_type) != shape:
        raise _no_integers("targets", f" of the tokens' shape, {shape}", targets, array_type)
    _check_ids("targets", as_numpy(targets), config, others=(NO_TARGET,))


def check_prompt(tokens, config) -> list[int]:
    """The ids of a prompt as a list. Accept a sequence of at least one whole number from 0 to V - 1."""
    try:
        ids = list(tokens)
    except TypeError:
        raise ConfigError(f"the prompt must be a sequence of token ids, got {tokens!r}") from None
    if not ids:
        raise ConfigError("the prompt has no tokens; give at least one")
    if getattr(tokens, "ndim", 1) != 1:
        raise ConfigError(f"the prompt must be one sequence of token ids, got shape {tuple(tokens.shape)}")
    for place, token in enumerate(ids):
        check_whole(f"token {place} of the prompt", token, 0, config.vocab_size - 1)
    return [index(token) for token in ids]


def check_stop(stop, config) -> frozenset[int]:
    """The ids that end a text. Accept any number of whole numbers from 0 to V - 1."""
    try:
        ids = list(stop)
    except TypeError:
        raise ConfigError(f"stop must be a set of token ids, got {stop!r}") from None
    for token in ids:
        check_whole("a token of stop", token, 0, config.vocab_size - 1)
    return frozenset(map(index, ids))


def _integer_shape(array, array_type) -> tuple[int, ...] | None:
    """The shape of an array of integers, None for anything else."""
    if not isinstance(array, array_type) or not _dtype_name(array).startswith(("int", "uint")):
        return None
    return tuple(array.shape)


def _no_integers(name: str, wanted: str, found, array_type) -> ConfigError:
    kind = type(found).__name__
    if isinstance(found, array_type):
        kind = f"{_dtype_name(found)} {tuple(found.shape)}"
    return ConfigError(f"{name} must be an array of integers{wanted}, got {kind}")


def _dtype_name(array) -> str:
    return getattr(array.dtype, "name", str(array.dtype).removeprefix("torch."))  # PyTorch's has no name


def _check_ids(name: str, ids: np.ndarray | None, config, others: tuple[int, ...] = ()):
    if ids is None or (ids.min() >= 0 and ids.max() < config.vocab_size):
        return
    wrong = ((ids < 0) | (ids >= config.vocab_size)) & ~np.isin(ids, others)
    if not wrong.any():
        return
    place = tuple(map(int, np.argwhere(wrong)[0]))
    raise ConfigError(
        f"{name}{list(place)} is {ids[place]}, but the vocabulary has the ids 0 to {config.vocab_size - 1}; "
        "was it made by another tokenizer?"
    )
