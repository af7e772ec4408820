"""Samples that a run writes while it trains: when, of what, and after an interruption."""

import pytest

from contract.errors import UserError
from harness.training import evaluation_plan
from harness.training.run_samples import SAMPLE_TOKENS, SampleLog, is_samples, sample
from harness.training.runs import open_model, resume_run
from tests.harness.small_runs import BACKENDS, rows


@pytest.fixture(autouse=True)
def short_evaluations(monkeypatch):
    monkeypatch.setattr(evaluation_plan, "QUICK_EVALUATION_WINDOWS", 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_at_every_so_many_steps(start, backend):
    """They are in the reports and in the file, are the model's own, and change no bit of the training."""
    settings = {"overrides": {"dropout": 0.2}, "backend": backend}
    trainer, plain, told = start(sample_every=8, **settings), start("plain", **settings), []
    trainer.report = told.append
    trainer.train()
    plain.train()
    samples = {progress.step: progress.sample for progress in told if progress.sample is not None}
    assert list(samples) == [8, 16]
    assert len(samples[16]) == SAMPLE_TOKENS
    lines = {step: "".join(f"  {line}\n" for line in text.split("\n")) for step, text in samples.items()}
    assert trainer.run.samples.read_text() == f"step 8\n{lines[8]}step 16\n{lines[16]}"
    assert rows(trainer.run) == rows(plain.run)
    assert not plain.run.samples.exists()
    for name, value in plain.backend.weights().items():
        assert (trainer.backend.weights()[name] == value).all(), name


def test_a_sample_is_of_the_weights(start):
    """The sample of a step is what the checkpoint of that step writes."""
    trainer, told = start(sample_every=20), []
    trainer.report = told.append
    trainer.train()
    backend, checkpoint = open_model(trainer.run.latest)
    again = "".join(sample(backend, checkpoint.tokenizer, trainer.validation, trainer.settings.seed))
    assert again == told[-1].sample


def test_samples_outlive_an_interruption(start):
    """Stopped at a step with a sample and between two, a run has the samples of a straight one, each once."""
    straight, trainer = start("straight", sample_every=4), start(sample_every=4)
    straight.train()
    for stop in (7, 8, 12):
        trainer.interrupted = lambda trainer=trainer, stop=stop: trainer.step == stop
        trainer.train()
        trainer = resume_run(trainer.run.path)
    told = []
    trainer.report = told.append
    trainer.train()
    assert trainer.run.samples.read_text() == straight.run.samples.read_text()
    assert [progress.step for progress in told if progress.sample] == [12, 16, 20]


def test_samples_after_the_checkpoint_are_written_again(start):
    """Killed after a sample that no checkpoint knows of, a run has it once in the end."""
    straight, trainer = start("straight", sample_every=4), start(sample_every=4)
    straight.train()

    def die(progress):
        if progress.step == 9:
            raise KeyboardInterrupt

    trainer.report = die
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert "step 8\n" in trainer.run.samples.read_text()
    resumed = resume_run(trainer.run.path)
    assert resumed.step == 5
    resumed.train()
    assert resumed.run.samples.read_text() == straight.run.samples.read_text()


def test_the_file_of_samples(tmp_path):
    """Any text is kept as it is but for its margin, and a line of it is never taken for a heading."""
    path = tmp_path / "samples.txt"
    log = SampleLog(path, 0)
    texts = ["step 9\nstep 10\n", "a\r\n\n b\u2028c\ud800", ""]
    for step, text in zip((5, 10, 15), texts, strict=True):
        log.write(step, text)
    assert is_samples(path)
    whole = path.read_bytes()
    assert SampleLog(path, 15).last_step == 15
    again = SampleLog(path, 12)
    assert again.last_step == 10
    again.write(15, "")
    assert path.read_bytes() == whole
    assert (
        whole == "step 5\n  step 9\n  step 10\n  \nstep 10\n  a\r\n  \n   b\u2028c?\nstep 15\n  \n".encode()
    )


def test_a_file_of_the_users_is_kept(start):
    """What no run wrote stays, at the start and on resume."""
    trainer = start(steps=3)
    trainer.train()
    trainer.run.samples.write_text("mine")
    with pytest.raises(UserError, match=r"samples\.txt is in the place of the run's samples"):
        resume_run(trainer.run.path, training={"steps": 6, "sample_every": 2}).train()
    del trainer  # Windows removes no file that is still open
    with pytest.raises(UserError, match=r"samples\.txt already exists and belongs to no run, so it is kept"):
        start(overwrite=True)


def test_overwrite_takes_the_samples_away(start):
    """A new run in the folder has none of the old one's."""
    trainer = start(sample_every=4)
    trainer.train()
    samples = trainer.run.samples
    assert samples.exists()
    del trainer  # Windows removes no file that is still open
    start(overwrite=True)
    assert not samples.exists()
