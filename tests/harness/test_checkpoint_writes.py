"""Checkpoints at every instant: a complete one exists, whoever crashes, writes or reads."""

import os
import shutil
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from contract import staging
from contract.errors import UserError
from harness.training import checkpoint as module
from harness.training.checkpoint import (
    checkpoint_exists,
    load_checkpoint,
    save_checkpoint,
)
from tests.harness.same_checkpoints import FILES, assert_same


class PowerCut(BaseException):
    """No handler of ours may catch it."""


def test_an_interrupted_save_loses_nothing(make, tmp_path, monkeypatch):
    """Whenever the process dies while saving, the old checkpoint or the new one is there, whole."""
    folder = tmp_path / "latest"
    old, new = make(1), make(2)

    def dying(function, calls, stage):
        def call(*arguments, **options):
            # From its last moment on a dead process touches nothing: it cleans nothing up either.
            if next(calls) >= stage:
                raise PowerCut
            return function(*arguments, **options)

        return call

    for stage in count():
        save_checkpoint(folder, old)  # what the dead process of the stage before left is no obstacle
        assert_same(load_checkpoint(folder), old)
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["latest"]
        with monkeypatch.context() as patch:
            # Every step of saving that touches the disk.
            calls = count()
            for owner, names in (
                (module, ("save_tensors", "save_tokenizer")),
                (staging, ("_flush_folder",)),
                (os, ("fsync", "replace")),
                (shutil, ("rmtree",)),
                (type(folder), ("mkdir", "rename", "write_text", "unlink")),
            ):
                for name in names:
                    patch.setattr(owner, name, dying(getattr(owner, name), calls, stage))
            try:
                save_checkpoint(folder, new)
                finished = True
            except PowerCut:
                finished = False
        assert checkpoint_exists(folder), stage
        loaded = load_checkpoint(folder, with_optimizer=True)
        assert_same(loaded, new if loaded.step == 2 else old)
        assert finished <= (loaded.step == 2), stage
        if finished:
            break
    assert stage > 12


@pytest.mark.parametrize(
    ("places", "step"),
    [
        ({"latest": 1, "latest.new": 2}, 1),
        ({"latest.old": 1, "latest.new": 2}, 1),
        ({"latest.old": 1}, 1),
        ({"latest": 2, "latest.old": 1}, 2),
        ({"latest": 3, "latest.old": 1, "latest.new": 2}, 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("half", [False, True])
def test_what_a_crash_leaves(make, tmp_path, monkeypatch, places, step, half):
    """What an earlier version left beside a checkpoint costs nothing, now or after a second crash, and stays."""
    folder = tmp_path / "latest"
    for name, of in places.items():
        save_checkpoint(tmp_path / "made" / name, make(of))
        shutil.move(tmp_path / "made" / name, tmp_path / name)
        if half and of != step:
            (tmp_path / name / "model.safetensors").unlink()
    (tmp_path / "made").rmdir()

    def cut(*arguments):
        raise PowerCut

    for _ in range(2):
        assert checkpoint_exists(folder)
        assert_same(load_checkpoint(folder, with_optimizer=True), make(step))
        with monkeypatch.context() as patch:
            patch.setattr(module, "save_tensors", cut)
            with pytest.raises(PowerCut):
                save_checkpoint(folder, make(9))
    save_checkpoint(folder, make(9))
    assert_same(load_checkpoint(folder, with_optimizer=True), make(9))
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"latest", *places}


def test_a_checkpoint_is_on_the_disk_before_it_counts(make, tmp_path, monkeypatch):
    """Each file and the folder are flushed before the checkpoint takes its name, and then the name itself."""
    events = []
    flush, replace = os.fsync, os.replace

    def note_flush(handle):
        events.append(os.fstat(handle).st_ino)
        flush(handle)

    def note_replace(path, target):
        if Path(target) == tmp_path / "latest":
            events.append("named")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(os, "replace", note_replace)
    save_checkpoint(tmp_path / "latest", make())
    before, after = events[: events.index("named")], events[events.index("named") :]
    for name in FILES:
        assert (tmp_path / "latest" / name).stat().st_ino in before, name
    if os.name == "posix":  # Windows cannot open a folder, and flushes renames by itself
        assert (tmp_path / "latest").stat().st_ino in before
        assert tmp_path.stat().st_ino in after


def test_a_checkpoint_replaced_while_it_is_read(make, tmp_path, monkeypatch):
    """It is read again, so that no file of one meets a file of the other; not for ever."""
    place, read, seeds = tmp_path / "latest", module._read_tokenizer, count(1)
    save_checkpoint(place, make(0))

    def replaced_once(*arguments):
        if next(seeds) == 1:
            save_checkpoint(place, make(1))
        return read(*arguments)

    monkeypatch.setattr(module, "_read_tokenizer", replaced_once)
    assert_same(load_checkpoint(place), make(1))

    def replaced_always(*arguments):
        save_checkpoint(place, make(next(seeds)))
        return read(*arguments)

    monkeypatch.setattr(module, "_read_tokenizer", replaced_always)
    with pytest.raises(UserError, match="replaced again before it can be read"):
        load_checkpoint(place)


def test_reading_beside_a_writer(make, tmp_path):
    """Whoever reads while another writes gets one whole checkpoint each time, and no error."""
    place, stop = tmp_path / "latest", threading.Event()
    choices = [make(seed) for seed in range(4)]
    save_checkpoint(place, choices[0])

    def write():
        for seed in count():
            if stop.wait(0.01):
                return
            save_checkpoint(place, choices[seed % 4])

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            steps = set()
            for _ in range(60):
                assert checkpoint_exists(place)
                found = load_checkpoint(place, with_optimizer=True)
                assert_same(found, choices[found.step])
                steps.add(found.step)
        finally:
            stop.set()
        writing.result()
    assert len(steps) > 1


def test_a_failing_save_leaves_no_trace(make, tmp_path, monkeypatch):
    """An error while writing, such as a full disk, leaves the earlier checkpoint and nothing beside it."""
    folder = tmp_path / "latest"
    save_checkpoint(folder, make(1))

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_tensors", full)
    with pytest.raises(
        UserError, match=r"step 2 cannot be written \(No space left on device\); the one before is"
    ):
        save_checkpoint(folder, make(2))
    assert load_checkpoint(folder).step == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["latest"]


def test_tensors_are_asked_for_one_by_one(make, tmp_path):
    """So that a model whose parts are put together for it is never whole in memory; names and numbers are the same."""
    given = make(1)

    class Tracked(np.ndarray):
        """Weak references may name it."""

    class PutTogether(Mapping):
        def __init__(self, tensors):
            self._tensors, self._held, self.most = tensors, 0, 0

        def __getitem__(self, name):
            tensor = self._tensors[name].copy().view(Tracked)
            self._held += 1
            self.most = max(self.most, self._held)
            weakref.finalize(tensor, self._free)
            return tensor

        def _free(self):
            self._held -= 1

        def __iter__(self):
            return iter(self._tensors)

        def __len__(self):
            return len(self._tensors)

    weights, moments = PutTogether(given.weights), PutTogether(given.optimizer)
    save_checkpoint(tmp_path / "latest", replace(given, weights=weights, optimizer=moments))
    assert_same(load_checkpoint(tmp_path / "latest", with_optimizer=True), given)
    assert max(weights.most, moments.most) <= 2  # one, and the one before while it is replaced
