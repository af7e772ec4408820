"""A port of the family in PyTorch, written from the published formulas alone, that dumps what it computes.

It shares no code with the twins. Each step is a method, so that a wrong port is this one with one method replaced.
"""

import math

import numpy as np
import torch
from torch.nn import functional

from contract.config import ModelConfig

MODULES = ("norm", "output", "feed_forward.", "residual", "embedding", "logits", "loss")


class FamilyPort:
    """Llama, Qwen and Gemma by the fields of a configuration.

    tensors: a pack's, of which weights, tokens and targets are read; dtype: that it computes in
    changes: method name -> function (port, ...) that takes its place
    """

    def __init__(self, config: ModelConfig, tensors, dtype=torch.float64, **changes):
        self.config, self.notes = config, {}
        self.tokens, self.targets = (torch.tensor(tensors[name]) for name in ("tokens", "targets"))
        self.weights = {
            name: torch.tensor(value, dtype=dtype, requires_grad=True)
            for name, value in tensors.items()
            if (name.endswith(".weight") and not name.startswith(("gradient.", "adamw.")))
            or (name.endswith(".query_key_value.bias") and not name.startswith(("gradient.", "adamw.")))
        }  # fmt: skip
        for name, change in changes.items():
            if not hasattr(self, name):
                raise AttributeError(f"a port has no step called {name}")
            setattr(self, name, change.__get__(self))

    def note(self, name: str, x):
        """Keep a tensor and its gradient for the dump."""
        x.retain_grad()
        self.notes[name] = x
        return x

    def dump(self) -> dict[str, np.ndarray]:
        """Every tensor of a pass and every gradient, by the pack's names; 0 where autograd has none."""
        self.forward().backward()
        found = {name: numbers(x) for name, x in (self.weights | self.notes).items()}
        for name, x in (self.weights | self.notes).items():
            found[f"gradient.{name}"] = numbers(torch.zeros_like(x) if x.grad is None else x.grad)
        return found | {"tokens": self.tokens.numpy(), "targets": self.targets.numpy()}

    # The model

    def forward(self):
        x = self.note("token_embedding", self.weights["token_embedding.weight"][self.tokens])
        if self.config.embedding_scale != 1:
            x = self.note("scaled_embedding", self.scale_embedding(x))
        self.note("embedding_dropout", x)
        for place in range(self.config.n_layer):
            x = self.block(x, place)
        logits = self.head(self.norm(x, "final_norm"))
        if self.config.logit_cap:
            logits = self.cap_logits(self.note("uncapped_logits", logits), self.config.logit_cap)
        self.note("logits", logits)
        return self.note("loss", self.loss(logits.flatten(0, 1)))

    def loss(self, logits):
        return functional.cross_entropy(logits, self.targets.flatten())

    def scale_embedding(self, x):
        return x * self.config.embedding_scale

    def head(self, x):
        tied = self.config.tie_embeddings
        return x @ self.weights["token_embedding.weight" if tied else "output.weight"].T

    def block(self, x, place: int):
        x = self.branch(x, place, 1, self.attention)
        return self.branch(x, place, 2, self.feed_forward)

    def branch(self, x, place: int, number: int, layer):
        y = layer(self.norm(x, f"blocks.{place}.norm_{number}"), place)
        if self.config.block == "sandwich":
            y = self.norm(y, f"blocks.{place}.post_norm_{number}")
        self.note(f"blocks.{place}.dropout_{number}", y)
        return self.note(f"blocks.{place}.residual_{number}", x + y)

    # Norms

    def norm(self, x, name: str):
        return self.note(name, self.normalised(x, self.factor(self.weights[f"{name}.weight"]), self.eps()))

    def eps(self) -> float:
        return self.config.norm_eps

    def factor(self, weight):
        return 1 + weight if self.config.norm == "rms_norm_plus_one" else weight

    def normalised(self, x, weight, eps):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

    # Attention

    def attention(self, x, place: int):
        name = f"blocks.{place}.attention"
        query, key, value = self.heads(x, name)
        query, key = self.placed(query, key, place, name)
        scores = self.note(f"{name}.scores", query @ self.keys(key).transpose(-1, -2) * self.score_scale())
        if self.config.score_cap:
            scores = self.note(f"{name}.capped_scores", self.cap(scores, self.config.score_cap))
        mask = self.mask(self.window(place))
        seen = self.note(f"{name}.probabilities", self.softmax(scores.masked_fill(~mask, -torch.inf)))
        self.note(f"{name}.probabilities_dropout", seen)
        heads = self.note(f"{name}.heads", seen @ self.values(value))
        merged = heads.transpose(1, 2).flatten(2)
        return self.note(f"{name}.output", merged @ self.weights[f"{name}.output.weight"].T)

    def softmax(self, scores):
        return scores.softmax(-1)

    def heads(self, x, name: str):
        H, K, D = self.config.n_head, self.config.n_kv_head, self.config.head_size
        joined = self.project(x, f"{name}.query_key_value")
        parts = joined.split([H * D, K * D, K * D], dim=-1)
        named = zip(("query", "key", "value"), parts, strict=True)
        return [self.note(f"{name}.{role}", x.unflatten(-1, (-1, D)).transpose(1, 2)) for role, x in named]

    def project(self, x, name: str):
        y = x @ self.weights[f"{name}.weight"].T
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def placed(self, query, key, place: int, name: str):
        """Queries and keys, normed and turned."""
        if self.config.query_key_norm == "head":
            query, key = (
                self.norm_heads(query, f"{name}.query_norm"),
                self.norm_heads(key, f"{name}.key_norm"),
            )
        return [
            self.note(f"{name}.rotated_{role}", self.rotate(x, self.rotary(place)))
            for role, x in (("query", query), ("key", key))
        ]

    def norm_heads(self, x, name: str):
        return self.norm(x, name)

    def rotary(self, place: int):
        return self.config.layer(place).rotary

    def angles(self, x, rotary):
        """(T, D/2)"""
        T, D = x.shape[-2:]
        base = self.theta(rotary)
        inverse = base ** -(torch.arange(0, D, 2, dtype=torch.float64) / D)
        return torch.arange(T, dtype=torch.float64)[:, None] * self.scaled(inverse, rotary)

    def theta(self, rotary) -> float:
        return rotary.theta

    def scaled(self, inverse, rotary):
        if rotary.scaling == "linear":
            return inverse / rotary.factor
        if rotary.scaling == "none":
            return inverse
        low, high = rotary.low_frequency_factor, rotary.high_frequency_factor
        waves = rotary.original_context_length * inverse / (2 * math.pi)
        smooth = ((waves - low) / (high - low)).clamp(0, 1)
        return (1 - smooth) * inverse / rotary.factor + smooth * inverse

    def rotate(self, x, rotary):
        return turned(x, self.angles(x, rotary))

    def keys(self, key):
        return self.repeated(key)

    def values(self, value):
        return self.repeated(value)

    def repeated(self, x):
        return x.repeat_interleave(self.config.n_head // self.config.n_kv_head, dim=1)

    def score_scale(self) -> float:
        return self.config.attention_scale or self.config.head_size**-0.5

    def cap(self, x, cap: float):
        return cap * torch.tanh(x / cap)

    def cap_logits(self, x, cap: float):
        return self.cap(x, cap)

    def window(self, place: int) -> int | None:
        return self.config.layer(place).window

    def mask(self, window: int | None):
        """What each query sees, itself and the window - 1 tokens before it."""
        T = self.tokens.shape[1]
        seen = torch.ones(T, T, dtype=torch.bool).tril()
        return seen if window is None else seen.triu(1 - window)

    # Feed-forward

    def feed_forward(self, x, place: int):
        name = f"blocks.{place}.feed_forward"
        gate = self.note(f"{name}.gate", x @ self.weights[f"{name}.gate.weight"].T)
        up = self.note(f"{name}.up", x @ self.weights[f"{name}.up.weight"].T)
        gated = self.note(f"{name}.gated", self.gated(gate, up, name))
        return self.note(f"{name}.down", gated @ self.weights[f"{name}.down.weight"].T)

    def gated(self, gate, up, name: str):
        return self.note(f"{name}.activation", self.activation(gate)) * up

    def activation(self, x):
        return (
            functional.silu(x) if self.config.activation == "silu" else functional.gelu(x, approximate="tanh")
        )


def numbers(x) -> np.ndarray:
    """A tensor's numbers; NumPy has no bfloat16."""
    return (x.detach().float() if x.element_size() == 2 else x.detach()).numpy().copy()


def turned(x, angles):
    """Channels i and i + D/2 turned by the angles (T, D/2)."""
    cosine, sine = (torch.cat([wave(angles)] * 2, dim=-1).to(x.dtype) for wave in (torch.cos, torch.sin))
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


def of_modules(dump: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What hooks on modules see of a dump: their outputs, and the weights' gradients."""
    return {
        name: value
        for name, value in dump.items()
        if name.endswith((".weight", ".bias", "tokens", "targets"))
        or (not name.startswith("gradient.") and any(part in name for part in MODULES))
    }  # fmt: skip
