"""Speed and memory: `bench`."""

from importlib.util import find_spec
from statistics import median
from typing import Annotated

import typer

from commands.options import JsonFileOption, OverwriteJsonOption, ThreadsOption, option
from contract.errors import ConfigError, needs
from harness.training.recipes import ACCELERATED, RECIPES


def bench(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(help=rf"{', '.join(RECIPES)}. \[default: all for a CPU, or all for an accelerator]"),
    ] = None,
    turns: Annotated[int, option("Turns per contestant, a second or more each.")] = 7,
    device: Annotated[
        str | None,
        option(
            "Measure PyTorch's training on cpu, cuda or mps against a plain GPT-2. [default: NumPy's on the CPU]"
        ),
    ] = None,
    dtype: Annotated[str, option("With --device: float32 or bfloat16.")] = "float32",
    compile: Annotated[bool, option("Also measure torch.compile.", "--compile")] = False,
    threads: ThreadsOption = None,
    json: JsonFileOption = None,
    overwrite: OverwriteJsonOption = False,
):
    """Measure NumPy against PyTorch on this machine: step time, rate, memory.

    Each contestant runs in its own process, in turn, after a warm-up. The ratio is the first one's speed over the
    other's: the median over the turns, with the minimum and the maximum. GFLOP/s is how fast its library multiplies
    matrices of the model's shapes; "of peak" is a step's products over the rate of one large product.

    Under torchrun: a training step of one process against all of them, by each way to share it.
    """
    from commands.ranks import all_ranks

    _require_torch()
    with all_ranks({}) as ranks:
        _bench(recipes, turns, _conditions(threads, device, dtype, compile, ranks), ranks, json, overwrite)


def _require_torch():
    """Raise UserError without PyTorch; its import takes seconds and is the measured processes' business."""
    with needs("bench", "torch", ["torch"]):
        if find_spec("torch") is None:
            raise ModuleNotFoundError(name="torch")


def _conditions(threads: int | None, device: str | None, dtype: str, compile: bool, ranks):
    """How the contestants compute. Raises ConfigError for options that do not go together."""
    from harness.training.backend import thread_count
    from harness.training.contestants import Conditions

    if dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"--dtype must be float32 or bfloat16, got {dtype!r}")
    if dtype == "bfloat16" and device is None and not ranks:
        raise ConfigError("NumPy has no bfloat16; add --device to measure PyTorch alone")
    if compile and ranks:
        raise ConfigError("--compile is not measured under torchrun; omit it")
    alone = device is not None or ranks is not None
    if device not in (None, "cpu"):
        from harness.training.torch_backend import open_device

        open_device(device, dtype)
    return Conditions(thread_count(threads), device or "cpu", dtype, alone, compile)


def _bench(recipes: list[str] | None, turns: int, conditions, ranks, json, overwrite: bool):
    from commands.console import say, show
    from contract.files import require_free
    from harness.training.bench import BUSY, run_recipe, write_results

    if json is not None:
        require_free(json, overwrite)
    for name in recipes or ():
        if name not in RECIPES:
            raise ConfigError(f"unknown recipe {name!r}; choose from {', '.join(RECIPES)}")
    results = []
    for name in recipes or _default_recipes(conditions):
        say(f"{name}: {turns} turns per contestant, a second or more each ...")
        if ranks:
            from harness.training.bench_ranks import run_ways

            result = run_ways(RECIPES[name], ranks, conditions, turns=turns)
        else:
            result = run_recipe(RECIPES[name], conditions, turns=turns)
        if not results:
            show(_machine(conditions, ranks))
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


def _default_recipes(conditions) -> list[str]:
    """Those that the device is for."""
    if conditions.device != "cpu":
        return list(ACCELERATED)
    return [
        name
        for name, recipe in RECIPES.items()
        if name not in ACCELERATED and not (conditions.alone and recipe.new_tokens)
    ]


def _machine(conditions, ranks) -> str:
    """What all is measured on."""
    from harness.training.machine import versions

    found, threads = versions(), conditions.threads
    count = f"{threads} thread{'s' * (threads > 1)}"
    where = [found["processor"]]
    if conditions.device != "cpu":
        import torch

        where = [torch.cuda.get_device_name() if conditions.device == "cuda" else conditions.device]
    if ranks:
        where.append(f"{ranks.size} processes")
    library = [] if conditions.alone else [found.get("blas", "unknown BLAS")]
    precision = ["bfloat16"] if conditions.dtype == "bfloat16" else []
    return ", ".join([*where, count, *library, f"PyTorch {found['torch']}", *precision])


def _table(result):
    """The lines of a recipe: one per contestant, and what of it are matrix products."""
    recipe, unit = result.recipe, "run" if result.recipe.new_tokens else "step"
    first, *_ = result.contestants
    times = f"ms per {unit} (range)"
    yield (
        f"{recipe.name:<16} {times:<24} {'tokens/s':>9} {'of peak':>7} {'GFLOP/s':>8} {'memory':>9}  {first.name} is"
    )
    for each in result.contestants:
        row, seconds, ratios = result.row(each), each.seconds, result.ratios(each)
        times = f"{1e3 * median(seconds):.1f} ({1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f})"
        ratio = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) x as fast"
        rate = f"{each.product_rate / 1e9:,.0f}" if each.product_rate else ""
        memory = f"{each.peak_memory / 1e6:>6,.0f} MB" if each.peak_memory else ""
        yield (
            f"  {each.name:<14} {times:<24} {row['tokens_per_second']:>9,.0f} {row['share_of_peak']:>7.0%} {rate:>8} "
            f"{memory:>9}  {ratio if each is not first else ''}"
        ).rstrip()
    if result.product_ratio:
        shares = [each.share_in_products for each in result.contestants if each.product_rate]
        yield (
            f"  matrix products: NumPy's library is {result.product_ratio:.2f} x as fast as PyTorch's; "
            f"they take {shares[0]:.0%} and {shares[1]:.0%} of a {unit}"
        )
