"""Rotation by position: its equations and what people get wrong in it."""

from dataclasses import replace

import numpy as np

from numpy_llm.positions import rotary_frequencies, rotate_backward, rotate_forward
from operations.operation import Gradient, Operation, wrong_backward, wrong_forward
from operations.sixteen_bits import rounding


def _turned(x, rotary, start, *, interleaved=False, sign=1.0, round=lambda each: each):
    """The rotation with other pairs, or turned the other way, or by angles that are rounded."""
    T, D = x.shape[-2:]
    angle = round(round(start + np.arange(T, dtype=float))[:, None] * round(rotary_frequencies(rotary, D)))
    angle = sign * angle
    cosine, sine = np.cos(angle), np.sin(angle)
    y = np.empty(x.shape, np.result_type(x, np.float64))
    first, second = (
        (np.s_[..., ::2], np.s_[..., 1::2]) if interleaved else (np.s_[..., : D // 2], np.s_[..., D // 2 :])
    )
    y[first] = x[first] * cosine - x[second] * sine
    y[second] = x[second] * cosine + x[first] * sine
    return y


def _other_thetas(x, rotary, start=0):
    others = [other for other in (1e4, 5e5, 1e6) if other != rotary.theta]
    return [_turned(x, replace(rotary, theta=other), start) for other in others]


def _unscaled(x, rotary, start=0):
    if rotary.scaling == "none":
        return None
    others = {"linear", "none"} - {rotary.scaling}
    return [_turned(x, replace(rotary, scaling=other), start) for other in sorted(others)]


def _other_starts(x, rotary, start=0):
    return [_turned(x, rotary, other) for other in {start + 1, start - 1, 0} - {start}]


def _back(**changes):
    return lambda dy, cache: {"x": _turned(dy, cache.rotary, getattr(cache, "start", 0), **changes)}


def _back_in_16_bits(round, dy, cache):
    return {"x": _turned(dy, cache.rotary, getattr(cache, "start", 0), sign=-1.0, round=round)}


_ANGLES = (
    "places, frequencies or angles are in 16 bits: take them in float32, and round the cosine and the sine"
)

ROTATE = Operation(
    "rotate", rotate_forward, rotate_backward,
    "y[i], y[i+D/2] = the pair x[i], x[i+D/2] turned by (start + t) · theta^(-2i/D)",
    {"x": Gradient("dx = dy turned by minus the angle")},
    (
        wrong_forward("rotate_interleaved",
            lambda x, rotary, start=0: _turned(x, rotary, start, interleaved=True),
            "the pairs are channels 2i and 2i+1; these weights pair i with i + D/2"),
        wrong_forward("rotate_other_way", lambda x, rotary, start=0: _turned(x, rotary, start, sign=-1.0),
            "turned the other way: y[i] = x[i] cos - x[i+D/2] sin"),
        wrong_forward("rotate_missing", lambda x, rotary, start=0: x, "not turned at all"),
        wrong_forward("theta_other", _other_thetas, "another theta than the configuration's"),
        wrong_forward("scaling_ignored", _unscaled, "the scaling of the frequencies is ignored, or is another one"),
        wrong_forward("rotate_start", _other_starts,
            "the places are off: the first token of a text has place 0, one behind a cache the cache's length"),
        wrong_backward("drotate_missing", lambda dy, cache: {"x": dy},
            "not turned on the way back: dx is dy turned by minus the angle"),
        wrong_backward("drotate_same_way", _back(),
            "turned the same way as forward: dx is dy turned by minus the angle"),
        wrong_backward("drotate_interleaved", _back(interleaved=True, sign=-1.0),
            "the pairs are channels 2i and 2i+1 on the way back; they are i and i + D/2, as forward"),
        wrong_backward("drotate_lost", lambda dy, cache: {"x": 0 * dy},
            "the gradient is dropped: what the rotation reads gets none"),
    ),
    roundings=(
        rounding("rotate", lambda round, x, rotary, start=0: _turned(x, rotary, start, round=round), _ANGLES),
        rounding("drotate", _back_in_16_bits, _ANGLES, backward=True),
    ),
)  # fmt: skip
