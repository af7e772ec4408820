"""Dumps that lack tensors: the check runs what lies between those that are there, and tries its mistakes."""

import json
import re

import numpy as np
import pytest
from wrong_ports import PORTS, dump_of

from contract.config import ModelConfig
from contract.weights import Weights
from numpy_llm.threads import product
from operations.operation import replaced
from operations.replay import GRADIENT, Change, Replay
from parity.golden.check import compare_dump
from parity.golden.making import computed, make_pack
from parity.golden.origins import given_names, pass_origins
from parity.golden.packs import load_pack
from parity.golden.report import as_record, describe

# What hooks on modules and `.grad` give.
_OUTPUT = re.compile(
    r"(token_embedding|blocks\.\d+\.(norm_[12]|post_norm_[12]|attention\.output|feed_forward\.down|residual_2))"
    r"|final_norm|logits|loss"
)
_CLASSIC = [
    "position_from_one", "position_missing", "norm_without_weight", "norm_unbiased", "weight_transposed",
    "bias_missing",
    "qkv_order", "qkv_interleaved", "heads_interleaved", "scale_missing", "mask_missing", "mask_off_by_one",
    "softmax_wrong_axis", "mask_after_softmax", "values_order", "merge_interleaved", "gelu_erf", "dgelu_without_slope",
    "dscores_without_scale", "dsoftmax_without_sum", "dsoftmax_skipped", "dnorm_without_mean", "dtable_overwritten",
    "dloss_of_sum", "use_missing", "dweight_of_last",
]  # fmt: skip


def _of_modules(dump: dict, pack) -> dict:
    """What of a dump hooks give."""
    given = given_names(pack.config)
    return {
        name: tensor
        for name, tensor in dump.items()
        if _OUTPUT.fullmatch(name) or (name.startswith(GRADIENT) and name.removeprefix(GRADIENT) in given)
    }


@pytest.mark.parametrize("name", _CLASSIC)
def test_a_mistake_between_modules_is_named(name, packs):
    """Of module outputs and weights' gradients alone the first fault has the mistake's name, and no other is told."""
    pack, port = packs["gpt2-tied"], next(port for port in PORTS if port.explanation == name)
    report = compare_dump(_of_modules(dump_of(pack, "float64", port), pack), pack)
    assert [[each.name for each in fault.explanations][:1] for fault in report.faults if not fault.cause] == [
        [name]
    ]


@pytest.mark.parametrize("name", ["rotate_interleaved", "keys_misread", "window_other", "cap_times_x", "one_missing",
                                  "gate_one_side", "drotate_same_way", "dkey_of_group"])  # fmt: skip
def test_a_mistake_of_the_family_between_modules_is_named(name, packs):
    port = next(port for port in PORTS if port.explanation == name)
    pack = packs["llama" if port.operation in ("rotate", "scores", "gate") else "modern"]
    report = compare_dump(_of_modules(dump_of(pack, "float64", port), pack), pack)
    assert [each.name for each in report.faults[0].explanations][:1] == [name]


def test_right_modules_agree(packs):
    for name, pack in packs.items():
        assert not compare_dump(_of_modules(dump_of(pack), pack), pack).diverging, name


@pytest.mark.parametrize(
    ("maker", "read", "other"),
    [
        ("logits", "final_norm", "blocks.1.residual_2"),
        ("blocks.1.feed_forward.up", "blocks.1.norm_2", "blocks.1.residual_1"),
        ("blocks.1.feed_forward.up", "blocks.1.feed_forward.up.weight", "blocks.0.feed_forward.up.weight"),
        ("blocks.0.feed_forward.down", "blocks.0.feed_forward.activation", "blocks.0.feed_forward.up"),
        ("blocks.1.residual_2", "blocks.1.residual_1", "blocks.0.residual_2"),
        ("logits", "output.weight", "token_embedding.weight"),
    ],
)  # fmt: skip
def test_a_wrong_operand_is_named(maker, read, other, packs):
    """Another tensor of the same shape, read by mistake, is found by trying those at hand."""
    pack = packs["untied-no-bias"]
    graph, _ = pass_origins(pack.config, pack.tensors.get, {})
    wrong = Replay(graph, Change(reads={(id(graph.makers[maker]), read): other}))
    dump = {name: wrong.make(name) for name in graph.makers if name in pack.tensors}
    first = compare_dump(dump, pack).faults[0]
    assert f"reads {other}; wanted: {read}" in first.explanations[0].text


def test_a_gradient_of_a_wrong_operand_is_named(packs):
    pack = packs["untied-no-bias"]
    dump = dict(pack.tensors)
    rows = dump["gradient.blocks.1.feed_forward.up"].reshape(-1, pack.config.d_ff)
    dump["gradient.blocks.1.feed_forward.up.weight"] = rows.T @ dump["blocks.1.residual_1"].reshape(
        len(rows), -1
    )
    first = compare_dump(dump, pack).faults[0]
    assert "reads blocks.1.residual_1; wanted: blocks.1.norm_2" in first.explanations[0].text


def test_a_deep_chain_is_computed():
    """What lies between the tokens and the logits of a deep model is not limited by Python's recursion."""
    config = ModelConfig(
        vocab_size=5,
        context_length=4,
        n_layer=90,
        n_head=1,
        d_model=2,
        d_ff=2,
        activation="relu",
        position="learned",
    )
    pack = make_pack("deep", config, steps=0, B=1, precisions=("float32",))
    dump = {name: pack.tensors[name] for name in ("logits", "gradient.token_embedding.weight")}
    assert not compare_dump(dump, pack).diverging


# What is held against a dump


def test_padding_is_left_out(packs):
    """Rows beyond the vocabulary and the context, in weights, logits and gradients, are nobody's fault."""
    pack = packs["gpt2-tied"]
    dump = dump_of(pack)
    padded = {
        "token_embedding.weight": 0, "gradient.token_embedding.weight": 0, "logits": -1, "gradient.logits": -1,
        "gradient.position_embedding.weight": 0,
    }  # fmt: skip
    for name, axis in padded.items():
        more = np.full_like(dump[name].take([0, 1], axis), np.nan)
        dump[name] = np.concatenate([dump[name], more], axis)
    report = compare_dump(dump, pack)
    assert not report.diverging
    assert sorted(report.padded) == sorted(padded) == sorted(as_record(report)["padded"])
    assert any(line.startswith("left out, rows beyond the vocabulary") for line in describe(report))
    dump["logits"] = np.concatenate([dump["logits"], dump["logits"]], axis=1)
    assert [fault.row.problem for fault in compare_dump(dump, pack).faults] == [
        "shape [3, 10, 13], wanted [3, 5, 11]"
    ]


def test_each_tensor_has_its_own_precision(packs):
    """One tensor in float32 makes coarse what is made of it, and a loss in double is as coarse as its model."""
    pack = packs["gpt2-tied"]
    fine, coarse = dump_of(pack, "float64"), dump_of(pack)
    fine["blocks.1.norm_2"] = coarse["blocks.1.norm_2"]
    limits = {row.name: row.limit for row in compare_dump(fine, pack).rows}
    assert limits["blocks.1.residual_1"] == 1e-12
    assert limits["blocks.1.norm_2"] == limits["blocks.1.feed_forward.up"] == limits["loss"] == 1e-5
    coarse["loss"] = coarse["loss"].astype(np.float64)
    assert not compare_dump(coarse, pack).diverging


def test_rounding_is_no_fault(packs):
    """A float32 program that dumps float64 is told so, and of no operation that the fault is in it."""
    pack = packs["gpt2-tied"]
    dump = {
        name: tensor.astype(np.float64)
        for name, tensor in dump_of(pack).items()
        if tensor.dtype == np.float32
    }
    lines = describe(compare_dump(dump, pack))
    assert not any("the fault is in this operation" in line for line in lines)
    assert lines[-1].startswith("every error is as small as float32's rounding")


def _one_by_one(a, b, bias=None, out=None):
    """A matrix product as three plain loops add it up."""
    y = np.zeros((len(a), b.shape[1]), a.dtype) if out is None else out
    y[...] = 0
    for column, row in zip(a.T, b, strict=True):
        y += column[:, None] * row
    return y if bias is None else np.add(y, bias, out=y)


@pytest.mark.parametrize("layers", [4, 12])
def test_sums_in_plain_loops_agree(layers):
    """Honest float32 in another order of summing passes in deep models too."""
    config = ModelConfig(
        vocab_size=40, context_length=17, n_layer=layers, n_head=4, d_model=32, d_ff=128, activation="gelu_tanh",
        position="learned",
    )  # fmt: skip
    pack = make_pack("deep", config, steps=0)
    given = Weights.zeros(config, "float32")
    for name in given:
        given[name][...] = pack.tensors[name]
    with replaced(product, _one_by_one):
        dump = computed(
            config, given, pack.tensors["tokens"], pack.tensors["targets"], pack.manifest["adamw"]
        )
    assert not compare_dump(dump, pack).diverging


def test_settings_of_adamw_are_chosen(tmp_path, run_cli):
    config = {"vocab_size": 7, "context_length": 4, "n_layer": 1, "n_head": 1, "d_model": 4, "d_ff": 4}
    (tmp_path / "config.json").write_text(json.dumps(config | {"activation": "relu", "position": "learned"}))
    make = ["golden", "make", "own", "--config", tmp_path / "config.json", "--out", tmp_path, "--steps", 2]
    code, _, _ = run_cli(
        *make, "--beta1=0.8", "--beta2=0.99", "--eps=1e-8", "--weight-decay=0.1", "--clip=0.5"
    )
    assert code == 0
    pack = load_pack(str(tmp_path / "own"))
    chosen = {"steps": 2, "beta1": 0.8, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "max_norm": 0.5}
    assert pack.manifest["adamw"] == chosen
    assert not compare_dump(dump_of(pack), pack).diverging
    code, _, error = run_cli(*make, "--overwrite", "--clip=0")
    assert (code, error) == (2, "error: clip must be a finite number above 0, got 0.0\n")


def test_a_large_pack_is_told_before(tmp_path, run_cli, monkeypatch):
    monkeypatch.setattr("commands.golden._WORTH_SAYING", 1000)
    config = {"vocab_size": 7, "context_length": 4, "n_layer": 1, "n_head": 1, "d_model": 4, "d_ff": 4}
    (tmp_path / "config.json").write_text(json.dumps(config | {"activation": "relu", "position": "learned"}))
    _, _, said = run_cli("golden", "make", "own", "--config", tmp_path / "config.json", "--out", tmp_path)
    assert said.startswith("own will have about 0.0 GB")
