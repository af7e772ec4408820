"""Dumps in bfloat16 and float16: every form that programs write them in, and what is said of them."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from wrong_ports import right_dump

from contract.numbers import SIXTEEN_BITS, rounded
from parity.golden.check import check_dump, compare_dump
from parity.golden.packs import load_pack, save_pack

NAMES = ("loss", "logits", "blocks.0.norm_1", "gradient.final_norm.weight")


def _halves(tensor: np.ndarray, precision: str) -> np.ndarray:
    """The numbers in two bytes each: bfloat16 as NumPy holds it in files from JAX, without a type of its own."""
    if precision == "float16":
        return tensor.astype(np.float16)
    upper = rounded(tensor.astype(np.float32), precision).view(np.uint32) >> 16
    return upper.astype(np.uint16).view("V2")


def _write(form: str, precision: str, folder) -> str:
    """A dump of a right program's tensors, rounded; the name of what was written."""
    tensors = {
        name: _halves(np.asarray(right_dump("gpt2-tied", "float32")[name]), precision) for name in NAMES
    }
    if form == "npz":
        np.savez(folder / "dump.npz", **tensors)
        return "dump.npz"
    if form == "npy":
        for name, tensor in tensors.items():
            np.save(folder / f"{name}.npy", tensor)
        return "."
    if form == "bin":
        rows = {name: {"shape": list(each.shape), "dtype": precision} for name, each in tensors.items()}
        (folder / "tensors.json").write_text(json.dumps({"tensors": rows}))
        for name, tensor in tensors.items():
            tensor.tofile(folder / f"{name}.bin")
        return "."
    if precision == "float16":
        save_file(tensors, folder / "dump.safetensors")
    else:
        torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
        from safetensors.torch import save_file as save

        halves = {
            name: torch.tensor(each.view(np.int16)).view(torch.bfloat16) for name, each in tensors.items()
        }
        save(halves, folder / "dump.safetensors")
    return "dump.safetensors"


@pytest.mark.parametrize("precision", SIXTEEN_BITS)
@pytest.mark.parametrize("form", ["bin", "npy", "npz", "safetensors"])
def test_every_form_is_read(form, precision, tmp_path, run_cli, packs):
    """To the bit, and judged by the limits of its own precision, unless another is asked for."""
    place = tmp_path / _write(form, precision, tmp_path)
    report = check_dump(place, packs["gpt2-tied"])
    assert (report.dtype, report.diverging, len(report.rows)) == (precision, [], len(NAMES))
    for row in report.rows:
        exact = packs["gpt2-tied"].tensors[row.name]
        wanted = rounded(right_dump("gpt2-tied", "float32")[row.name].astype(np.float32), precision)
        assert row.error == np.abs(wanted.astype(np.float64) - exact).max() / np.abs(exact).max()
    code, stdout, _ = run_cli("check", place, "--golden", "gpt2-tied", "--precision", "float32")
    assert (code, f"numbers of {precision}" in stdout.splitlines()[1]) == (1, True)


def test_two_bytes_of_no_type(tmp_path, run_cli):
    (tmp_path / "loss.bin").write_bytes(b"\0\0")
    code, _, stderr = run_cli("check", tmp_path, "--golden", "gpt2-tied")
    assert (code, "add --precision bfloat16 or float16" in stderr) == (1, True)
    np.asarray(right_dump("gpt2-tied", "float32")["loss"], np.float16).tofile(tmp_path / "loss.bin")
    assert run_cli("check", tmp_path, "--golden", "gpt2-tied", "--precision", "float16")[0] == 0


def test_weights_alone_tell_nothing_of_a_program(tmp_path, packs):
    """They are shipped in 16 bits; what is computed from them in float32 is held to float32's limits."""
    tensors = {name: packs["gpt2-tied"].tensors[name].astype(np.float32) for name in ("loss", "logits")}
    weight = packs["gpt2-tied"].tensors["final_norm.weight"].astype(np.float16)
    np.savez(tmp_path / "dump.npz", **tensors, **{"final_norm.weight": weight})
    report = check_dump(tmp_path / "dump.npz", packs["gpt2-tied"])
    assert "float32" in report.dtype
    assert [row.name for row in report.diverging] == ["final_norm.weight"]


def test_steps_and_texts_are_not_judged(packs, run_cli, tmp_path):
    """What a program in 16 bits keeps of its weights, and which token is the likeliest, is its own affair."""
    np.savez(tmp_path / "dump.npz", **right_dump("gpt2-tied", "float32"))
    code, stdout, _ = run_cli(
        "check", tmp_path / "dump.npz", "--golden", "gpt2-tied", "--precision", "bfloat16"
    )
    lines = stdout.splitlines()
    assert (code, lines[0]) == (0, "gpt2-tied, bfloat16: all 138 tensors agree")
    assert "not judged in bfloat16, steps of AdamW and texts: adamw.learning_rate, " in stdout


def test_what_is_judged_over_several_operations(packs):
    """Where a dump lacks what lies between, rounding hides more, and the tensors are named."""
    dump = {name: rounded(each, "bfloat16") for name, each in right_dump("gpt2-tied", "float32").items()}
    some = compare_dump({name: dump[name] for name in NAMES}, packs["gpt2-tied"], precision="bfloat16")
    assert set(some.bridged) == {"logits", *NAMES[2:]}
    report = compare_dump(dump, packs["gpt2-tied"], precision="bfloat16")
    assert (report.diverging, report.bridged) == ([], [])


def test_numbers_that_are_too_fine(run_cli, tmp_path):
    """Wide limits on what was computed in float32 are told of; a program that keeps some tensors wider is not."""
    dump = {name: right_dump("gpt2-tied", "float32")[name] for name in NAMES}
    for kept in (*NAMES, ""):
        np.savez(tmp_path / "dump.npz", **dump)
        arguments = "check", tmp_path / "dump.npz", "--golden", "gpt2-tied", "--precision", "bfloat16"
        told = "none of your tensors is of bfloat16: " in run_cli(*arguments)[1]
        assert told == (kept in NAMES[:2])  # NAMES[1] is the first that has more than one number
        if kept:
            dump[kept] = rounded(dump[kept].astype(np.float32), "bfloat16")


def test_a_pack_of_an_earlier_version(tmp_path, run_cli, packs):
    """It has no limits in 16 bits, and still opens."""
    pack = packs["gpt2-tied"]
    rows = [{n: v for n, v in row.items() if n not in SIXTEEN_BITS} for row in pack.manifest["tensors"]]
    save_pack(pack._replace(manifest=pack.manifest | {"tensors": rows, "name": "old"}), tmp_path)
    assert load_pack(str(tmp_path / "old")).name == "old"
    place = tmp_path / _write("npz", "bfloat16", tmp_path)
    code, _, stderr = run_cli("check", place, "--golden", tmp_path / "old")
    assert (code, "old has no limits in bfloat16" in stderr, "make the pack again" in stderr) == (
        1,
        True,
        True,
    )


def test_not_finite(packs):
    """A tensor with an infinite number diverges, and what it is told of is the number."""
    dump = {name: np.array(value) for name, value in right_dump("gpt2-tied", "float32").items()}
    dump["blocks.0.norm_1"].flat[3] = np.inf
    report = compare_dump(dump, packs["gpt2-tied"], precision="float16")
    assert report.diverging[0].name == "blocks.0.norm_1"
    assert report.diverging[0].problem.startswith("inf at")
