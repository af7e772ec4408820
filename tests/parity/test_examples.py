"""The examples in Python: each dumps a model of the folder that `golden export` makes, for the check.

The one in C is held by test_port.py.
"""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run_example(tmp_path, run_cli, monkeypatch):
    """A function that runs an example's text on a pack's folder: where its dump is."""

    def run(source: str, pack: str) -> Path:
        folder, program, out = tmp_path / "folder", tmp_path / "example.py", tmp_path / "dump.npz"
        assert (
            run_cli("golden", "export", pack, "--format", "huggingface", "--out", folder, "--overwrite")[0]
            == 0
        )
        program.write_text(source, encoding="utf-8")
        monkeypatch.setattr(sys, "argv", [str(program), str(folder), str(out)])
        runpy.run_path(str(program), run_name="__main__")
        return out

    return run


@pytest.mark.parametrize("pack", ["gemma3", "gpt2-tied", "llama", "qwen3"])
def test_hooks_of_pytorch(pack, run_example, run_cli):
    """Hugging Face's class, its outputs and gradients under its own names."""
    pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
    pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")
    dump = run_example((EXAMPLES / "hooks_pytorch.py").read_text(encoding="utf-8"), pack)
    code, stdout, _ = run_cli("check", dump, "--golden", pack, "--json")
    record = json.loads(stdout.splitlines()[-1])
    assert (code, record["dtype"]) == (0, "float32")
    assert record["compared"] >= 68
    assert "blocks.0.residual_1" in {each["name"] for each in record["tensors"]}
    assert not any(name.endswith("layernorm.input") for name in record["unknown"])


def test_any_module_is_recorded():
    """A module that runs twice, one that gives a tuple, one that writes into its input, one in bfloat16."""
    torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
    from parity.golden.hooks import record

    class Pair(torch.nn.Module):
        def forward(self, x):
            return 2 * x, torch.ones(2, dtype=torch.int64), 3 * x

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.pair = torch.nn.Linear(2, 2, bias=False), Pair()

        def forward(self, x):
            y = self.linear(x)
            first, _, third = self.pair(y * 1)
            first += 1
            return self.linear(first + third).bfloat16()

    model = Model()
    with torch.no_grad():
        model.linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    x = torch.tensor([[1.0, 1.0]])

    def run(model):
        y = model(x)
        return {"y": y, "loss": y.float().sum()}

    found = record(model, run)
    expected = {
        "linear": [[3, 7]], "linear.input": [[1, 1]], "pair": [[6, 14]], "pair.1": [[9, 21]], "pair.input": [[3, 7]],
        "linear@2": [[88, 192]], "y": [[88, 192]], "gradient.y": [[1, 1]], "linear@2.grad": [[1, 1]],
        "pair.1.grad": [[4, 6]], "pair.input.grad": [[20, 30]], "linear.grad": [[20, 30]],
        "linear.weight": [[1, 2], [3, 4]], "linear.weight.grad": [[16 + 20, 36 + 20], [16 + 30, 36 + 30]],
    }  # fmt: skip
    for name, numbers in expected.items():
        assert np.array_equal(found[name], numbers), name
    assert all(each.dtype == np.float32 for each in found.values())
    assert not any(module._forward_hooks for module in model.modules())
    again = record(model, run)
    assert all(np.array_equal(again[name], each) for name, each in found.items())
    assert "gradient.y" not in record(model, lambda model: {"y": model(x)})


@pytest.mark.parametrize(
    ("old", "new", "tensor", "explanation"),
    [
        ("", "", None, None),
        (" * D**-0.5", "", "blocks.0.attention.scores", "scale_missing"),
        (" + eps)", " + 1e-6)", "blocks.0.norm_1", "rms_eps_other"),
    ],
    ids=["right", "scale", "eps"],
)  # fmt: skip
def test_taps_of_jax(old, new, tensor, explanation, run_example, run_cli):
    """A Llama in JAX agrees; with a mistake, the check says where and which."""
    pytest.importorskip("jax", reason="needs JAX (pip install jax)")
    source = (EXAMPLES / "taps_jax.py").read_text(encoding="utf-8")
    assert old in source
    dump = run_example(source.replace(old, new) if old else source, "llama")
    code, stdout, _ = run_cli("check", dump, "--golden", "llama", "--json")
    record = json.loads(stdout.splitlines()[-1])
    assert record["unknown"] == []
    assert code == bool(tensor)
    if tensor is None:
        assert record["compared"] == 105
        return
    first = record["faults"][0]
    assert (first["name"], first["explanations"][0]["name"]) == (tensor, explanation)
