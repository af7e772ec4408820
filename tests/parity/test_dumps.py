"""Dumps of any content and in any state: a report or one line, never a traceback."""

import zipfile

import numpy as np
import pytest
from wrong_ports import right_dump

from contract.sampling import sample
from contract.weights import Weights
from parity.golden.check import compare_dump
from parity.golden.making import computed
from parity.golden.packs import pack_names
from parity.golden.report import describe
from parity.golden.undetermined import undetermined


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
    assert stderr.startswith(f"error: {tmp_path / 'deep.json'} is not a JSON object (")


# Continuations


def _continued(pack, monkeypatch, choose):
    """The dump of a float32 port that is right but for how it chooses tokens.

    choose: logits and settings of `contract.sampling.sample` -> token
    """
    monkeypatch.setattr("parity.golden.making.sample", choose)
    given = Weights.zeros(pack.config, "float32")
    for name, weight in given.items():
        weight[...] = pack.tensors[name]
    batch = {name: pack.tensors[name] for name in ("tokens", "targets")}
    return batch | dict(given) | computed(pack.config, given, *batch.values(), pack.manifest["adamw"])


def _argmax_for_sampling(logits, **settings):
    return int(logits.argmax())


def _argmin_for_greedy(logits, **settings):
    return sample(logits, **settings) if settings["temperature"] else int(logits.argmin())


@pytest.mark.parametrize("name", pack_names())
@pytest.mark.parametrize(
    ("choose", "tokens", "kind", "names"),
    [
        (_argmax_for_sampling, "sampled.tokens", "sampled token", ["most_likely_taken"]),
        (_argmin_for_greedy, "greedy.tokens", "greedy token", []),
        (lambda logits, **settings: 0, "greedy.tokens", "greedy token", []),
    ],
)
def test_a_wrong_choice_of_tokens_is_the_fault(choose, tokens, kind, names, name, packs, monkeypatch):
    """The logits that follow from wrongly chosen tokens are right, and not accused."""
    dump = _continued(packs[name], monkeypatch, choose)
    report = compare_dump(dump, packs[name])
    first = report.faults[0]
    assert (first.row, first.origin.title) == (report.diverging[0], kind)
    assert first.row.name.partition("[")[0] == tokens
    assert first.inputs_right
    assert first.own
    assert [each.name for each in first.explanations][:1] == names
    assert not [fault for fault in report.faults if "logits" in fault.origin.title]
    text = "\n".join(describe(report))
    assert f"first in dataflow order: {tokens}[" in text
    assert "its inputs are right, so the fault is in this operation" in text


def test_a_wrong_greedy_choice_does_not_hide_a_wrong_sampled_one(packs, monkeypatch):
    dump = _continued(packs["gpt2-tied"], monkeypatch, lambda logits, **settings: int(logits.argmin()))
    kinds = [fault.origin.title for fault in compare_dump(dump, packs["gpt2-tied"]).faults]
    assert kinds == ["greedy token", "sampled token"]


@pytest.mark.parametrize("place", [0, 5])
def test_wrong_logits_of_a_continuation_are_the_fault(place, packs):
    """The model alone is to blame where the tokens so far are right, at the first token and beyond the context."""
    pack = packs["gpt2-tied"]
    dump = {name: pack.tensors[name].copy() for name in pack.tensors}
    dump["sampled.logits"][place] *= 1.5
    first = compare_dump(dump, pack).faults[0]
    assert (first.row.name, first.own) == (f"sampled.logits[{place + 1}]", True)
    assert first.origin.inputs[0] == "sampled.prompt"
    so_far = [f"sampled.tokens[{each}]" for each in range(1, place + 1)]
    assert [name for name in first.inputs if name.startswith("sampled.tokens[")] == so_far


def test_a_continuation_of_another_shape(packs):
    """It cannot be cut into tokens, and is told as a whole."""
    pack = packs["gpt2-tied"]
    report = compare_dump(pack.tensors | {"greedy.logits": pack.tensors["greedy.logits"].T}, pack)
    first = report.faults[0]
    assert (first.row.name, first.origin.title) == ("greedy.logits", "logits of a continuation")
    assert first.inputs == {"greedy.prompt": "right", "greedy.tokens": "right"}
    assert first.explanations[0].name == "transposed"
    # As with the steps of AdamW, the first few are enough.
    assert not compare_dump({"greedy.tokens": pack.tensors["greedy.tokens"][:3]}, pack).diverging


@pytest.mark.parametrize("value", [0, -np.inf, -1e9, np.nan])
@pytest.mark.parametrize("name", pack_names())
def test_what_no_token_attends_to_is_nobodys_fault(name, value, packs):
    """A kernel computes neither the scores before the mask of tokens that are not seen, nor the gradients behind it."""
    pack, dump = packs[name], dict(right_dump(name, "float32"))
    kept = [each for each in dump if undetermined(pack.config, each, dump[each].shape) is not None]
    for each in kept:
        free = undetermined(pack.config, each, dump[each].shape)
        dump[each] = np.where(free, np.float32(value), dump[each])
    assert len(kept) >= 2 * pack.config.n_layer
    report = compare_dump(dump, pack)
    assert not report.diverging
    assert {*report.left_out} == {*kept}
    assert f"left out, where no token is attended to: {report.left_out[0]}" in "\n".join(describe(report))
    seen = np.argwhere(~free)[0]
    dump[kept[-1]][..., *seen] += 1
    assert [row.name for row in compare_dump(dump, pack).diverging] == [kept[-1]]


def test_a_mistake_in_scores_is_named_beside_masked_ones(packs):
    """1/√D forgotten by a kernel that writes -inf where it computes nothing."""
    pack, dump = packs["gpt2-tied"], dict(right_dump("gpt2-tied", "float32"))
    name, head_size = "blocks.0.attention.scores", packs["gpt2-tied"].config.head_size
    free = undetermined(pack.config, name, dump[name].shape)
    dump[name] = np.where(free, -np.inf, dump[name] * np.float32(head_size**0.5))
    fault = compare_dump(dump, pack).faults[0]
    assert (fault.row.name, fault.own) == (name, True)
    assert fault.explanations[0].name == "scale_missing"
