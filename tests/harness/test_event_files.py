"""TensorBoard's event files hold the metrics, also over a resume."""

import sys

import pytest

from contract.errors import UserError
from harness.training.event_files import check_tensorboard, event_file, is_events_folder
from harness.training.runs import resume_run
from tests.harness.small_runs import rows


def test_without_tensorboard(monkeypatch):
    """Its absence is one line with the command that installs it."""
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r'which is not installed; run: pip install .*"\.\[tensorboard\]"'):
        check_tensorboard()


def test_an_events_folder(tmp_path):
    """Only a folder of event files alone is a run's."""
    (tmp_path / "events.out.tfevents.1.host.2.0").write_bytes(b"")
    assert is_events_folder(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert not is_events_folder(tmp_path)
    assert not is_events_folder(tmp_path / "notes.txt")


def test_every_row_is_an_event(start):
    """TensorBoard reads what the metrics say; steps after the checkpoint of a resume are there once."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs TensorBoard (pip install -e '.[tensorboard]')",
    )
    trainer = start()

    def die(progress):
        if progress.step == 8:
            raise KeyboardInterrupt

    trainer.report = die
    with pytest.raises(KeyboardInterrupt), event_file(trainer.run.events, 0) as trainer.observe:
        trainer.train()
    resumed = resume_run(trainer.run.path)
    assert resumed.step == 5
    with event_file(resumed.run.events, 5) as resumed.observe:
        resumed.train()
    events = accumulator.EventAccumulator(str(resumed.run.events)).Reload()
    log = rows(resumed.run)
    tags = {name for row in log for name in row} - {"step"}
    assert set(events.Tags()["scalars"]) == tags >= {"loss", "validation_loss", "learning_rate"}
    for tag in tags:
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        wanted = [(row["step"], row[tag]) for row in log if tag in row]
        assert [step for step, _ in found] == [step for step, _ in wanted]
        assert [value for _, value in found] == pytest.approx([value for _, value in wanted])
