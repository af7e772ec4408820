"""Low-rank pair (LoRA): its equations and what people get wrong in it."""

import numpy as np

from numpy_llm.projection import low_rank_backward, low_rank_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward


def _with_scale(of):
    """A program that multiplies by `of(scale, R)`; None where that is the scale itself."""

    def compute(base, x, a, b, scale):
        wrong = of(scale, len(a))
        return None if wrong == scale else low_rank_forward(base, x, a, b, wrong)[0]

    return compute


def _transposed(base, x, a, b, scale):
    """The pair read as (in, R) and (R, out), or its product used as (in, out)."""
    other = [scale * (x @ b @ a)] if len(b) == a.shape[1] else []
    return [base + y for y in (*other, scale * (x @ a.reshape(a.shape[::-1]) @ b.reshape(b.shape[::-1])))]


def _right(dy, cache) -> dict:
    return dict(zip(("base", "x", "a", "b"), low_rank_backward(dy, cache), strict=True))


def _without_scale(dy, cache):
    """The scale lost in one gradient, or in all."""
    if cache.scale == 1:
        return None
    unscaled = {role: _right(dy, cache)[role] / cache.scale for role in ("x", "a", "b")}
    return [{role: gradient} for role, gradient in unscaled.items()] + [unscaled]


def _scaled_twice(dy, cache):
    if cache.scale == 1:
        return None
    return [{role: _right(dy, cache)[role] * cache.scale} for role in ("x", "a", "b")]


def _pair_transposed(dy, cache):
    right = _right(dy, cache)
    return [{role: right[role].T.reshape(right[role].shape)} for role in ("a", "b")]


LOW_RANK = Operation(
    "low_rank", low_rank_forward, low_rank_backward, "y = base + scale · (x aᵀ) bᵀ",
    {
        "base": Gradient("dbase = dy"),
        "x": Gradient("dx = scale · (dy b) a", ("a", "b")),
        "a": Gradient("da = scale · (dy b)ᵀ x, summed over B and T", ("x", "b")),
        "b": Gradient("db = scale · dyᵀ (x aᵀ), summed over B and T", ("x", "a")),
    },
    (
        wrong_forward("lora_scale_missing", _with_scale(lambda scale, R: 1.0),
            "the pair's product is not scaled: multiply it by alpha / R"),
        wrong_forward("lora_alpha_alone", _with_scale(lambda scale, R: scale * R),
            "scaled by alpha instead of alpha / R"),
        wrong_forward("lora_root_of_rank", _with_scale(lambda scale, R: scale * R**0.5),
            "scaled by alpha / √R, as rank-stabilised LoRA does; wanted: alpha / R"),
        wrong_forward("lora_scaled_twice", _with_scale(lambda scale, R: scale * scale),
            "scaled by alpha / R twice, once for each of the pair"),
        wrong_forward("lora_missing", lambda base, x, a, b, scale: base.copy(),
            "the pair is not added: y is the linear layer's alone"),
        wrong_forward("lora_transposed", _transposed,
            "the pair is transposed: a is stored as (R, in) and b as (out, R), so it adds scale · (x aᵀ) bᵀ"),
        wrong_backward("dlora_path_missing", lambda dy, cache: {"x": np.zeros_like(_right(dy, cache)["x"])},
            "the gradient of x lacks the path through the pair: add scale · (dy b) a to dy weight"),
        wrong_backward("dlora_without_scale", _without_scale,
            "alpha / R is lost on the way back: it is a factor of the gradients of x, a and b"),
        wrong_backward("dlora_scaled_twice", _scaled_twice,
            "a gradient is scaled by alpha / R twice; narrow has the factor already where db is made of it"),
        wrong_backward("dlora_pair_transposed", _pair_transposed,
            "a gradient of the pair is transposed: da is (R, in) and db is (out, R), like a and b"),
    ),
)  # fmt: skip
