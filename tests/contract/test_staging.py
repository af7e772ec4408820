"""Changes of several files: whole wherever the process dies, and nothing left behind by dead ones."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import contract.staging
from contract.files import (
    write_file,
    write_into,
)
from contract.staging import STAGED, clear_leftovers, staging
from tests.contract.files_on_disk import PowerCut, fingerprint

posix = pytest.mark.skipif(
    os.name == "nt", reason="needs Linux or macOS (Windows has no such files or signals)"
)
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("names", [("a", "b", "c"), ("d", "e"), ("a",), ()], ids=str)
def test_a_change_of_several_files_is_whole(tmp_path, monkeypatch, names):
    """Whenever the process dies, the next writer finds all of the old files or all of the new ones."""
    folder, old = tmp_path / "folder", dict.fromkeys(("a", "b", "c"), b"old")

    def write(text, names):
        with write_into(folder, lambda: [path.name for path in folder.iterdir() if path.is_file()]) as new:
            for name in names:
                (new / name).write_text(text)

    replace = os.replace
    for stage in range(20):
        write("old", old)
        calls = iter(range(20))

        def dying(source, target, calls=calls, stage=stage):
            if next(calls) >= stage:
                raise PowerCut
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying)
            try:
                write("new", names)
                finished = True
            except PowerCut:
                finished = False
        clear_leftovers(folder)
        found = {name: value[1] for name, value in fingerprint(folder).items()}
        new = dict.fromkeys(names, b"new")
        assert found == new or (not finished and found == old), stage
        if finished:
            break
    assert stage >= 5


@posix
def test_leftovers_of_dead_processes(tmp_path):
    """The next writer clears what a killed one left, and nothing of a living one's or of the user's."""
    program = (
        "import sys\nfrom contract.files import write_file\n"
        "with write_file(sys.argv[1]) as file: print('there', flush=True); input()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "page")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    (tmp_path / f".mine{STAGED}").mkdir()  # a folder of the user's, whatever its name
    with subprocess.Popen(command, **pipes) as dead, subprocess.Popen(command, **pipes) as living:
        assert [process.stdout.readline() for process in (dead, living)] == ["there\n"] * 2
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 3
        with write_file(tmp_path / "other") as file:
            file.write(b"next")
        assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2
        living.communicate("\n")
        assert living.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".mine{STAGED}", "other", "page"]


def test_a_planted_staging_folder_removes_nothing(tmp_path):
    """One that came with somebody's archive can add files, which the archive could too, but replace or remove none."""
    place = tmp_path / f".0000000000000000{STAGED}"
    for part in ("go", "old"):
        (place / part).mkdir(parents=True)
        for name in ("thesis.txt", "new.txt"):
            (place / part / name).write_text("planted")
    (tmp_path / "thesis.txt").write_text("mine")
    clear_leftovers(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert not place.exists() or os.name == "nt"


def test_many_writers_in_one_folder(tmp_path):
    """Writers that begin and end at once do not take each other's staging folders for a dead one's."""

    def write(name):
        for number in range(40):
            with write_file(tmp_path / f"{name}-{number}") as file:
                file.write(b"whole")

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write, name) for name in "abcd"]:
            done.result()
    found = fingerprint(tmp_path)
    assert len(found) == 160
    assert set(found.values()) == {("file", b"whole")}


def test_an_interrupt_at_any_line(tmp_path):
    """Ctrl-C while a staging folder is made, wherever it falls, leaves nothing behind."""

    def interrupted(at: int) -> bool:
        def trace(frame, event, _):
            nonlocal at
            if frame.f_code.co_filename != contract.staging.__file__:
                return None
            if event == "line":
                at -= 1
                if at == 0:
                    raise KeyboardInterrupt
            return trace

        try:
            sys.settrace(trace)
            with staging(tmp_path):
                sys.settrace(None)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False

    lines = 1
    while interrupted(at=lines):
        assert not list(tmp_path.iterdir()), f"interrupted at line event {lines}"
        lines += 1
    assert lines > 10  # all of `staging` up to its block, and of `_locked` in it
