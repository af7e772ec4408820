"""What a person sees of a training: lines where there is no terminal, often enough and not too often."""

from types import SimpleNamespace

import pytest

from commands import console
from commands.console import Heartbeat, reading_progress, training_progress
from data.growing import grown
from data.held_out import HeldOut
from data.prepare import prepare
from data.sources import Texts
from data.tokenizers import open_tokenizer
from harness.training.evaluation import Evaluation
from harness.training.trainer import Progress


@pytest.fixture
def said(monkeypatch):
    """The lines said, none of them to a terminal."""
    lines = []
    monkeypatch.setattr(console, "say", lines.append)
    monkeypatch.setattr(console, "console", SimpleNamespace(is_terminal=False))
    monkeypatch.setattr(console, "Progress", Bar)
    return lines


class Bar:
    """A bar that draws nothing."""

    def __init__(self, *columns, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def add_task(self, *arguments, **options):
        pass

    update = reset = add_task


TRAINER = SimpleNamespace(
    settings=SimpleNamespace(batch_size=4, steps=100), windows=SimpleNamespace(sequence_length=8), step=0
)


def train(clock, evaluations=(), spikes=()):
    """Report 100 steps that take 3 seconds each."""
    with training_progress(TRAINER, lambda: clock[0]) as (report, report_evaluation):
        for step in range(1, 101):
            clock[0] += 3
            validation = Evaluation(1.5, 2048) if step in evaluations else None
            report(Progress(step, 2.0, 3.0, validation, step in spikes))
        return report_evaluation


def test_a_log_lives(said):
    """Every ten seconds or so there is a line."""
    train([0.0])
    assert said[0] == "step      4  training loss 2.0000  11 tokens/s"
    assert [int(line.split()[1]) for line in said] == list(range(4, 101, 4))


def test_a_terminal_has_its_bar(said, monkeypatch):
    """Where there is a bar the line now and then is not said."""
    monkeypatch.setattr(console.console, "is_terminal", True)
    train([0.0])
    assert said == []


def test_an_evaluation_says_what_it_is_over(said):
    """Its line has the tokens that the loss is the mean of."""
    train([0.0], evaluations=[4])
    assert said[0] == "step      4  training loss 2.0000  validation loss 1.5000 (2,048 tokens)  11 tokens/s"


def test_many_spikes_are_counted(said, monkeypatch):
    """The first few are said, of the others how many there were, with the next evaluation."""
    monkeypatch.setattr(console.console, "is_terminal", True)
    train([0.0], evaluations=[50, 100], spikes=[3, 10, 11, 12, 30, 60])
    assert said == [
        "step      3  training loss 2.0000, a spike",
        "step     10  training loss 2.0000, a spike",
        "step     11  training loss 2.0000, a spike",
        "step     50  2 more spikes in the training loss",
        "step     50  training loss 2.0000  validation loss 1.5000 (2,048 tokens)  11 tokens/s",
        "step    100  1 more spike in the training loss",
        "step    100  training loss 2.0000  validation loss 1.5000 (2,048 tokens)  11 tokens/s",
    ]


def test_the_final_evaluation(said, monkeypatch):
    """A line when it begins, and one now and then."""
    clock = [0.0]
    report_evaluation = train(clock)
    said.clear()
    monkeypatch.setattr(TRAINER, "step", 100)
    for done in range(0, 10_001, 1000):
        report_evaluation(done, 10_000)
        clock[0] += 4
    assert said[0] == "final evaluation on 10,000 held-out tokens"
    assert said[1:] == [f"final evaluation  {done:,} of 10,000 tokens" for done in (3000, 6000, 9000)]


def test_the_first_evaluation(said):
    """It may be long, so there is a line now and then, and then one with its loss."""
    clock = [0.0]
    with training_progress(TRAINER, lambda: clock[0]) as (report, report_evaluation):
        for done in range(0, 10_001, 1000):
            report_evaluation(done, 10_000)
            clock[0] += 4
        report(Progress(0, None, 0.0, Evaluation(4.5, 10_000), False))
    assert said == [
        *(f"first evaluation  {done:,} of 10,000 tokens" for done in (3000, 6000, 9000)),
        "step      0  validation loss 4.5000 (10,000 tokens)",
    ]


def test_samples_are_in_the_log(said):
    """A sample follows the line of its step, after a step and where a resume makes up for one."""
    with training_progress(TRAINER, lambda: 0.0) as (report, _):
        report(Progress(4, None, 0.0, None, False, "a\nb"))
        report(Progress(5, 2.0, 3.0, Evaluation(1.5, 2048), False, ""))
    assert said == [
        "step      4  sample:\na\nb",
        "step      5  training loss 2.0000  validation loss 1.5000 (2,048 tokens)  11 tokens/s",
        "step      5  sample:\n",
    ]


def test_reading(said, monkeypatch):
    """Tokenising a large file says where it is."""
    clock = [0.0]
    monkeypatch.setattr(console, "Heartbeat", lambda: Heartbeat(lambda: clock[0]))
    with reading_progress(3_000_000, "tokenising") as report:
        for read in range(0, 3_000_001, 500_000):
            report(read)
            clock[0] += 6
    assert said == [f"tokenising  {read} of 3.0 MB" for read in ("1.0", "2.0", "3.0")]


def test_a_second_pass_is_said(said, monkeypatch):
    """A text that is read again starts its count anew, as what it is."""
    clock = [0.0]
    monkeypatch.setattr(console, "Heartbeat", lambda: Heartbeat(lambda: clock[0]))
    with reading_progress(2_000_000, "tokenising") as report:
        for read in (1_000_000, 2_000_000, 1_000_000, 2_000_000, 500_000):
            clock[0] += 11
            report(read)
    assert said == [
        "tokenising  1.0 of 2.0 MB",
        "tokenising  2.0 of 2.0 MB",
        "tokenising, pass 2  1.0 of 2.0 MB",
        "tokenising, pass 2  2.0 of 2.0 MB",
        "tokenising, pass 3  0.5 of 2.0 MB",
    ]


def test_every_pass_over_a_text_is_reported(tmp_path):
    """Looking for its bytes is one, learning tokens from it another; a text to validate on is not counted."""
    text, other = tmp_path / "text.txt", tmp_path / "other.txt"
    size = 3 << 20
    text.write_bytes(b"the sound \n" * (size // 11))
    other.write_text("the end\n" * 1000)
    size, seen = text.stat().st_size, []
    prepare(text, "bytes", tmp_path / "a.bin", held_out=HeldOut(text=other), progress=seen.append)
    once = [1 << 20, 2 << 20, size]
    assert seen == once * 2
    tokenizer = open_tokenizer("bytes", other)
    seen.clear()
    grown(tokenizer, [Texts.of(text), Texts.of(other)], 3, seen.append)
    assert seen == once * 2
