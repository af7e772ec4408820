"""Who takes part in a benchmark, what each does there, and how fast its library multiplies matrices."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from time import perf_counter
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from contract.errors import ConfigError, UserError
from contract.weights import initial_weights
from harness.training.backend import open_backend
from harness.training.machine import available_cpus, peak_memory
from harness.training.recipes import Recipe

NUMPY, TORCH, COMPILED, TRANSFORMERS = "numpy", "torch", "torch.compile", "transformers"
ONE = "numpy, one"  # sample, where the others generate several at once
PLAIN, PLAIN_COMPILED = "plain", "plain compiled"  # see `plain_gpt`
LIBRARIES = {NUMPY: "numpy", ONE: "numpy", TORCH: "torch"}  # whose matrix products are measured
LONGEST_TURN = 5.0  # seconds, after which a turn of fewer than three units ends
PEAK_SIZE = {
    "cpu": 2048,
    "cuda": 8192,
    "mps": 4096,
}  # rows of the square matrices whose product gives the peak


@dataclass(frozen=True)
class Conditions:
    """How contestants compute.

    threads: of each; device: of PyTorch; dtype: "float32", or "bfloat16" for PyTorch's autocast
    alone: whether PyTorch is measured on its device against a plain GPT-2, instead of NumPy against PyTorch
    compiled: whether `torch.compile` takes part
    """

    threads: int = field(default_factory=available_cpus)
    device: str = "cpu"
    dtype: str = "float32"
    alone: bool = False
    compiled: bool = False


def contestants(recipe: Recipe, conditions: Conditions) -> dict[str, Recipe]:
    """Who takes part and what it does, first the one that the others are compared with.

    `torch.compile` only trains, on request; `transformers` only generates; the plain GPT-2 only trains, a model of its
    kind. Where several samples are generated at once, NumPy also generates one alone.
    Raises ConfigError for a recipe that generates where PyTorch is measured alone.
    """
    if conditions.alone:
        return dict.fromkeys(_alone(recipe, conditions.compiled), recipe)
    names = [NUMPY, TORCH]
    if recipe.new_tokens:
        names.append(TRANSFORMERS)
    elif conditions.compiled:
        names.append(COMPILED)
    work = dict.fromkeys(names, recipe)
    if recipe.new_tokens and recipe.batch_size > 1:
        work[ONE] = replace(recipe, batch_size=1)
    return work


def _alone(recipe: Recipe, compiled: bool) -> Iterator[str]:
    from harness.training.plain_gpt import is_plain

    if recipe.new_tokens:
        raise ConfigError(
            f"recipe {recipe.name!r} generates, and --device measures training; omit one of them"
        )
    plain = is_plain(recipe.config)
    yield TORCH
    yield from [PLAIN] * plain
    yield from [COMPILED] * compiled
    yield from [PLAIN_COMPILED] * (compiled and plain)


def timed(unit: Callable[[], Any], seconds: float) -> Iterator[float]:
    """Do units of work for at least `seconds`, at least three if they are short. yields: the seconds of each"""
    started, count = perf_counter(), 0
    while (passed := perf_counter() - started) < seconds or (count < 3 and passed < LONGEST_TURN):
        begun = perf_counter()
        unit()
        yield perf_counter() - begun
        count += 1


def unit_of_work(name: str, recipe: Recipe, conditions: Conditions) -> Callable[[], None]:
    """A function that does one unit of a recipe's work as the contestant does it, to its end on the device."""
    if name == TRANSFORMERS:
        return _transformers_unit(recipe, conditions.threads)
    config, random = recipe.config, np.random.default_rng(0)
    if recipe.new_tokens:
        backend = open_backend(NUMPY if name in (NUMPY, ONE) else TORCH, config, threads=conditions.threads)
        prompt = random.integers(config.vocab_size, size=recipe.prompt_tokens).tolist()
        sampling = {"temperature": recipe.temperature, "top_k": recipe.top_k}
        if recipe.batch_size == 1:
            return lambda: list(backend.generate(prompt, recipe.new_tokens, **sampling))
        how_many = recipe.new_tokens, recipe.batch_size
        return lambda: list(backend.generate_samples(prompt, *how_many, **sampling))
    tokens = random.integers(config.vocab_size, size=(recipe.batch_size, config.context_length + 1))
    if name in (PLAIN, PLAIN_COMPILED):
        return _plain_unit(recipe, tokens, conditions, compile=name == PLAIN_COMPILED)
    if name == NUMPY:
        return training_step(open_backend(NUMPY, config, threads=conditions.threads), tokens)
    how = {"threads": conditions.threads, "device": conditions.device, "dtype": conditions.dtype}
    step = training_step(open_backend(TORCH, config, **how, compile=name == COMPILED), tokens)
    return to_the_end(step, conditions.device)


def training_step(backend, tokens: np.ndarray, accumulate: int = 1) -> Callable[[], None]:
    """A function that takes a training step; tokens: int64 (B, T + 1)"""

    def step():
        backend.loss_and_gradients(tokens[:, :-1], tokens[:, 1:], step=0, accumulate=accumulate)
        backend.clip(1.0)
        backend.update(1e-4)

    return step


def to_the_end(step: Callable[[], None], device: str) -> Callable[[], None]:
    """The step, and what the device has still to do of it when the call returns."""
    import torch

    def whole():
        step()
        getattr(torch, device).synchronize()

    return whole


def _plain_unit(recipe: Recipe, tokens: np.ndarray, conditions: Conditions, *, compile: bool):
    import torch

    from harness.training.plain_gpt import plain_step

    torch.set_num_threads(conditions.threads)
    weights = initial_weights(recipe.config, 0, "float32").values()
    how = {"device": conditions.device, "dtype": conditions.dtype, "compile": compile}
    return plain_step(recipe.config, weights, tokens, **how)  # which waits for its loss


def _transformers_unit(recipe: Recipe, threads: int) -> Callable[[], None]:
    try:
        import torch
        from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; the extra dev has it") from None
    torch.set_num_threads(threads)
    config = recipe.config
    shape = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.d_model}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=config.vocab_size, **shape)).eval()
    prompt = torch.randint(config.vocab_size, (1, recipe.prompt_tokens))
    length = {"max_new_tokens": recipe.new_tokens, "min_new_tokens": recipe.new_tokens}
    sampling = {"do_sample": recipe.temperature > 0, "num_return_sequences": recipe.batch_size}
    if recipe.temperature:
        sampling |= {"temperature": recipe.temperature, "top_k": recipe.top_k}
    settings = GenerationConfig(use_cache=True, pad_token_id=0, **length, **sampling)
    return lambda: model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)


def product_rate(library: str, recipe: Recipe, threads: int, seconds: float) -> float:
    """Multiplications and additions per second of a library on the matrix products of a recipe's linear layers.

    Each shape is timed alone, with all threads, for `seconds` in all; its least time counts as often as it occurs.
    """
    own = import_module(library)  # NumPy and PyTorch have the same names for what is needed here
    passes = 1 if recipe.new_tokens else 3
    each = seconds / (passes * len(recipe.layers))
    flops = total = 0
    for (out, into), count in recipe.layers.items():
        shapes = (recipe.rows, into), (recipe.rows, out), (out, into)
        x, dy, weight = (own.ones(shape, dtype=own.float32) for shape in shapes)
        for a, b in [(x, weight.T), (dy, weight), (dy.T, x)][:passes]:  # y, dx, dweight
            product = own.matmul(a, b)
            with threadpool_limits(threads):
                total += count * min(timed(partial(own.matmul, a, b, out=product), each))
            flops += count * 2 * recipe.rows * out * into
    return flops / total


def peak_flops(conditions: Conditions, seconds: float) -> float:
    """Multiplications and additions per second of a large matrix product, the best of many.

    In NumPy and float32, or where PyTorch is measured alone on its device, in what its training multiplies in.
    """
    size = PEAK_SIZE[conditions.device]
    if not conditions.alone:
        a = np.ones((size, size), np.float32)
        multiply = partial(np.matmul, a, a, out=np.empty_like(a))
    else:
        import torch

        torch.set_num_threads(conditions.threads)
        a = torch.ones(size, size, device=conditions.device, dtype=getattr(torch, conditions.dtype))
        multiply = to_the_end(partial(torch.matmul, a, a, out=torch.empty_like(a)), conditions.device)
    multiply()
    with threadpool_limits(conditions.threads):
        return 2 * size**3 / min(timed(multiply, seconds))


def taken_memory(conditions: Conditions) -> int:
    """The most bytes that this process has taken: of its GPU's memory, or of the machine's; 0 if unknown."""
    if conditions.device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return peak_memory()
