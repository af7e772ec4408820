"""All files are written through this module, so that no file of the user's is ever lost.

Only what has this program's mark is removed or replaced, only if the caller asks for it, and only after the new files
are complete. A mark is a checkpoint's `config.json`, a token file's JSON with its checksum, a pack's manifest, or the
`SHA256SUMS` of an export. A single file that the user names is replaced only with `overwrite`.
`contract.staging` makes each change atomic.
"""

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from hashlib import file_digest
from pathlib import Path
from typing import BinaryIO

from contract.errors import UserError, reason_of
from contract.staging import STAGED, clear_leftovers, commit, is_staging, staging

SUMS = "SHA256SUMS"
_STREAM = re.compile("/dev/(stdin|stdout|stderr)|(/dev|/proc/[^/]+)/fd/[0-9]+")
_SUMS_TITLE = "# twin-gpt export"
TAKEN = "replace it with --overwrite, or choose another name"


class WriteError(UserError):
    """The file or folder `path` cannot be written. reason: the system's; what: cannot be written; way: what to do"""

    def __init__(
        self,
        path: str | os.PathLike,
        reason: str,
        *,
        what: str = "",
        way: str = "free disk space, fix permissions, or name another place",
    ):
        self.path, self.reason = Path(path), reason
        super().__init__(f"{path}: {what}cannot be written ({reason}); {way}")


# Writing


@contextmanager
def write_file(path: str | os.PathLike, *, overwrite: bool = False, taken: str = TAKEN) -> Iterator[BinaryIO]:
    """Open a file to write that gets its name only when it is complete and on the disk.

    Links are followed; devices and pipes are written to. overwrite, taken: see `require_free`
    Raises UserError if `path` is taken, WriteError if it cannot be written.
    """
    path = Path(path)
    try:
        if _is_device(path):
            with tempfile.TemporaryFile() as file:
                yield file
                file.seek(0)
                with open(path, "ab") as device:  # /dev/stdout may lead to a file that is appended to
                    shutil.copyfileobj(file, device)
            return
        require_free(path, overwrite, taken)
        target = Path(os.path.realpath(path))
        with staging(target.parent) as staged:
            new = staged / "new" / target.name
            with open(new, "xb") as file:
                yield file
            if target.exists():
                shutil.copymode(target, new)
            commit(staged, target.parent, lambda: {target.name} if overwrite and not target.is_dir() else ())
    except OSError as error:
        raise _write_error(error, path) from error


def require_free(path: str | os.PathLike, overwrite: bool, taken: str = TAKEN):
    """Raise UserError unless `write_file` may write to `path`; long work calls this before it begins.

    overwrite: whether a regular file there may be replaced; taken: what to do about one that may not
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected the name of a file; choose another name")
    if path.exists() and not overwrite and not _is_device(path):
        raise UserError(f"{path} already exists; {taken}")


@contextmanager
def write_into(
    folder: str | os.PathLike, replaceable: Callable[[], Collection[str]] = tuple, shown: Path | None = None
) -> Iterator[Path]:
    """A private folder whose contents move into `folder`, all or none, if the block succeeds.

    folder: created with its parents if missing, and removed again after an error
    replaceable: called just before the change; returns the names in `folder` to replace or remove, or raises UserError
    shown: the path to name in errors instead of the folder's
    Raises UserError if another item has one of the new names, WriteError if a file cannot be written.
    """
    folder = Path(folder)
    shown = shown or folder
    if folder.is_symlink() and not folder.exists():
        raise UserError(f"{folder} is a link to nothing; remove it, or choose another name")
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with staging(folder) as staged:
                yield staged / "new"
                commit(staged, folder, replaceable)
        except BaseException:
            for place in missing:
                with suppress(OSError):
                    place.rmdir()
            raise
    except OSError as error:
        raise _write_error(error, shown) from error
    except WriteError as error:
        if STAGED not in str(error.path):
            raise
        raise WriteError(shown, error.reason) from error  # the staging folder's name would only confuse


@contextmanager
def replace_folder(
    folder: str | os.PathLike, marked_files: Callable[[Path], Collection[str] | None]
) -> Iterator[Path]:
    """A private folder that replaces `folder` in a single rename if the block succeeds.

    The user's files in `folder` are kept. A mount point is filled file by file; a link is followed.

    marked_files: the names of a folder's files that are this program's, None for a folder without its mark
    Raises UserError if `folder` holds something and has no mark, WriteError if it cannot be written.
    """
    folder = Path(os.path.realpath(folder))
    for place in (folder.parent, folder):
        clear_leftovers(place)
    _own_files(folder, marked_files)
    if os.path.ismount(folder):
        with write_into(folder, lambda: _own_files(folder, marked_files)) as new:
            yield new
        return

    def replaceable() -> Collection[str]:
        names = _own_files(folder, marked_files)
        if not folder.exists():
            return ()
        shutil.copymode(folder, fresh)
        _keep_others(folder, fresh, names)  # only now: the user may have added files meanwhile
        return {folder.name}

    with write_into(folder.parent, replaceable, shown=folder) as new:
        fresh = new / folder.name
        fresh.mkdir()
        yield fresh


def _own_files(folder: Path, marked_files: Callable[[Path], Collection[str] | None]) -> Collection[str]:
    """What `marked_files` says of a folder, or a UserError if it holds something and has no mark."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, expected a folder; choose another name")
    names = marked_files(folder) if folder.is_dir() else ()
    if names is None and (found := visible_items(folder)):
        raise UserError(
            f"{folder} holds {found[0]}, which this program did not write, so it is kept; choose another name"
        )
    return names or ()


def _keep_others(old: Path, new: Path, own: Collection[str]):
    """Link or copy everything in the folder `old` except the files `own` into the folder `new`."""
    for name in [each for each in visible_items(old) if each not in own]:
        place = new / name
        while os.path.lexists(place):
            place = place.with_name(f"{place.name}~")
        if (old / name).is_dir() and not (old / name).is_symlink():
            shutil.copytree(old / name, place, symlinks=True, copy_function=_link)
        else:
            _link(old / name, place)


def _link(source, target):
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # not every file system has hard links
        shutil.copy2(source, target, follow_symlinks=False)


def visible_items(folder: Path) -> list[str]:
    """The names in a folder, sorted, without staging folders."""
    return sorted(name for name in os.listdir(folder) if not is_staging(folder / name))


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder that only this user can read, removed after the block."""
    with staging(Path(tempfile.gettempdir())) as staged:
        staged.chmod(0o700)
        yield staged / "new"


def _is_device(path: Path) -> bool:
    """Whether `path` is neither file nor folder; /dev/stdout counts as a device wherever it leads."""
    if not path.exists():
        return False
    return bool(_STREAM.fullmatch(os.path.abspath(path))) or not (path.is_file() or path.is_dir())


def _write_error(error: OSError, place: Path) -> OSError | WriteError:
    """What to raise for an error while writing `place`."""
    if isinstance(error, BrokenPipeError):
        return error
    name = str(error.filename or "")
    inside = not name or STAGED in name or Path(name).absolute().is_relative_to(place.absolute().parent)
    return WriteError(place, reason_of(error)) if inside else error


# Reading and marks


def open_regular(path: str | os.PathLike, buffering: int = -1) -> BinaryIO:
    """Open a regular file to read, with the `buffering` of `open`.

    Raises OSError if it cannot be opened, or is a pipe or a device, which could block or never end.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        kind = "a folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "a pipe or a device"
        os.close(handle)
        raise OSError(None, f"it is {kind}, not a regular file", str(path))
    return open(handle, "rb", buffering)


def sha256_of(path: str | os.PathLike) -> str:
    """The SHA-256 of a regular file, in hexadecimal. Raises OSError if it cannot be read."""
    with open_regular(path) as file:
        return file_digest(file, "sha256").hexdigest()


def replaceable_items(
    paths: list[Path],
    foreign: Callable[[Path], Path | None],
    overwrite: bool,
    *,
    kind: str,
    choose: str = "choose another --out",
    taken: str = "",
) -> list[str]:
    """The names of those `paths`, all in one folder, that a new KIND replaces: those of an earlier one.

    foreign: what no KIND wrote at a path, or None; choose: what else to do, for the message
    taken: the message if `overwrite` is off, instead of the usual one
    Raises UserError if an earlier KIND must not be overwritten, or something else has one of its names.
    """
    clear_leftovers(paths[0].parent)
    found = [path for path in paths if os.path.lexists(path)]
    for path in found:
        if other := foreign(path):
            raise UserError(f"{other} already exists and belongs to no {kind}, so it is kept; {choose}")
    if found and not overwrite:
        raise UserError(taken or f"{found[0]} already exists; replace it with --overwrite, or {choose}")
    return [path.name for path in found]


def write_sums(folder: Path):
    """Write `SHA256SUMS`: the mark of an export, which `sha256sum -c` reads too."""
    lines = [f"{sha256_of(path)}  {path.name}" for path in sorted(folder.iterdir())]
    (folder / SUMS).write_text("\n".join([_SUMS_TITLE, *lines, ""]), encoding="utf-8", newline="\n")


def exported_files(folder: Path, overwrite: bool) -> Collection[str]:
    """The names in an earlier export's folder, which a new one replaces; none if it is empty or missing.

    Raises UserError if the folder is not empty and `overwrite` is off, or holds anything changed or not exported.
    """
    clear_leftovers(folder)
    if not folder.exists():
        return ()
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, expected a folder; choose another --out")
    found = visible_items(folder)
    if found and not overwrite:
        raise UserError(
            f"{folder} is not empty; replace an earlier export with --overwrite, or choose another --out"
        )
    sums: dict[str, str] = {}
    with suppress(OSError, UnicodeDecodeError), open_regular(folder / SUMS) as file:
        title, *lines = file.read(1 << 22).decode().splitlines() or [""]
        if title == _SUMS_TITLE:
            sums = dict(line.split("  ", 1)[::-1] for line in lines if "  " in line)
    for name in found:
        path = folder / name
        if name == SUMS and sums:
            continue
        if path.is_symlink() or not path.is_file() or sums.get(name) != sha256_of(path):
            what = "was changed since it was exported" if name in sums else "no export wrote"
            raise UserError(f"{folder} holds {name}, which {what}, so it is kept; choose another --out")
    return found
