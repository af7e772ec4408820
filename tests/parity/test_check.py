"""The check: it finds the operation at fault in somebody's port, says what is wrong, and keeps it short."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from wrong_ports import IN_FAMILY_PORTS, PORTS, UNSEEN, WRONG_DUMPS, dump_of, first_shown, of_fault

from operations.adamw import MISTAKES
from operations.catalogue import OPERATIONS
from operations.uses import WRONG_SUMS
from parity.faults import Fault
from parity.golden import explanations
from parity.golden.check import compare_dump
from parity.golden.packs import pack_names
from parity.golden.report import describe
from parity.golden.same_mistake import gradients_with
from parity.golden.tensors import Tensors
from parity.tolerances import observe

# Both ways, which a mistake that is made in an operation's result is not.
_UNSCALED = of_fault(
    "scale_missing",
    "scores",
    Fault("", "numpy_llm.attend.attend_forward", "config.score_scale", "1.0"),
)


def _port(name: str):
    return next(port for port in PORTS if port.explanation == name)


def _layer_norm_with(eps: str):
    fault = Fault("", "numpy_llm.norms.layer_norm_forward", " + eps)", f" + {eps})")
    return of_fault("norm_eps_other", "layer_norm", fault)


# Explanations


@pytest.mark.parametrize("port", PORTS, ids=lambda port: f"{port.operation}-{port.explanation}")
def test_a_mistake_is_explained(port, packs):
    """The operation with the mistake is found, the fault is known to be its own, and its explanation comes first."""
    report = first_shown(port, packs)
    if port.explanation in UNSEEN:
        assert report is None
        return
    first = report.faults[0]
    assert [(each.operation, each.name) for each in first.explanations][:1] == [
        (port.operation, port.explanation)
    ]
    assert first.own


@pytest.mark.parametrize("wrong", WRONG_DUMPS, ids=lambda wrong: wrong.explanation)
def test_a_wrong_dump_is_explained(wrong, packs):
    """Where one tensor of a dump is wrong, it is found, and the mistake, too."""
    dump = dump_of(packs["gpt2-tied"])
    dump[wrong.tensor] = wrong.change(dump[wrong.tensor])
    first = compare_dump(dump, packs["gpt2-tied"]).faults[0]
    assert [each.name for each in first.explanations][:1] == [wrong.explanation]
    assert first.own
    assert first.row.name == wrong.tensor


def test_every_mistake_is_made():
    """At least 142 explanations, each with a port that has the mistake."""
    known = [(each.name, mistake.name) for each in OPERATIONS.values() for mistake in each.mistakes]
    known += [("adamw", mistake.name) for mistake in MISTAKES] + [("uses", each.name) for each in WRONG_SUMS]
    anywhere = {*(mistake.name for mistake in explanations.ANYWHERE), "constant_factor"}
    ported = [(port.operation, port.explanation) for port in PORTS]
    ported += [("" if w.explanation in anywhere else "uses", w.explanation) for w in WRONG_DUMPS]
    ported += IN_FAMILY_PORTS
    assert len(known) == len({*known})
    assert sorted(ported) == sorted([*known, *(("", name) for name in anywhere)])
    assert len(ported) - len(UNSEEN) >= 142


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", pack_names())
def test_a_right_program_agrees(name, dtype, packs):
    report = compare_dump(dump_of(packs[name], dtype), packs[name])
    verdict, nearest = describe(report)
    assert verdict == f"{name}, {dtype}: all {len(packs[name].tensors)} tensors agree"
    ratios = {row.name: row.error / row.limit for row in report.rows if row.limit}
    named = nearest.removeprefix("nearest to its limit: ").partition(", error ")[0]
    assert ratios[named] == max(ratios.values()) <= 1
    for row in report.rows:
        if row.name.startswith("adamw."):
            observe("golden steps", dtype, row.error)


@pytest.mark.parametrize("size", [0.1, 6e-5])
def test_an_unknown_mistake_is_not_explained(size, packs):
    """Noise fits nothing, not even noise of a size at which some mistakes hardly change a number."""
    pack = packs["gpt2-tied"]
    for name in ("final_norm", "gradient.blocks.0.attention.scores", "adamw.v.final_norm.bias"):
        dump = dump_of(pack)
        dump[name] = dump[name] + np.random.default_rng(1).uniform(-size, size, dump[name].shape)
        first = compare_dump(dump, pack).faults[0]
        assert first.row.name.partition("[")[0] == name
        assert first.explanations == []
        assert "  none of the known mistakes gives your numbers" in describe(compare_dump(dump, pack))


def test_an_explanation_fits_to_rounding(packs):
    """What is twice too large but for a hundredth is not explained by its being twice too large."""
    dump = dump_of(packs["gpt2-tied"])
    dump["final_norm"] = dump["final_norm"] * np.random.default_rng(1).uniform(1.98, 2.02, (3, 5, 6))
    assert compare_dump(dump, packs["gpt2-tied"]).faults[0].explanations == []


@pytest.mark.parametrize("name", ["norm_eps_other", "norm_without_mean", "norm_eps_outside", "norm_unbiased",
                                  "merge_interleaved", "qkv_interleaved", "gelu_erf"])  # fmt: skip
def test_a_mistake_differentiated_is_one_mistake(name, packs):
    """Who differentiates a wrong forward pass rightly has made one mistake, and is told of one."""
    pack = packs["gpt2-tied"]
    tensors, dump = Tensors(pack, "float64", pack.tensors), dict(pack.tensors)
    operation = next(each for each in OPERATIONS.values() if any(m.name == name for m in each.mistakes))
    made_by = {each: origin.operations for each, origin in tensors.origins.items() if "gradient" not in each}
    result = [each for each, operations in made_by.items() if operation.name in operations][-1]
    mistake = operation.find(name)
    dump[result] = next(each.value for each in tensors.graph.wrong(result) if each.mistake is mistake)
    inputs = tensors.origins[result].inputs
    tensor = next((each for each in inputs if each.endswith("weight")), inputs[0])
    shape, places = pack.tensors[tensor].shape, np.arange(pack.tensors[tensor].size)
    gradient = gradients_with(tensors, tensor, operation.name, mistake, places)[0]
    dump[f"gradient.{tensor}"] = gradient.reshape(shape)
    faults = [f for f in compare_dump(dump, pack).faults if f.row.name.startswith("gradient.")]
    assert [(fault.cause, fault.explanations[0].name) for fault in faults] == [(result, name)]


def test_the_same_eps_backward_is_one_line(packs):
    """An epsilon of 1e-6 in a layer norm changes forward and backward passes, in one reported mistake."""
    pack = packs["gpt2-tied"]
    report = compare_dump(dump_of(pack, "float64", _layer_norm_with("1e-6")), pack)
    lines = describe(report)
    assert sum("so the fault is in this operation" in line for line in lines) == 1
    assert sum("its backward has the same mistake" in line for line in lines) == 1
    assert not any("none of the known mistakes" in line or "--precision" in line for line in lines)


def test_what_is_left_unexplained_backward_is_probably_the_same(packs):
    pack = packs["gpt2-tied"]
    dump = dump_of(pack, "float64", _layer_norm_with("1e-3"))
    dump["gradient.final_norm.weight"] = dump["gradient.final_norm.weight"] + np.arange(6) ** 2
    lines = describe(compare_dump(dump, pack))
    assert "  probably the same mistake: gradient.final_norm.weight" in lines


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bytes_in_the_other_order(dtype, packs):
    """A big-endian dump is nonsense; what it is, is all that is told."""
    dump = {name: tensor.byteswap() for name, tensor in dump_of(packs["gpt2-tied"], dtype).items()}
    lines = describe(compare_dump(dump, packs["gpt2-tied"]))
    assert any("the bytes are in the other order" in line for line in lines)
    assert sum(line.startswith("by itself") for line in lines) == 0


def test_where_decay_is_missing(packs):
    """Of the matrices, those without decay and those with it."""
    pack = packs["gpt2-tied"]
    wrong, dump = dump_of(pack, "float64", _port("decay_missing")), dump_of(pack, "float64")
    name = "adamw.weights.token_embedding.weight"
    dump[name] = dump[name].copy()
    dump[name][0] = wrong[name][0]
    lines = describe(compare_dump(dump, pack))
    line = next(
        line for line in lines if line.startswith("  of the weights: wrong in token_embedding.weight; ")
    )
    assert "right in position_embedding.weight" in line
    assert "norm" not in line


@pytest.mark.parametrize("moments", ["adamw.v.", ("adamw.m.", "adamw.v.")])
def test_one_explanation_where_two_are_the_same(moments, packs):
    """Clipping number by number changes nothing where all are small: nothing was clipped, and that alone is said."""
    pack = packs["gpt2-tied"]
    wrong, dump = dump_of(pack, "float64", _port("clip_missing")), dump_of(pack, "float64")
    dump |= {name: tensor for name, tensor in wrong.items() if name.startswith(moments)}
    for each in compare_dump(dump, pack).faults[: 1 + (moments != "adamw.v.")]:
        assert [explanation.name for explanation in each.explanations] == ["clip_missing"]


# Where the fault is


def test_the_worst_number_is_told(packs):
    """Index, both values and the error relative to the largest magnitude."""
    pack = packs["gpt2-tied"]
    golden = pack.tensors["blocks.1.residual_1"]
    dump = {"blocks.1.residual_1": golden.copy()}
    dump["blocks.1.residual_1"][2, 1, 4] += 0.5
    dump["blocks.1.residual_1"][0, 0, 0] += 0.25
    row = compare_dump(dump, pack).faults[0].row
    assert (row.name, row.index) == ("blocks.1.residual_1", (2, 1, 4))
    assert (row.reference, row.twin) == (golden[2, 1, 4], golden[2, 1, 4] + 0.5)
    assert row.error == pytest.approx(0.5 / np.abs(golden).max())


def test_two_mistakes_are_told_apart(packs):
    """The second is found from the dump's own inputs, wrong as they are; what follows from both is not blamed."""
    dump = dump_of(packs["gpt2-tied"], port=_UNSCALED)
    dump["gradient.final_norm.weight"] = -dump["gradient.final_norm.weight"]
    faults = compare_dump(dump, packs["gpt2-tied"]).faults
    assert [(fault.origin.title, fault.explanations[0].name) for fault in faults] == [
        ("scores", "scale_missing"),
        ("layer norm backward to weight", "sign"),
        ("scores backward to key", "scale_missing"),
        ("scores backward to query", "scale_missing"),
        ("AdamW mean", "sign"),
    ]
    assert faults[0].elsewhere == ["blocks.1.attention.scores"]
    assert [fault.cause for fault in faults] == ["", "", *[faults[0].row.name] * 2, ""]
    assert faults[0].inputs_right
    assert not faults[1].inputs_right


def test_a_partial_dump(packs):
    """What lies between the tensors that are there is run, and its mistakes are tried."""
    dump, pack = dump_of(packs["gpt2-tied"], port=_UNSCALED), packs["gpt2-tied"]
    part = {name: dump[name] for name in ("blocks.0.norm_1", "blocks.0.attention.heads", "logits", "loss")}
    report = compare_dump(part, pack)
    assert [fault.row.name for fault in report.faults] == ["blocks.0.attention.heads"]
    fault = report.faults[0]
    assert fault.own
    assert fault.origin.title == "linear, split heads, scores, masked softmax, weighted sum"
    assert list(fault.inputs) == [
        "blocks.0.norm_1", "blocks.0.attention.query_key_value.weight", "blocks.0.attention.query_key_value.bias"
    ]  # fmt: skip
    assert [each.name for each in fault.explanations] == ["scale_missing"]
    lines = describe(report)
    assert (
        "  between it and what your dump has: linear, split heads, scores, masked softmax, weighted sum"
        in lines
    )
    assert any(line.startswith("  scores: scores = query keyᵀ / √D") for line in lines)
    assert "  its inputs are right, so the fault is in this operation" in lines


def test_small_errors_that_grow_are_no_fault(packs):
    """Weights within their limits may give a loss that is not: the first operation that is wrong by itself is told."""
    dump = dump_of(packs["gpt2-tied"], port=_port("decay_after_step"))
    report = compare_dump(dump, packs["gpt2-tied"])
    assert report.diverging[0].name == "adamw.loss[2]"
    assert report.faults[0].origin.title == "AdamW weight"
    assert describe(report)[2] == "adamw.loss[2] is off because small errors in its inputs grew"


def test_fewer_steps_of_adamw(packs):
    """A dump may stop after some steps; what it has is compared."""
    pack = packs["gpt2-tied"]
    dump = {name: tensor[:3] for name, tensor in dump_of(pack).items() if name.startswith("adamw.")}
    assert not compare_dump(dump, pack).diverging
    dump["adamw.loss"][2] += 1
    assert compare_dump(dump, pack).faults[0].row.name == "adamw.loss[3]"


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (np.full((3, 5, 11), np.nan), "nan at [0, 0, 0]"),
        (np.full((3, 5, 11), -np.inf), "-inf at [0, 0, 0]"),
        (np.zeros((3, 5, 10)), "shape [3, 5, 10], wanted [3, 5, 11]"),
        (np.zeros((0, 5, 11)), "shape [0, 5, 11], wanted [3, 5, 11]"),
        (np.full((3, 5, 11), 1.7e308), "yours 1.7e+308"),
    ],
)
def test_what_is_no_number(tensor, problem, packs):
    """Infinite, huge, or of another shape: said so, in words and in valid JSON."""
    dump = dump_of(packs["gpt2-tied"], "float64") | {"logits": tensor}
    assert problem in "\n".join(describe(compare_dump(dump, packs["gpt2-tied"])))


@pytest.mark.parametrize(
    "change", [lambda x: x + 1e300, lambda x: x - 100, lambda x: x + 0.5, lambda x: x[:2]]
)
def test_tokens_that_do_not_exist(change, packs):
    """Wrong token ids are the fault, and are looked up nowhere."""
    pack = packs["gpt2-tied"]
    dump = dump_of(pack, "float64", _UNSCALED)
    dump |= {"tokens": change(dump["tokens"]), "blocks.0.norm_1": dump["blocks.0.norm_1"][:1]}
    names = [fault.row.name for fault in compare_dump(dump, pack).faults]
    assert names[0] == "tokens"
    assert "blocks.0.attention.scores" in names
    assert "token_embedding" not in names


def test_the_summary_is_short(packs):
    """Where everything is wrong: five faults at the most, a screen of lines, none of them long."""
    random, pack = np.random.default_rng(0), packs["gpt2-tied"]
    dump = {name: random.normal(size=tensor.shape) for name, tensor in pack.tensors.items()}
    lines = describe(compare_dump(dump, pack))
    assert lines[0] == "gpt2-tied, float64: 232 of 232 tensors DIVERGE"
    assert len(lines) < 40
    assert max(map(len, lines)) < 300


# The command


def _save(dump, path):
    """As safetensors, which takes every array for one in C order."""
    save_file({name: np.array(tensor, order="C") for name, tensor in dump.items()}, path)


def test_the_command(tmp_path, run_cli, packs):
    """Exit code 0 or 1; the verdict first; a record for machines with the same content."""
    pack = packs["gpt2-tied"]
    _save(dump_of(pack), tmp_path / "right.safetensors")
    _save(dump_of(pack, port=_UNSCALED), tmp_path / "wrong.safetensors")
    code, stdout, stderr = run_cli("check", tmp_path / "right.safetensors", "--golden", "gpt2-tied")
    assert (code, stderr) == (0, "")
    assert stdout.startswith("gpt2-tied, float32: all 232 tensors agree\nnearest to its limit: ")
    code, stdout, stderr = run_cli("check", tmp_path / "wrong.safetensors", "--golden", "gpt2-tied")
    assert (code, stderr) == (1, "")
    lines = stdout.splitlines()
    assert lines[0] == "gpt2-tied, float32: 189 of 232 tensors DIVERGE"
    assert lines[2].startswith("first in dataflow order: blocks.0.attention.scores[")
    assert "  its inputs are right, so the fault is in this operation" in lines
    assert any(line.endswith("the scores are not divided by √D") for line in lines)
    assert len(lines) < 40

    code, stdout, _ = run_cli("check", tmp_path / "wrong.safetensors", "--golden", "gpt2-tied", "--json")
    record = json.loads(stdout)
    assert code == 1
    assert (record["golden"], record["dtype"], record["holds"], record["compared"]) == (
        "gpt2-tied", "float32", False, 232,
    )  # fmt: skip
    fault = record["faults"][0]
    assert fault["name"] == "blocks.0.attention.scores"
    assert len(fault["index"]) == 4
    errors = {each["name"]: (each["error"], each["limit"]) for each in record["tensors"]}
    assert errors[fault["name"]] == (fault["error"], fault["limit"])
    assert len(errors) >= 232
    assert fault["in_this_operation"] is True
    assert fault["inputs"] == {"blocks.0.attention.query": "right", "blocks.0.attention.key": "right"}
    assert fault["explanations"][0]["name"] == "scale_missing"
    assert fault["yours"] != fault["golden"]


def test_limits_are_those_of_the_dump(tmp_path, run_cli, packs):
    """float32 numbers stored as float64 diverge by rounding alone: the report says so, and --precision helps."""
    dump = {name: np.asarray(tensor, np.float64) for name, tensor in dump_of(packs["gpt2-tied"]).items()}
    np.savez(tmp_path / "dump.npz", **dump)
    arguments = ("check", tmp_path / "dump.npz", "--golden", "gpt2-tied")
    code, stdout, _ = run_cli(*arguments)
    assert code == 1
    assert "--precision float32" in stdout.splitlines()[-1]
    assert run_cli(*arguments, "--dtype", "float32")[0] == 0


def _write_raw(folder, tensors, listing):
    folder.mkdir()
    for name, tensor in tensors.items():
        tensor.tofile(folder / f"{name}.bin")
    if listing is not None:
        (folder / "dump.json").write_text(json.dumps(listing))


@pytest.mark.parametrize("listed", ["as rows", "by name", "elsewhere", "not at all"])
def test_raw_dumps(listed, tmp_path, run_cli, packs):
    """Little-endian files, with a JSON that lists them in any of its forms, or some of them, or without one."""
    golden = packs["gpt2-tied"].tensors
    tensors = {name: golden[name].astype(np.float32) for name in ("logits", "loss", "final_norm")}
    rows = {name: {"shape": list(each.shape), "dtype": "float32"} for name, each in tensors.items()}
    listing = {
        "as rows": {"tensors": [{"name": name, **row} for name, row in rows.items()]},
        "by name": {"tensors": rows},
        "elsewhere": {"tensors": {"logits": {**rows["logits"], "file": "logits.bin"}}},
        "not at all": None,
    }[listed]
    _write_raw(tmp_path / "dump", tensors, listing)
    code, stdout, _ = run_cli("check", tmp_path / "dump", "--golden", "gpt2-tied")
    assert code == 0, stdout
    assert stdout.startswith("gpt2-tied, float32: all 3 tensors agree; ")
    if listing:
        code, stdout, _ = run_cli("check", tmp_path / "dump" / "dump.json", "--golden", "gpt2-tied")
        verdict = "the tensor agrees" if listed == "elsewhere" else "all 3 tensors agree"
        assert (code, stdout.partition(";")[0]) == (0, f"gpt2-tied, float32: {verdict}")


def test_no_file_of_a_dump_hides_another(tmp_path, run_cli, packs):
    """Both kinds are compared; what is neither is named, and a name in two files is refused."""
    golden, folder = packs["gpt2-tied"].tensors, tmp_path / "dump"
    _write_raw(folder, {"loss": golden["loss"] + 1}, None)
    np.save(folder / "logits.npy", golden["logits"])
    (folder / "gradients").mkdir()
    (folder / "notes.txt").write_text("mine")
    code, stdout, _ = run_cli("check", folder, "--golden", "gpt2-tied")
    assert code == 1
    assert stdout.startswith("gpt2-tied, float64: 1 of 2 tensors DIVERGE")
    assert "\nnot read: gradients, notes.txt\n" in stdout
    _, record, _ = run_cli("check", folder, "--golden", "gpt2-tied", "--json")
    assert json.loads(record)["unread"] == ["gradients", "notes.txt"]
    np.save(folder / "loss.npy", golden["loss"])
    code, stdout, stderr = run_cli("check", folder, "--golden", "gpt2-tied")
    assert (code, stdout) == (1, "")
    assert stderr.endswith("has loss twice; leave the one to compare\n")


def test_what_the_pack_gives_is_no_verdict(tmp_path, run_cli, packs):
    """A program that writes its tokens back has computed nothing."""
    given = {name: packs["gpt2-tied"].tensors[name] for name in ("tokens", "targets", "sampled.prompt")}
    np.savez(tmp_path / "dump.npz", **given)
    code, stdout, stderr = run_cli("check", tmp_path / "dump.npz", "--golden", "gpt2-tied")
    assert (code, stdout) == (1, "")
    assert "has only tokens, targets, sampled.prompt of the pack, which it gives; dump what" in stderr


def test_names_that_the_pack_lacks(tmp_path, run_cli, packs):
    """A misspelt name is told with the nearest right one; control characters are not printed."""
    golden = packs["gpt2-tied"].tensors
    tensors = {
        "logits": golden["logits"],
        "blocks.0.norm1": golden["blocks.0.norm_1"],
        "a\nb\x07": golden["loss"],
    }
    save_file(tensors, tmp_path / "dump.safetensors")
    code, stdout, _ = run_cli("check", tmp_path / "dump.safetensors", "--golden", "gpt2-tied")
    assert code == 0
    assert "blocks.0.norm1 (did you mean blocks.0.norm_1?)" in stdout
    assert "a?b?" in stdout
    assert stdout.startswith(
        "gpt2-tied, float64: the tensor agrees; 231 not in your dump; 2 not in the pack\n"
    )


def _broken(folder):
    """Dumps that cannot be read, by what the line must say."""
    good = np.zeros((3, 5, 11))
    row = {"name": "logits", "shape": [3, 5, 11], "dtype": "float64"}
    np.savez(folder / "object.npz", logits=np.array([{}], object))
    np.savez(folder / "bytes.npz", logits=good.astype(np.int8))
    np.savez(folder / "large.npz", logits=np.zeros(100_000))
    save_file({"logits": good.astype(np.int8)}, folder / "bytes.safetensors")
    save_file({"other": good}, folder / "other.safetensors")
    (folder / "text.npz").write_text("no archive")
    (folder / "text.safetensors").write_text("no tensors")
    (folder / "empty").mkdir()
    (folder / "npy").mkdir()
    (folder / "npy" / "logits.npy").write_bytes(b"\x93NUMPY")
    for name, listing in (
        ("escape", {"tensors": [row | {"file": "../text.npz"}]}),
        ("short", {"tensors": [row | {"shape": [4, 5, 11]}]}),
        ("negative", {"tensors": [row | {"shape": [-3, -5, 11]}]}),
        ("type", {"tensors": [row | {"dtype": "object"}]}),
        ("rowless", {"tensors": 3}),
        ("list", []),
    ):
        _write_raw(folder / name, {"logits": good}, listing)
    _write_raw(folder / "two", {"logits": good}, {})
    (folder / "two" / "other.json").write_text("{}")
    _write_raw(folder / "size", {"logits": good[1:]}, None)


@pytest.mark.parametrize(
    ("dump", "words"),
    [
        ("absent", "does not exist"),
        ("object.npz", "cannot be read"),
        ("bytes.npz", "int8"),
        ("large.npz", "too many"),
        ("bytes.safetensors", "I8"),
        ("other.safetensors", "no tensor under a name of the pack"),
        ("text.npz", "cannot be read"),
        ("text.safetensors", "cannot be read"),
        ("empty", "no tensor under a name of the pack"),
        ("npy", "cannot be read"),
        ("escape", "not the name of a file beside"),
        ("short", "bytes where shape"),
        ("negative", "has shape"),
        ("type", "dtype object"),
        ("rowless", "lists no tensors"),
        ("list", "lists no tensors"),
        ("two", "2 JSON files"),
        ("size", "bytes where shape"),
    ],
)
def test_a_dump_that_cannot_be_read(dump, words, tmp_path, run_cli):
    """One line that says why, and exit code 1."""
    _broken(tmp_path)
    code, stdout, stderr = run_cli("check", tmp_path / dump, "--golden", "gpt2-tied")
    assert (code, stdout) == (1, "")
    assert words in stderr
    assert stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "--golden"),
        (("--golden", "nothing"), 1, "choose gemma3, gpt2-tied"),
        (("--golden", "gpt2-tied", "--precision", "int8"), 2, "float64, float32, bfloat16, float16"),
    ],
)
def test_wrong_uses(arguments, code, words, tmp_path, run_cli):
    save_file({"loss": np.ones(())}, tmp_path / "dump.safetensors")
    found, stdout, stderr = run_cli("check", tmp_path / "dump.safetensors", *arguments)
    assert (found, stdout) == (code, "")
    assert words in stderr
    assert stderr.strip().count("\n") == 0
