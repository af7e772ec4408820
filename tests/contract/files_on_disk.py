"""What a folder holds, and a process that dies while it changes one."""

import os
from pathlib import Path


class PowerCut(BaseException):
    """No handler of ours may catch it."""


def fingerprint(folder: Path) -> dict[str, tuple]:
    """Every entry below a folder: its kind, its contents, where a link leads; without the lock of a run."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = "link", os.readlink(path)
        elif path.is_dir():
            found[name] = ("folder",)
        elif path.name != ".lock":
            found[name] = "file", path.read_bytes() if path.is_file() else None
    return found
