"""Speed and memory: `bench`."""

from importlib.util import find_spec
from statistics import median
from typing import Annotated

import typer

from commands.options import JsonFileOption, OverwriteJsonOption, ThreadsOption, option
from contract.errors import ConfigError, needs


def bench(
    recipes: Annotated[
        list[str] | None, typer.Argument(help=r"nano, modern, tense, medium, gpt2, decode. \[default: all]")
    ] = None,
    turns: Annotated[int, option("Turns per backend, about a second each.")] = 7,
    compile: Annotated[bool, option("Also measure torch.compile.", "--compile")] = False,
    threads: ThreadsOption = None,
    json: JsonFileOption = None,
    overwrite: OverwriteJsonOption = False,
):
    """Measure NumPy against PyTorch on this machine: step time, rate, memory.

    Each backend runs in its own process, in turn, after a warm-up. The ratio is NumPy's speed over the other's:
    the median over the turns, with the minimum and the maximum.
    """
    from commands.console import say, show
    from contract.files import require_free
    from harness.training.backend import thread_count
    from harness.training.bench import RECIPES, run_recipe, write_results

    threads = thread_count(threads)
    if json is not None:
        require_free(json, overwrite)
    with needs("bench", "torch", ["torch"]):
        if (
            find_spec("torch") is None
        ):  # the import itself takes seconds and is the measured processes' business
            raise ModuleNotFoundError(name="torch")
    for name in recipes or ():
        if name not in RECIPES:
            raise ConfigError(f"unknown recipe {name!r}; choose from {', '.join(RECIPES)}")
    results = []
    for name in recipes or RECIPES:
        say(f"{name}: about {2 * turns + 10} s ...")
        results.append(run_recipe(RECIPES[name], turns=turns, threads=threads, compiled=compile))
        for line in _table(results[-1]):
            show(line)
    if json is not None:
        write_results(json, results, overwrite=overwrite)


def _table(result):
    """The lines of a recipe, one per contestant."""
    recipe, unit = result.recipe, "run" if result.recipe.new_tokens else "step"
    times = f"ms per {unit} (range)"
    yield f"{recipe.name:<14} {times:<24} {'tokens/s':>9} {'of peak':>8} {'memory':>9}  NumPy is"
    for each in result.contestants:
        row, seconds, ratios = result.row(each), each.seconds, result.ratios(each)
        times = f"{1e3 * median(seconds):.1f} ({1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f})"
        ratio = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) x as fast"
        yield (
            f"  {each.name:<12} {times:<24} {row['tokens_per_second']:>9,.0f} {row['share_of_peak']:>8.0%} "
            f"{each.peak_memory / 1e6:>6,.0f} MB  {ratio if each is not result.contestants[0] else ''}"
        ).rstrip()
    yield f"  peak {result.peak_flops / 1e9:,.0f} GFLOP/s, a float32 matrix product in NumPy"
