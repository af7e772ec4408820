"""Draws the arguments of an exercise's forward pass, as course.toml describes them."""

from math import prod

import numpy as np

from contract.config import ModelConfig
from contract.randomness import generator
from contract.weights import weight_table


def instance_sizes(seed: int, number: int) -> dict[str, int]:
    """The dimension letters of trial `number`: small, unlike each other, and each unlike in both trials."""
    flips = generator(seed, "exercise.sizes").integers(2, size=4) ^ number
    B, H = ((2, 3), (3, 2))[flips[0]]
    T, D = ((4, 5), (5, 4))[flips[1]]
    return {"B": B, "T": T, "C": H * D, "H": H, "D": D, "F": (16, 17)[flips[2]], "V": (11, 13)[flips[3]]}


def draw(spec, random: np.random.Generator, sizes: dict[str, int], number: int):
    """One argument.

    spec: a number, passed as it is; {"size": letters}; {"by_trial": a number for each trial}
        {"of": part}, the weights of that part of a model, with "modern" of one with `modern_config`
        {"draw": "tokens", "targets", "kept" or "counts"}
        or an array of floats: its shape, such as "T+4 3·C", or a dict of shape and `mean`, `spread` of normal
        numbers, `away` to push them from 0 but for every seventh, which is 0, or the bounds `between` which they are
        uniform
    """
    if isinstance(spec, str):
        spec = {"shape": spec}
    if not isinstance(spec, dict):
        return spec
    if "size" in spec:
        return _size(spec["size"], sizes)
    if "by_trial" in spec:
        return spec["by_trial"][number]
    if "of" in spec:
        return _weights(spec["of"], random, sizes, spec.get("modern", False))
    if "draw" in spec:
        return _DRAWN[spec["draw"]](random, sizes)
    shape = [_size(dim, sizes) for dim in spec["shape"].split()]
    if "between" in spec:
        return random.uniform(*spec["between"], size=shape)
    x = random.normal(spec.get("mean", 0.0), spec.get("spread", 1.0), size=shape)
    if "away" in spec:
        x += spec["away"] * np.sign(x)
        x.reshape(-1)[::7] = 0  # the kink, whose slope the text states
    return x


def _size(dim: str, sizes: dict[str, int]) -> int:
    """The size of "C", "3·C" or "T+4"."""
    products = [[sizes.get(each) or int(each) for each in part.split("·")] for part in dim.split("+")]
    return sum(map(prod, products))


def _tokens(random, sizes):
    """Token ids (B, T), one of them repeated within a sequence and between sequences."""
    tokens = random.integers(1, sizes["V"] - 2, size=(sizes["B"], sizes["T"]))
    tokens[1, 0] = tokens[0, 1] = tokens[0, 0]
    return tokens


def _targets(random, sizes):
    return random.integers(sizes["V"], size=(sizes["B"], sizes["T"]))


def _kept(random, sizes):
    """What dropout keeps, (B, T, C): 1, or 0 with a probability of about 0.4, both in every channel's column."""
    kept = random.integers(5, size=(sizes["B"], sizes["T"], sizes["C"])) >= 2
    kept[0, 0], kept[0, 1] = True, False
    return kept.astype(int)


def _counts(random, sizes):
    """How many tokens each of B micro-batches has: all different."""
    return random.permutation(np.arange(3, 3 + 2 * sizes["B"], 2))


_DRAWN = {"tokens": _tokens, "targets": _targets, "kept": _kept, "counts": _counts}


def config_of(T: int, C: int, H: int, F: int) -> ModelConfig:
    """The configuration of a model of one block, with these sizes."""
    return ModelConfig(
        vocab_size=1, context_length=T, n_layer=1, n_head=H, d_model=C, d_ff=F, activation="gelu_tanh",
        position="learned",
    )  # fmt: skip


def modern_config(T: int, C: int, F: int, n_head: int, n_kv_head: int, head_size: int) -> ModelConfig:
    """The configuration of a model of one block as Qwen 3 has it."""
    return ModelConfig(
        vocab_size=1, context_length=T, n_layer=1, n_head=n_head, n_kv_head=n_kv_head, head_size=head_size, d_model=C,
        d_ff=F, activation="silu", position="rotary", query_key_norm="head", norm="rms_norm", bias=False,
        feed_forward="gated",
    )  # fmt: skip


def _weights(part: str, random, sizes, modern: bool) -> dict[str, np.ndarray]:
    """The weights of a part of the model, by their names in it."""
    if modern:
        heads = (_size(dim, sizes) for dim in ("2·H", "H", "2·D"))
        config = modern_config(*(sizes[letter] for letter in "TCF"), *heads)
    else:
        config = config_of(*(sizes[letter] for letter in "TCHF"))
    table = weight_table(config)
    return {
        name.removeprefix(f"{part}."): random.normal(float(spec.init == "ones"), 0.4, size=spec.shape)
        for name, spec in table.items()
        if name.startswith(f"{part}.")
    }
