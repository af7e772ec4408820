"""What goes to the terminal, a pipe, or nowhere: streams that are closed, full or narrow, and what may be printed."""

import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from safetensors.numpy import save_file

from commands import console
from contract.errors import UserError, command_line, quoted, visible
from harness.training.checkpoint import load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[2]
SMALL = (
    "--preset", "nano", "--n-layer", "1", "--n-head", "2", "--d-model", "16", "--context-length", "8",
    "--batch-size", "4", "--threads", "1",
)  # fmt: skip
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
HOSTILE = "\x1b]0;mine\x07\x1b[2J\x9b31m\u202e"

posix = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell or pseudo-terminals")


def shell(line, *arguments):
    """Run a shell line in which CLI is the command line and the arguments are $1, $2, ..."""
    line = line.replace("CLI", f'"{sys.executable}" cli.py')
    return subprocess.run(
        ["bash", "-c", line, "bash", *map(str, arguments)],
        cwd=ROOT, capture_output=True, check=False, env=BUFFERED,
    )  # fmt: skip


def on_a_terminal(*arguments):
    """Run the command line on a pseudo-terminal. returns: exit code, what the terminal got"""
    master, slave = os.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    command = [sys.executable, "cli.py", *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=slave, stderr=slave) as process:
        os.close(slave)
        shown = bytearray()
        while piece := _read(master):
            shown += piece
    os.close(master)
    return process.returncode, shown.decode()


def _read(master):
    try:
        return os.read(master, 4096)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """A run of a model that writes hardly anything but escapes, and whose source is one."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "text.txt").write_text("\x1b\x07\r\n" * 300, newline="")
    command = [sys.executable, "cli.py", "train", "--text", folder / "text.txt", *SMALL, "--steps", "1"]
    result = subprocess.run([*command, "--out", folder / "run"], cwd=ROOT, capture_output=True, check=True)
    assert b"\x1b" in result.stdout  # a pipe gets the model's very text
    checkpoint = load_checkpoint(folder / "run" / "latest")
    source = replace(checkpoint, training=checkpoint.training | {"source": HOSTILE})
    save_checkpoint(folder / "run" / "latest", source)
    return folder / "run"


# Streams


@posix
def test_a_dead_stderr_ends_no_training(tmp_path, text):
    """Closed, full, or a pipe that nobody reads: training goes on to its end."""
    flags = shlex.join([*SMALL, "--steps", "4", "--eval-interval", "1", "--eval-tokens", "64"])
    for number, sink in enumerate(("2>&-", "2>/dev/full", "2>&1 >/dev/null | true")):
        out = tmp_path / str(number)
        line = f'CLI train --text "$1" --out "$2" {flags} {sink}'
        result = shell(line + "; exit ${PIPESTATUS[0]}", text, out)
        assert result.returncode == 0, sink
        assert load_checkpoint(out / "latest").step == 4


@posix
def test_a_closed_stdout_is_no_failure(hostile_run, tmp_path):
    """What would be printed is lost, and no file of ours takes the place of a closed stream."""
    for line in ('CLI generate "$1" --max-new-tokens 5 >&-', 'CLI info "$1" >&- 2>&- <&-', "CLI --help >&-"):
        result = shell(line, hostile_run)
        assert (result.returncode, result.stdout, result.stderr) == (0, b"", b""), line
    code = "from commands.streams import *; secure_streams(); open(FILE, 'w').write(str(os.open(FILE, 0)))"
    file = tmp_path / "descriptor"
    shell(f"'{sys.executable}' -c \"$1\" <&- >&- 2>&-", code.replace("FILE", repr(str(file))))
    assert int(file.read_text()) > 2


@posix
def test_a_reader_that_has_enough(hostile_run):
    """Every command whose reader leaves ends without a word and with exit code 0."""
    commands = (
        'CLI generate "$1" --max-new-tokens 100000000 | head -c 3 >&2', 'CLI info "$1" | true',
        "CLI train --help | true", "CLI exercise list | true", "CLI golden list --json | true",
    )  # fmt: skip
    for line in commands:
        result = shell(line + "; exit ${PIPESTATUS[0]}", hostile_run)
        assert result.returncode == 0, line
        assert len(result.stderr) == (3 if "generate" in line else 0)


@posix
def test_a_full_stdout_is_one_line():
    """Results that cannot be written are an error."""
    for line in ("CLI golden list >/dev/full", "CLI --help >/dev/full"):
        result = shell(line)
        assert result.returncode == 1
        assert re.fullmatch(rb"error: .*No space left on device\)?\n", result.stderr)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_narrow_encoding(tmp_path, packs, encoding):
    """What an encoding lacks becomes a question mark, in whatever command."""
    tensors = dict(packs["relu-sinusoidal"].tensors)
    name = "gradient.blocks.0.feed_forward.up.weight"
    save_file(tensors | {name: tensors[name] * 3}, tmp_path / "dump.safetensors")
    arguments = ("check", tmp_path / "dump.safetensors", "--golden", "relu-sinusoidal")
    command = [sys.executable, "cli.py", *map(str, arguments)]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (1, b"")
    assert b"dweight = dy? x" in result.stdout


def test_ends_of_lines_stay(monkeypatch):
    """Text goes out with the ends of lines that it has, on a system that would translate them too."""
    stream = io.TextIOWrapper(io.BytesIO(), newline="\r\n", encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    console.write("a\r\nb\nᵀ")
    assert stream.buffer.getvalue() == b"a\r\nb\n?"


def test_a_pipe_of_ours_is_no_reader_that_left(run_cli, monkeypatch):
    """A broken pipe that is not stdout is an error like any other."""

    def fail(*arguments):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("parity.golden.packs.load_pack", fail)
    assert run_cli("golden", "list") == (1, "", "error: Broken pipe\n")
    monkeypatch.undo()
    monkeypatch.setattr(sys.stdout, "write", fail)
    with pytest.raises(typer.Exit) as exit:
        console.show("enough")
    assert exit.value.exit_code == 0


@pytest.mark.parametrize("name", ["COLUMNS", "TERMINAL_WIDTH"])
def test_a_width_that_nobody_has(monkeypatch, run_cli, name):
    """A terminal's width that cannot be meant is not believed."""
    usual = run_cli("exercise", "list", "--help")
    for width in ("99999999", "1000", "0", "-5", "²", "wide"):
        monkeypatch.setenv(name, width)
        assert run_cli("exercise", "list", "--help") == usual


# What may be printed


def test_what_is_visible():
    """Only what steers a terminal or the direction of writing is escaped: languages need the rest."""
    assert visible("\x1b[31m\x07\r\x9b\x7f") == "\\x1b[31m\\x07\\r\\x9b\\x7f"
    assert visible("a\u202eb\u2066\udcff") == "a\\u202eb\\u2066\\udcff"
    kept = "a\tb\n äß語\u3000می\u200cخواهم 👩\u200d👧\u00a0"
    assert visible(kept) == kept


@posix
def test_generated_escapes_do_not_reach_a_terminal(hostile_run):
    """On a terminal they are written out; into a pipe goes the model's very text."""
    arguments = ("generate", hostile_run, "--max-new-tokens", 60, "--prompt", "\r\n")
    code, shown = on_a_terminal(*arguments)
    assert code == 0
    assert not set(shown) & set("\x1b\x07")
    assert "\\x1b" in shown
    result = subprocess.run(
        [sys.executable, "cli.py", *map(str, arguments)], cwd=ROOT, capture_output=True, check=True
    )
    assert result.stdout.startswith(b"\r\n")
    assert {0x1B, 0x07} <= set(result.stdout)


@posix
def test_samples_grow_together_on_a_terminal(hostile_run):
    """All are on screen before the first is done; at the end each stands whole under its heading, as in a pipe."""
    arguments = ("generate", hostile_run, "--max-new-tokens", 400, "--prompt", "\r\n", "--num-samples", 3)
    code, shown = on_a_terminal(*arguments)
    assert code == 0
    assert "\x1b[?25" not in shown
    assert "\x07" not in shown
    headings = re.findall(r"--- sample (.) of 3 ---", shown)
    assert headings[-3:] == headings[:3] == ["1", "2", "3"]
    assert len(headings) > 3  # drawn before the end too
    final = shown[shown.rindex("--- sample 1 of 3 ---") :]
    assert "\x1b" not in final
    piped = subprocess.run(
        [sys.executable, "cli.py", *map(str, arguments)], cwd=ROOT, capture_output=True, check=True
    )
    texts = [f"--- sample {n} of 3 ---\n" for n in (1, 2, 3)]
    length = len(piped.stdout) // 3
    for number in range(3):
        texts[number] += visible(piped.stdout[number * length : (number + 1) * length].decode())
    assert final.replace("\r\n", "\n") == "".join(texts)


@posix
def test_a_bar_hides_no_cursor(hostile_run, tmp_path):
    """A process that is killed beside its bar leaves a terminal with a cursor, and the sample is filtered there."""
    text = hostile_run.parent / "text.txt"
    code, shown = on_a_terminal("train", "--text", text, *SMALL, "--steps", 3, "--out", tmp_path / "run")
    assert code == 0
    assert "tokens/s" in shown  # the bar was drawn
    assert "\x1b[?25" not in shown
    assert "\x07" not in shown
    assert "\\x1b" in shown.rpartition("a sample")[2]


def test_escapes_in_names(hostile_run, run_cli, tmp_path):
    """No name of a file, or from one, steers the terminal."""
    code, out, err = run_cli("info", hostile_run / "latest")
    assert (code, err) == (0, "")
    assert visible(HOSTILE) in out
    assert "\x1b" not in out
    name = "a\x1b[2J\x07:x:[red]"
    for arguments in (("info", tmp_path / name), ("exercise", "start", "relu", "--out", tmp_path / name)):
        _, out, err = run_cli(*arguments)
        assert "a\\x1b[2J\\x07:x:[red]" in err
        assert not set(out + err) & set("\x1b\x07")


@pytest.mark.parametrize("name", ["a b;touch X", "-x", "$(touch X)", "it's", "plain"])
def test_suggested_commands_are_quoted(name, run_cli, monkeypatch, tmp_path):
    """What is suggested, pasted into a shell, is about the very path."""
    assert shlex.split(quoted("--out", Path(name)))[1] == (f"./{name}" if name == "-x" else name)
    monkeypatch.chdir(tmp_path)
    _, _, err = run_cli("exercise", "start", "relu", f"--out={name}")
    command = err.splitlines()[0].split("To grade it: ")[1]
    *words, path = shlex.split(command)
    assert words == ["python", "cli.py", "exercise", "grade"]
    assert Path(path).resolve() == tmp_path / name
    assert run_cli(*words[2:], path)[0] == 1  # a blank exercise, but the file is found


def test_command_lines():
    """Options stay as they are; a Path that looks like one does not."""
    assert command_line("generate", Path("runs/a")) == "python cli.py generate runs/a"
    assert command_line("train", "--out", Path("-x y")) == "python cli.py train --out './-x y'"


def test_results_that_cannot_be_written(monkeypatch):
    """A disk that is full under stdout is the user's to mend."""

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.stdout, "write", fail)
    with pytest.raises(UserError, match="stdout cannot be written"):
        console.write("a")
