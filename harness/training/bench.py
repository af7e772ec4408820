"""How fast and how large: the backends side by side, each in a process of its own.

The processes live through a whole recipe and work in turn, A B A B ..., one while the others wait, so that what
slows the machine for a while slows all of them. A ratio is taken within a turn; its median is what to quote.
"""

import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from multiprocessing import resource_tracker
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from contract.components import shape, sizes, weight_rows
from contract.config import ModelConfig
from contract.errors import ConfigError, UserError
from contract.files import write_file
from contract.presets import preset
from harness.training.backend import open_backend, thread_count
from harness.training.machine import peak_memory, versions

NUMPY, TORCH, COMPILED, TRANSFORMERS = "numpy", "torch", "torch.compile", "transformers"
TURN_SECONDS = 1.0  # how long a contestant works before it is the other's turn, at least one unit
PEAK_SIZE = 2048  # rows of the square matrices whose product gives the peak


@dataclass(frozen=True)
class Recipe:
    """A measured piece of work: a training step of B = `batch_size`, or generating if there are `new_tokens`."""

    name: str
    config: ModelConfig
    batch_size: int = 1
    prompt_tokens: int = 0
    new_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Those of a unit of work: of a step, or generated."""
        return self.new_tokens or self.batch_size * self.config.context_length

    @property
    def flops(self) -> int:
        """Multiplications and additions of the matrix products of a unit of work.

        Training: per token 6 a weight (forward 2, backward 4), and 12 · L · T · H · D for attention, causal or not.
        Generating: 2 a weight and token, without attention.
        Source: Chowdhery et al. 2022 (PaLM), appendix B.
        """
        config, size = self.config, sizes(self.config)
        linear = [shape(config, name) for name, row in weight_rows(config).items() if row.linear]
        weights = sum(prod(each) for each in linear if len(each) > 1) + size["V"] * size["C"]
        if self.new_tokens:
            return 2 * weights * self.tokens
        attention = 12 * size["L"] * size["P"] * size["H·D"]
        return (6 * weights + attention) * self.tokens


_MEDIUM = {"vocab_size": 65, "n_layer": 6, "n_head": 6, "d_model": 384, "context_length": 256}
_GPT2 = preset("gpt2", vocab_size=50257)
_RECIPES = (
    Recipe("nano", preset("nano", vocab_size=65), batch_size=12),
    Recipe("modern", preset("modern", vocab_size=65), batch_size=12),
    Recipe("tense", preset("tense", vocab_size=768), batch_size=64),
    Recipe("medium", preset("nano", **_MEDIUM), batch_size=4),
    Recipe("gpt2", replace(_GPT2, context_length=64), batch_size=4),
    Recipe("decode", _GPT2, prompt_tokens=16, new_tokens=64),
)
RECIPES = {recipe.name: recipe for recipe in _RECIPES}


@dataclass
class Measured:
    """What one contestant did: the seconds of its units by turn, and its largest memory in bytes."""

    name: str
    turns: list[list[float]]
    peak_memory: int = 0

    @property
    def seconds(self) -> list[float]:
        """Of every unit."""
        return [seconds for turn in self.turns for seconds in turn]


@dataclass(frozen=True)
class Result:
    """A recipe's figures; peak_flops: multiplications and additions a second of a large matrix product."""

    recipe: Recipe
    contestants: list[Measured]
    peak_flops: float

    def ratios(self, other: Measured) -> list[float]:
        """How many times as fast as `other` NumPy is, a figure for each turn."""
        pairs = zip(self.contestants[0].turns, other.turns, strict=True)
        return [median(theirs) / median(ours) for ours, theirs in pairs]

    def row(self, contestant: Measured) -> dict:
        """A contestant's figures: seconds, tokens per second, share of the peak, bytes, ratios."""
        seconds = contestant.seconds
        return {
            "name": contestant.name,
            "seconds": seconds,
            "tokens_per_second": self.recipe.tokens / median(seconds),
            "share_of_peak": self.recipe.flops / median(seconds) / self.peak_flops,
            "peak_memory": contestant.peak_memory,
            "numpy_speed_over_this": self.ratios(contestant),
        }

    def to_dict(self) -> dict:
        """Everything measured, ready for JSON."""
        return {
            "recipe": self.recipe.name,
            "model": self.recipe.config.to_dict(),
            "batch_size": self.recipe.batch_size,
            "matrix_product_flops_per_second": self.peak_flops,
            "contestants": [self.row(each) for each in self.contestants],
        }


def contestants(recipe: Recipe, *, compiled: bool) -> list[str]:
    """Who takes part, NumPy first; `transformers` only generates, `torch.compile` only trains, on request."""
    if recipe.new_tokens:
        return [NUMPY, TORCH, TRANSFORMERS]
    return [NUMPY, TORCH, *([COMPILED] if compiled else [])]


def run_recipe(recipe: Recipe, *, turns: int, threads: int | None = None, compiled: bool = False) -> Result:
    """Measure a recipe.

    turns: how often each contestant gets its turn; threads: of each, None for one per CPU
    Raises UserError if a contestant cannot start.
    """
    if turns < 1:
        raise ConfigError(f"turns must be at least 1, got {turns}")
    names, threads = contestants(recipe, compiled=compiled), thread_count(threads)
    with ExitStack() as stack:
        asks = [stack.enter_context(_contestant(name, recipe, threads)) for name in names]
        for ask in asks:
            ask("turn")  # the warm-up
        rounds = [[ask("turn") for ask in asks] for _ in range(turns)]
        measured = [
            Measured(name, list(own), ask("memory"))
            for name, own, ask in zip(names, zip(*rounds, strict=True), asks, strict=True)
        ]
        return Result(recipe, measured, asks[0]("peak"))


@contextmanager
def _contestant(name: str, recipe: Recipe, threads: int) -> Iterator[Callable[[str], Any]]:
    """A process that answers one question at a time; yields the function that asks, or raises UserError."""
    context = multiprocessing.get_context("spawn")  # a fork would share what was imported and measured
    connection, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, name, recipe, threads, TURN_SECONDS), daemon=True)
    with _deaf_to_interruptions():
        process.start()
    theirs.close()

    def ask(question: str):
        connection.send(question)
        try:
            answer, problem = connection.recv()
        except EOFError:
            problem = f"its process ended ({process.exitcode}), perhaps for lack of memory"
        if problem:
            raise UserError(f"{name} cannot be measured: {problem}")
        return answer

    try:
        yield ask
    except BaseException:
        process.kill()
        raise
    finally:
        connection.close()  # which ends the process
        process.join(timeout=10)
        process.kill()


@contextmanager
def _deaf_to_interruptions() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C, which a terminal sends to them too; their parent handles it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # to start it later would take the block away
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _serve(connection, name: str, recipe: Recipe, threads: int, seconds: float):
    """What runs in a contestant's process; seconds: of a turn"""
    unit = cache(lambda: _unit(name, recipe, threads))
    answers = {
        "turn": lambda: list(_timed(unit(), seconds)),
        "memory": peak_memory,
        "peak": lambda: _peak_flops(threads, seconds),
    }
    with suppress(EOFError, BrokenPipeError):  # the parent has closed the connection
        while question := connection.recv():
            try:
                connection.send((answers[question](), ""))
            except Exception as error:
                connection.send((None, f"{type(error).__name__}: {error}"))


def _timed(unit: Callable[[], None], seconds: float) -> Iterator[float]:
    """Do at least three units of work, for at least `seconds`. yields: the seconds of each"""
    started, count = perf_counter(), 0
    while count < 3 or perf_counter() - started < seconds:
        begun = perf_counter()
        unit()
        yield perf_counter() - begun
        count += 1


def _unit(name: str, recipe: Recipe, threads: int) -> Callable[[], None]:
    """A function that does one unit of a recipe's work as the contestant does it."""
    if name == TRANSFORMERS:
        return _transformers_unit(recipe, threads)
    config = recipe.config
    backend = open_backend(NUMPY if name == NUMPY else TORCH, config, threads=threads)
    if name == COMPILED:
        import torch

        backend.model = torch.compile(backend.model)
    random = np.random.default_rng(0)
    if recipe.new_tokens:
        prompt = random.integers(config.vocab_size, size=recipe.prompt_tokens).tolist()
        return lambda: list(backend.generate(prompt, recipe.new_tokens, temperature=0))
    tokens = random.integers(config.vocab_size, size=(recipe.batch_size, config.context_length + 1))

    def step():
        backend.loss_and_gradients(tokens[:, :-1], tokens[:, 1:], step=0, accumulate=1)
        backend.clip(1.0)
        backend.update(1e-4)

    return step


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
    settings = GenerationConfig(do_sample=False, use_cache=True, pad_token_id=0, **length)
    return lambda: model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)


def _peak_flops(threads: int, seconds: float) -> float:
    """Multiplications and additions per second of a large float32 matrix product in NumPy, the best of many."""
    a = np.ones((PEAK_SIZE, PEAK_SIZE), np.float32)
    product = np.empty_like(a)
    with threadpool_limits(threads):
        return 2 * PEAK_SIZE**3 / min(_timed(lambda: np.matmul(a, a, out=product), seconds))


def write_results(path: Path, results: list[Result], *, overwrite: bool = False):
    """Write all figures, and on what they were measured, to a file; see `contract.files.write_file`."""
    record = {"versions": versions(), "recipes": [result.to_dict() for result in results]}
    with write_file(path, overwrite=overwrite) as file:
        file.write(json.dumps(record).encode() + b"\n")
