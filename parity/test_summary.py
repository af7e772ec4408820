"""`python cli.py parity`: the comparison on the user's own checkpoint and machine."""

import json
import re
import sys

import numpy as np
import pytest
import torch

import cli
from contract.config import ModelConfig
from contract.presets import preset
from contract.trace import Trace
from contract.weights import weight_table
from data.tokenizers import encoding_of
from harness.training.checkpoint import Checkpoint, save_checkpoint
from parity.cases import lively_weights
from parity.compare import Comparison, Row
from parity.summary import MOST_TOKENS, PRESETS, SEQUENCES, summary, table, versions
from torch_llm import GPT

CONFIG = ModelConfig(
    vocab_size=11, context_length=6, n_layer=2, n_head=2, d_model=8, d_ff=12, activation="gelu_tanh",
    position="learned", dropout=0.2,
)  # fmt: skip


@pytest.fixture
def run_cli(capsys, monkeypatch):
    """A function that runs `cli.py parity`: exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cli.py", "parity", *map(str, arguments)])
        return cli.main(), *capsys.readouterr()

    return run


@pytest.fixture
def checkpoint(tmp_path):
    """The folder of a model that was trained with dropout."""
    tokenizer = encoding_of("bytes", [bytes([byte]) for byte in range(97, 97 + CONFIG.vocab_size)])
    folder = tmp_path / "model"
    save_checkpoint(folder, Checkpoint(CONFIG, lively_weights(CONFIG, 1, "float32"), tokenizer))
    return folder


@pytest.fixture
def broken_attention(monkeypatch):
    """PyTorch as a faulty build might be: its fused attention sees the future."""
    real = torch.nn.functional.scaled_dot_product_attention

    def attend(query, key, value, mask=None, is_causal=False, **settings):
        return real(query, key, value, mask, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)


def tensor_names(config: ModelConfig) -> list[str]:
    """What the table must list: each traced tensor and its gradient, each weight twice, logits and loss again."""
    trace, tokens = Trace(), torch.zeros((1, 1), dtype=torch.int64)
    GPT(config)(tokens, tokens, trace=trace)
    names, weights = list(trace.activations), list(weight_table(config))
    return sorted([*names, *names, *weights, "logits", "loss", *weights])


def rows(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.endswith((" ok", " DIFFERS"))]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_checkpoint(run_cli, checkpoint, dtype):
    """Every tensor has a row with its shape, error and limit; the last line is the verdict."""
    code, out, err = run_cli(checkpoint, "--dtype", dtype)
    assert (code, err) == (0, "")
    assert sorted(row.split()[0] for row in rows(out)) == tensor_names(CONFIG)
    assert re.search(
        rf"  blocks\.1\.attention\.scores  +{SEQUENCES}x2x6x6  +\d\.\de-\d\d  +\de-\d\d  ok\n", out
    )
    assert re.fullmatch(
        rf"{re.escape(str(checkpoint))} in {dtype}: all {len(rows(out))} tensors agree; worst error "
        r"\d\.\de-\d\d, limit \de-\d\d, in .+",
        out.splitlines()[-1],
    )
    table = [line for line in out.splitlines() if "model" not in line]
    assert max(map(len, table)) <= 100


def test_rounding_is_said(checkpoint):
    """Where float32 does not determine a tensor to its limit, table and summary say so."""
    rows = [
        Row("gradient", "a", (2,), 3e-6, 1e-5),
        Row("gradient", "b", (2,), 2e-5, 4e-5, rounding=1e-5),
    ]
    comparison = Comparison("a model", "float32", 0, rows)
    assert [line.split()[-1] for line in table(comparison)][-2:] == ["ok", "rounding"]
    assert "all 2 tensors agree, 1 of them only as far as float32 determines them (up to 2.0e-05" in summary(
        comparison
    )


def test_without_a_run(run_cli):
    """The usual presets are compared with weights that are not the initial ones, in lines that fit a terminal."""
    code, out, _ = run_cli()
    assert code == 0
    for name, vocab_size in PRESETS.items():
        config = preset(name, vocab_size=vocab_size)
        assert f"preset {name} in float32: all {len(tensor_names(config))} tensors agree" in out
        assert config.context_length <= MOST_TOKENS
    assert max(map(len, rows(out))) <= 90


def test_the_run_is_what_is_compared(run_cli, checkpoint, tmp_path):
    """The values in the file are those of the checkpoint's weights, of the seed's tokens and masks."""
    found = []
    for seed in (3, 3, 4):
        assert run_cli(checkpoint, "--seed", seed, "--json", tmp_path / "parity.json", "--overwrite")[0] == 0
        tensors = json.loads((tmp_path / "parity.json").read_text())["comparisons"][0]["tensors"]
        found.append({(row["quantity"], row["name"]): row["reference"] for row in tensors})
    assert found[0] == found[1] != found[2]
    weights = lively_weights(CONFIG, 1, "float32")["token_embedding.weight"]
    assert np.float32(found[0]["activation", "token_embedding"]) in weights


def test_a_divergence(run_cli, checkpoint, broken_attention, tmp_path):
    """A faulty fused attention is found where it is: in the untraced path alone, with exit code 1."""
    config = preset("tense", vocab_size=PRESETS["tense"])
    code, out, _ = run_cli("--json", tmp_path / "parity.json")
    assert code == 1
    differing = [row for row in rows(out) if row.endswith("DIFFERS")]
    assert 0 < len(differing) < len(rows(out))
    summary = out.splitlines()[-2]
    assert re.match(
        rf"preset tense in float32: \d+ of {len(tensor_names(config))} tensors differ, first in dataflow order "
        r"untraced output logits\[\d+, \d+, \d+\]: reference -?[\d.e-]+, twin -?[\d.e-]+, error .*--dtype float64",
        summary,
    )
    record = json.loads((tmp_path / "parity.json").read_text())
    assert record["holds"] is False
    wrong = {row["quantity"] for each in record["comparisons"] for row in each["tensors"] if not row["holds"]}
    assert wrong == {"untraced output", "untraced gradient"}
    assert run_cli(checkpoint)[0] == 0  # with dropout attention is not fused


def test_json(run_cli, checkpoint, tmp_path):
    """The file says what was compared, with which versions, and is written whole or not at all."""
    path = tmp_path / "parity.json"
    assert run_cli(checkpoint, "--json", path)[0] == 0
    record = json.loads(path.read_text())
    assert record["holds"] is True
    assert (record["device"], record["compiled"]) == ("cpu", False)
    assert record["versions"] == versions()
    assert all(record["versions"].values())
    assert {"python", "numpy", "blas", "torch", "system", "processor"} <= record["versions"].keys()
    (comparison,) = record["comparisons"]
    assert (comparison["dtype"], comparison["seed"]) == ("float32", 0)
    assert sorted(row["name"] for row in comparison["tensors"]) == tensor_names(CONFIG)
    fields = {
        "quantity",
        "name",
        "shape",
        "error",
        "limit",
        "index",
        "reference",
        "twin",
        "problem",
        "rounding",
        "holds",
    }
    assert comparison["tensors"][0].keys() == fields
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model", "parity.json"]


def test_numbers_that_json_lacks(run_cli, checkpoint, monkeypatch, tmp_path):
    """Where a value is not a number the file has null, and the table says where."""
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim: x * float("nan"))
    code, out, _ = run_cli(checkpoint, "--json", tmp_path / "parity.json")
    assert code == 1
    assert "    nan in the twin at [0, 0, 0, 0]" in out
    tensors = json.loads((tmp_path / "parity.json").read_text())["comparisons"][0]["tensors"]
    assert next(row for row in tensors if not row["holds"])["error"] is None


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--dtype", "float16"], 2, "--dtype must be float32 or float64, got float16"),
        (["--seed", "-1"], 2, "--seed must be from 0"),
        (["--device", "tpu"], 2, "no device 'tpu'"),
        (["nowhere"], 1, "no run at nowhere"),
        (["--json", "no/such/folder.json"], 1, "cannot be written"),
    ],
)
def test_mistakes(run_cli, flags, code, words):
    """Each is one line on stderr."""
    found, _, err = run_cli(*flags)
    assert found == code
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1


def test_without_pytorch(run_cli, monkeypatch):
    """Where PyTorch is missing, one line says how to get it."""
    monkeypatch.delitem(sys.modules, "parity.summary")
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = run_cli()
    assert code == 1
    assert err.startswith("error: parity needs PyTorch, which is not installed; run: pip install")


def test_without_a_compiler(run_cli, checkpoint, monkeypatch):
    """Where nothing can be compiled, one line says what is missing."""

    def compile(model):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", compile)
    code, _, err = run_cli(checkpoint, "--compile")
    assert code == 1
    assert "torch.compile does not work here (InvalidCxxCompiler: No working C++ compiler found)" in err
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what PyTorch's compiler says about PyTorch
def test_compiled(run_cli, checkpoint):
    """`torch.compile` makes the same outputs and weights' gradients, masks of dropout included."""
    code, out, err = run_cli(checkpoint, "--compile")
    if "torch.compile does not work here" in err:
        pytest.skip(f"needs what torch.compile needs (apt-get install g++): {err.strip()}")
    assert code == 0
    assert sorted(row.split()[0] for row in rows(out)) == sorted([*weight_table(CONFIG), "logits", "loss"])
