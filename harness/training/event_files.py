"""A run's metrics as TensorBoard reads them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import time

from contract.errors import explaining, needs

EVENTS = "events.out.tfevents."  # how the names of TensorBoard's files begin
FLUSH_SECONDS = 10  # between a step and its point in TensorBoard


def check_tensorboard():
    """Raise UserError if TensorBoard is not installed."""
    with needs("--tensorboard", "tensorboard", ["tensorboard"], ", or omit the option"):
        import tensorboard  # noqa: F401


@contextmanager
def event_file(folder: Path, after_step: int) -> Iterator[Callable[[dict], None]]:
    """A new event file in `folder`; yields the function that writes a row of the metrics to it.

    after_step: TensorBoard then drops what an earlier session wrote of later steps
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    def add(step: int, **content):
        with _named_errors(folder):
            writer.add_event(Event(step=step, wall_time=time(), **content))

    def write(row: dict):
        values = [Summary.Value(tag=name, simple_value=row[name]) for name in row if name != "step"]
        add(row["step"], summary=Summary(value=values))

    with _named_errors(folder):
        writer = EventFileWriter(str(folder), flush_secs=FLUSH_SECONDS)
    add(after_step + 1, session_log=SessionLog(status=SessionLog.START))
    try:
        yield write
    finally:
        writer.close()


def _named_errors(folder: Path):
    advice = "free disk space or fix permissions, or omit --tensorboard"
    return explaining(f"{folder}: cannot be written", advice)


def is_events_folder(path: Path) -> bool:
    """Whether a folder holds TensorBoard's event files and nothing else."""
    return path.is_dir() and all(each.name.startswith(EVENTS) for each in path.iterdir())
