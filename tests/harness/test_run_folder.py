"""A run's folder: nothing in it is lost by a run that fails to start, and its log survives a crash."""

import json
import os
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from contract.errors import UserError
from contract.presets import preset
from contract.weights import initial_weights
from data.prepare import open_prepared, prepare
from harness.training.checkpoint import Checkpoint, save_checkpoint
from harness.training.event_files import EVENTS
from harness.training.metrics import MetricsLog, plot_metrics, read_metrics
from harness.training.run_folder import RunFolder, find_checkpoint, new_run, unused_folder
from harness.training.run_samples import SampleLog


def listing(folder: Path) -> dict[str, bytes]:
    """Every file with its content, but for the lock, which stays."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


ROW = {"step": 1, "loss": 2.0, "learning_rate": 0.1, "gradient_norm": 1.0}


@pytest.fixture
def old_run(tmp_path):
    """A folder with an older run, all that one can have, and files of the user's own."""
    run = RunFolder(tmp_path / "run")
    (tmp_path / "text.txt").write_text("abcdefg" * 9)
    run.path.mkdir()
    prepare(tmp_path / "text.txt", "bytes", run.tokens)
    tokenizer = open_prepared(run.tokens)[1]
    (tmp_path / "text.txt").unlink()
    config = preset("tense", vocab_size=tokenizer.n_vocab, n_layer=1, d_model=4)
    for place in (run.latest, run.best):
        save_checkpoint(place, Checkpoint(config, initial_weights(config, 0, "float32"), tokenizer))
    with MetricsLog(run.metrics) as log:
        log.write(**ROW)
    plot_metrics(run.metrics, run.plot)
    SampleLog(run.samples, 0).write(1, "text")
    run.events.mkdir()
    (run.events / f"{EVENTS}123.host").write_bytes(b"")
    for folder in ("latest.old", "best.new", "samples"):
        (run.path / folder).mkdir()
        (run.path / folder / "mine.txt").write_text("mine")
    (run.path / "notes.txt").write_text("mine")
    return run


@pytest.mark.parametrize("trace", ["latest", "latest.old", "metrics.jsonl"])
def test_holds_a_run(tmp_path, trace):
    """A checkpoint, also one whose replacement was interrupted, a log or tokens each mean a run; others do not."""
    run = RunFolder(str(tmp_path))
    for name in ("notes.txt", "tokens.bin", "tokens.json", "loss.png"):
        (tmp_path / name).write_text("mine")
    assert not run.holds_a_run()
    if trace.startswith("latest"):
        (tmp_path / trace).mkdir()
        assert not run.holds_a_run()
        (tmp_path / trace / "config.json").write_text("{}")
    else:
        (tmp_path / trace).write_text("")
    assert run.holds_a_run()


def test_a_new_run_appears_whole(tmp_path):
    """Files are staged and take their places once the block has gone well."""
    path = tmp_path / "runs" / "first"
    with new_run(RunFolder(path), overwrite=False) as staged:
        staged.tokens.write_text("tokens")
        assert not RunFolder(path).holds_a_run()
    assert listing(tmp_path) == {str(Path("runs", "first", "tokens.bin")): b"tokens"}


def test_the_folder_one_stands_in(old_run, monkeypatch):
    """A run is found at "." too."""
    monkeypatch.chdir(old_run.path)
    assert find_checkpoint(".") == Path("best")


def test_an_old_run_is_refused(old_run, tmp_path):
    """Without overwrite a folder with a run is refused, and stays as it is."""
    before = listing(tmp_path)
    with pytest.raises(UserError, match="already holds a run"), new_run(old_run, overwrite=False):
        pytest.fail("the block was entered")
    assert listing(tmp_path) == before


def test_a_run_that_cannot_start_replaces_nothing(old_run, tmp_path):
    """An error in the block leaves the old run, and nothing beside it."""
    before = listing(tmp_path)

    def start():
        with new_run(old_run, overwrite=True) as staged:
            staged.tokens.write_text("new tokens")
            raise UserError("too short")

    with pytest.raises(UserError, match="too short"):
        start()
    assert listing(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_overwriting_replaces_the_run_alone(old_run):
    """The old run's files go, the user's own stay."""
    with new_run(old_run, overwrite=True) as staged:
        staged.tokens.write_text("new tokens")
    assert listing(old_run.path) == {
        "tokens.bin": b"new tokens",
        "notes.txt": b"mine",
        **{str(Path(folder, "mine.txt")): b"mine" for folder in ("latest.old", "best.new", "samples")},
    }


def test_a_folder_without_a_run_is_used(tmp_path):
    """A folder that is there already, the user's own files in it, takes a run without being asked twice."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with new_run(RunFolder(tmp_path / "run"), overwrite=False) as staged:
        staged.tokens.write_text("tokens")
    assert listing(tmp_path / "run") == {"tokens.bin": b"tokens", "notes.txt": b"mine"}


@pytest.mark.parametrize(("training", "words"), [(True, "is in use"), (False, "already holds a run")])
def test_a_run_started_in_the_meantime(tmp_path, training, words):
    """Of two processes that start a run in one folder the later finds the earlier's, and leaves it."""
    late, early = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")

    def start():
        with new_run(late, overwrite=False) as staged:
            staged.tokens.write_text("late")
            with new_run(early, overwrite=False) as staged, MetricsLog(staged.metrics) as log:
                log.write(**ROW)
            if not training:
                early.unlock()

    with pytest.raises(UserError, match=words):
        start()
    assert list(read_metrics(early.metrics)) == [ROW]
    early.unlock()


def test_a_run_is_locked_from_its_start(tmp_path):
    """A new run is locked when it stands, and unlocked for all at once."""
    run, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with new_run(run, overwrite=False) as staged:
        staged.tokens.write_text("tokens")
    run.lock()
    with pytest.raises(UserError, match="is in use"):
        other.lock()
    run.unlock()
    other.lock()
    other.unlock()


def test_a_file_in_the_way(tmp_path):
    """A file where the folder should be is refused, and stays."""
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="is a file"), new_run(RunFolder(tmp_path / "run"), overwrite=True):
        pytest.fail("the block was entered")
    assert (tmp_path / "run").read_text() == "mine"


def test_unused_folder(tmp_path):
    """A taken name gets the next free number, at once, so that nobody else gets it; an error gives it back."""
    with unused_folder(tmp_path / "tense") as first, unused_folder(tmp_path / "tense") as second:
        assert (first, second) == (tmp_path / "tense", tmp_path / "tense-2")
    with pytest.raises(FileNotFoundError), unused_folder(tmp_path / "tense") as third:
        (third / "nowhere" / "file").read_bytes()
    assert (first.is_dir(), third.name, third.exists()) == (True, "tense-3", False)


def test_find_checkpoint(tmp_path):
    """A run means its best checkpoint, else its latest; a checkpoint's own folder means itself."""
    run = RunFolder(tmp_path)
    for place in (run.latest, run.best):
        place.mkdir()
        (place / "config.json").write_text("{}")
        assert find_checkpoint(tmp_path) == place
    assert find_checkpoint(run.latest) == run.latest


@pytest.mark.parametrize(
    ("make", "found"), [("nothing", "nothing"), ("empty", "an empty folder"), ("other", "no ch")]
)
def test_no_checkpoint(tmp_path, make, found):
    """Where there is none, the error says what was found instead."""
    folder = tmp_path / "run"
    if make != "nothing":
        folder.mkdir()
    if make == "other":
        (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=f"no run at .*found {found}"):
        find_checkpoint(folder)


def test_metrics_after_a_resume(tmp_path):
    """Going on from step 2 keeps the rows up to it, drops later ones and a line cut short by a crash."""
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in (1, 2, 3):
            log.write(**ROW | {"step": step})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    with MetricsLog(path, after_step=2) as log:
        log.write(**ROW | {"step": 3, "loss": 9.0})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        ROW,
        ROW | {"step": 2},
        ROW | {"step": 3, "loss": 9.0},
    ]
    with MetricsLog(path):  # a new run begins a new log
        pass
    assert list(read_metrics(path)) == []
    assert list(read_metrics(tmp_path / "absent")) == []


def test_a_crash_after_a_resume_loses_no_row(tmp_path):
    """The rows of the earlier part are on the disk as soon as the log is open, before anything is flushed."""
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in (1, 2, 3):
            log.write(**ROW | {"step": step})
    with MetricsLog(path, after_step=2) as log:
        log.write(**ROW | {"step": 3})
        assert [row["step"] for row in read_metrics(path)][:2] == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_damaged_line_costs_no_other(tmp_path):
    """Lines that are no rows are left out, each by itself."""
    path = tmp_path / "metrics.jsonl"
    good = [ROW | {"step": step} for step in range(1, 38)]
    bad = [b"{}x", b"5", b'{"step": "a"}', b"\xff", b"[" * 200_000, b'{"step": 9, "lo']
    values = (b"null", b'"x"', b"[1]", b"{}", b"true", b"NaN", b"-Infinity", b"1" * 400)
    names = (b"loss", b"validation_loss", b"final_validation_loss")
    bad += [b'{"step": 2, "%b": %b}' % (name, value) for name in names for value in values]
    bad += [b'{"step": %b, "loss": 1.0}' % step for step in (b"-1", b"0", b"-" + b"1" * 400, b"1.5", b"true")]
    bad += [b'{"step": 2}', b'{"step": 2, "loss": 1.0, "validation_loss": 1.0}']
    lines = [
        line for pair in zip((json.dumps(row).encode() for row in good), bad, strict=True) for line in pair
    ]
    path.write_bytes(b"\n".join(lines))
    assert list(read_metrics(path)) == good
    with MetricsLog(path, after_step=4) as log:
        assert log.kept == good[:4]
    assert list(read_metrics(path)) == good[:4]


def test_a_row_can_be_read_at_once(tmp_path):
    """Whoever follows the log sees a row as soon as it is written."""
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.write(step=1, loss=1.0)
        assert list(read_metrics(tmp_path / "metrics.jsonl")) == [{"step": 1, "loss": 1.0}]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full (Linux)")
def test_a_log_without_room(tmp_path):
    """A row that finds no room names the file, once."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log._file.close()
    log._file = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written \(No space left.*--resume"), log:
        log.write(step=1, loss=1.0)


def test_flushing_brings_the_rows_to_the_disk(tmp_path, monkeypatch):
    """After `flush` every row written can be read, and the system was told to store the file."""
    stored = []
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        monkeypatch.setattr(os, "fsync", lambda handle: stored.append(os.fstat(handle).st_ino))
        log.write(step=1, loss=1.0)
        log.flush()
        assert list(read_metrics(tmp_path / "metrics.jsonl")) == [{"step": 1, "loss": 1.0}]
        assert stored == [(tmp_path / "metrics.jsonl").stat().st_ino]


@pytest.mark.parametrize("evaluated", [True, False])
def test_plot(tmp_path, monkeypatch, evaluated):
    """The plot is a whole PNG of both losses over the steps, also before the first evaluation."""
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        for step in (1, 2, 3):
            log.write(step=step, loss=2.0 / step)
        if evaluated:
            log.write(step=3, validation_loss=2.1, validation_tokens=8)
            log.write(step=3, final_validation_loss=5.0, final_validation_tokens=99)  # of other tokens
    figures, save = [], Figure.savefig

    def note_save(figure, *arguments, **options):
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", note_save)
    plot_metrics(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    lines = [line.get_xydata().tolist() for line in figures[0].axes[0].lines]
    assert lines == [[[1, 2.0], [2, 1.0], [3, 2.0 / 3]], [[3, 2.1]]][: 1 + evaluated]
    image = (tmp_path / "loss.png").read_bytes()
    assert image.startswith(b"\x89PNG\r\n")
    assert image[-8:-4] == b"IEND"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]


def test_a_plot_cut_short_replaces_nothing(tmp_path, monkeypatch):
    """A plot that fails half way leaves the earlier one as it was."""
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.write(step=1, loss=2.0)
    plot_metrics(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    earlier = (tmp_path / "loss.png").read_bytes()

    def full(figure, file, **options):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(UserError, match="No space left"):
        plot_metrics(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes() == earlier
