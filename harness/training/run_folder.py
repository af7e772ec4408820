"""A run's folder: its checkpoints, its tokens, its metrics and their plot.

latest/         the last checkpoint written; training goes on from it
best/           the checkpoint with the lowest validation loss
tokens.bin      the tokens that the run trains on, with tokens.json beside it
metrics.jsonl   a line per step and per evaluation
loss.png        their plot
samples.txt     texts written during training, if asked for
tensorboard/    the metrics as TensorBoard reads them, if asked for
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from contract.errors import UserError
from contract.files import replaceable_items, visible_items, write_into
from contract.staging import clear_leftovers
from data.prepare import TOKEN_ENDINGS, token_files
from harness.training.checkpoint import checkpoint_exists, checkpoint_files, import_advice
from harness.training.event_files import is_events_folder
from harness.training.metrics import is_metrics_log, is_plot
from harness.training.run_samples import is_samples

LOCK = ".lock"


class RunFolder:
    """The places inside a run's folder.

    path: the folder; it need not exist yet
    """

    def __init__(self, path: str | os.PathLike):
        self.path = path = Path(path)
        self.latest, self.best = path / "latest", path / "best"
        self.tokens, self.metrics, self.plot = path / "tokens.bin", path / "metrics.jsonl", path / "loss.png"
        self.samples, self.events = path / "samples.txt", path / "tensorboard"
        self._lock = FileLock(path / LOCK)
        self._folder: tuple[int, int] | None = None  # that was locked

    @property
    def resumable(self) -> Path:
        """The checkpoint to continue from: the latest, or the best if a crash came before the first latest."""
        only_best = checkpoint_exists(self.best) and not checkpoint_exists(self.latest)
        return self.best if only_best else self.latest

    def lock(self):
        """Keep other processes from writing to this run until `unlock`. Raises UserError if another has the lock."""
        try:
            if not self._lock.is_locked:
                self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{self.path} is in use: another process trains there; wait for it, or choose another --out"
            ) from None
        self._folder = _identity(self.path)

    def unlock(self):
        """Release the lock, if this object has it."""
        self._lock.release()

    @contextmanager
    def unlocked_on_failure(self) -> Iterator[None]:
        """Release the lock if the block fails; else keep it."""
        try:
            yield
        except BaseException:
            self.unlock()
            raise

    def holds_a_run(self) -> bool:
        """Whether a run was started here, by the marks of its files."""
        log = self.metrics.exists() and is_metrics_log(self.metrics)
        return checkpoint_exists(self.latest) or log or bool(token_files(self.tokens))

    def holds(self, path: Path) -> bool:
        """Whether `path` is the run itself, or a file or checkpoint of it."""
        tokens = map(self.tokens.with_suffix, TOKEN_ENDINGS)
        own = (self.path, self.latest, self.best, *tokens, self.metrics, self.samples)
        return path.resolve() in {each.resolve() for each in own}

    def is_there(self) -> bool:
        """Whether the folder that was locked is still at its path."""
        return self._folder == _identity(self.path)

    def replaceable(self, overwrite: bool, way: str = "continue it with --resume, ") -> list[str]:
        """The names of an earlier run's files here, which a new run replaces; other files stay.

        way: what else to do about a run here, for the message
        Raises UserError if a run is here and `overwrite` is off, or something else has the name of a run's file.
        """
        tokens = map(self.tokens.with_suffix, TOKEN_ENDINGS)
        is_own = {
            **dict.fromkeys(tokens, lambda path: path in token_files(self.tokens)),
            self.metrics: is_metrics_log,
            self.plot: is_plot,
            self.samples: is_samples,
            self.events: is_events_folder,
        }

        def foreign(path: Path) -> Path | None:
            if path in (self.latest, self.best):
                return _foreign_in_checkpoint(path)
            return path if path.is_symlink() or not is_own[path](path) else None

        has_checkpoint = checkpoint_exists(self.resumable)
        taken = f"{self.path} already holds a run{'' if has_checkpoint else ' that has no checkpoint yet'}"
        taken += f"; {way if has_checkpoint else ''}replace it with --overwrite, or choose another --out"
        return replaceable_items(
            [self.latest, self.best, *is_own], foreign, overwrite, kind="run", taken=taken
        )


def _foreign_in_checkpoint(place: Path) -> Path | None:
    """The first item in a checkpoint's folder that is not its own, or None; the folder itself if no checkpoint."""
    own = checkpoint_files(place) if place.is_dir() and not place.is_symlink() else None
    if own is None:
        return place
    return next((place / name for name in visible_items(place) if name not in own), None)


@contextmanager
def new_run(
    run: RunFolder, *, overwrite: bool, way: str = "continue it with --resume, "
) -> Iterator[RunFolder]:
    """A staging folder, whose files move into the run's own if the block succeeds; `run` is then locked.

    way: see `RunFolder.replaceable`
    Raises UserError if a run is there and `overwrite` is off, or the folder's names are taken.
    """
    if run.path.exists() and not run.path.is_dir():
        raise UserError(f"{run.path} is a file, expected a folder; choose another --out")
    run.replaceable(overwrite, way)  # before anything is tokenised

    def replaceable() -> list[str]:
        run.lock()
        return run.replaceable(overwrite, way)  # again: another process may have started a run meanwhile

    with run.unlocked_on_failure(), write_into(run.path, replaceable) as staged:
        yield RunFolder(staged)


@contextmanager
def unused_folder(path: Path) -> Iterator[Path]:
    """A new folder at `path`, or at runs/tense-2 and so on if that is taken; removed if the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            break
    try:
        yield folder
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise


def find_checkpoint(path: str | os.PathLike) -> Path:
    """The checkpoint at `path`: itself, or the best or else the latest of a run folder. Raises UserError if none."""
    path, run = Path(path), RunFolder(path)
    for place in (path, path.parent):
        clear_leftovers(place)
    for place in (path, run.best, run.latest):
        if checkpoint_exists(place):
            return place
    found, way = "no checkpoint", "name the --out folder of a training run"
    if not path.exists():
        found, way = "nothing", f"{way}, or train one first"
        if str(path).count("/") == 1 and str(path)[0] not in "./":
            way += f", or, if that is a model on the hub, {import_advice(path)}"
    elif path.suffix == ".gguf":
        found, way = "a published model", import_advice(path)
    elif path.is_dir() and not any(path.iterdir()):
        found = "an empty folder"
    raise UserError(f"no run at {path}: found {found}; {way}")


def _identity(folder: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        status = folder.stat()
        return status.st_dev, status.st_ino
