"""Speed and memory: `bench`."""

from importlib.util import find_spec
from statistics import median
from typing import Annotated

import typer

from commands.options import JsonFileOption, OverwriteJsonOption, ThreadsOption, option
from contract.errors import ConfigError, needs
from harness.training.recipes import RECIPES


def bench(
    recipes: Annotated[
        list[str] | None, typer.Argument(help=rf"{', '.join(RECIPES)}. \[default: all]")
    ] = None,
    turns: Annotated[int, option("Turns per backend, a second or more each.")] = 7,
    compile: Annotated[bool, option("Also measure torch.compile.", "--compile")] = False,
    threads: ThreadsOption = None,
    json: JsonFileOption = None,
    overwrite: OverwriteJsonOption = False,
):
    """Measure NumPy against PyTorch on this machine: step time, rate, memory.

    Each backend runs in its own process, in turn, after a warm-up. The ratio is NumPy's speed over the other's:
    the median over the turns, with the minimum and the maximum. GFLOP/s is how fast its library multiplies matrices
    of the model's shapes.
    """
    from commands.console import say, show
    from contract.files import require_free
    from harness.training.backend import thread_count
    from harness.training.bench import BUSY, run_recipe, write_results

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
        say(f"{name}: {turns} turns per backend, a second or more each ...")
        result = run_recipe(RECIPES[name], turns=turns, threads=threads, compiled=compile)
        if not results:
            show(_machine(threads))
        results.append(result)
        for line in _table(result):
            show(line)
        if result.unrest > BUSY:
            say(
                f"warning: {name}: the median time is {result.unrest:.2f} x the least, so the machine is busy and the "
                "figures are not to be trusted; close other programs and run again"
            )
    if json is not None:
        write_results(json, results, overwrite=overwrite)


def _machine(threads: int) -> str:
    """What all is measured on."""
    from harness.training.machine import versions

    found = versions()
    count = f"{threads} thread{'s' * (threads > 1)}"
    return f"{found['processor']}, {count}, {found.get('blas', 'unknown BLAS')}, PyTorch {found['torch']}"


def _table(result):
    """The lines of a recipe: one per contestant, and what of it are matrix products."""
    recipe, unit = result.recipe, "run" if result.recipe.new_tokens else "step"
    times = f"ms per {unit} (range)"
    yield f"{recipe.name:<14} {times:<24} {'tokens/s':>9} {'GFLOP/s':>8} {'memory':>9}  NumPy is"
    ours, theirs, *_ = result.contestants
    for each in result.contestants:
        row, seconds, ratios = result.row(each), each.seconds, result.ratios(each)
        times = f"{1e3 * median(seconds):.1f} ({1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f})"
        ratio = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) x as fast"
        rate = f"{each.product_rate / 1e9:,.0f}" if each.product_rate else ""
        yield (
            f"  {each.name:<12} {times:<24} {row['tokens_per_second']:>9,.0f} {rate:>8} "
            f"{each.peak_memory / 1e6:>6,.0f} MB  {ratio if each is not ours else ''}"
        ).rstrip()
    yield (
        f"  matrix products: NumPy's library is {result.product_ratio:.2f} x as fast as PyTorch's; "
        f"they take {ours.share_in_products:.0%} and {theirs.share_in_products:.0%} of a {unit}"
    )
