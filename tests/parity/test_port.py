"""The C examples: a stranger's program reads a raw pack, verifies its own layers, and its mistakes are explained."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from parity.golden.export import export_pack
from parity.golden.packs import committed

SOURCE = Path(__file__).parents[2] / "examples" / "port.c"
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)

# The example has the layer norm alone.
PACKS = [name for name, recipe in committed().items() if recipe.config.norm == "layer_norm"]

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler (apt-get install gcc libc6-dev)")


def _compiled(source: str, folder: Path, *flags: str) -> Path:
    program = folder / "port"
    (folder / "port.c").write_text(source, encoding="utf-8")
    options = ("-std=c99", "-Wall", "-Wextra", "-pedantic", *flags)
    subprocess.run([COMPILER, *options, "-o", program, folder / "port.c", "-lm"], check=True)
    return program


def _run(program: Path, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture(scope="module")
def ports(tmp_path_factory):
    """The example, compiled in both precisions."""
    source = SOURCE.read_text(encoding="utf-8")
    folders = {dtype: tmp_path_factory.mktemp(dtype) for dtype in ("float32", "float64")}
    return {
        "float32": _compiled(source, folders["float32"], "-O2"),
        "float64": _compiled(source, folders["float64"], "-DREAL=double"),
    }


@pytest.fixture(scope="module")
def raw(tmp_path_factory, packs):
    """A raw export of each pack, in float64."""
    folders = {name: tmp_path_factory.mktemp(name) for name in packs}
    for name, pack in packs.items():
        export_pack(pack, "raw", folders[name])
    return folders


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PACKS)
def test_the_layers_agree(name, dtype, ports, raw):
    """Layer norm and attention, forward and backward, within the limits of the precision."""
    result = _run(ports[dtype], raw[name])
    assert result.returncode == 0, result.stdout
    lines = result.stdout.splitlines()
    assert lines[-1] == "every tensor agrees"
    assert len(lines) == (20 if name == "untied-no-bias" else 23)
    assert all(line.startswith("ok ") for line in lines[:-1])


@pytest.mark.parametrize(
    ("old", "new", "tensor", "explanation"),
    [
        ("sqrt(variance + eps)", "(sqrt(variance) + eps)", "final_norm", "norm_eps_outside"),
        ("weight[c] - mean_dn - normal", "weight[c] - normal", "gradient.blocks.0.residual_2", "dnorm_without_mean"),
        (" - normal * mean_dn_n", "", "gradient.blocks.0.residual_2", "dnorm_without_variance"),
        ("key[s * D + d] * scale;\n        }", "key[s * D + d];\n        }",
         "blocks.0.attention.scores", "scale_missing"),
        ("for (int s = 0; s <= t; s++) p[s] /= total;", "", "blocks.0.attention.probabilities", "softmax_without_sum"),
        ("p[s] * (dp[s] - sum)", "p[s] * dp[s]", "gradient.blocks.0.attention.scores", "dsoftmax_without_sum"),
        ("query[t * D + d] * scale;\n            }", "query[t * D + d];\n            }",
         "gradient.blocks.0.attention.key", "dscores_without_scale"),
        ("merged[IN_ROWS(1, b, t, 0, h, d)] = heads[IN_HEADS(b, h, t, d)]",
         "merged[IN_ROWS(1, b, t, 0, h, d)] = heads[IN_ROWS(1, b, t, 0, h, d)]",
         "blocks.0.attention.output", "merge_without_swap"),
    ],
)  # fmt: skip
def test_a_mistake_in_c_is_explained(old, new, tensor, explanation, tmp_path, raw, run_cli):
    """The program sees that it is off; its dump, checked, says where and why."""
    source = SOURCE.read_text(encoding="utf-8")
    assert old in source
    (tmp_path / "dump").mkdir()
    program = _compiled(source.replace(old, new), tmp_path, "-Wno-unused")
    result = _run(program, raw["relu-sinusoidal"], tmp_path / "dump")
    assert result.returncode == 1
    assert "OFF" in result.stdout
    code, stdout, _ = run_cli("check", tmp_path / "dump", "--golden", "relu-sinusoidal", "--json")
    first = json.loads(stdout)["faults"][0]
    assert code == 1
    assert (first["name"], first["explanations"][0]["name"]) == (tensor, explanation)


def test_a_right_dump_passes_the_check(tmp_path, ports, packs, run_cli):
    """From a pack exported in float32, too."""
    (tmp_path / "dump").mkdir()
    export_pack(packs["gpt2-tied"], "raw", tmp_path / "pack", dtype="float32")
    assert _run(ports["float32"], tmp_path / "pack", tmp_path / "dump").returncode == 0
    code, stdout, _ = run_cli("check", tmp_path / "dump", "--golden", "gpt2-tied")
    assert code == 0
    assert stdout.startswith("gpt2-tied, float32: all 22 tensors agree")


@pytest.mark.parametrize("arguments", [[], ["absent"], ["."]])
def test_wrong_uses(arguments, ports, tmp_path):
    """One line and exit code 2."""
    result = subprocess.run(
        [ports["float32"], *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1


NORM = r"""
#include <math.h>
#include "dump.h"
int main(void) {
    static double x[22][8], weight[8];
    float y[22][8];
    FILE *stream = fopen("pack/blocks.1.residual_2.bin", "rb"), *scale = fopen("pack/final_norm.weight.bin", "rb");
    if (!stream || !scale || fread(x, 8, 176, stream) != 176 || fread(weight, 8, 8, scale) != 8) return 1;
    for (int n = 0; n < 22; n++) {
        double square = 0;
        for (int c = 0; c < 8; c++) square += x[n][c] * x[n][c] / 8;
        for (int c = 0; c < 8; c++) y[n][c] = x[n][c] / sqrt(square + 1e-3) * weight[c];
    }
    DUMP(&y[0][0], 176, "model.%s", "norm");
    return 0;
}
"""


def test_the_header_dumps_a_tensor(tmp_path, packs, run_cli, monkeypatch):
    """Under a name of transformers where DUMP_TO says; without it, nothing; an absent folder ends the run."""
    export_pack(packs["llama"], "raw", tmp_path / "pack")
    (tmp_path / "dump.h").write_text((SOURCE.parent / "dump.h").read_text(encoding="utf-8"), encoding="utf-8")
    program = _compiled(NORM, tmp_path)
    for folder in (None, "dump", "absent"):
        if folder == "dump":
            (tmp_path / folder).mkdir()
        monkeypatch.delenv("DUMP_TO", raising=False)
        if folder:
            monkeypatch.setenv("DUMP_TO", folder)
        done = subprocess.run([program], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == (2 if folder == "absent" else 0), done.stderr
    assert [path.name for path in (tmp_path / "dump").iterdir()] == ["model.norm.bin"]
    code, stdout, _ = run_cli("check", tmp_path / "dump", "--golden", "llama")
    assert (code, stdout.splitlines()[0]) == (0, "llama, float32: the tensor agrees; 136 not in your dump")
