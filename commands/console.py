"""What a person sees: talk and bars on stderr, so that stdout carries results alone, each by one function."""

import sys
from contextlib import contextmanager
from pathlib import Path

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
from harness.trainer import Progress as TrainingProgress
from harness.trainer import Trainer


class _Console(Console):
    def show_cursor(self, show: bool = True) -> bool:
        """Leave the cursor alone: hidden beside a bar, it would stay so after a process that was killed."""
        return False


console = _Console(stderr=True, highlight=False, markup=False, emoji=False)


def say(line: str):
    """Print a line of talk on stderr."""
    console.print(visible(line), soft_wrap=True)


@contextmanager
def reading_progress(path: Path, task: str):
    """A bar over the bytes of a file; gives the function that takes the bytes read so far.

    Where stderr is no terminal nothing is drawn.
    """
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    size = path.stat().st_size if path.is_file() else None
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        row = bar.add_task(task, total=size)
        yield lambda read: bar.update(row, completed=read)


@contextmanager
def training_progress(trainer: Trainer):
    """A bar over the steps with loss, tokens per second and time left, and a line for each evaluation.

    Gives the function that takes the trainer's reports. Where stderr is no terminal only the lines appear.
    """
    tokens = trainer.settings.batch_size * trainer.windows.context_length
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task("", total=trainer.settings.steps, completed=trainer.step)
        smooth_seconds = None

        def report(progress: TrainingProgress):
            nonlocal smooth_seconds
            seconds = progress.seconds
            smooth_seconds = seconds if smooth_seconds is None else 0.95 * smooth_seconds + 0.05 * seconds
            rate = tokens / smooth_seconds
            bar.update(
                row, completed=progress.step, description=f"loss {progress.loss:.3f}  {rate:,.0f} tokens/s"
            )
            if progress.spike:
                say(f"step {progress.step:>6}  training loss {progress.loss:.4f}, a spike")
            if progress.validation_loss is not None:
                say(
                    f"step {progress.step:>6}  training loss {progress.loss:.4f}  "
                    f"validation loss {progress.validation_loss:.4f}  {rate:,.0f} tokens/s"
                )

        yield report


def show(line: str = ""):
    """Print a line of results on stdout."""
    write(f"{visible(line)}\n")


def write(text: str):
    """Put text on stdout at once: its very bytes into a file or a pipe, escapes made visible on a terminal.

    What stdout's encoding lacks becomes a question mark. Raises typer.Exit where its reader has seen enough,
    UserError where it cannot be written.
    """
    fit_stdout()
    try:
        sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise typer.Exit(0) from None
    except OSError as error:
        raise UserError(f"stdout cannot be written ({error.strerror or error})") from None
