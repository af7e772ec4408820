"""Several generated texts on stdout: in order where it is a file or a pipe, together on a terminal."""

import sys

import pytest
from rich.console import Console

from commands.samples import _Growing, write_samples
from contract.decoding import kv_cache_numbers
from contract.presets import preset
from harness.training import generation
from harness.training.generation import MAX_SAMPLES, samples_at_once

PIECES = [(0, "a"), (1, "b"), (0, "c"), (1, "d\n"), (1, "e")]


def test_texts_follow_each_other(capsys):
    """In a pipe the first is there as it grows, and each is its prompt, its pieces and a line break."""
    shown = []

    def pieces():
        for piece in PIECES:
            yield piece
            shown.append(capsys.readouterr().out)

    write_samples("P", pieces(), range(2), 2)
    assert shown == ["Pa", "", "c", "", ""]
    assert capsys.readouterr().out == "\nPbd\ne\n"


def interrupted():
    yield from PIECES[:4]
    raise KeyboardInterrupt


def test_an_interruption_leaves_what_there_is(capsys, monkeypatch):
    """On a terminal the unfinished texts stay on the screen, each under its number among all samples."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(KeyboardInterrupt):
        write_samples("P", interrupted(), range(64, 66), 66)
    assert capsys.readouterr().out.endswith("--- sample 65 of 66 ---\nPac\n--- sample 66 of 66 ---\nPbd\n\n")


@pytest.mark.parametrize(("height", "count"), [(24, 3), (24, 11), (24, 60), (5, 2), (3, 2), (2, 1), (1, 4)])
def test_the_view_fits_the_terminal(height, count):
    """As many headings as there is room for, each above the last lines of its text, whatever its length."""
    texts = ["\n".join(f"line {line} of {number}" for line in range(500)) for number in range(count)]
    terminal = Console(width=40, height=height, force_terminal=True, color_system=None)
    with terminal.capture() as capture:
        terminal.print(_Growing([f"heading {number}" for number in range(count)], texts))
    lines = capture.get().splitlines()
    assert len(lines) <= max(1, height - 1)
    headings = [line for line in lines if line.startswith("heading")]
    assert headings == [f"heading {number}" for number in range(min(count, max(1, (height - 1) // 2)))]
    if height > 2:
        assert lines[-1] == f"line 499 of {len(headings) - 1}"


def test_samples_in_groups(run_cli, trained, monkeypatch):
    """More samples than run at once are the same texts, group after group."""
    command = ("generate", trained[0], "--prompt", "The", "--max-new-tokens", 12, "--num-samples", 5)
    together = run_cli(*command)
    monkeypatch.setattr(generation, "MAX_SAMPLES", 2)
    assert run_cli(*command) == together
    assert together[0] == 0


def test_memory_bounds_the_samples(monkeypatch):
    """Keys and values of what runs at once take at most half of the memory; one sample always runs."""
    config = preset("gpt2", vocab_size=50257)
    one = 2 * 4 * kv_cache_numbers(config, 1024)
    for memory, count in ((20 * one, 10), (one, 1), (0, 1), (10**15, MAX_SAMPLES)):
        monkeypatch.setattr(generation, "available_memory", lambda memory=memory: memory)
        assert samples_at_once(config, 5000, "float32") == count
    monkeypatch.setattr(generation, "available_memory", lambda: 20 * one)
    assert samples_at_once(config, 512, "float32") == 20
    assert samples_at_once(config, 512, "float64") == 10
