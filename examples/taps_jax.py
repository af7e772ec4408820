"""A Llama in JAX whose every tensor and gradient goes to a file for `check`.

    python cli.py golden export llama --format huggingface --out folder
    python examples/taps_jax.py folder dump.npz
    python cli.py check dump.npz --golden llama

JAX has no modules to hook. A tap notes a tensor under a name and adds a zero to it: the loss's gradient with respect to
that zero is the tensor's. What is a module of `transformers` has its name, what is inside one the pack's.

B batch, T time, S tokens attended to, H query heads, K key/value heads, G = H / K, D channels of a head.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file


class Taps:
    """zeros: by name, of the shape of what is tapped; none on a first run, which tells the shapes"""

    def __init__(self, zeros: dict):
        self.zeros, self.seen = zeros, {}

    def __call__(self, name: str, x):
        self.seen[name] = x = x + self.zeros.get(name, 0.0)
        return x


def rms_norm(x, weight, eps):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + eps) * weight


def frequencies(config: dict):
    """Radians per position of each pair of channels, those of long waves stretched as Llama 3 has it."""
    rope, D = config["rope_parameters"], config["head_dim"]
    plain = rope["rope_theta"] ** (-jnp.arange(0, D, 2) / D)
    if rope["rope_type"] == "default":
        return plain
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * plain / (2 * jnp.pi)
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    return kept * plain + (1 - kept) * plain / rope["factor"]


def rotate(x, angles):
    """x (B, T, heads, D), angles (T, D / 2); channel i turns with i + D / 2."""
    cos, sin = (jnp.tile(f(angles), 2)[:, None] for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return x * cos + jnp.concatenate([-second, first], axis=-1) * sin


def attention(x, linear, name: str, ours: str, config: dict, tap: Taps):
    (B, T, _), H, K, D = (
        x.shape,
        *(config[n] for n in ("num_attention_heads", "num_key_value_heads", "head_dim")),
    )
    query, key, value = (tap(f"{name}.{role}_proj", linear(x, f"{name}.{role}_proj")) for role in "qkv")
    angles = jnp.arange(T)[:, None] * frequencies(config)
    query = rotate(query.reshape(B, T, H, D), angles).reshape(B, T, K, H // K, D)
    key, value = rotate(key.reshape(B, T, K, D), angles), value.reshape(B, T, K, D)
    scores = jnp.einsum("btkgd,bskd->bkgts", query, key) * D**-0.5
    scores = tap(f"{ours}.scores", scores.reshape(B, H, T, T))
    scores = jnp.where(jnp.tril(jnp.ones((T, T), bool)), scores, -jnp.inf)
    probabilities = tap(f"{ours}.probabilities", jax.nn.softmax(scores)).reshape(B, K, H // K, T, T)
    heads = jnp.einsum("bkgts,bskd->btkgd", probabilities, value).reshape(B, T, H * D)
    heads = tap(f"{name}.o_proj.input", heads)
    return tap(f"{name}.o_proj", linear(heads, f"{name}.o_proj"))


def loss_of(weights: dict, zeros: dict, config: dict, tokens, targets):
    """returns: the loss, and every tensor on the way to it by name"""
    tap, eps = Taps(zeros), config["rms_norm_eps"]

    def linear(x, name: str):
        return x @ weights[f"{name}.weight"].T

    def norm(x, name: str):
        return tap(name, rms_norm(x, weights[f"{name}.weight"], eps))

    x = tap("model.embed_tokens", weights["model.embed_tokens.weight"][tokens])
    for place in range(config["num_hidden_layers"]):
        layer, ours = f"model.layers.{place}", f"blocks.{place}"
        normed = norm(x, f"{layer}.input_layernorm")
        branch = attention(normed, linear, f"{layer}.self_attn", f"{ours}.attention", config, tap)
        x = tap(f"{ours}.residual_1", x + branch)
        normed = norm(x, f"{layer}.post_attention_layernorm")
        gate, up = (
            tap(f"{layer}.mlp.{each}_proj", linear(normed, f"{layer}.mlp.{each}_proj"))
            for each in ("gate", "up")
        )
        gated = tap(f"{layer}.mlp.down_proj.input", tap(f"{layer}.mlp.act_fn", jax.nn.silu(gate)) * up)
        x = tap(layer, x + tap(f"{layer}.mlp.down_proj", linear(gated, f"{layer}.mlp.down_proj")))
    logits = tap("lm_head", linear(norm(x, "model.norm"), "lm_head"))
    log_probabilities = jax.nn.log_softmax(logits)
    loss = -jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1).mean()
    return loss, tap.seen | {"loss": loss}


def main(folder: Path, out: Path):
    config, batch = (json.loads((folder / name).read_text()) for name in ("config.json", "batch.json"))
    weights = {name: jnp.asarray(each) for name, each in load_file(folder / "model.safetensors").items()}
    tokens, targets = (jnp.asarray(batch[name]) for name in ("tokens", "targets"))

    def run(weights, zeros):
        return loss_of(weights, zeros, config, tokens, targets)

    _, shapes = jax.eval_shape(run, weights, {})
    zeros = {name: jnp.zeros(each.shape, each.dtype) for name, each in shapes.items() if name != "loss"}
    (dweights, dzeros), seen = jax.grad(run, argnums=(0, 1), has_aux=True)(weights, zeros)
    found = weights | seen | {f"{name}.grad": each for name, each in dweights.items()}
    for name, each in dzeros.items():
        found[f"gradient.{name}" if name.startswith("blocks.") else f"{name}.grad"] = each
    np.savez(out, **{name: np.asarray(each) for name, each in found.items()})
    print(f"{out}: {len(found)} tensors")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
