"""RMS norm: its equations and what people get wrong in it."""

import numpy as np

from numpy_llm.norms import rms_norm_backward, rms_norm_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


def _mean(x, axis=-1):
    return x.mean(axis=axis, keepdims=True)


def _norm(x, weight, eps, *, axis=-1, outside=False, power=0.5):
    spread = _mean(x**2, axis)
    return x / (np.sqrt(spread) + eps if outside else (spread + eps) ** power) * weight


@wrong_forward("norm_eps stands outside the root: √mean(x²) + eps; wanted √(mean(x²) + eps)")
def rms_eps_outside(x, weight, eps):
    return _norm(x, weight, eps, outside=True)


@wrong_forward("norm_eps is missing, or another value than the configuration's")
def rms_eps_other(x, weight, eps):
    return [_norm(x, weight, other) for other in (0, 1e-5, 1e-6, 1e-12, 1e-8, 1e-3) if other != eps]


@wrong_forward("the mean is subtracted: this is layer norm, RMS norm keeps the mean")
def rms_with_mean(x, weight, eps):
    return [_norm(x - _mean(x), weight, eps), (x - _mean(x)) / np.sqrt(_mean(x**2) + eps) * weight]


@wrong_forward("divided by the mean square, not by its root")
def rms_without_root(x, weight, eps):
    return _norm(x, weight, eps, power=1.0)


@wrong_forward("divided by the root of the sum of squares: take their mean over the channels")
def rms_of_sum(x, weight, eps):
    return x / np.sqrt((x**2).sum(axis=-1, keepdims=True) + eps) * weight


@wrong_forward("the mean of squares runs over time; wanted: over the channels of each token")
def rms_over_time(x, weight, eps):
    return _norm(x, weight, eps, axis=1)


@wrong_forward("the norm's weight is not applied")
def rms_without_weight(x, weight, eps):
    return _norm(x, 1.0, eps)


@wrong_forward("the norm's weight is used as 1 + weight, as Gemma does; here the weight is the whole factor")
def rms_weight_plus_one(x, weight, eps):
    return _norm(x, 1 + weight, eps)


# Backward: dx = s (dn - n · mean(dn · n))


def _dx(dy, cache, itself=None, through=None):
    """dx with dn as given in the value itself and in the path through the root mean square."""
    n, dn = cache.normal, dy * cache.weight
    itself, through = (dn if each is None else each for each in (itself, through))
    return (itself - n * _mean(through * n)) * cache.inverse_rms


@wrong_backward(
    "dy is not multiplied by the norm's weight: dn = dy · weight",
    "weight is left out: y = normal · weight, so what reaches normal is dy · weight, not dy",
)
def drms_without_weight(dy, cache):
    return {"x": _dx(dy, cache, dy, dy)}


@wrong_backward(
    "multiplied by the norm's weight last; dn = dy · weight comes before the mean",
    "weight is multiplied last; it differs from channel to channel, so no mean over the channels may come before it: "
    "begin with dnormal = dy · weight",
)
def drms_weight_last(dy, cache):
    return {"x": _dx(dy, cache, dy, dy) * cache.weight}


@wrong_backward("dy where dn is meant in one of the two paths: dn = dy · weight, in both")
def drms_half_weighted(dy, cache):
    return [{"x": _dx(dy, cache, itself=dy)}, {"x": _dx(dy, cache, through=dy)}]


@wrong_backward("the path through the root mean square is missing: subtract n · mean(dn · n)")
def drms_without_path(dy, cache):
    return {"x": _dx(dy, cache, through=0 * dy)}


@wrong_backward("the path through the root mean square has the wrong sign")
def drms_path_sign(dy, cache):
    return {"x": _dx(dy, cache, through=-dy * cache.weight)}


@wrong_backward("mean(dn) is subtracted, as in layer norm; RMS norm has no path through a mean")
def drms_with_mean(dy, cache):
    dn = dy * cache.weight
    return {"x": _dx(dy, cache, itself=dn - _mean(dn))}


@wrong_backward(
    "mean(dn · n) is not multiplied by n once more",
    "the path through the root mean square lacks a factor: mean(dnormal · normal) is multiplied by normal once more",
)
def drms_without_normal(dy, cache):
    n, dn = cache.normal, dy * cache.weight
    return {"x": (dn - _mean(dn * n)) * cache.inverse_rms}


@wrong_backward("a sum over the channels where the mean is meant: the mean square has a factor 1/C")
def drms_sum(dy, cache):
    return {"x": _dx(dy, cache, through=dy * cache.weight * dy.shape[-1])}


@wrong_backward(
    "not divided by the root mean square",
    "the factor inverse_rms is left out: normal = x · inverse_rms, so both paths to x pass it",
)
def drms_without_rms(dy, cache):
    return {"x": _dx(dy, cache) / cache.inverse_rms}


@wrong_backward(
    "divided by the root mean square twice, or three times: dx has the factor 1/rms once, n holds the rest"
)
def drms_rms_twice(dy, cache):
    return [{"x": _dx(dy, cache) * cache.inverse_rms**power} for power in (1, 2)]


@wrong_backward(
    "the mean runs over the batch or over the whole array; wanted: over the channels of each token"
)
def drms_mean_elsewhere(dy, cache):
    n, dn = cache.normal, dy * cache.weight
    return [{"x": (dn - n * _mean(dn * n, axis)) * cache.inverse_rms} for axis in (None, 0)]


@wrong_backward("multiplied by x; wanted: by the normalised x")
def drms_weight_unnormalised(dy, cache):
    return {"weight": (dy * cache.normal / cache.inverse_rms).reshape(-1, dy.shape[-1]).sum(axis=0)}


RMS_NORM = Operation(
    "rms_norm",
    rms_norm_forward,
    rms_norm_backward,
    "y = x / √(mean(x²) + norm_eps) · weight",
    {
        "x": Gradient(
            "dx = (dn - n · mean(dn · n)) / √(mean(x²) + norm_eps), n = normalised x, dn = dy · weight",
            ("x", "weight"),
        ),
        "weight": Gradient("dweight = Σ dy · n over B and T, n = normalised x", ("x",)),
    },
    (
        rms_eps_outside, rms_eps_other, rms_with_mean, rms_without_root, rms_of_sum, rms_over_time,
        rms_without_weight, rms_weight_plus_one, drms_without_weight, drms_weight_last, drms_half_weighted,
        drms_without_path, drms_path_sign, drms_with_mean, drms_without_normal, drms_sum, drms_without_rms,
        drms_rms_twice, drms_mean_elsewhere, drms_weight_unnormalised,
    ),
)  # fmt: skip
