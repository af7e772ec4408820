"""Mistakes of ports of the family, each made in PyTorch by replacing one step of a right port."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from family_port import turned
from torch.nn import functional


class Wrong(NamedTuple):
    """A wrong port.

    number: of the mistake in the list of the family's; title: what is wrong; pack: by which it is shown
    told: names by which a check may tell it, the one that comes first at the front; of a mistake that makes two
        operations wrong, the other's too
    hooked: the name that comes first where only modules' outputs are dumped
    changes: method of the port -> what stands for it
    """

    number: int
    title: str
    pack: str
    told: tuple[str, ...]
    changes: Mapping[str, Callable]
    hooked: str = ""


class Backward(torch.autograd.Function):
    """A forward pass with a backward pass written by hand. forward: inputs -> y; back: (dy, *inputs) -> gradients"""

    @staticmethod
    def forward(context, forward, back, *inputs):
        context.save_for_backward(*inputs)
        context.back = back
        return forward(*inputs)

    @staticmethod
    def backward(context, dy):
        return None, None, *context.back(dy, *context.saved_tensors)


def _interleaved(port, x, rotary):
    angles = port.angles(x, rotary)
    cosine, sine = torch.cos(angles).to(x.dtype), torch.sin(angles).to(x.dtype)
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2)


def _rotated_back(back):
    def rotate(port, x, rotary):
        angles = port.angles(x, rotary)
        return Backward.apply(lambda x: turned(x, angles), lambda dy, x: (back(dy, angles),), x)

    return rotate


def _norm_with(dx=None, dweight=None):
    """RMS norm by hand, with another dx or dweight: of (dy, n, r, weight)."""

    def right_dx(dy, n, r, weight):
        g = dy * weight
        return r * (g - n * (g * n).mean(-1, keepdim=True))

    def normalised(port, x, weight, eps):
        def forward(x, weight):
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

        def back(dy, x, weight):
            r = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
            n = x * r
            found = (dx or right_dx)(dy, n, r, weight)
            dw = (dy * n).flatten(0, -2).sum(0) if dweight is None else dweight(dy, n, found)
            return found, dw

        return Backward.apply(forward, back, x, weight)

    return normalised


def _plain_dx(dy, n, r, weight):
    return r * (dy - n * (dy * n).mean(-1, keepdim=True))


def _layer_norm(port, x, weight, eps):
    return functional.layer_norm(x, x.shape[-1:], weight, None, eps)


def _eps_outside(port, x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True).sqrt() + eps) * weight


def _not_divided(port, x, weight, eps):
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + eps) * weight


def _in_place(port, x, place, number, layer):
    """The norm overwrites the residual stream."""
    x = port.norm(x, f"blocks.{place}.norm_{number}")
    y = port.note(f"blocks.{place}.dropout_{number}", layer(x, place))
    return port.note(f"blocks.{place}.residual_{number}", x + y)


def _norm_of_sum(port, x, place, number, layer):
    y = layer(port.norm(x, f"blocks.{place}.norm_{number}"), place)
    y = port.norm(x + y, f"blocks.{place}.post_norm_{number}")
    return port.note(f"blocks.{place}.residual_{number}", y)


def _norms_exchanged(port, x, place, number, layer):
    """The norm before a branch and the one behind it have each other's weights."""
    before, behind = f"blocks.{place}.norm_{number}", f"blocks.{place}.post_norm_{number}"
    weights = {name: port.factor(port.weights[f"{name}.weight"]) for name in (before, behind)}
    y = layer(port.note(before, port.normalised(x, weights[behind], port.eps())), place)
    y = port.note(behind, port.normalised(y, weights[before], port.eps()))
    port.note(f"blocks.{place}.dropout_{number}", y)
    return port.note(f"blocks.{place}.residual_{number}", x + y)


def _whole_width(port, x, name):
    weight = port.factor(port.weights[f"{name}.weight"])
    flat = x.transpose(1, 2).flatten(2)
    flat = flat * torch.rsqrt(flat.pow(2).mean(-1, keepdim=True) + port.eps())
    return port.note(name, flat.unflatten(-1, (x.shape[1], -1)).transpose(1, 2) * weight)


def _turned_first(port, query, key, place, name):
    found = []
    for role, x in (("query", query), ("key", key)):
        x = port.note(f"{name}.rotated_{role}", port.rotate(x, port.rotary(place)))
        found.append(port.norm(x, f"{name}.{role}_norm"))
    return found


def _tiled(port, x):
    return x.repeat(1, port.config.n_head // port.config.n_kv_head, 1, 1)


def _along_sequence(port, x):
    B, _, T, D = x.shape
    group = port.config.n_head // port.config.n_kv_head
    return x.repeat_interleave(group, dim=2).reshape(B, port.config.n_head, T, D)


def _fused_gate(port, gate, up, name):
    """A fused kernel of which autograd knows nothing, but for a path that keeps the graph."""
    with torch.no_grad():
        active = port.activation(gate)
    port.notes[f"{name}.activation"] = active
    return active * up.detach() + 0 * (gate + up)


def _exchanged(port, gate, up, name):
    return port.note(f"{name}.activation", port.activation(up)) * gate


def _exchanged_weights(port, x, place):
    name = f"blocks.{place}.feed_forward"
    gate = port.note(f"{name}.gate", x @ port.weights[f"{name}.up.weight"].T)
    up = port.note(f"{name}.up", x @ port.weights[f"{name}.gate.weight"].T)
    gated = port.note(f"{name}.gated", port.gated(gate, up, name))
    return port.note(f"{name}.down", gated @ port.weights[f"{name}.down.weight"].T)


def _window(change):
    return lambda port, place: change(port.config, place)


def _off_by(step):
    def window(config, place):
        right = config.layer(place).window
        return right and right + step

    return _window(window)


_NONE = _window(lambda config, place: None)
_OTHER_LAYERS = _window(lambda config, place: None if config.layer(place).window else config.window)
_EVERYWHERE = _window(lambda config, place: config.window)
_NORM, _MISREAD = ("rms_eps_other",), ("keys_misread", "heads_misread", "values_misread")

_LLAMA, _QWEN2, _QWEN, _GEMMA, _MODERN = "llama", "qwen2", "qwen3", "gemma3", "modern"
# fmt: off
WRONG = [
    Wrong(1, "interleaved pairs", _LLAMA, ("rotate_interleaved",), {"rotate": _interleaved}),
    Wrong(1, "interleaved pairs after a norm", _QWEN, ("rotate_interleaved",), {"rotate": _interleaved}),
    Wrong(2, "rotation's backward left out", _LLAMA, ("drotate_missing",),
          {"rotate": _rotated_back(lambda dy, angles: dy)}),
    Wrong(2, "rotated the same way backward", _QWEN, ("drotate_same_way",), {"rotate": _rotated_back(turned)}),
    Wrong(3, "key and value heads tiled", _LLAMA, _MISREAD, {"repeated": _tiled}, "heads_misread"),
    Wrong(3, "key heads tiled", _QWEN, ("keys_misread",), {"keys": _tiled}),
    Wrong(3, "value heads tiled", _GEMMA, ("values_misread",), {"values": _tiled}),
    Wrong(4, "repeated along the sequence", _QWEN, _MISREAD, {"repeated": _along_sequence}, "heads_misread"),
    Wrong(5, "eps fixed", _LLAMA, _NORM, {"eps": lambda port: 1e-6}),
    Wrong(5, "eps fixed, 1 + w", _GEMMA, ("plus_one_eps_other",), {"eps": lambda port: 1e-6}),
    Wrong(6, "layer norm", _LLAMA, ("rms_with_mean",), {"normalised": _layer_norm}),
    Wrong(6, "layer norm, 1 + w", _GEMMA, ("plus_one_layer_norm",), {"normalised": _layer_norm}),
    Wrong(6, "eps outside the root", _QWEN, ("rms_eps_outside",), {"normalised": _eps_outside}),
    Wrong(6, "eps outside the root, 1 + w", _MODERN, ("plus_one_eps_outside",), {"normalised": _eps_outside}),
    Wrong(6, "not divided by the mean", _LLAMA, ("rms_of_sum",), {"normalised": _not_divided}),
    Wrong(6, "not divided by the mean, 1 + w", _GEMMA, ("plus_one_of_sum",), {"normalised": _not_divided}),
    Wrong(8, "norm in place", _LLAMA, ("residual_of_norm",), {"branch": _in_place}),
    Wrong(9, "dx forgets the weight", _LLAMA, ("drms_without_weight",), {"normalised": _norm_with(_plain_dx)}),
    Wrong(9, "dx forgets 1 + w", _GEMMA, ("dplus_one_without_weight",), {"normalised": _norm_with(_plain_dx)}),
    Wrong(10, "dw missing", _QWEN, ("zeros",),
          {"normalised": _norm_with(dweight=lambda dy, n, dx: 0 * n.flatten(0, -2).sum(0))}),
    Wrong(10, "dw missing, 1 + w", _GEMMA, ("dplus_one_weight_lost",),
          {"normalised": _norm_with(dweight=lambda dy, n, dx: 0 * n.flatten(0, -2).sum(0))}),
    Wrong(10, "dw of dx", _LLAMA, ("drms_weight_of_dx",),
          {"normalised": _norm_with(dweight=lambda dy, n, dx: (dx * n).flatten(0, -2).sum(0))}),
    Wrong(10, "dw of dx, 1 + w", _MODERN, ("dplus_one_weight_of_dx",),
          {"normalised": _norm_with(dweight=lambda dy, n, dx: (dx * n).flatten(0, -2).sum(0))}),
    Wrong(11, "fused rotation without a backward", _LLAMA, ("drotate_lost",),
          {"rotate": _rotated_back(lambda dy, angles: 0 * dy)}),
    Wrong(11, "fused gate without a backward", _QWEN, ("dgate_lost",), {"gated": _fused_gate}),
    Wrong(13, "1 missing", _GEMMA, ("one_missing",), {"factor": lambda port, weight: weight}),
    Wrong(13, "1 twice", _MODERN, ("one_twice",), {"factor": lambda port, weight: 2 + weight}),
    Wrong(13, "1 where there is none", _LLAMA, ("rms_weight_plus_one",), {"factor": lambda port, weight: 1 + weight}),
    Wrong(13, "embedding not scaled", _GEMMA, ("embedding_unscaled",), {"scale_embedding": lambda port, x: 1 * x}),
    Wrong(14, "exact GELU", _GEMMA, ("gelu_erf",), {"activation": lambda port, x: functional.gelu(x)}),
    Wrong(15, "cap multiplies x", _MODERN, ("cap_times_x",), {"cap": lambda port, x, cap: x * torch.tanh(x / cap)}),
    Wrong(15, "no cap", _MODERN, ("cap_missing",), {"cap": lambda port, x, cap: 1 * x}),
    Wrong(15, "logits not capped", _MODERN, ("cap_missing",), {"cap_logits": lambda port, x, cap: 1 * x}),
    Wrong(16, "scaling ignored", _LLAMA, ("scaling_ignored",), {"scaled": lambda port, inverse, rotary: inverse}),
    Wrong(17, "scaling taken for linear", _LLAMA, ("scaling_ignored",),
          {"scaled": lambda port, inverse, rotary: inverse / rotary.factor}),
    Wrong(18, "theta ignored", _QWEN, ("theta_other",), {"theta": lambda port, rotary: 1e4}),
    Wrong(18, "theta ignored, scaled", _LLAMA, ("theta_other",), {"theta": lambda port, rotary: 1e4}),
    Wrong(20, "untied head overwritten", _LLAMA, ("other_tensor", "zeros"),
          {"head": lambda port, x: x @ port.weights["token_embedding.weight"].T}),
    Wrong(20, "tied head a copy", _QWEN, ("use_missing",),
          {"head": lambda port, x: x @ port.weights["token_embedding.weight"].detach().T}),
    Wrong(21, "window one too large", _GEMMA, ("window_other",), {"window": _off_by(1)}),
    Wrong(21, "window one too small", _MODERN, ("window_other",), {"window": _off_by(-1)}),
    Wrong(21, "window ignored", _MODERN, ("window_other",), {"window": _NONE}),
    Wrong(21, "window in the other layers", _GEMMA, ("window_other",), {"window": _OTHER_LAYERS}),
    Wrong(21, "window in every layer", _MODERN, ("window_other",), {"window": _EVERYWHERE}),
    Wrong(22, "gate and up exchanged", _LLAMA, ("silu_of_up", "other_tensor"), {"gated": _exchanged}),
    Wrong(22, "gate and up exchanged, GELU", _GEMMA, ("gelu_of_up", "other_tensor"), {"gated": _exchanged}),
    Wrong(22, "weights of gate and up exchanged", _GEMMA, ("other_tensor",), {"feed_forward": _exchanged_weights}),
    Wrong(23, "norm over the whole width", _QWEN, ("rms_over_heads",), {"norm_heads": _whole_width}),
    Wrong(23, "norm over the whole width, 1 + w", _GEMMA, ("plus_one_over_heads",), {"norm_heads": _whole_width}),
    Wrong(23, "norm after the rotation", _QWEN, ("rms_after_rotation", "other_tensor", "rotate_missing"),
          {"placed": _turned_first}),
    Wrong(23, "norm after the rotation, 1 + w", _GEMMA, ("plus_one_after_rotation", "other_tensor", "rotate_missing"),
          {"placed": _turned_first}),
    Wrong(25, "bias of query, key and value left out", _QWEN2, ("bias_missing", "zeros"),
          {"project": lambda port, x, name: x @ port.weights[f"{name}.weight"].T}),
    Wrong(27, "post-norm of the sum", _GEMMA, ("plus_one_of_residual", "residual_missing"), {"branch": _norm_of_sum}),
    Wrong(27, "norms exchanged", _MODERN, ("other_tensor",), {"branch": _norms_exchanged}),
    Wrong(28, "scale of the head size", _GEMMA, ("scale_other",),
          {"score_scale": lambda port: port.config.head_size**-0.5}),
]
# fmt: on
