"""Dumps of any content and in any state: a report or one line, never a traceback."""

import zipfile

import numpy as np
import pytest

from parity.check import compare_dump
from parity.check_report import describe


@pytest.mark.parametrize("name", ["gpt2-tied", "relu-sinusoidal", "untied-no-bias"])
def test_nothing_but_zeros(name, tmp_path, run_cli, packs):
    """A norm of zero clips nothing, and divides nothing."""
    np.savez(tmp_path / "zeros.npz", **{each: 0 * tensor for each, tensor in packs[name].tensors.items()})
    code, stdout, stderr = run_cli("check", tmp_path / "zeros.npz", "--golden", name)
    assert (code, stderr) == (1, "")
    assert "first in dataflow order: tokens" in stdout


@pytest.mark.parametrize("value", [1e308, -1e308, 1e200, np.inf, np.nan])
def test_any_number(value, packs):
    """However large the first number of a tensor is, the tensor diverges and nothing overflows."""
    pack = packs["gpt2-tied"]
    for name in ("tokens", "gradient.blocks.1.norm_2.weight", "adamw.loss", "sampled.logits"):
        dump = {each: np.array(tensor, np.float64) for each, tensor in pack.tensors.items()}
        dump[name].flat[0] = value
        report = compare_dump(dump, pack)
        assert report.diverging[0].name.partition("[")[0] == name
        assert len(describe(report)) < 40


def _zipped(path, method, damage=lambda content: content):
    """An archive of one array, with `damage` done to the bytes of the file."""
    with zipfile.ZipFile(path, "w", method) as archive, archive.open("logits.npy", "w") as member:
        np.save(member, np.zeros((3, 5, 11)))
    path.write_bytes(damage(path.read_bytes()))


def _encrypted(content):
    """With the flag set that says so, in the header of the member and in the directory."""
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = content.index(header) + flags
        content = content[:at] + b"\1" + content[at + 1 :]
    return content


def _bad_stream(content):
    """With the compressed numbers, which follow the header of 30 bytes and the name, overwritten."""
    at = content.index(b"logits.npy") + len("logits.npy") + 9
    return content[:at] + b"\xff" * 20 + content[at + 20 :]


def _odd_dumps(folder):
    _zipped(folder / "lzma.npz", zipfile.ZIP_LZMA, _bad_stream)
    _zipped(folder / "bzip.npz", zipfile.ZIP_BZIP2, _bad_stream)
    _zipped(folder / "deflated.npz", zipfile.ZIP_DEFLATED, _bad_stream)
    _zipped(folder / "secret.npz", zipfile.ZIP_STORED, _encrypted)
    for name in ("renamed", "deep"):
        (folder / name).mkdir()
    _zipped(folder / "renamed" / "logits.npy", zipfile.ZIP_STORED)
    (folder / "deep" / "dump.json").write_text("[" * 200_000)
    (folder / "deep.json").write_text('{"tensors": ' + "[" * 200_000)
    np.save(folder / "array.npy", np.zeros(3))
    (folder / "array.npy").rename(folder / "array.npz")


@pytest.mark.parametrize(
    ("dump", "words"),
    [
        ("lzma.npz", "logits in {}"),
        ("bzip.npz", "logits in {}"),
        ("deflated.npz", "logits in {}"),
        ("secret.npz", "logits in {}"),
        ("renamed", "logits in {}"),
        ("deep", "{}"),
        ("deep.json", "{}"),
        ("array.npz", "{}"),
    ],
)
def test_an_odd_dump_is_one_line(dump, words, tmp_path, run_cli):
    """The line names the file, and the tensor in it where it is known, and says what to do."""
    _odd_dumps(tmp_path)
    code, stdout, stderr = run_cli("check", tmp_path / dump, "--golden", "gpt2-tied")
    assert (code, stdout) == (1, "")
    assert stderr.startswith(f"error: {words.format(tmp_path / dump)} cannot be read (")
    assert stderr.endswith("; write it again\n")
    assert stderr.count("\n") == 1


def test_a_deep_configuration_is_one_line(tmp_path, run_cli):
    (tmp_path / "deep.json").write_text("[" * 200_000)
    code, _, stderr = run_cli("golden", "make", "mine", "--config", tmp_path / "deep.json", "--out", tmp_path)
    assert (code, stderr.count("\n")) == (1, 1)
    assert stderr.startswith(f"error: {tmp_path / 'deep.json'} is not JSON (")
