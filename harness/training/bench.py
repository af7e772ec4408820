"""How fast and how large: the backends side by side, each in a process of its own.

The processes live through a whole recipe and work in turn, A B A B ..., one while the others wait, so that what
slows the machine for a while slows all of them. A ratio is taken within a turn; its median is what to quote.
"""

import json
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from multiprocessing import resource_tracker
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from contract.errors import ConfigError, UserError
from contract.files import write_file
from harness.training.backend import open_backend, thread_count
from harness.training.machine import peak_memory, versions
from harness.training.recipes import Recipe

NUMPY, TORCH, COMPILED, TRANSFORMERS = "numpy", "torch", "torch.compile", "transformers"
ONE = "numpy, one"  # sample, where the others generate several at once
LIBRARIES = {NUMPY: "numpy", ONE: "numpy", TORCH: "torch"}  # whose matrix products are measured
TURN_SECONDS = 1.0  # how long a contestant works before it is the other's turn: at least one unit,
LONGEST_TURN = 5.0  # and three where they are done by then
BUSY = 1.3  # the median of a unit's times over their least, above which the machine was doing something else
PEAK_SIZE = 2048  # rows of the square matrices whose product gives the peak


@dataclass
class Measured:
    """What one contestant did.

    recipe: its work; turns: the seconds of its units, by turn
    product_rate: of its library's matrix products on the model's shapes, multiplications and additions per second
    peak_memory: bytes
    """

    name: str
    recipe: Recipe
    turns: list[list[float]]
    product_rate: float | None = None
    peak_memory: int = 0

    @property
    def seconds(self) -> list[float]:
        """Of every unit."""
        return [seconds for turn in self.turns for seconds in turn]

    @property
    def unrest(self) -> float:
        """The median of a unit's times over their least: 1 on a quiet machine."""
        return median(self.seconds) / min(self.seconds)

    @property
    def share_in_products(self) -> float | None:
        """How much of a unit's time its linear layers take at `product_rate`."""
        if self.product_rate is None:
            return None
        return self.recipe.linear_flops / self.product_rate / median(self.seconds)


@dataclass(frozen=True)
class Result:
    """A recipe's figures, NumPy's and PyTorch's first.

    peak_flops: multiplications and additions per second of a large matrix product in NumPy
    """

    recipe: Recipe
    contestants: list[Measured]
    peak_flops: float

    @property
    def unrest(self) -> float:
        """The largest of the contestants'."""
        return max(each.unrest for each in self.contestants)

    @property
    def product_ratio(self) -> float:
        """How many times as fast NumPy's library multiplies the model's matrices as PyTorch's."""
        ours, theirs, *_ = self.contestants
        return ours.product_rate / theirs.product_rate

    def ratios(self, other: Measured) -> list[float]:
        """How many times as fast as `other` NumPy is, in tokens per second, a figure for each turn."""
        ours = self.contestants[0]
        more = ours.recipe.tokens / other.recipe.tokens
        pairs = zip(ours.turns, other.turns, strict=True)
        return [more * median(theirs) / median(ours) for ours, theirs in pairs]

    def row(self, contestant: Measured) -> dict:
        """A contestant's figures: seconds, tokens per second, shares, rate of products, bytes, ratios."""
        recipe, seconds = contestant.recipe, contestant.seconds
        return {
            "name": contestant.name,
            "seconds": seconds,
            "tokens_per_second": recipe.tokens / median(seconds),
            "share_of_peak": recipe.flops / median(seconds) / self.peak_flops,
            "product_flops_per_second": contestant.product_rate,
            "share_in_products": contestant.share_in_products,
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
            "numpy_product_speed_over_torch": self.product_ratio,
            "median_over_least": self.unrest,
            "busy": self.unrest > BUSY,
            "contestants": [self.row(each) for each in self.contestants],
        }


def contestants(recipe: Recipe, *, compiled: bool) -> dict[str, Recipe]:
    """Who takes part, NumPy first, and what it does.

    `torch.compile` only trains, on request; `transformers` only generates. Where several samples are generated at once,
    NumPy also generates one alone.
    """
    names = [NUMPY, TORCH]
    if recipe.new_tokens:
        names.append(TRANSFORMERS)
    elif compiled:
        names.append(COMPILED)
    work = dict.fromkeys(names, recipe)
    if recipe.new_tokens and recipe.batch_size > 1:
        work[ONE] = replace(recipe, batch_size=1)
    return work


def run_recipe(recipe: Recipe, *, turns: int, threads: int | None = None, compiled: bool = False) -> Result:
    """Measure a recipe.

    turns: how often each contestant gets its turn; threads: of each, None for one per CPU
    Raises UserError if a contestant cannot start.
    """
    if turns < 1:
        raise ConfigError(f"turns must be at least 1, got {turns}")
    work, threads = contestants(recipe, compiled=compiled), thread_count(threads)
    with ExitStack() as stack:

        def start(names: Iterable[str]) -> dict[str, Callable]:
            return {name: stack.enter_context(_contestant(name, work[name], threads)) for name in names}

        def in_turn(question: str, asks: Mapping[str, Callable]) -> dict[str, list]:
            """Each contestant's answers by turn."""
            rounds = [[ask(question) for ask in asks.values()] for _ in range(turns)]
            return dict(zip(asks, map(list, zip(*rounds, strict=True)), strict=True))

        asks = start(work)
        for ask in asks.values():
            ask("work")  # the warm-up
        seconds = in_turn("work", asks)
        memory = {name: ask("memory") for name, ask in asks.items()}
        # In processes of their own: once PyTorch has trained, its small products are a fifth as fast.
        rates = in_turn("products", start(name for name in work if name in LIBRARIES))
        measured = [
            Measured(name, work[name], seconds[name], max(rates.get(name, ()), default=None), memory[name])
            for name in work
        ]
        return Result(recipe, measured, asks[NUMPY]("peak"))


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
        "work": lambda: list(_timed(unit(), seconds)),
        "memory": peak_memory,
        "products": lambda: _product_rate(LIBRARIES[name], recipe, threads, seconds / 4),
        "peak": lambda: _peak_flops(threads, seconds),
    }
    with suppress(EOFError, BrokenPipeError):  # the parent has closed the connection
        while question := connection.recv():
            try:
                connection.send((answers[question](), ""))
            except Exception as error:
                connection.send((None, f"{type(error).__name__}: {error}"))


def _timed(unit: Callable[[], Any], seconds: float) -> Iterator[float]:
    """Do units of work for at least `seconds`, at least three if they are short. yields: the seconds of each"""
    started, count = perf_counter(), 0
    while (passed := perf_counter() - started) < seconds or (count < 3 and passed < LONGEST_TURN):
        begun = perf_counter()
        unit()
        yield perf_counter() - begun
        count += 1


def _unit(name: str, recipe: Recipe, threads: int) -> Callable[[], None]:
    """A function that does one unit of a recipe's work as the contestant does it."""
    if name == TRANSFORMERS:
        return _transformers_unit(recipe, threads)
    config = recipe.config
    kind = NUMPY if name in (NUMPY, ONE) else TORCH
    backend = open_backend(kind, config, threads=threads, compile=name == COMPILED)
    random = np.random.default_rng(0)
    if recipe.new_tokens:
        prompt = random.integers(config.vocab_size, size=recipe.prompt_tokens).tolist()
        sampling = {"temperature": recipe.temperature, "top_k": recipe.top_k}
        if recipe.batch_size == 1:
            return lambda: list(backend.generate(prompt, recipe.new_tokens, **sampling))
        how_many = recipe.new_tokens, recipe.batch_size
        return lambda: list(backend.generate_samples(prompt, *how_many, **sampling))
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
    sampling = {"do_sample": recipe.temperature > 0, "num_return_sequences": recipe.batch_size}
    if recipe.temperature:
        sampling |= {"temperature": recipe.temperature, "top_k": recipe.top_k}
    settings = GenerationConfig(use_cache=True, pad_token_id=0, **length, **sampling)
    return lambda: model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)


def _product_rate(library: str, recipe: Recipe, threads: int, seconds: float) -> float:
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
                total += count * min(_timed(partial(own.matmul, a, b, out=product), each))
            flops += count * 2 * recipe.rows * out * into
    return flops / total


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
