"""Runs in bfloat16: what their checkpoints hold, who opens them, and how they go on."""

import numpy as np
import pytest

from contract.errors import ConfigError
from harness.training.checkpoint import load_checkpoint
from harness.training.runs import open_model, resume_run, start_run
from tests.harness.launched import bits, train_alone, train_ranks
from tests.harness.small_runs import needs_torch, rows

pytestmark = needs_torch
TOKENS = np.arange(8).reshape(1, 8) % 5


def test_a_run_and_its_checkpoint(start):
    """Weights and moments are float32, NumPy opens them, and they evaluate as the run did."""
    trainer = start(backend="torch", dtype="bfloat16")
    trainer.train()
    checkpoint = load_checkpoint(trainer.run.latest, with_optimizer=True)
    assert checkpoint.training["dtype"] == "bfloat16"
    tensors = [*checkpoint.weights.values(), *checkpoint.optimizer.values()]
    assert {tensor.dtype.name for tensor in tensors} == {"float32"}
    ours, theirs = (open_model(trainer.run.latest, backend=name, threads=1)[0] for name in ("numpy", "torch"))
    wanted = trainer.backend.evaluate(TOKENS, TOKENS)
    assert theirs.evaluate(TOKENS, TOKENS) == wanted
    assert ours.evaluate(TOKENS, TOKENS) == pytest.approx(wanted, rel=1e-5)


def test_a_run_is_near_the_same_run_in_float32(start):
    losses = {}
    for dtype in ("float32", "bfloat16"):
        trainer = start(dtype, backend="torch", dtype=dtype)
        trainer.train()
        losses[dtype] = [row["loss"] for row in rows(trainer.run) if "loss" in row]
    assert losses["bfloat16"] != losses["float32"]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], atol=0.01)


def test_a_resumed_run_goes_on_in_bfloat16(start):
    """It ends with the bits of a straight one; another type, or NumPy, is refused."""
    straight, halted = (
        start("straight", backend="torch", dtype="bfloat16"),
        start("halted", backend="torch", dtype="bfloat16"),
    )
    straight.train()
    halted.interrupted = lambda: halted.step == 10
    halted.train()
    with pytest.raises(ConfigError, match="--dtype float32 would change the run"):
        resume_run(halted.run.path, training={"dtype": "float32"})
    with pytest.raises(
        ConfigError, match="NumPy has no bfloat16, which --dtype asks for; choose --backend torch"
    ):
        resume_run(halted.run.path, backend="numpy")
    again = resume_run(halted.run.path)
    assert again.step == 10
    assert again.settings.dtype == "bfloat16"
    again.train()
    ends = [load_checkpoint(run.path / "latest", with_optimizer=True) for run in (straight.run, halted.run)]
    for name, value in ends[0].weights.items():
        np.testing.assert_array_equal(ends[1].weights[name], value)
    for name, value in ends[0].optimizer.items():
        np.testing.assert_array_equal(ends[1].optimizer[name], value)


def test_a_trace_is_in_float32(start):
    """A step in bfloat16 can be traced, as it is to say where a tensor is no longer finite."""
    trainer = start(backend="torch", dtype="bfloat16")
    trace = trainer.backend.trace(TOKENS, TOKENS, step=0)
    assert {value.dtype.name for value in trace.activations.values()} == {"float32"}
    assert {value.dtype.name for value in trace.gradients.values()} == {"float32"}


@pytest.mark.slow
def test_drift_of_the_modern_preset(tmp_path):
    """The first step of a run with all defaults: `docs/scale.md` has the figures, which `-s` shows."""
    found = []
    for dtype in ("float32", "bfloat16"):
        run = start_run(
            tmp_path / dtype, preset_name="modern", backend="torch", threads=1, training={"dtype": dtype}
        )
        batch = run.windows.batch(0, run.settings.batch_size)
        loss = run.backend.loss_and_gradients(*batch, step=0, accumulate=1)
        found.append((loss, [weight.grad.numpy() for weight in run.backend.model.parameters()]))
    (loss, full), (other, half) = found
    whole = np.linalg.norm([np.linalg.norm(each) for each in full])
    apart = [np.abs(one - two) for one, two in zip(full, half, strict=True)]
    drift = np.linalg.norm([np.linalg.norm(each) for each in apart]) / whole
    worst = max(each.max() / np.abs(one).max() for each, one in zip(apart, full, strict=True))
    print(f"loss {loss:.6f}, apart {other - loss:.1e}; gradients {drift:.1e}, worst weight {worst:.1e}")
    assert abs(other - loss) < 5e-4
    assert drift < 8e-3
    assert worst < 2e-2


@pytest.mark.slow
def test_the_same_bits_on_two_processes(run_cli, text, tmp_path):
    model = "--preset modern --n-layer 1 --d-model 16 --d-ff 24 --n-head 2 --context-length 8"
    settings = "--dtype bfloat16 --batch-size 8 --accumulate 4 --steps 6 --eval-interval 3"
    common = ["--text", text, *model.split(), *settings.split()]
    train_alone(run_cli, *common, "--out", tmp_path / "alone")
    train_ranks(2, *common, "--out", tmp_path / "shared")
    assert bits(tmp_path / "shared") == bits(tmp_path / "alone")
