"""Processes that die: no run is left without a complete checkpoint, and resuming gives the very same weights."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from processes import ROOT, SMALL, assert_one_line, command, run

from contract.errors import UserError
from contract.staging import STAGED
from harness.training.checkpoint import checkpoint_exists, load_checkpoint
from harness.training.run_folder import RunFolder

posix = pytest.mark.skipif(
    os.name == "nt", reason="needs Linux or macOS (Windows has no signals between processes)"
)
PATIENCE = 600  # seconds; never waited for on a machine that works, however busy it is


def straight(folder: Path, text: Path, flags: tuple) -> RunFolder:
    """A run that nothing disturbs."""
    result = run("train", "--text", text, "--out", folder, *SMALL, *flags)
    assert result.returncode == 0, result.stderr
    return RunFolder(folder)


def assert_same_end(found: RunFolder, wanted: RunFolder):
    ours, theirs = (load_checkpoint(each.latest, with_optimizer=True) for each in (found, wanted))
    assert ours.step == theirs.step
    assert ours.training == theirs.training
    for of in ("weights", "optimizer"):
        for name, value in getattr(theirs, of).items():
            np.testing.assert_array_equal(getattr(ours, of)[name], value, name)
    assert found.metrics.read_text() == wanted.metrics.read_text()


@posix
@pytest.mark.parametrize(
    "kills", [pytest.param(3, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.endurance)]
)
def test_killed_at_random(tmp_path, text, kills, figure):
    """Killed again and again at random moments, a run keeps a complete checkpoint and ends as if undisturbed."""
    # A checkpoint every 3 steps, so that death often meets the writing of one.
    steps = 900 if kills > 50 else 225
    if kills < 50:  # the evaluations take the time
        short = tmp_path / "short.txt"
        short.write_text("".join(text.read_text().splitlines(keepends=True)[:150]))
        text = short
    flags = ("--steps", steps, "--eval-interval", 3, "--d-model", 96, "--dropout", 0.1, "--accumulate", 2)
    wanted, found = straight(tmp_path / "straight", text, flags), RunFolder(tmp_path / "killed")
    draws, survived, in_writing, first = random.Random(7), 0, 0, True
    while survived < kills:
        if first:
            arguments = ("train", "--text", text, "--out", found.path, "--overwrite", *SMALL, *flags)
        else:
            arguments = ("train", "--resume", "--out", found.path, "--threads", 1)
        with subprocess.Popen(
            command(*arguments), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        ) as process:
            _let_it_work(process, found, draws.random() * 0.6)
            if survived % 2:
                _stop_it_writing(process, found)
            process.send_signal(signal.SIGKILL)
        if process.returncode == 0:  # it was through before the signal came: begin anew
            assert_same_end(found, wanted)
            first = True
            continue
        first = not checkpoint_exists(found.resumable)
        in_writing += _writing(found)
        if not first:
            load_checkpoint(found.resumable, with_optimizer=True)
        survived += 1
    if not first:
        result = run("train", "--resume", "--out", found.path, "--threads", 1)
        assert result.returncode == 0 or "has done all its" in result.stderr, result.stderr
        assert_same_end(found, wanted)
    assert in_writing >= kills // 4
    figure(
        f"{survived} kills at random moments, {in_writing} of them in the writing of a checkpoint: nothing lost"
    )


def _let_it_work(process, run_folder: RunFolder, seconds: float):
    """Wait until the process trains, and so long again."""
    before = _progress(run_folder)
    while process.poll() is None and _progress(run_folder) == before:
        time.sleep(0.01)
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


def _stop_it_writing(process, run_folder: RunFolder):
    """Stop the process while it writes a checkpoint, or let it end."""
    while process.poll() is None:
        if _writing(run_folder):
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.01)  # a signal to another process takes a moment
            if _writing(run_folder):
                return
            process.send_signal(signal.SIGCONT)  # it was quicker than we


def _writing(run_folder: RunFolder) -> bool:
    return any(run_folder.path.glob(f".*{STAGED}"))


def _progress(run_folder: RunFolder) -> float:
    try:
        return run_folder.latest.joinpath("config.json").stat().st_mtime
    except OSError:
        return 0.0


@posix
@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.endurance)])
def test_a_signal_saves_within_five_seconds(tmp_path, text, name, figure):
    """The process that is told to stop leaves a checkpoint and is gone in time, also with a large model.

    The time is the CPU's, which is the same however busy the machine is; what it waits for is the disk alone.
    """
    flags = ("--d-model", 256, "--n-layer", 4, "--context-length", 64, "--batch-size", 32, "--steps", 9999)
    flags += ("--eval-interval", 5)
    arguments = ("train", "--text", text, "--out", tmp_path / "run", "--preset", "nano", *flags)
    before = os.times()
    with subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("step      5"):
                break
        told, taken = time.monotonic(), _cpu_seconds(process.pid)
        process.send_signal(getattr(signal, name))
        process.communicate(timeout=PATIENCE)
        seconds = time.monotonic() - told
    after = os.times()
    assert process.returncode == 130
    assert load_checkpoint(tmp_path / "run" / "latest", with_optimizer=True).step >= 5
    figure(f"{name}: saved and gone in {seconds:.1f} s")
    if taken is not None:
        total = after.children_user + after.children_system - before.children_user - before.children_system
        assert total - taken < 5


def _cpu_seconds(pid: int) -> float | None:
    """What a process that runs has taken so far, where the system tells it in a file."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@posix
def test_a_signal_while_tokenising(tmp_path, text):
    """Told to stop before training has begun, a process leaves nothing behind."""
    (tmp_path / "text.txt").write_bytes(text.read_bytes() * 3000)  # takes some 10 s of CPU time
    arguments = ("prepare", tmp_path / "text.txt", "--tokenizer", ROOT / "data" / "tense.tiktoken")
    for name in ("SIGTERM", "SIGINT"):
        with subprocess.Popen(
            command(*arguments, "--out", tmp_path / "out.bin"), stderr=subprocess.PIPE, text=True
        ) as process:
            while process.poll() is None and not list(tmp_path.glob(f".*{STAGED}")):
                time.sleep(0.01)
            process.send_signal(getattr(signal, name))
            _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130
        assert err == "error: interrupted\n"
        assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_two_processes_on_one_run(tmp_path, text):
    """The second is refused by --resume and by --overwrite alike, and the first goes on undisturbed."""
    folder = tmp_path / "run"
    arguments = ("train", "--text", text, "--out", folder, *SMALL)
    long = command(*arguments, "--steps", 10**6, "--eval-interval", 50)
    with subprocess.Popen(long, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        for line in process.stderr:
            if line.startswith("step     50"):
                break
        try:
            for again in (("train", "--resume", "--out", folder), (*arguments, "--steps", 5, "--overwrite")):
                assert_one_line(run(*again), "is in use: another process trains there")
            step = load_checkpoint(folder / "latest").step
            deadline = time.monotonic() + PATIENCE
            while load_checkpoint(folder / "latest").step == step:
                assert time.monotonic() < deadline, "the first run stopped"
                time.sleep(0.05)
        finally:
            process.kill()
            process.communicate()
    assert run("train", "--resume", "--out", folder, "--steps", step + 50).returncode in (0, 1)


# Disks


def _limited(megabytes: float):
    """For a process's start: no file may grow beyond so much, as on a disk that is full."""
    import resource

    size = int(megabytes * 2**20)
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@posix
def test_a_full_disk(tmp_path, text):
    """The checkpoint that finds no room is one line; the one before stays and goes on once there is room."""
    folder = tmp_path / "run"
    flags = ("--d-model", 128, "--steps", 60, "--eval-interval", 20)
    small = (*SMALL, *flags)
    assert run("train", "--text", text, "--out", folder, *small).returncode == 0
    before = load_checkpoint(folder / "latest").step
    result = run("train", "--resume", "--out", folder, "--steps", 120, preexec_fn=_limited(0.5))
    assert_one_line(
        result, "the checkpoint of step 80 cannot be written (File too large); the one before is kept"
    )
    assert load_checkpoint(folder / "latest", with_optimizer=True).step == before
    assert not list(folder.glob(f".*{STAGED}"))
    assert run("train", "--resume", "--out", folder, "--steps", 120).returncode == 0


@posix
@pytest.mark.parametrize("kilobytes", [20, 60])
def test_no_room_for_the_tokens(tmp_path, text, kilobytes):
    """A run that cannot start for lack of room leaves nothing behind."""
    result = run(
        "train", "--text", text, "--out", tmp_path / "run", *SMALL, preexec_fn=_limited(kilobytes / 1024)
    )
    assert_one_line(result, "cannot be written (File too large)")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root (only root may mount a file system)"
)
def test_a_small_file_system(tmp_path, text):
    """On a real file system that fills up, the run ends with one line and its last checkpoint is whole."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs ({mounted.stderr.decode().strip()})")
    try:
        flags = ("--d-model", 96, "--steps", 100, "--eval-interval", 20)
        result = run("train", "--text", text, "--out", place / "run", *SMALL, *flags)
        assert_one_line(result, "cannot be written (No space left on device)")
        assert load_checkpoint(RunFolder(place / "run").resumable, with_optimizer=True).step == 20
    finally:
        subprocess.run(["umount", str(place)], check=True)


@posix
def test_a_read_only_folder(tmp_path, text):
    """A place that may not be written to is one line, and a run that becomes read-only keeps what it had."""
    folder = tmp_path / "run"
    assert run("train", "--text", text, "--out", folder, *SMALL, "--steps", 2).returncode == 0
    before = load_checkpoint(folder / "latest").step
    folder.chmod(0o500)
    tmp_path.chmod(0o500)
    # Root may write everywhere, unless it gives that up.
    prefix = ()
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("needs setpriv, or a user that is not root (apt-get install util-linux)")
        prefix = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search,-fowner")
    try:
        for arguments in (
            ("train", "--text", text, "--out", tmp_path / "new", *SMALL, "--steps", 2),
            ("train", "--resume", "--out", folder, "--steps", 4),
        ):
            result = subprocess.run(
                [*prefix, *command(*arguments)], capture_output=True, text=True, check=False
            )
            assert_one_line(result, "Permission denied")
    finally:
        tmp_path.chmod(0o700)
        folder.chmod(0o700)
    assert load_checkpoint(folder / "latest").step == before


@posix
def test_a_vanished_folder(tmp_path, text):
    """A run whose folder is taken away says so, and makes no folder with a checkpoint that nobody can use."""
    folder = tmp_path / "run"
    long = command("train", "--text", text, "--out", folder, *SMALL, "--steps", 10**6, "--eval-interval", 200)
    with subprocess.Popen(long, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        for line in process.stderr:
            if line.startswith("step    200"):
                break
        folder.rename(tmp_path / "away")
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith(f"error: {folder} was moved or removed while the run was training")
    assert not folder.exists()
    assert load_checkpoint(tmp_path / "away" / "latest").step >= 200


def test_numbers_going_bad(tmp_path, text):
    """The first loss that is not finite ends the run with the step and the tensor; the last checkpoint stays."""
    flags = ("--steps", 50, "--eval-interval", 1, "--learning-rate", 1e20, "--warmup-steps", 3)
    result = run("train", "--text", text, "--out", tmp_path / "run", *SMALL, *flags)
    assert_one_line(result, "error: step ", "no longer finite", "try a lower --learning-rate")
    step = int(result.stderr.splitlines()[-1].split("step ")[1].split(":")[0])
    kept = RunFolder(tmp_path / "run").resumable
    try:
        assert load_checkpoint(kept).step == step - 1
    except UserError:
        assert step == 1  # nothing had been written yet
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
