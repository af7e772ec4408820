"""The benchmark: each contestant in a process of its own, in turn, and figures that add up."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from contract.presets import preset
from harness.training import bench
from harness.training.bench import BUSY, Measured, Result
from harness.training.contestants import (
    COMPILED,
    LIBRARIES,
    NUMPY,
    ONE,
    PLAIN,
    PLAIN_COMPILED,
    TORCH,
    TRANSFORMERS,
    Conditions,
    contestants,
    timed,
    unit_of_work,
)
from harness.training.machine import peak_memory, versions
from harness.training.recipes import RECIPES, Recipe
from tests.harness.launched import NEW, ended, start_ranks

ROOT = Path(__file__).parents[2]
TINY = preset("nano", vocab_size=11, n_layer=1, n_head=2, d_model=16, context_length=8)
TOGETHER = Recipe("together", TINY, batch_size=3, prompt_tokens=2, new_tokens=3, temperature=0.8, top_k=4)

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")


def test_recipes_are_those_of_the_documents():
    """The recipes have the shapes that docs/benchmarks.md names."""
    shapes = {
        name: (*(getattr(recipe.config, field) for field in ("n_layer", "n_head", "d_model", "vocab_size")),
               recipe.batch_size, recipe.config.context_length)
        for name, recipe in RECIPES.items()
    }  # fmt: skip
    assert shapes == {
        "nano": (4, 4, 128, 65, 12, 64),
        "modern": (4, 4, 128, 65, 12, 64),
        "tense": (3, 4, 96, 768, 64, 32),
        "medium": (6, 6, 384, 65, 4, 256),
        "long": (6, 6, 384, 65, 2, 1024),
        "longer": (4, 6, 384, 65, 1, 2048),
        "gpt2": (12, 12, 768, 50257, 4, 64),
        "gpt2-long": (12, 12, 768, 50257, 16, 1024),
        "decode": (12, 12, 768, 50257, 1, 1024),
        "samples": (12, 12, 768, 50257, 16, 1024),
    }
    for name in ("decode", "samples"):
        assert (RECIPES[name].prompt_tokens, RECIPES[name].new_tokens) == (16, 64)


def test_flops_are_counted_as_the_matrix_products_are():
    """6 for each weight of a product and token, and attention's two products, forward and twice backward."""
    C, F, T, L, V, B = 16, 64, 8, 1, 11, 3
    products = L * (4 * C * C + 2 * C * F) + V * C
    assert Recipe("", TINY, batch_size=B).flops == (6 * products + 12 * L * T * C) * B * T
    untied = preset("nano", **{**TINY.to_dict(), "tie_embeddings": False})
    assert Recipe("", untied, batch_size=B).flops == Recipe("", TINY, batch_size=B).flops
    assert Recipe("", TINY, prompt_tokens=2, new_tokens=5).flops == 2 * products * 5
    wide, more = replace(TINY, head_size=2 * TINY.head_size), L * 4 * C * C  # H·D is 2C
    assert Recipe("", wide, batch_size=B).flops == (6 * (products + more) + 12 * L * T * 2 * C) * B * T


def test_products_are_those_of_the_linear_layers():
    """Each shape (out, in) as often as the model has it, over all tokens of a step, or those generated at once."""
    C, F, V = 16, 64, 11
    trained = Recipe("", replace(TINY, n_layer=2), batch_size=3)
    assert trained.layers == {(3 * C, C): 2, (C, C): 2, (F, C): 2, (C, F): 2, (V, C): 1}
    assert (trained.rows, trained.tokens) == (24, 24)
    together = Recipe("", TINY, batch_size=3, new_tokens=5)
    assert (together.rows, together.tokens) == (3, 15)


def _result(ours: list[list[float]], theirs: list[list[float]]) -> Result:
    """Of a recipe of 16 tokens, with round figures for the products."""
    recipe = Recipe("", TINY, batch_size=2)
    measured = [Measured("numpy", recipe, ours, 2e9), Measured("torch", recipe, theirs, 4e9)]
    return Result(recipe, measured, peak_flops=1e9)


def test_ratios_are_taken_within_a_turn():
    """A machine that slows down for both changes no ratio."""
    result = _result([[1.0, 1.0, 3.0], [2.0, 2.0]], [[1.5, 1.5], [3.0]])
    ours, theirs = result.contestants
    assert result.ratios(theirs) == [1.5, 1.5]
    assert result.ratios(ours) == [1.0, 1.0]
    record = result.to_dict()["contestants"][1]
    assert record["tokens_per_second"] == 16 / 1.5
    assert record["share_of_peak"] == pytest.approx(result.recipe.flops / 1.5 / 1e9)
    assert record["product_flops_per_second"] == 4e9
    assert record["share_in_products"] == pytest.approx(result.recipe.linear_flops / 4e9 / 1.5)
    assert result.to_dict()["numpy_product_speed_over_torch"] == 0.5


def test_a_ratio_is_per_token():
    """Sixteen samples in the time of four alone are four times as fast."""
    together = Recipe("", TINY, batch_size=16, new_tokens=5)
    ours, alone = (
        Measured("numpy", together, [[4.0]]),
        Measured("alone", replace(together, batch_size=1), [[1.0]]),
    )
    result = Result(together, [ours, alone], peak_flops=1e9)
    assert result.ratios(alone) == [4.0]
    assert result.row(alone)["tokens_per_second"] == 5.0


@pytest.mark.parametrize(("slow", "busy"), [(1.25, False), (1.5, True)])
def test_a_busy_machine_is_told(slow, busy):
    """Half of one contestant's times are longer than its least by more than a quiet machine's are."""
    result = _result([[1.0, 1.0], [1.1]], [[2.0, 2 * slow], [2 * slow]])
    record = result.to_dict()
    assert (record["median_over_least"], record["busy"]) == (slow, busy)


TRAIN = Recipe("", TINY, batch_size=2)
ROTARY = Recipe("", preset("modern", vocab_size=11), batch_size=2)
ALONE = Conditions(threads=1, alone=True)


@pytest.mark.parametrize(
    ("recipe", "conditions", "names"),
    [
        (TRAIN, Conditions(), [NUMPY, TORCH]),
        (TRAIN, Conditions(compiled=True), [NUMPY, TORCH, COMPILED]),
        (Recipe("", TINY, prompt_tokens=2, new_tokens=3), Conditions(), [NUMPY, TORCH, TRANSFORMERS]),
        (TOGETHER, Conditions(), [NUMPY, TORCH, TRANSFORMERS, ONE]),
        (TRAIN, ALONE, [TORCH, PLAIN]),
        (TRAIN, replace(ALONE, compiled=True), [TORCH, PLAIN, COMPILED, PLAIN_COMPILED]),
        (ROTARY, replace(ALONE, compiled=True), [TORCH, COMPILED]),
    ],
)
def test_who_takes_part(recipe, conditions, names):
    """First whom the others are compared with, then whoever else the recipe is about, all with the same work but for a
    sample alone. The plain model is a GPT-2.
    """
    work = contestants(recipe, conditions)
    assert list(work) == names
    assert work.pop(ONE, replace(recipe, batch_size=1)).batch_size == 1
    assert set(work.values()) == {recipe}


@pytest.fixture(scope="module")
def measure():
    """A function that measures a recipe in two turns of three units, as nobody reads the figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "TURN_SECONDS", 0)
        yield lambda recipe: bench.run_recipe(recipe, Conditions(threads=1), turns=2)


@pytest.fixture(scope="module")
def trained(measure):
    """A training recipe, measured."""
    return measure(Recipe("train", TINY, batch_size=2))


@pytest.fixture(scope="module")
def written(measure):
    """A generating recipe, measured; `transformers` takes long to import."""
    return measure(Recipe("write", TINY, prompt_tokens=2, new_tokens=3))


@pytest.fixture(scope="module")
def written_together(measure):
    """Several samples at once, measured."""
    return measure(TOGETHER)


@pytest.mark.parametrize(
    "measured",
    [
        "trained",
        pytest.param("written", marks=pytest.mark.endurance),  # by those who write several together, too
        pytest.param("written_together", marks=pytest.mark.slow),
    ],
)
def test_a_recipe_is_measured(measured, request):
    """Every contestant gets its turns, each of at least three units, in a process with memory of its own."""
    result = request.getfixturevalue(measured)
    work = contestants(result.recipe, Conditions())
    assert {each.name: each.recipe for each in result.contestants} == work
    for each in result.contestants:
        assert ((each.product_rate or 0) > 1e5) == (each.name in LIBRARIES)
        assert [len(turn) >= 3 for turn in each.turns] == [True, True]
        assert 0 < min(each.seconds) <= median(each.seconds)
    assert result.peak_flops > 1e8
    if peak_memory():
        ours, theirs, *_ = (each.peak_memory for each in result.contestants)
        assert 1e7 < ours < theirs  # PyTorch alone is larger than NumPy with this model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [TORCH, PLAIN])
def test_pytorch_alone(name, dtype):
    """The twin and the plain model take steps on a device, in either precision."""
    unit = unit_of_work(name, TRAIN, replace(ALONE, dtype=dtype))
    assert len(list(timed(unit, 0))) == 3


@pytest.mark.slow
def test_pytorch_alone_is_measured(monkeypatch):
    """The others are compared with the twin, and no library's products with another's."""
    monkeypatch.setattr(bench, "TURN_SECONDS", 0)
    result = bench.run_recipe(TRAIN, ALONE, turns=2)
    record = result.to_dict()
    assert [each["name"] for each in record["contestants"]] == [TORCH, PLAIN]
    assert [each["torch_speed_over_this"][0] > 0 for each in record["contestants"]] == [True, True]
    assert record["numpy_product_speed_over_torch"] is None
    assert result.peak_flops > 1e8


@pytest.mark.slow
def test_the_ways_to_share_are_measured(tmp_path):
    """Under torchrun one process is measured against all, by each way; the leader alone speaks."""
    file = tmp_path / "ways.json"
    flags = ("nano", "--turns", "1", "--json", file)
    (code, out, _), other = ended(start_ranks(2, *flags, command=("bench",), python=NEW))
    assert (code, other) == (0, (0, "", ""))
    machine, *table = out.splitlines()
    assert "2 processes, 1 thread" in machine
    assert [line.split()[0] for line in table] == ["nano", "one", "exact", "overlap", "shard"]
    (found,) = json.loads(file.read_text())["recipes"]
    assert [each["name"] for each in found["contestants"]] == ["one process", "exact", "overlap", "shard"]
    assert all(0 < each["one_process_speed_over_this"][0] < 20 for each in found["contestants"])


def test_peak_memory_is_this_process_alone():
    """A small process started by a large one reports its own size."""
    if not peak_memory():
        pytest.skip("needs Linux or macOS (others do not tell a process's largest memory)")
    large = bytearray(300 << 20)
    large[:: 1 << 12] = b"x" * len(large[:: 1 << 12])
    program = "from harness.training.machine import peak_memory; print(peak_memory())"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 150e6
    assert peak_memory() > 300e6


def test_versions():
    """What computes is named: Python, NumPy, its BLAS, PyTorch and the processor."""
    found = versions()
    assert {"python", "numpy", "torch", "system", "processor"} <= found.keys()
    assert found["torch"] == torch.__version__


def test_command(tmp_path, monkeypatch, run_cli, trained):
    """A row for each contestant on stdout, and the same figures for machines in the file."""
    asked = []
    monkeypatch.setattr(bench, "run_recipe", lambda *what, **how: asked.append((*what, how)) or trained)
    file = tmp_path / "bench.json"
    code, out, _ = run_cli("bench", "nano", "--turns", "2", "--threads", "1", "--json", file)
    assert code == 0
    assert asked == [(RECIPES["nano"], Conditions(threads=1), {"turns": 2})]
    machine, *table = out.splitlines()
    assert machine.startswith(f"{versions()['processor']}, 1 thread, {versions()['blas']}, PyTorch ")
    assert [line.split()[0] for line in table] == ["train", "numpy", "torch", "matrix"]
    assert max(map(len, table)) <= 120
    assert f"NumPy's library is {trained.product_ratio:.2f} x as fast as PyTorch's" in table[-1]
    record = json.loads(file.read_text())
    assert record["versions"] == versions()
    (found,) = record["recipes"]
    ratios = found["contestants"][1]["numpy_speed_over_this"]
    assert f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) x as fast" in out


@pytest.mark.parametrize("ratio", [BUSY - 0.01, BUSY + 0.01])
def test_command_warns_of_a_busy_machine(monkeypatch, run_cli, ratio):
    """One line on stderr with the recipe's name and the ratio."""
    result = _result([[1.0, ratio, ratio]], [[1.0]])
    monkeypatch.setattr(bench, "run_recipe", lambda *what, **how: result)
    _, _, err = run_cli("bench", "nano")
    warned = f"warning: nano: the median time is {ratio:.2f} x the least" in err
    assert warned == (ratio > BUSY)


def test_help_names_the_recipes(run_cli):
    """All of them, in their order."""
    _, out, _ = run_cli("bench", "--help")
    assert ", ".join(RECIPES) in " ".join(out.replace("│", " ").split())


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["giant"], 2, f"unknown recipe 'giant'; choose from {', '.join(RECIPES)}"),
        (["nano", "--turns", "0"], 2, "turns must be at least 1, got 0"),
        (["nano", "--threads", "0"], 2, "threads must be from 1 to 1024, got 0"),
        (["nano", "--dtype", "float16"], 2, "--dtype must be float32 or bfloat16, got 'float16'"),
        (["nano", "--dtype", "bfloat16"], 2, "NumPy has no bfloat16; add --device"),
        (["nano", "--device", "tpu"], 2, "no device 'tpu' for PyTorch"),
        (["decode", "--device", "cpu"], 2, "recipe 'decode' generates, and --device measures training"),
    ],
)
def test_mistakes(monkeypatch, capsys, flags, code, words):
    """Each is one line on stderr, before anything is measured."""
    import cli

    monkeypatch.setattr(sys, "argv", ["cli.py", "bench", *flags])
    assert cli.main() == code
    out, err = capsys.readouterr()
    assert (out, words in err) == ("", True)


def test_a_contestant_that_fails():
    """What a process dies of comes out as one line with its name."""
    impossible = Recipe("", preset("nano", vocab_size=11, context_length=8), prompt_tokens=0, new_tokens=3)
    with pytest.raises(
        bench.UserError, match="numpy cannot be measured: ConfigError: the prompt has no tokens"
    ):
        bench.run_recipe(impossible, Conditions(threads=1), turns=1)


def test_without_pytorch(run_cli, monkeypatch):
    """There is nobody to compare with, and the line says how to get it."""
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = run_cli("bench", "nano")
    assert code == 1
    assert "bench needs PyTorch, which is not installed; run: pip install" in err
