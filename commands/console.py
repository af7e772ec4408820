"""Output: messages and progress bars on stderr, results alone on stdout, each through one function."""

import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from commands.streams import fit_stdout
from contract.errors import UserError, visible
from harness.training.trainer import Progress as TrainingProgress
from harness.training.trainer import Trainer


class _Console(Console):
    def show_cursor(self, show: bool = True) -> bool:
        """Keep the cursor visible: a killed process could not show it again."""
        return False


console = _Console(stderr=True, highlight=False, markup=False, emoji=False)


def say(line: str):
    """Print a line of talk on stderr."""
    console.print(visible(line), soft_wrap=True)


class Heartbeat:
    """Prints a line every `SECONDS` if stderr is no terminal, so that a log shows progress.

    clock: gives seconds
    """

    SECONDS = 10

    def __init__(self, clock: Callable[[], float] = monotonic):
        self._clock, self._last = clock, clock()

    def say(self, line: Callable[[], str]):
        """Print what `line` returns, unless a line was printed a short while ago."""
        if not console.is_terminal and self._clock() - self._last >= self.SECONDS:
            self._last = self._clock()
            say(line())


@contextmanager
def reading_progress(path: Path, task: str):
    """A bar over the bytes of a file; gives the function that takes the bytes read so far.

    Where stderr is no terminal it is a line now and then.
    """
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    size = path.stat().st_size if path.is_file() else None
    heartbeat = Heartbeat()
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        row = bar.add_task(task, total=size)

        def report(read: int):
            bar.update(row, completed=read)
            heartbeat.say(lambda: f"{task}  {read / 1e6:,.1f} of {(size or read) / 1e6:,.1f} MB")

        yield report


MAX_SPIKE_LINES = 3


@contextmanager
def training_progress(trainer: Trainer, clock: Callable[[], float] = monotonic):
    """A bar over the steps with loss, tokens per second and time left, and a line for each evaluation.

    Gives two functions: one takes the trainer's reports, the other those of its final evaluation. Where stderr is no
    terminal the lines appear alone, and one now and then between them.
    """
    tokens, steps = trainer.settings.batch_size * trainer.windows.context_length, trainer.settings.steps
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    heartbeat, spikes = Heartbeat(clock), SpikeLines()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task("", total=steps, completed=trainer.step)
        smooth_seconds = None

        def report(progress: TrainingProgress):
            nonlocal smooth_seconds
            seconds = progress.seconds
            smooth_seconds = seconds if smooth_seconds is None else 0.95 * smooth_seconds + 0.05 * seconds
            rate = f"{tokens / smooth_seconds:,.0f} tokens/s"
            bar.update(row, completed=progress.step, description=f"loss {progress.loss:.3f}  {rate}")
            line = f"step {progress.step:>6}  training loss {progress.loss:.4f}"
            spikes.update(progress, line)
            if progress.validation:
                loss, over = progress.validation
                say(f"{line}  validation loss {loss:.4f} ({over:,} tokens)  {rate}")
            else:
                heartbeat.say(lambda: f"{line}  {rate}")

        def report_evaluation(done: int, total: int):
            if done == 0:
                say(f"final evaluation on {total:,} held-out tokens")
                bar.reset(row, total=total, description="final evaluation")
            bar.update(row, completed=done)
            heartbeat.say(lambda: f"final evaluation  {done:,} of {total:,} tokens")

        yield report, report_evaluation


class SpikeLines:
    """Says the first spikes of the training loss one by one, of the later ones how many there were."""

    def __init__(self):
        self._said = self._more = 0

    def update(self, progress: TrainingProgress, line: str):
        """Take the report of a step; line: what is said of the step."""
        if progress.spike and self._said < MAX_SPIKE_LINES:
            self._said += 1
            say(f"{line}, a spike")
        elif progress.spike:
            self._more += 1
        if progress.validation and self._more:
            say(
                f"step {progress.step:>6}  {self._more} more spike{'s' * (self._more > 1)} of the training loss"
            )
            self._more = 0


def show(line: str = ""):
    """Print a line of results on stdout."""
    write(f"{visible(line)}\n")


def write(text: str):
    """Put text on stdout at once: its very bytes into a file or a pipe, escapes made visible on a terminal.

    What stdout's encoding lacks becomes a question mark. Raises typer.Exit if its reader has seen enough,
    UserError if it cannot be written.
    """
    fit_stdout()
    try:
        sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise typer.Exit(0) from None
    except OSError as error:
        raise UserError(f"stdout cannot be written ({error.strerror or error})") from None
