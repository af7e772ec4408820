"""A run's metrics: their log, their table and their plot."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path

from contract.errors import UserError
from contract.files import open_regular, write_file

_SOFTWARE = "twin-gpt"  # what a plot says that it was made with
LOSSES = ("loss", "validation_loss", "final_validation_loss")  # of which a row of the metrics has one


class MetricsLog:
    """`metrics.jsonl`: a JSON object per step or evaluation, written at once; each has one of `LOSSES`.

    after_step: keep the rows of an earlier session up to this step; kept: those rows
    observe: is called with every row that is written
    Raises UserError if the file cannot be written.
    """

    def __init__(
        self, path: Path, *, after_step: int = 0, observe: Callable[[dict], None] = lambda row: None
    ):
        self._path, self._observe = path, observe
        if os.path.lexists(path) and not is_metrics_log(path):
            raise UserError(f"{path} is in the place of the run's log, but no run wrote it; move it away")
        self.kept = [row for row in read_metrics(path) if row["step"] <= after_step] if after_step else []
        # Rewritten beside the log and renamed: a crash right after a resume loses no earlier row.
        with write_file(path, overwrite=True) as file:
            file.writelines(f"{json.dumps(row)}\n".encode() for row in self.kept)
        self._file = path.open("a", encoding="utf-8", buffering=1)  # lines, for who follows the run

    def write(self, **row):
        """Append a row."""
        with self._named_errors():
            self._file.write(f"{json.dumps(row)}\n")
        self._observe(row)

    def flush(self):
        """Bring what was written to the disk."""
        with self._named_errors():
            self._file.flush()
            os.fsync(self._file.fileno())

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written ({error.strerror or error}); free disk space or fix permissions, "
                "then continue with --resume"
            ) from error

    def __enter__(self):
        return self

    def __exit__(self, kind, *exception):
        # After a failure of the run itself, a row that cannot be written needs no second error.
        with suppress(OSError) if kind else self._named_errors():
            self._file.close()


def read_metrics(path: Path) -> Iterator[dict]:
    """The rows of a metrics file, without damaged lines; none if there is no file."""
    if path.exists():
        with open_regular(path) as file:
            yield from _rows(file.read().splitlines())


def _rows(lines: list[bytes]) -> Iterator[dict]:
    """The lines that a run may have written."""
    for line in lines:
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if _is_row(row):
                yield row


def _is_row(row) -> bool:
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return False
    if not ("loss" in row) <= row["step"] < 2**63:  # step 0 has an evaluation alone
        return False
    losses = [row[name] for name in LOSSES if name in row]
    return all(type(loss) in (int, float) and abs(loss) < 1e300 for loss in losses) and len(losses) == 1


def metrics_csv(rows: Iterable[dict]) -> str:
    """The rows as a table with a column per name, empty where a row lacks it."""
    rows, table = list(rows), StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def plot_metrics(metrics: Path, image: Path):
    """Draw training and validation loss over the steps."""
    from matplotlib.figure import Figure  # takes half a second to import, so only when a plot is drawn

    rows = list(read_metrics(metrics))
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    training = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    validation = [(row["step"], row["validation_loss"]) for row in rows if "validation_loss" in row]
    axes.plot(*zip(*training, strict=True), color="#9ab8d6", linewidth=0.8, label="training batch")
    if validation:
        style = {"color": "#c0392b", "marker": "o", "markersize": 3, "label": "held-out split"}
        axes.plot(*zip(*validation, strict=True), **style)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    save_plot(figure, image)


def check_plot(image: Path):
    """Raise UserError if something else is in a plot's place."""
    if os.path.lexists(image) and not is_plot(image):
        raise UserError(f"{image} is in the place of the run's plot, but no run drew it; move it away")


def save_plot(figure, image: Path):
    """Write a Matplotlib figure to a file, over an earlier plot."""
    check_plot(image)
    with write_file(image, overwrite=True) as file:
        figure.savefig(file, format="png", metadata={"Software": _SOFTWARE})


def _beginning(path: Path, size: int) -> bytes | None:
    """The first bytes of a file, None if it cannot be read."""
    with suppress(OSError), open_regular(path) as file:
        return file.read(size)


def is_metrics_log(path: Path) -> bool:
    """Whether a file is a log of `MetricsLog`, or empty."""
    beginning = _beginning(path, 1 << 16)
    rows = _rows((beginning or b"").splitlines())
    kinds = {"loss", "learning_rate", "gradient_norm"}, {"validation_loss", "validation_tokens"}
    return beginning == b"" or any(row.keys() >= kind for row in rows for kind in kinds)


def is_plot(path: Path) -> bool:
    """Whether a file is a plot of `save_plot`; an older one names Matplotlib alone, so its size must fit too."""
    beginning = _beginning(path, 1 << 12) or b""
    size = (960).to_bytes(4, "big") + (540).to_bytes(4, "big")
    older = beginning[16:24] == size and b"tEXtSoftware\0Matplotlib" in beginning
    return beginning.startswith(b"\x89PNG") and (older or f"tEXtSoftware\0{_SOFTWARE}".encode() in beginning)
