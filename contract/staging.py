"""Atomic changes of several files: all or none, even if the process dies.

New items are made in a staging folder inside their target folder, so on the same file system:

    FOLDER/.0123456789abcdef.twin-gpt-tmp/
        new/    what is being made
        old/    what it replaces, moved here once `new` is complete and on the disk
        go/     `new`, renamed once everything old has moved: the point of no return

The staging folder is locked while its process lives. The next writer in FOLDER finishes or undoes the change of a dead
process. It touches only what is in the staging folder.
"""

import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path

from contract.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there, and what a killed process left stays
    fcntl = None

STAGED = ".twin-gpt-tmp"
_NAME = re.compile(rf"\.[0-9a-f]{{16}}{re.escape(STAGED)}")
_PARTS = {"new", "old", "go", "gone"}


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A locked staging folder with an empty `new` in it, removed after the block."""
    clear_leftovers(folder)
    place = folder / f".{secrets.token_hex(8)}{STAGED}"
    with ExitStack() as locks:
        try:  # from before it is made: Ctrl-C may come anywhere
            while not os.path.exists(place):  # until it is locked, another may remove it as a dead one's
                place.mkdir()
                locks.enter_context(_locked(place))
            (place / "new").mkdir()
            yield place
        finally:
            _finish(place, folder)  # after an error or Ctrl-C in the middle of the change
            _remove(place)


def commit(staged: Path, folder: Path, replaceable: Callable[[], Collection[str]]):
    """Move what was made in `staged` into `folder`, and what it replaces out of the way."""
    names = os.listdir(staged / "new")
    for name in names:
        _flush(staged / "new" / name)
    with _locked(Path(os.path.realpath(folder))):
        going = replaceable()
        if taken := [name for name in sorted({*names} - {*going}) if os.path.lexists(folder / name)]:
            raise UserError(
                f"{folder / taken[0]} has appeared in the meantime and is kept; choose another name"
            )
        if len(names) == 1 and {*going} <= {*names} and not (folder / names[0]).is_dir():
            os.replace(staged / "new" / names[0], folder / names[0])
            _flush_folder(folder)
            return
        (staged / "old").mkdir()
        try:
            for name in going:
                if Path(name).name == name and os.path.lexists(folder / name):
                    os.replace(folder / name, staged / "old" / name)
            _flush_folder(folder)
            os.replace(staged / "new", staged / "go")
            _flush_folder(staged)
            _finish(staged, folder)
        except OSError:
            _take_back(staged, folder, names)
            raise


def _take_back(staged: Path, folder: Path, names: Collection[str]):
    """Undo a change that failed halfway, so that `_finish` restores what it would have replaced."""
    if (staged / "go").is_dir():
        for name in names:
            if not os.path.lexists(staged / "go" / name):
                os.replace(folder / name, staged / "go" / name)
        os.replace(staged / "go", staged / "new")


def _finish(staged: Path, folder: Path):
    """Move the rest into `folder`: the new items if `go` exists, else the old ones."""
    source = staged / "go" if os.path.isdir(staged / "go") else staged / "old"
    if os.path.isdir(source):
        for name in os.listdir(source):
            if not os.path.lexists(folder / name):
                os.replace(source / name, folder / name)
        _flush_folder(folder)


def _remove(staged: Path):
    """Remove a staging folder, hiding first what `replaced_folders` finds: no reader sees half of it."""
    with suppress(OSError):
        os.replace(staged / "old", staged / "gone")
    shutil.rmtree(staged, ignore_errors=True)


def clear_leftovers(folder: Path):
    """Remove what dead writers left in `folder`, after finishing the changes that they had begun."""
    found = []
    with suppress(OSError):
        found = [place for place in folder.iterdir() if is_staging(place)]
    for place in found:
        # Not locked: its process lives.
        with _locked(place, wait=False) as locked, suppress(OSError):
            if locked and place.stat().st_uid == os.geteuid():
                _finish(place, folder)
                _remove(place)


def is_staging(place: Path) -> bool:
    """Whether `place` is a staging folder, by its name and by all that it holds."""
    with suppress(OSError):
        return bool(_NAME.fullmatch(place.name)) and not place.is_symlink() and {*os.listdir(place)} <= _PARTS
    return False


def replaced_folders(folder: Path) -> list[Path]:
    """Where a folder is while it is being replaced, or after that was interrupted."""
    folder = Path(os.path.realpath(folder))
    return sorted(folder.parent.glob(f".*{STAGED}/old/{escape(folder.name)}"))


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Lock a folder for the block; yields whether that was possible."""
    handle, locked = None, False
    try:
        with suppress(OSError, AttributeError):  # AttributeError: Windows
            handle = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            locked = True
        yield locked
    finally:
        if handle is not None:
            os.close(handle)


def _flush(place: Path):
    """Flush a file, or everything in a folder, to the disk."""
    if place.is_symlink():
        return
    if place.is_dir():
        for inner in place.iterdir():
            _flush(inner)
        _flush_folder(place)
    elif place.is_file():
        with open(place, "rb" if os.name == "posix" else "r+b") as file:
            os.fsync(file.fileno())


def _flush_folder(folder: Path):
    with suppress(OSError):  # Windows cannot open a folder, nor do all file systems flush one
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
