"""How fast and how large: contestants side by side, each in a process of its own.

The processes live through a whole recipe and work in turn, A B A B ..., one while the others wait, so that what
slows the machine for a while slows all of them. A ratio is taken within a turn; its median is what to quote.
"""

import json
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import resource_tracker
from pathlib import Path
from statistics import median
from typing import Any

from contract.errors import ConfigError, UserError
from contract.files import write_file
from harness.training.contestants import (
    LIBRARIES,
    Conditions,
    contestants,
    peak_flops,
    product_rate,
    taken_memory,
    timed,
    unit_of_work,
)
from harness.training.machine import versions
from harness.training.recipes import Recipe

TURN_SECONDS = 1.0  # how long a contestant works before it is the other's turn: at least one unit
BUSY = 1.3  # the median of a unit's times over their least, above which the machine was doing something else


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
    """A recipe's figures, first of the contestant that the others are compared with.

    peak_flops: see `harness.training.contestants.peak_flops`
    """

    recipe: Recipe
    contestants: list[Measured]
    peak_flops: float

    @property
    def unrest(self) -> float:
        """The largest of the contestants'."""
        return max(each.unrest for each in self.contestants)

    @property
    def product_ratio(self) -> float | None:
        """How many times as fast NumPy's library multiplies the model's matrices as PyTorch's, if it was measured."""
        rates = [each.product_rate for each in self.contestants if each.product_rate]
        return rates[0] / rates[1] if rates else None

    def ratios(self, other: Measured) -> list[float]:
        """How many times as fast as `other` the first is, in tokens per second, a figure for each turn."""
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
            f"{self.contestants[0].name.replace(' ', '_')}_speed_over_this": self.ratios(contestant),
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


def run_recipe(recipe: Recipe, conditions: Conditions = Conditions(), *, turns: int) -> Result:  # noqa: B008, it is frozen
    """Measure a recipe.

    turns: how often each contestant gets its turn
    Raises UserError if a contestant cannot start, ConfigError if the recipe or the number of turns is impossible.
    """
    check_turns(turns)
    work = contestants(recipe, conditions)
    with ExitStack() as stack:

        def start(names: Iterable[str]) -> dict[str, Callable]:
            return {name: stack.enter_context(_contestant(name, work[name], conditions)) for name in names}

        def in_turn(question: str, asks: Mapping[str, Callable]) -> dict[str, list]:
            """Each contestant's answers by turn."""
            rounds = [[ask(question) for ask in asks.values()] for _ in range(turns)]
            return dict(zip(asks, map(list, zip(*rounds, strict=True)), strict=True))

        asks = start(work)
        for ask in asks.values():
            ask("work")  # the warm-up
        seconds = in_turn("work", asks)
        memory = {name: ask("memory") for name, ask in asks.items()}
        rates = {}
        if not conditions.alone:
            # In processes of their own: once PyTorch has trained, its small products are a fifth as fast.
            rates = in_turn("products", start(name for name in work if name in LIBRARIES))
        measured = [
            Measured(name, work[name], seconds[name], max(rates.get(name, ()), default=None), memory[name])
            for name in work
        ]
        return Result(recipe, measured, next(iter(asks.values()))("peak"))


def check_turns(turns: int):
    """Raise ConfigError for an impossible number of turns."""
    if turns < 1:
        raise ConfigError(f"turns must be at least 1, got {turns}")


@contextmanager
def _contestant(name: str, recipe: Recipe, conditions: Conditions) -> Iterator[Callable[[str], Any]]:
    """A process that answers one question at a time; yields the function that asks, or raises UserError."""
    context = multiprocessing.get_context("spawn")  # a fork would share what was imported and measured
    connection, theirs = context.Pipe()
    process = context.Process(
        target=_serve, args=(theirs, name, recipe, conditions, TURN_SECONDS), daemon=True
    )
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


def _serve(connection, name: str, recipe: Recipe, conditions: Conditions, seconds: float):
    """What runs in a contestant's process; seconds: of a turn"""
    unit = cache(lambda: unit_of_work(name, recipe, conditions))
    answers = {
        "work": lambda: list(timed(unit(), seconds)),
        "memory": lambda: taken_memory(conditions),
        "products": lambda: product_rate(LIBRARIES[name], recipe, conditions.threads, seconds / 4),
        "peak": lambda: peak_flops(conditions, seconds),
    }
    with suppress(EOFError, BrokenPipeError):  # the parent has closed the connection
        while question := connection.recv():
            try:
                connection.send((answers[question](), ""))
            except Exception as error:
                connection.send((None, f"{type(error).__name__}: {error}"))


def write_results(path: Path, results: list[Result], *, overwrite: bool = False):
    """Write all figures, and on what they were measured, to a file; see `contract.files.write_file`."""
    record = {"versions": versions(), "recipes": [result.to_dict() for result in results]}
    with write_file(path, overwrite=overwrite) as file:
        file.write(json.dumps(record).encode() + b"\n")
