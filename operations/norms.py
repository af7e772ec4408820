"""What people get wrong in a norm, of whatever kind: its formula with parts exchanged."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np

from numpy_llm.positions import rotate_forward
from operations.operation import Mistake, wrong_backward, wrong_forward
from operations.sixteen_bits import rounding, rows, running_sum


def mean(x, axis=-1):
    """The mean over an axis, which stays as one of size 1."""
    return x.mean(axis=axis, keepdims=True)


def _root(spread, eps):
    return (spread + eps) ** 0.5


def norm(x, weight, bias, eps, *, centred=True, about_mean=True, axis=-1, divisor=_root):
    """A norm with parts exchanged.

    centred: whether the mean is taken off x; about_mean: whether it is taken off in the spread, the mean of squares
    divisor: (spread, eps) -> what divides; axis: that of the means
    """
    spread = mean((x - mean(x, axis) * about_mean) ** 2, axis)
    return (x - mean(x, axis) * centred) / divisor(spread, eps) * weight + (0 if bias is None else bias)


class Kind(NamedTuple):
    """A kind of norm, in the words of its mistakes.

    prefix: of their names; spread: what the root is taken of; root: the root; centred: whether the mean is taken off
    path, divisor: what names call the path through the root, and the root itself, of which the cache has the inverse
    """

    prefix: str
    spread: str
    root: str
    centred: bool
    path: str
    divisor: str

    def inverse(self, cache):
        """One over the root, of each token."""
        return getattr(cache, f"inverse_{self.divisor}")

    def dx(self, dy, cache, *, axis=-1, times=1.0, again=None, **terms):
        """dx = s (dn - mean(dn) - n · mean(dn · n)); the second term is only there where the mean is taken off.

        What mistakes exchange: terms: by its name, what stands for dn in it; axis, times: of the means, and a factor
        of theirs; again: what stands for the n before the last mean
        """
        n, dn = cache.normal, dy * cache.weight
        itself, of_mean, through = (terms.get(term, dn) for term in ("itself", "mean", self.divisor))
        shift = mean(of_mean, axis) * times if self.centred else 0
        path = (n if again is None else again) * mean(through * n, axis) * times
        return (itself - shift - path) * self.inverse(cache)

    def backward(self, name: str, compute: Callable, text: str, hint: str = "") -> Mistake:
        """A mistake in dx; compute: (dy, cache) -> dx or several forms of it; name: beside the prefix"""

        def gradients(dy, cache):
            found = compute(dy, cache)
            return [{"x": dx} for dx in (found if isinstance(found, list) else [found])]

        return wrong_backward(f"d{self.prefix}_{name}", gradients, text, hint)


def forward_mistakes(kind: Kind, norm: Callable) -> tuple[Mistake, ...]:
    """Those of any norm but of its weight. norm: the right forward function, with the keywords of `norm` above"""

    def other_eps(*arguments):
        *others, right = arguments
        return [norm(*others, eps) for eps in (0, 1e-5, 1e-6, 1e-12, 1e-8, 1e-3) if eps != right]

    prefix = kind.prefix
    return (
        wrong_forward(f"{prefix}_eps_outside", partial(norm, divisor=lambda spread, eps: spread**0.5 + eps),
            f"norm_eps stands outside the root: √{kind.spread} + eps; wanted √({kind.spread} + eps)"),
        wrong_forward(f"{prefix}_eps_other", other_eps,
            "norm_eps is missing, or another value than the configuration's"),
        wrong_forward(f"{prefix}_without_root", partial(norm, divisor=lambda spread, eps: spread + eps),
            f"divided by {kind.spread} + eps: the root is missing"),
        wrong_forward(f"{prefix}_over_time", partial(norm, axis=-2),
            "the means run over time; wanted: over the channels of each token"),
    )  # fmt: skip


def factor_mistakes(kind: Kind, norm: Callable) -> tuple[Mistake, ...]:
    """Those of a weight that is the whole factor. norm: as above"""
    prefix = kind.prefix
    return (
        wrong_forward(f"{prefix}_without_weight", lambda x, weight, *others: norm(x, np.ones_like(weight), *others),
            "the norm's weight is not applied"),
        wrong_forward(f"{prefix}_weight_plus_one", lambda x, weight, *others: norm(x, 1 + weight, *others),
            "the norm's weight is used as 1 + weight, as Gemma does; here the weight is the whole factor"),
    )  # fmt: skip


def roundings(kind: Kind, norm: Callable) -> tuple[Mistake, ...]:
    """What a program in 16 bits must not round. norm: as above"""
    prefix, spread = kind.prefix, kind.spread

    def coarse(round, *arguments):
        return norm(*arguments, divisor=lambda spread, eps: 1 / round((round(spread) + eps) ** -0.5))

    def dweight(round, dy, cache):
        return {"weight": running_sum(round, rows(dy * cache.normal))}

    return (
        rounding(prefix, coarse,
            f"the {spread} of each token is in 16 bits: take it in float32, and round the result alone"),
        rounding(f"d{prefix}_weight", dweight,
            "the weight's gradient is added up over B and T in 16 bits: add up in float32", backward=True),
    )  # fmt: skip


def over_heads(prefix: str, factor: Callable) -> Mistake:
    """Of queries and keys (B, H, T, D), the mean square of all heads of a token. factor: weight -> what multiplies"""

    def compute(x, weight, eps):
        if x.ndim != 4:
            return None
        return x / ((x**2).mean(axis=(1, 3), keepdims=True) + eps) ** 0.5 * factor(weight)

    return wrong_forward(f"{prefix}_over_heads", compute,
        "the mean square runs over all heads of a token; wanted: over the channels of each head")  # fmt: skip


def after_rotation(prefix: str, norm: Callable) -> Mistake:
    """Of queries and keys, the norm of what is turned already. norm: x, weight, eps -> y"""

    def compute(x, weight, eps, *, rotary=None):
        return None if rotary is None else norm(rotate_forward(x, rotary, 0)[0], weight, eps)

    return wrong_forward(f"{prefix}_after_rotation", compute,
        "queries or keys are turned before they are normed; the norm comes first, the rotation reads its result",
    )  # fmt: skip


def of_sum(prefix: str, factor: Callable) -> Mistake:
    """The mean is forgotten. factor: weight -> what multiplies"""

    def compute(x, weight, eps):
        return x / ((x**2).sum(axis=-1, keepdims=True) + eps) ** 0.5 * factor(weight)

    return wrong_forward(f"{prefix}_of_sum", compute,
        "divided by the root of the sum of squares: take their mean over the channels")  # fmt: skip


def _weight_mistakes(kind: Kind) -> Iterator[Mistake]:
    """dy is taken for dn in every term, or in some and not in the others."""
    terms = {"itself": "the value itself"} | ({"mean": "the path through the mean"} if kind.centred else {})
    terms[kind.divisor] = f"the path through the {kind.root}"
    yield kind.backward("without_weight", lambda dy, cache: kind.dx(dy, cache, **dict.fromkeys(terms, dy)),
        "dy is not multiplied by the norm's weight: dn = dy · weight",
        "weight is left out: it multiplies normal in y, so what reaches normal is dy · weight, not dy",
    )  # fmt: skip
    yield kind.backward("weight_last",
        lambda dy, cache: kind.dx(dy, cache, **dict.fromkeys(terms, dy)) * cache.weight,
        "multiplied by the norm's weight last; dn = dy · weight comes before any mean",
        "weight is multiplied last; it differs from channel to channel, so no mean over the channels may come before "
        "it: begin with dnormal = dy · weight",
    )  # fmt: skip
    for some in (some for count in range(1, len(terms)) for some in combinations(terms, count)):
        names, verb = " and ".join(map(terms.get, some)), "takes" if len(some) == 1 else "take"
        yield kind.backward("unweighted_" + "_and_".join(some),
            lambda dy, cache, some=some: kind.dx(dy, cache, **dict.fromkeys(some, dy)),
            f"dy where dn is meant in {names}: dn = dy · weight, in every term",
            f"{names} {verb} dy where dnormal is meant: dnormal = dy · weight, in every term",
        )  # fmt: skip


def bessel(x):
    """What makes a mean over the channels of x an unbiased one: C / (C - 1)."""
    return x.shape[-1] / max(x.shape[-1] - 1, 1)


def _weight_of_part(dy, cache):
    if dy.ndim < 3 or len(dy) < 2:
        return None
    parts = dy * cache.normal
    return [{"weight": parts[place].reshape(-1, dy.shape[-1]).sum(axis=0)} for place in (-1, 0)]


def _dweight_of_dx(kind: Kind) -> Callable:
    def compute(dy, cache):
        return {"weight": (kind.dx(dy, cache) * cache.normal).reshape(-1, dy.shape[-1]).sum(axis=0)}

    return compute


def backward_mistakes(kind: Kind) -> tuple[Mistake, ...]:
    """Those of dx that any norm can have, and of the weight's gradient those that dx brings."""
    root, path = kind.root, kind.divisor
    return (
        *_weight_mistakes(kind),
        kind.backward(f"without_{kind.path}", lambda dy, cache: kind.dx(dy, cache, **{path: 0 * dy}),
            f"the path through the {root} is missing: subtract n · mean(dn · n)"),
        kind.backward(f"{kind.path}_sign", lambda dy, cache: kind.dx(dy, cache, **{path: -dy * cache.weight}),
            f"the path through the {root} has the wrong sign"),
        kind.backward(f"without_{path}", lambda dy, cache: kind.dx(dy, cache) / kind.inverse(cache),
            f"not divided by the {root}",
            f"the factor inverse_{path} is left out: it is a factor of normal, so every path to x passes it"),
        kind.backward("unbiased",
            lambda dy, cache: kind.dx(dy, cache, **{path: dy * cache.weight * bessel(dy)}),
            "the term n · mean(dn · n) is divided by C - 1; a mean over channels divides by C"),
        wrong_backward(f"d{kind.prefix}_weight_of_last", _weight_of_part,
            "the weight's gradient is the first or the last sequence's alone; wanted: the sum over all tokens",
            "only the first or the last sequence is left in dweight: all tokens use it: in a loop, += and not ="),
        kind.backward("sums", lambda dy, cache: kind.dx(dy, cache, times=dy.shape[-1]),
            "a sum over the channels where the mean is meant: a mean has a factor 1/C"),
        kind.backward("means_elsewhere", lambda dy, cache: [kind.dx(dy, cache, axis=axis) for axis in (None, 0, -2)],
            "the means run over batch or time, or over the whole array; wanted: over the channels of each token",
            "your means run over the batch, time or the whole array; take those of each token: axis=-1, keepdims=True"),
        kind.backward(f"{path}_twice",
            lambda dy, cache: [kind.dx(dy, cache) * kind.inverse(cache) ** power for power in (1, 2)],
            f"divided by the {root} twice, or three times: dx has the factor once, n holds the rest",
            f"the factor inverse_{path} counts twice; normal already holds it, so every path has it only once more"),
        kind.backward("without_normal", lambda dy, cache: kind.dx(dy, cache, again=1.0),
            "mean(dn · n) is not multiplied by n once more",
            f"the path through the {root} lacks a factor: mean(dnormal · normal) is multiplied by normal once more"),
        wrong_backward(f"d{kind.prefix}_weight_of_dx", _dweight_of_dx(kind),
            "made of dx, which has overwritten dy: take dweight first, dweight = Σ dy · n"),
    )  # fmt: skip
