"""How commands end: Ctrl-C, SIGTERM and a closed terminal, also in native code, and the processes that they started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands import interruption
from harness.training.checkpoint import load_checkpoint
from learn.exercises.catalogue import EXERCISES
from learn.exercises.start import starter

ROOT = Path(__file__).parents[2]
PATIENCE = 600  # seconds; no test waits so long, on whatever machine, unless it fails
SMALL = (
    "--preset", "nano", "--n-layer", "1", "--n-head", "2", "--d-model", "16", "--context-length", "8",
    "--batch-size", "4", "--threads", "1",
)  # fmt: skip
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")

pytestmark = pytest.mark.skipif(
    os.name == "nt", reason="needs Linux or macOS (Windows sends no signal to one process alone)"
)
linux = pytest.mark.skipif(
    sys.platform != "linux", reason="needs Linux (which ends a process with its parent)"
)


def start(*arguments, **options):
    """The command line as a process whose stderr can be read."""
    return program(None, *arguments, **options)


def program(code, *arguments, **options):
    """A process of the command line, or of `code` with the streams and signals of one."""
    imports = "from commands.interruption import *\nfrom commands.streams import *\n"
    prelude = f"{imports}secure_streams()\nhandle_signals()\n"
    what = ["cli.py", *map(str, arguments)] if code is None else ["-c", prelude + code]
    return subprocess.Popen(
        [sys.executable, *what],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def await_line(stream, beginning):
    """Read up to the line that begins so; fails where the process ends before."""
    for line in stream:
        if line.startswith(beginning):
            return
    pytest.fail(f"the process ended without {beginning!r}")


def await_true(condition, process):
    """Wait until something holds, while the process lives."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_alive(process_id):
    """Whether a process still runs; a zombie that nobody has waited for does not."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def await_death(process_id):
    deadline = time.monotonic() + PATIENCE
    while is_alive(process_id):
        if time.monotonic() > deadline:
            os.kill(process_id, signal.SIGKILL)
            pytest.fail("a process outlived the one that started it")
        time.sleep(0.005)


# Signals

# Computes for an hour in C code. No other thread gets a turn before that has begun, so "ready" says that it has.
NATIVE = """
import hashlib
def compute():
    sys.setswitchinterval(1000)
    begun = threading.Event()
    threading.Thread(target=lambda: begun.wait() and print('ready', flush=True), daemon=True).start()
    begun.set()
    hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_native_code_is_interrupted(name):
    """While the main thread computes in C, a signal is acknowledged and ends the process."""
    with program(NATIVE + "compute()") as process:
        await_line(process.stdout, "ready")
        process.send_signal(getattr(signal, name))
        assert process.communicate(timeout=PATIENCE) == ("", "error: interrupted\n")
    assert process.returncode == 130


def test_work_that_may_finish_is_acknowledged_in_native_code():
    """Training in C says at once that it will stop, goes on, and the second Ctrl-C ends it there."""
    with program(NATIVE + "with finishing('stopping soon'):\n    compute()") as process:
        await_line(process.stdout, "ready")
        process.send_signal(signal.SIGTERM)
        await_line(process.stderr, "stopping soon")
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE) == ("", "")
    assert process.returncode == 130


def test_what_was_begun_is_cleared_away():
    """Outside of native code the main thread takes down what it had put up, undisturbed by a second hangup."""
    code = (
        "def main():\n    try:\n        signal.raise_signal(signal.SIGHUP)\n        time.sleep(1000)\n"
        "    finally:\n        signal.raise_signal(signal.SIGHUP)\n        print('cleared', flush=True)\n"
        "import cli\ncli.main = main\ncli.secure_streams = cli.handle_signals = lambda: None\ncli.run()"
    )
    with program(code) as process:
        assert process.communicate(timeout=PATIENCE) == ("cleared\n", "error: interrupted\n")
    assert process.returncode == 130


INT, TERM, HUP = (getattr(signal, name, 0) for name in SIGNALS)


@pytest.mark.parametrize(
    ("numbers", "seconds", "ends"),
    [
        ((INT,), 0, False),
        ((INT, INT), 0, True),
        ((TERM, INT), 0, True),
        ((HUP, INT), 0, True),
        ((TERM, TERM), 0, False),  # timeout(1) sends two
        ((HUP, HUP), 0, False),  # so does a terminal that closes
        ((HUP, HUP), 9, False),
        ((TERM, TERM), 9, True),
        ((INT, signal.SIGCHLD), 9, False),
    ],
)
def test_what_counts_as_the_second(monkeypatch, numbers, seconds, ends):
    """Two Ctrl-C end at once, however close; what systems send twice by themselves does not."""
    state = interruption._Interruption()
    state.handled = {INT, TERM, HUP}
    left = []
    monkeypatch.setattr(interruption, "_state", state)
    monkeypatch.setattr(interruption, "_follow", lambda: None)
    monkeypatch.setattr(interruption, "_leave", lambda: left.append(1))
    times = iter(range(0, 100, max(seconds, 1)) if seconds else [0] * 9)
    monkeypatch.setattr(interruption.time, "monotonic", lambda: next(times))
    reader, writer = os.pipe()
    os.write(writer, bytes(numbers))
    os.close(writer)
    interruption._watch(reader)
    os.close(reader)
    assert bool(left) == ends
    assert state.came.is_set()


def test_an_ignored_hangup_stays_ignored(tmp_path, text):
    """Under nohup a closed terminal is nothing to training; Ctrl-C still is."""
    arguments = ("train", "--text", text, "--out", tmp_path / "run", *SMALL, "--eval-interval", 20)
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    with start(*arguments, "--steps", 10**6, preexec_fn=ignore) as process:
        await_line(process.stderr, "step     20")
        process.send_signal(signal.SIGHUP)
        for _ in range(3):
            await_line(process.stderr, "step ")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert (
        "stopping after this step to save a checkpoint; interrupt again to quit at once\nstopped at step"
        in err
    )
    assert load_checkpoint(tmp_path / "run" / "latest").step >= 80


def test_generation_is_interrupted(tmp_path, text, run_cli):
    """A command without anything to save says that it was interrupted, and no more."""
    assert run_cli("train", "--text", text, "--out", tmp_path / "run", *SMALL, "--steps", 1)[0] == 0
    with start("generate", tmp_path / "run", "--max-new-tokens", 10**8) as process:
        process.stdout.read(20)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (130, "error: interrupted\n")


def test_an_interruption_is_one_line(run_cli, monkeypatch):
    """KeyboardInterrupt anywhere is exit code 130 and one line."""

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("parity.golden.packs.load_pack", interrupt)
    for _ in range(2):
        assert run_cli("golden", "list") == (130, "", "error: interrupted\n")


# Processes that were started


@linux
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_merging_is_interrupted(tmp_path, many_words, name):
    """`tokenizer train` ends in the middle of its merges, with the process that makes them, and leaves no file."""
    out = tmp_path / "ranks.tiktoken"
    with start("tokenizer", "train", many_words, "--vocab-size", 50_000, "--out", out) as process:

        def child():
            return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()

        def has_read():
            read = Path(f"/proc/{child()[0]}/io").read_text().split()[1]  # "rchar: N"
            return int(read) >= many_words.stat().st_size

        await_true(child, process)
        await_true(has_read, process)
        merging = int(child()[0])
        os.kill(merging, signal.SIGSTOP)  # it shall not come to its own end meanwhile
        process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=PATIENCE)
    await_death(merging)
    wanted = (-signal.SIGKILL, "") if name == "SIGKILL" else (130, "error: interrupted\n")
    assert (process.returncode, err) == wanted
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def many_words(tmp_path_factory):
    """A text of 300,000 different words, whose merges take long."""
    path = tmp_path_factory.mktemp("words") / "words.txt"
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = (f"{letters[i % 26]}{i * 2654435761 % 2**40:x}".translate(HEX) for i in range(300_000))
    path.write_text(" ".join(words))
    return path


HEX = str.maketrans("0123456789", "ghijklmnop")


@linux
@pytest.mark.parametrize("name", ["SIGHUP", "SIGKILL"])
def test_a_student_ends_with_the_grader(tmp_path, name):
    """However `exercise grade` ends, the process of the file that it runs ends too."""
    mark = tmp_path / "process"
    file = tmp_path / "relu.py"
    blank = 'raise NotImplementedError("write this function")'
    asleep = f"import os, time\n    open({str(mark)!r}, 'w').write(f'{{os.getpid()}}.')\n    time.sleep(3000)"
    source = starter(EXERCISES["relu"], 0)
    assert blank in source
    file.write_text(source.replace(blank, asleep))
    with start("exercise", "grade", file, "--time-limit", 3000) as process:
        await_true(lambda: mark.exists() and mark.read_text().endswith("."), process)
        student = int(mark.read_text()[:-1])
        assert is_alive(student)
        process.send_signal(getattr(signal, name))
        process.communicate(timeout=PATIENCE)
    await_death(student)
    assert process.returncode == (-signal.SIGKILL if name == "SIGKILL" else 130)


def test_a_student_is_timed_without_a_grader():
    """Where the system does not end the file's process with the grader, an alarm does, a little after its time."""
    code = "from learn.exercises.runner import *\nset_limits(1 << 40, 50)\nprint(signal.alarm(0))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 50 <= int(result.stdout) <= 60


def test_a_merging_process_that_dies(tmp_path, text, run_cli, monkeypatch):
    """A process that ends without its answer is one line."""
    for code in ("import sys; sys.exit(3)", "import sys; sys.stdin.buffer.read(); sys.exit(3)"):
        (tmp_path / "dies.py").write_text(code)
        monkeypatch.setattr("data.merging.__file__", str(tmp_path / "dies.py"))
        result = run_cli(
            "tokenizer", "train", text, "--vocab-size", 300, "--out", tmp_path / "ranks.tiktoken"
        )
        assert result[0] == 1
        assert result[2].startswith("error: the process that learns the merges ended (exit code 3)")
    assert not (tmp_path / "ranks.tiktoken").exists()
