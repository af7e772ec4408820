"""GPT-2 and its training step as an engineer writes them in PyTorch today: what the twin's speed is held against."""

import torch
import torch.nn.functional as F
from torch import nn

from contract.config import ModelConfig
from contract.presets import preset

SIZES = {"vocab_size", "context_length", "n_layer", "n_head", "n_kv_head", "head_size", "d_model", "d_ff"}


def is_plain(config: ModelConfig) -> bool:
    """Whether a model is a GPT-2 of any size."""

    def kind(config: ModelConfig) -> dict:
        return {name: value for name, value in config.to_dict().items() if name not in SIZES}

    narrow = config.n_head * config.head_size == config.d_model and config.n_kv_head == config.n_head
    return narrow and kind(config) == kind(preset("gpt2", vocab_size=config.vocab_size))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        C, self.heads = config.d_model, config.n_head
        self.norm_1, self.qkv, self.output = nn.LayerNorm(C), nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.norm_2, self.up, self.down = (
            nn.LayerNorm(C),
            nn.Linear(C, config.d_ff),
            nn.Linear(config.d_ff, C),
        )

    def forward(self, x):
        B, T, C = x.shape
        parts = self.qkv(self.norm_1(x)).split(C, dim=2)
        query, key, value = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in parts)
        heads = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(heads.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class PlainGPT(nn.Module):
    """GPT-2 of the configuration's size; its parameters stand in the order of the twins' weights."""

    def __init__(self, config):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.context_length, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.d_model)

    def forward(self, tokens, targets):
        """tokens, targets: int64 (B, T); returns: loss ()"""
        x = self.token_embedding(tokens) + self.position_embedding(
            torch.arange(tokens.shape[1], device=tokens.device)
        )
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.final_norm(x), self.token_embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def plain_step(config, weights, tokens, *, device="cpu", dtype="float32", compile=False):
    """A function that takes a training step and returns its loss.

    weights: what to start from, arrays in the order of the twins; tokens: int64 (B, T + 1)
    dtype: "float32", or "bfloat16" for autocast
    """
    model, tokens = PlainGPT(config), torch.from_numpy(tokens).to(device)
    with torch.no_grad():
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(weight))
    model.to(device)
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.99), fused=True)
    forward = torch.compile(model) if compile else model
    autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

    def step():
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = forward(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step
