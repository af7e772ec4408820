"""Several files changed together: all of them or none, whenever the process dies.

New items are made in a staging folder inside the folder that they belong to, so on the same file system:

    FOLDER/.0123456789abcdef.twin-gpt-tmp/
        new/    what is being made
        go/     the same once it is complete and on the disk: its name says that the change has begun
        old/    what it replaces

The staging folder is locked as long as its process lives. The next writer in FOLDER finds one whose process has died
and finishes the change or takes it back. That never touches anything but what lies in the staging folder.
"""

import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from contract.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there, and what a killed process left stays
    fcntl = None

STAGED = ".twin-gpt-tmp"
_NAME = re.compile(rf"\.[0-9a-f]{{16}}{re.escape(STAGED)}")


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A locked staging folder with an empty `new` in it; it goes when the block ends."""
    clear_leftovers(folder)
    while True:
        place = folder / f".{secrets.token_hex(8)}{STAGED}"
        place.mkdir()
        lock = _lock(place, wait=True)
        if place.exists():
            break
        if lock is not None:  # another process took it for a dead one's before it was locked
            os.close(lock)
    try:
        (place / "new").mkdir()
        yield place
    finally:
        try:
            _finish(place, folder)  # where an error or Ctrl-C came in the middle of the change
            _remove(place)
        finally:
            if lock is not None:
                os.close(lock)


def commit(staged: Path, folder: Path, replaceable: Callable[[], Collection[str]]):
    """Move what was made in `staged` to its places in `folder`, and what it replaces out of the way."""
    names = os.listdir(staged / "new")
    for name in names:
        _flush(staged / "new" / name)
    with _locked(folder):
        going = replaceable()
        for name in sorted(names):
            if name not in going and os.path.lexists(folder / name):
                raise UserError(
                    f"{folder / name} has appeared in the meantime and is kept; choose another name"
                )
        if len(names) == 1 and {*going} <= {*names} and not (folder / names[0]).is_dir():
            os.replace(staged / "new" / names[0], folder / names[0])
            _flush_folder(folder)
            return
        (staged / "old").mkdir()
        os.replace(staged / "new", staged / "go")
        _flush_folder(staged)
        try:
            for name in sorted(going, key=names.count):  # what is only removed goes first: see `_finish`
                if os.path.lexists(folder / name):
                    os.replace(folder / name, staged / "old" / name)
            _finish(staged, folder)
        except OSError:
            _take_back(staged, folder, names)
            raise


def _take_back(staged: Path, folder: Path, names: Collection[str]):
    """Undo a change of which a part failed."""
    for name in names:
        if not os.path.lexists(staged / "go" / name):
            os.replace(folder / name, staged / "go" / name)
    for name in os.listdir(staged / "old"):
        os.replace(staged / "old" / name, folder / name)
    os.replace(staged / "go", staged / "new")


def _finish(staged: Path, folder: Path):
    """Finish a change that has begun, or take it back where what it replaces still stands in its way."""
    go, old = staged / "go", staged / "old"
    if not go.is_dir():
        return
    moves = [(go / name, folder / name) for name in os.listdir(go)]
    if any(os.path.lexists(target) for _, target in moves):
        moves = [(old / name, folder / name) for name in os.listdir(old)]
    for source, target in moves:
        if not os.path.lexists(target):
            os.replace(source, target)
    _flush_folder(folder)


def _remove(staged: Path):
    """Remove a staging folder; first, at once, what `replaced_folders` finds, so that nobody reads half of it."""
    with suppress(OSError):
        os.replace(staged / "old", staged / "gone")
    shutil.rmtree(staged, ignore_errors=True)


def clear_leftovers(folder: Path):
    """Clear what writers in `folder` left whose processes have died; a change that had begun is finished first."""
    try:
        found = [folder / entry.name for entry in os.scandir(folder) if _NAME.fullmatch(entry.name)]
    except OSError:
        return
    for place in found:
        lock = _lock(place, wait=False)
        if lock is None:  # its process lives
            continue
        try:
            with suppress(OSError):
                _finish(place, folder)
                _remove(place)
        finally:
            os.close(lock)


def replaced_folders(folder: Path) -> list[Path]:
    """Where a folder stands whose replacement has just begun, or was broken off."""
    return sorted(folder.parent.glob(f".*{STAGED}/old/{escape(folder.name)}"))


def _lock(place: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock of our own folder `place`; None where it cannot be had.

    wait: until another process, which is clearing the folder, is done
    """
    try:
        handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW)
    except (OSError, AttributeError):  # AttributeError: Windows
        return None
    try:
        if os.fstat(handle).st_uid == os.geteuid():
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return handle
    except OSError:
        pass
    os.close(handle)
    return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time changes what stands in `folder`."""
    handle = None
    with suppress(OSError, AttributeError):
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _flush(place: Path):
    """Bring a file, or all that a folder holds, to the disk."""
    if place.is_symlink():
        return
    if place.is_dir():
        for inner in place.iterdir():
            _flush(inner)
        _flush_folder(place)
        return
    with open(place, "rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path):
    if os.name == "posix":  # Windows cannot open a folder, and flushes renames by itself
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
