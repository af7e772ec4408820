"""Printing: messages and progress bars on stderr, results alone on stdout."""

import sys
from collections.abc import Callable
from contextlib import contextmanager
from time import monotonic

import typer
from rich import progress as bars
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import Progress

from commands.streams import fit_stdout
from contract.errors import UserError, reason_of, visible
from harness.training.find_rate import Trial
from harness.training.trainer import Progress as TrainingProgress
from harness.training.trainer import Trainer


class _Console(Console):
    def show_cursor(self, show: bool = True) -> bool:
        """Leave the cursor alone: a killed process would leave it hidden."""
        return False


def _open_console(**stream) -> Console:
    return _Console(**stream, highlight=False, markup=False, emoji=False)


console = _open_console(stderr=True)


def say(line: str):
    """Print a message on stderr."""
    console.print(visible(line), soft_wrap=True)


class Heartbeat:
    """Prints a line every `SECONDS`, by the seconds of `clock`, if stderr is not a terminal."""

    SECONDS = 10

    def __init__(self, clock: Callable[[], float] = monotonic):
        self._clock, self._last = clock, clock()

    def say(self, line: Callable[[], str]):
        """Print a line, unless one was printed less than `SECONDS` ago."""
        if not console.is_terminal and self._clock() - self._last >= self.SECONDS:
            self._last = self._clock()
            say(line())


def _bar(*columns) -> Progress:
    return Progress(
        *columns,
        bars.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@contextmanager
def reading_progress(size: int | None, task: str):
    """A progress bar over the bytes of files, None if unknown; yields the function to call with the bytes read so far.

    Files that are read more than once, such as a text whose bytes become its tokenizer, start the bar again: it then
    says in which pass. If stderr is not a terminal, a line every `Heartbeat.SECONDS` replaces the bar.
    """
    columns = bars.TextColumn("{task.description}"), bars.BarColumn(), bars.DownloadColumn()
    heartbeat, before, passes = Heartbeat(), 0, 1
    with _bar(*columns, bars.TransferSpeedColumn()) as bar:
        row = bar.add_task(task, total=size)

        def report(read: int):
            nonlocal before, passes
            if read < before:
                passes += 1
                bar.reset(row, total=size, description=f"{task}, pass {passes}")
            before, shown = read, f"{task}, pass {passes}" if passes > 1 else task
            bar.update(row, completed=read)
            heartbeat.say(lambda: f"{shown}  {read / 1e6:,.1f} of {(size or read) / 1e6:,.1f} MB")

        yield report


@contextmanager
def import_progress():
    """A progress bar over the bytes of a model; yields the function to call with tensors and bytes, done and all."""
    heartbeat = Heartbeat()
    with _bar(bars.TextColumn("{task.description}"), bars.BarColumn(), bars.DownloadColumn()) as bar:
        row = bar.add_task("importing", total=None)

        def report(tensors: int, all_tensors: int, read: int, size: int):
            count = f"importing, tensor {tensors:,} of {all_tensors:,}"
            bar.update(row, completed=read, total=size, description=count)
            heartbeat.say(lambda: f"{count}  {read / 1e6:,.1f} of {size / 1e6:,.1f} MB")

        yield report


MAX_SPIKE_LINES = 3


@contextmanager
def training_progress(trainer: Trainer, clock: Callable[[], float] = monotonic):
    """A progress bar over the steps with loss, tokens per second and time left, and a line per evaluation.

    Yields two functions: one takes the trainer's reports, the other those of its first and its final evaluation. If
    stderr is not a terminal, a line every `Heartbeat.SECONDS` replaces the bar.
    """
    with _bar(bars.BarColumn(), bars.MofNCompleteColumn(), bars.TextColumn("{task.description}")) as bar:
        lines = _TrainingLines(trainer, bar, Heartbeat(clock))
        yield lines.report, lines.report_evaluation


class _TrainingLines:
    def __init__(self, trainer: Trainer, bar: Progress, heartbeat: Heartbeat):
        self.trainer, self.bar, self.heartbeat = trainer, bar, heartbeat
        self.tokens = trainer.settings.batch_size * trainer.windows.sequence_length
        self.row = bar.add_task("", total=trainer.settings.steps, completed=trainer.step)
        self.smooth_seconds, self.spikes = None, SpikeLines()

    def report(self, progress: TrainingProgress):
        if progress.loss is None:
            self._report_no_step(progress)
        else:
            self._report_step(progress)
        if progress.sample is not None:
            say(f"step {progress.step:>6}  sample:\n{progress.sample}")

    def _report_no_step(self, progress: TrainingProgress):
        if progress.validation:
            say(f"step {progress.step:>6}  {_validation(progress)}")
        total = self.trainer.settings.steps
        self.bar.reset(self.row, total=total, completed=progress.step, description="")

    def _report_step(self, progress: TrainingProgress):
        seconds, before = progress.seconds, self.smooth_seconds
        self.smooth_seconds = seconds if before is None else 0.95 * before + 0.05 * seconds
        rate = f"{self.tokens / self.smooth_seconds:,.0f} tokens/s"
        self.bar.update(self.row, completed=progress.step, description=f"loss {progress.loss:.3f}  {rate}")
        line = f"step {progress.step:>6}  training loss {progress.loss:.4f}"
        self.spikes.update(progress, line)
        if progress.validation:
            say(f"{line}  {_validation(progress)}  {rate}")
        else:
            self.heartbeat.say(lambda: f"{line}  {rate}")

    def report_evaluation(self, done: int, total: int):
        which = "final evaluation" if self.trainer.step else "first evaluation"
        if done == 0:
            if self.trainer.step:
                say(f"{which} on {total:,} held-out tokens")
            self.bar.reset(self.row, total=total, description=which)
        self.bar.update(self.row, completed=done)
        self.heartbeat.say(lambda: f"{which}  {done:,} of {total:,} tokens")


@contextmanager
def rate_progress(steps: int):
    """A progress bar over the steps of `--find-rate`, or a line now and then; yields the function that takes them."""
    heartbeat = Heartbeat()
    with _bar(bars.BarColumn(), bars.MofNCompleteColumn(), bars.TextColumn("{task.description}")) as bar:
        row = bar.add_task("", total=steps)

        def report(step: int, trial: Trial):
            line = f"learning rate {trial.rate:.1e}  loss {trial.loss:.3f}"
            bar.update(row, completed=step, description=line)
            heartbeat.say(lambda: f"step {step:>6}  {line}")

        yield report


def _validation(progress: TrainingProgress) -> str:
    loss, over = progress.validation
    return f"validation loss {loss:.4f} ({over:,} tokens)"


class SpikeLines:
    """Reports the first spikes of the training loss one by one, and counts later ones until an evaluation."""

    def __init__(self):
        self._said = self._more = 0

    def update(self, progress: TrainingProgress, line: str):
        """Take the report of a step, which `line` describes."""
        if progress.spike and self._said < MAX_SPIKE_LINES:
            self._said += 1
            say(f"{line}, a spike")
        elif progress.spike:
            self._more += 1
        if progress.validation and self._more:
            spikes = f"{self._more} more spike{'s' * (self._more > 1)}"
            say(f"step {progress.step:>6}  {spikes} in the training loss")
            self._more = 0


def live_view(view: RenderableType) -> Live:
    """Draws `view` on stdout, a terminal, again and again, and erases it at the end."""
    fit_stdout()
    return Live(
        get_renderable=lambda: view,
        console=_open_console(file=sys.stdout),
        transient=True,
        refresh_per_second=4,
    )


def show(line: str = ""):
    """Print a line of results on stdout."""
    write(f"{visible(line)}\n")


def write(text: str):
    """Write text to stdout and flush: unchanged to a file or a pipe, with visible escapes on a terminal.

    Characters missing from stdout's encoding become question marks. Raises typer.Exit if the reader has closed
    the pipe, UserError if writing fails.
    """
    fit_stdout()
    try:
        sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise typer.Exit(0) from None
    except OSError as error:
        raise UserError(f"stdout cannot be written ({reason_of(error)})") from None
