"""RMS norm of 1 + weight: its equations and what people get wrong in it, beside the mistakes of RMS norm."""

from numpy_llm.norms import (
    RMSNormCache,
    layer_norm_forward,
    rms_norm_backward,
    rms_norm_forward,
    rms_norm_plus_one_backward,
    rms_norm_plus_one_forward,
)
from operations.norms import (
    Kind,
    after_rotation,
    backward_mistakes,
    forward_mistakes,
    norm,
    of_sum,
    over_heads,
    roundings,
)
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward

_KIND = Kind("plus_one", "mean(x²)", "root mean square", centred=False, path="path", divisor="rms")


def _norm(x, weight, eps, **others):
    return norm(x, 1 + weight, None, eps, centred=False, about_mean=False, **others)


def _of_stream(branch, weight, eps, *, x=None):
    return None if x is None else _norm(x + branch, weight, eps)


def _with(factor):
    return lambda x, weight, eps: rms_norm_forward(x, factor(weight), eps)[0]


def _without_one(cache):
    return RMSNormCache(cache.normal, cache.inverse_rms, cache.weight - 1)


RMS_NORM_PLUS_ONE = Operation(
    "rms_norm_plus_one", rms_norm_plus_one_forward, rms_norm_plus_one_backward,
    "y = x / √(mean(x²) + norm_eps) · (1 + weight)",
    {
        "x": Gradient(
            "dx = (dn - n · mean(dn · n)) / √(mean(x²) + norm_eps), n = normalised x, dn = dy · (1 + weight)",
            ("x", "weight"),
        ),
        "weight": Gradient("dweight = Σ dy · n over B and T, n = normalised x", ("x",)),
    },
    (
        wrong_forward("one_missing", _with(lambda weight: weight), "the 1 is missing: the factor is 1 + weight"),
        wrong_forward("one_twice", _with(lambda weight: 2 + weight),
            "the 1 is added twice: GGUF's files have it in the weight already"),
        wrong_forward("plus_one_layer_norm",
            lambda x, weight, eps: layer_norm_forward(x, 1 + weight, None, eps)[0],
            "the mean is subtracted: this is layer norm, RMS norm keeps the mean"),
        *forward_mistakes(_KIND, _norm),
        of_sum("plus_one", lambda weight: 1 + weight),
        over_heads("plus_one", lambda weight: 1 + weight),
        after_rotation("plus_one", _norm),
        wrong_forward("plus_one_of_residual", _of_stream,
            "the branch is added to the stream before it is normed; norm the branch alone, then add it"),
        wrong_backward("done_missing",
            lambda dy, cache: {"x": rms_norm_backward(dy, _without_one(cache))[0]},
            "the 1 is missing on the way back: dn = dy · (1 + weight)"),
        *backward_mistakes(_KIND),
        wrong_backward("dplus_one_weight_lost", lambda dy, cache: {"weight": 0 * cache.weight},
            "the norm's weight gets no gradient"),
    ),
    roundings=roundings(_KIND, _norm),
)  # fmt: skip
