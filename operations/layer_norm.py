"""Layer norm: its equations and what people get wrong in it."""

from numpy_llm.norms import layer_norm_backward, layer_norm_forward
from operations.linear import wrong_sums
from operations.norms import (
    Kind,
    backward_mistakes,
    bessel,
    factor_mistakes,
    forward_mistakes,
    norm,
    roundings,
)
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward
from operations.sixteen_bits import rounding, rows, running_sum

_KIND = Kind("norm", "variance", "deviation", centred=True, path="variance", divisor="deviation")


def _unbiased(x, weight, bias, eps):
    return norm(x, weight, bias, eps, divisor=lambda spread, eps: (spread * bessel(x) + eps) ** 0.5)


def _not_centred(x, weight, bias, eps):
    return [norm(x, weight, bias, eps, centred=False, about_mean=about_mean) for about_mean in (False, True)]


def _weight_unnormalised(dy, cache):
    factors = cache.normal / cache.inverse_deviation, cache.x
    return [{"weight": (dy * each).reshape(-1, dy.shape[-1]).sum(axis=0)} for each in factors]


LAYER_NORM = Operation(
    "layer_norm", layer_norm_forward, layer_norm_backward,
    "y = (x - mean) / √(variance + norm_eps) · weight + bias, variance divided by C",
    {
        "x": Gradient(
            "dx = (dn - mean(dn) - n · mean(dn · n)) / √(variance + norm_eps), n = normalised x, dn = dy · weight",
            ("x", "weight")),
        "weight": Gradient("dweight = Σ dy · n over B and T, n = normalised x", ("x",)),
        "bias": Gradient("dbias = Σ dy over B and T"),
    },
    (
        *forward_mistakes(_KIND, norm),
        *factor_mistakes(_KIND, norm),
        wrong_forward("norm_unbiased", _unbiased,
            "the variance is divided by C - 1 (unbiased); layer norm divides by C"),
        wrong_forward("norm_without_mean", _not_centred,
            "the mean is not subtracted: this is RMS norm or half of it"),
        wrong_forward("norm_without_bias",
            lambda x, weight, bias, eps: None if bias is None else norm(x, weight, None, eps),
            "the layer norm's bias is not added"),
        *backward_mistakes(_KIND),
        _KIND.backward("without_mean", lambda dy, cache: _KIND.dx(dy, cache, mean=0 * dy),
            "the path through the mean is missing: subtract mean(dn)"),
        _KIND.backward("without_both", lambda dy, cache: _KIND.dx(dy, cache, mean=0 * dy, deviation=0 * dy),
            "mean and variance are taken for constants: both paths through them are missing"),
        wrong_backward("dnorm_weight_unnormalised", _weight_unnormalised,
            "multiplied by x or by x - mean; wanted: by the normalised x",
            "dy is multiplied by x or x - mean; weight multiplied normal, which is divided by the deviation too"),
        wrong_backward("dnorm_bias_mean",
            lambda dy, cache: [{"bias": each} for each in wrong_sums(dy)] if cache.has_bias else None,
            "the bias's gradient is a mean over batch or time, or the last one's; wanted: the sum"),
    ),
    roundings=(
        *roundings(_KIND, norm),
        rounding("dnorm_bias",
            lambda round, dy, cache: {"bias": running_sum(round, rows(dy))} if cache.has_bias else None,
            "the bias's gradient is added up over B and T in 16 bits: add up in float32", backward=True),
    ),
)  # fmt: skip
