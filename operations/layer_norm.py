"""Layer norm: its equations and what people get wrong in it."""

from typing import NamedTuple

import numpy as np

from numpy_llm.norms import layer_norm_backward, layer_norm_forward
from operations.linear import wrong_sums
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


class _Cache(NamedTuple):
    normal: np.ndarray
    inverse_deviation: np.ndarray
    weight: np.ndarray
    has_bias: bool
    x: np.ndarray


def _with_x(x, weight, bias, eps):
    """The forward pass, which keeps x as well: people take it for the normalised x."""
    y, cache = layer_norm_forward(x, weight, bias, eps)
    return y, _Cache(*cache, x)


def _norm(x, weight, bias, eps, *, mean=True, variance=None, axis=-1, outside=False):
    """A layer norm with its parts exchanged; variance: (mean of squares, C) -> what is taken for it"""
    centred = x - x.mean(axis=axis, keepdims=True)
    spread = (centred**2).mean(axis=axis, keepdims=True)
    spread = variance(spread, x.shape[axis]) if variance else spread
    deviation = np.sqrt(spread) + eps if outside else np.sqrt(spread + eps)
    return (centred if mean else x) / deviation * weight + (0 if bias is None else bias)


@wrong_forward("norm_eps stands outside the root: √variance + eps; wanted √(variance + eps)")
def norm_eps_outside(x, weight, bias, eps):
    return _norm(x, weight, bias, eps, outside=True)


@wrong_forward("norm_eps is missing, or another value than the configuration's")
def norm_eps_other(x, weight, bias, eps):
    return [_norm(x, weight, bias, other) for other in (0, 1e-5, 1e-6, 1e-12, 1e-8, 1e-3) if other != eps]


@wrong_forward("the variance is divided by C - 1 (unbiased); layer norm divides by C")
def norm_unbiased(x, weight, bias, eps):
    return _norm(x, weight, bias, eps, variance=lambda spread, C: spread * C / max(C - 1, 1))


@wrong_forward("the variance is used without its root")
def norm_without_root(x, weight, bias, eps):
    return _norm(x, weight, bias, 0.0, variance=lambda spread, C: (spread + eps) ** 2)


@wrong_forward("the mean is not subtracted: this is RMS norm or half of it")
def norm_without_mean(x, weight, bias, eps):
    rms = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight + (0 if bias is None else bias)
    return [rms, _norm(x, weight, bias, eps, mean=False)]


@wrong_forward("mean and variance run over time; wanted: over the channels of each token")
def norm_over_time(x, weight, bias, eps):
    return _norm(x, weight, bias, eps, axis=1)


@wrong_forward("the layer norm's weight is not applied")
def norm_without_weight(x, weight, bias, eps):
    return _norm(x, np.ones_like(weight), bias, eps)


@wrong_forward("the layer norm's bias is not added")
def norm_without_bias(x, weight, bias, eps):
    return None if bias is None else _norm(x, weight, None, eps)


@wrong_forward("the layer norm's weight is used as 1 + weight; here the weight is the whole factor")
def norm_weight_plus_one(x, weight, bias, eps):
    return _norm(x, 1 + weight, bias, eps)


# Backward: dx = s (dn - mean(dn) - n · mean(dn · n)), its three terms with what a mistake puts in the place of dn


def _mean(x, axis=-1):
    return x.mean(axis=axis, keepdims=True)


def _dx(dy, cache, itself=None, mean=None, deviation=None):
    """dx with dn as given in the value itself, the path through the mean and that through the deviation."""
    n, dn = cache.normal, dy * cache.weight
    itself, mean, deviation = (dn if each is None else each for each in (itself, mean, deviation))
    return (itself - _mean(mean) - n * _mean(deviation * n)) * cache.inverse_deviation


@wrong_backward("the path through the mean is missing: subtract mean(dn)")
def dnorm_without_mean(dy, cache):
    return {"x": _dx(dy, cache, mean=0 * dy)}


@wrong_backward("the path through the variance is missing: subtract n · mean(dn · n)")
def dnorm_without_variance(dy, cache):
    return {"x": _dx(dy, cache, deviation=0 * dy)}


@wrong_backward("mean and variance are taken for constants: both paths through them are missing")
def dnorm_without_both(dy, cache):
    return {"x": _dx(dy, cache, mean=0 * dy, deviation=0 * dy)}


@wrong_backward("the path through the variance has the wrong sign")
def dnorm_variance_sign(dy, cache):
    return {"x": _dx(dy, cache, deviation=-dy * cache.weight)}


@wrong_backward(
    "dy is not multiplied by the layer norm's weight: dn = dy · weight",
    "weight is left out: y = normal · weight + bias, so what reaches normal is dy · weight, not dy",
)
def dnorm_without_weight(dy, cache):
    return {"x": _dx(dy, cache, dy, dy, dy)}


@wrong_backward(
    "multiplied by the layer norm's weight last; dn = dy · weight comes before both means",
    "weight is multiplied last; it differs from channel to channel, so no mean over the channels may come before it: "
    "begin with dnormal = dy · weight",
)
def dnorm_weight_last(dy, cache):
    return {"x": _dx(dy, cache, dy, dy, dy) * cache.weight}


def _unweighted(names: str, **paths: bool):
    """The mistake of taking dy for dn in some terms and not in the others."""
    text = f"dy where dn is meant in {names}: dn = dy · weight, in every term"
    verb = "takes" if len(paths) == 1 else "take"
    hint = f"{names} {verb} dy where dnormal is meant: dnormal = dy · weight, in every term"

    def compute(dy, cache):
        return {"x": _dx(dy, cache, **dict.fromkeys(paths, dy))}

    compute.__name__ = f"dnorm_unweighted_{'_and_'.join(paths)}"
    return wrong_backward(text, hint)(compute)


_VALUE, _MEAN, _DEVIATION = "the value itself", "the path through the mean", "the path through the deviation"
UNWEIGHTED = (
    _unweighted(_VALUE, itself=True),
    _unweighted(_MEAN, mean=True),
    _unweighted(_DEVIATION, deviation=True),
    _unweighted(f"{_VALUE} and {_MEAN}", itself=True, mean=True),
    _unweighted(f"{_VALUE} and {_DEVIATION}", itself=True, deviation=True),
    _unweighted(f"{_MEAN} and {_DEVIATION}", mean=True, deviation=True),
)


@wrong_backward(
    "not divided by the deviation √(variance + eps)",
    "the factor inverse_deviation is left out: normal = (x - mean) · inverse_deviation, so every path to x passes it",
)
def dnorm_without_deviation(dy, cache):
    return {"x": _dx(dy, cache) / cache.inverse_deviation}


@wrong_backward(
    "divided by the deviation twice",
    "the factor inverse_deviation counts twice; normal already holds it, so every path has it only once more",
)
def dnorm_deviation_twice(dy, cache):
    return {"x": _dx(dy, cache) * cache.inverse_deviation}


@wrong_backward(
    "a sum over the channels where the mean is meant: mean and variance have a factor 1/C",
    "you sum over the channels where the mean is meant: mean and variance have a factor 1/C",
)
def dnorm_sums(dy, cache):
    C, dn = dy.shape[-1], dy * cache.weight
    return {"x": _dx(dy, cache, mean=C * dn, deviation=C * dn)}


@wrong_backward("the term n · mean(dn · n) is divided by C - 1; a mean over channels divides by C")
def dnorm_unbiased(dy, cache):
    C = dy.shape[-1]
    return {"x": _dx(dy, cache, deviation=dy * cache.weight * C / max(C - 1, 1))}


@wrong_backward(
    "the means run over the batch or over the whole array; wanted: over the channels of each token",
    "your means run over the batch or the whole array; each token has its own mean and deviation, over its channels: "
    "axis=-1, keepdims=True",
)
def dnorm_means_elsewhere(dy, cache):
    n, dn, s = cache.normal, dy * cache.weight, cache.inverse_deviation
    return [{"x": s * (dn - _mean(dn, axis) - n * _mean(dn * n, axis))} for axis in (None, 0)]


@wrong_backward(
    "mean(dn · n) is not multiplied by n once more",
    "the path through the deviation lacks a factor: mean(dnormal · normal) is multiplied by normal once more, for each "
    "channel moves the deviation by its own normal",
)
def dnorm_without_normal(dy, cache):
    n, dn = cache.normal, dy * cache.weight
    return {"x": (dn - _mean(dn) - _mean(dn * n)) * cache.inverse_deviation}


@wrong_backward(
    "multiplied by x or by x - mean; wanted: by the normalised x",
    "dy is multiplied by x or x - mean; weight was multiplied with normal, which is divided by the deviation too",
)
def dnorm_weight_unnormalised(dy, cache):
    factors = (cache.normal / cache.inverse_deviation, cache.x)
    return [{"weight": (dy * each).reshape(-1, dy.shape[-1]).sum(axis=0)} for each in factors]


@wrong_backward("the bias's gradient is a mean over batch or time, or the last one's; wanted: the sum")
def dnorm_bias_mean(dy, cache):
    return [{"bias": each} for each in wrong_sums(dy)] if cache.has_bias else None


LAYER_NORM = Operation(
    "layer_norm",
    layer_norm_forward,
    layer_norm_backward,
    "y = (x - mean) / √(variance + norm_eps) · weight + bias, variance divided by C",
    {
        "x": Gradient(
            "dx = (dn - mean(dn) - n · mean(dn · n)) / √(variance + norm_eps), n = normalised x, dn = dy · weight",
            ("x", "weight"),
        ),
        "weight": Gradient("dweight = Σ dy · n over B and T, n = normalised x", ("x",)),
        "bias": Gradient("dbias = Σ dy over B and T"),
    },
    (
        norm_eps_outside, norm_eps_other, norm_unbiased, norm_without_root, norm_without_mean, norm_over_time,
        norm_without_weight, norm_without_bias, norm_weight_plus_one, dnorm_without_weight, dnorm_weight_last,
        *UNWEIGHTED, dnorm_without_mean, dnorm_without_variance, dnorm_without_both, dnorm_variance_sign,
        dnorm_without_deviation, dnorm_sums, dnorm_means_elsewhere, dnorm_deviation_twice, dnorm_without_normal,
        dnorm_unbiased, dnorm_weight_unnormalised, dnorm_bias_mean,
    ),
    rich=_with_x,
)  # fmt: skip
