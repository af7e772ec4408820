"""Every preset, made small: what is trained resumes, writes, is evaluated and described, in either backend."""

import pytest

from contract.presets import PRESETS

SMALL = ("--n-layer", 2, "--n-head", 4, "--d-model", 32, "--context-length", 24, "--sequence-length", 12)
FEW = ("--batch-size", 2, "--threads", 1, "--eval-tokens", 24)


EVERY = [name for name in PRESETS if not name.startswith("gpt2-")]
FIRST_IN_TORCH = ("nano", "gemma-3-270m")  # the others are trained by PyTorch, too, but after NumPy


@pytest.mark.parametrize(
    ("preset", "backend"),
    [
        *((name, "numpy") for name in EVERY),
        *(
            pytest.param(name, "torch", marks=() if name in FIRST_IN_TORCH else pytest.mark.endurance)
            for name in EVERY
        ),
    ],
)
def test_a_small_one_does_everything(preset, backend, run_cli, text, tmp_path):
    """Sequences are shorter than the context, and the generated text is longer than it."""
    run, by = tmp_path / "run", ("--backend", backend)
    code, _, error = run_cli(
        "train", "--text", text, "--preset", preset, *SMALL, *FEW, "--steps", 2, "--out", run, *by
    )
    assert code == 0, error
    assert "2 x 12 tokens each" in error
    other = "torch" if backend == "numpy" else "numpy"
    assert run_cli("train", "--resume", "--out", run, "--steps", 3, "--backend", other)[0] == 0
    code, written, _ = run_cli("generate", run, "--max-new-tokens", 30, "--temperature", 0, *by)
    assert (code, bool(written)) == (0, True)
    assert (
        run_cli("generate", run, "--max-new-tokens", 30, "--temperature", 0, "--backend", other)[1] == written
    )
    assert run_cli("evaluate", run, "--sequence-length", 7, *by)[0] == 0
    code, described, _ = run_cli("info", run)
    assert code == 0
    assert ("layers " in described) == (PRESETS[preset]["position"] == "rotary")
    assert "kv_cache_bytes" in described


@pytest.mark.parametrize("preset", [name for name in PRESETS if PRESETS[name]["position"] == "rotary"])
def test_parity_of_a_trained_one(preset, run_cli, text, tmp_path):
    """`parity` finds no difference in a trained model of the family."""
    run = tmp_path / "run"
    assert (
        run_cli("train", "--text", text, "--preset", preset, *SMALL, *FEW, "--steps", 3, "--out", run)[0] == 0
    )
    code, out, _ = run_cli("parity", run)
    assert (code, "DIFFERS" in out) == (0, False)
