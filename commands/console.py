"""What a person sees while the program works: all of it on stderr, so that stdout carries results alone."""

import signal
import sys
from contextlib import contextmanager
from pathlib import Path

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

from harness.trainer import Progress as TrainingProgress
from harness.trainer import Trainer

console = Console(stderr=True, highlight=False)


def say(line: str):
    """Print a line of talk, as it is."""
    console.print(line, markup=False, soft_wrap=True)


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


@contextmanager
def interruptible():
    """Turn the first Ctrl-C or termination signal into a question; gives the function that answers it.

    The second one interrupts at once, as usual.
    """
    seen = False

    def note(number, frame):
        nonlocal seen
        seen = True
        say("stopping after this step, to save a checkpoint; once more to leave at once")
        for each in handlers:
            signal.signal(each, handlers[each])

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in handlers:
        signal.signal(number, note)
    try:
        yield lambda: seen
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def write(text: str):
    """Put text on stdout at once, as it is; what the terminal's encoding lacks becomes a question mark."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()
