"""RMS norm: its equations and what people get wrong in it."""

from numpy_llm.norms import rms_norm_backward, rms_norm_forward
from operations.norms import (
    Kind,
    after_rotation,
    backward_mistakes,
    factor_mistakes,
    forward_mistakes,
    mean,
    norm,
    of_sum,
    over_heads,
    roundings,
)
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward

_KIND = Kind("rms", "mean(x²)", "root mean square", centred=False, path="path", divisor="rms")


def _norm(x, weight, eps, *, centred=False, about_mean=False, **others):
    return norm(x, weight, None, eps, centred=centred, about_mean=about_mean, **others)


def _centred(x, weight, eps):
    return [_norm(x, weight, eps, centred=True, about_mean=about_mean) for about_mean in (True, False)]


def _dx_centred(dy, cache):
    dn = dy * cache.weight
    return _KIND.dx(dy, cache, itself=dn - mean(dn))


RMS_NORM = Operation(
    "rms_norm", rms_norm_forward, rms_norm_backward, "y = x / √(mean(x²) + norm_eps) · weight",
    {
        "x": Gradient(
            "dx = (dn - n · mean(dn · n)) / √(mean(x²) + norm_eps), n = normalised x, dn = dy · weight",
            ("x", "weight")),
        "weight": Gradient("dweight = Σ dy · n over B and T, n = normalised x", ("x",)),
    },
    (
        *forward_mistakes(_KIND, _norm),
        *factor_mistakes(_KIND, _norm),
        wrong_forward("rms_with_mean", _centred, "the mean is subtracted: this is layer norm, RMS norm keeps the mean"),
        of_sum("rms", lambda weight: weight),
        over_heads("rms", lambda weight: weight),
        after_rotation("rms", _norm),
        *backward_mistakes(_KIND),
        _KIND.backward("with_mean", _dx_centred,
            "mean(dn) is subtracted, as in layer norm; RMS norm has no path through a mean"),
        wrong_backward("drms_weight_unnormalised",
            lambda dy, cache: {"weight": (dy * cache.x).reshape(-1, dy.shape[-1]).sum(axis=0)},
            "multiplied by x; wanted: by the normalised x"),
    ),
    roundings=roundings(_KIND, _norm),
)  # fmt: skip
