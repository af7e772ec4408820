"""Dumps under the names of hooks: the same tensors as under the pack's, and nothing left out in silence."""

import numpy as np
import pytest

from contract.errors import UserError
from parity.golden.check import check_dump
from parity.golden.dumps import Dump
from parity.golden.hooked_names import forms, translated, with_hooked
from parity.golden.packs import pack_names

PUBLISHED = [name for name in pack_names() if name not in ("low-rank", "rms-norm")]


def hooked(pack) -> dict[str, np.ndarray]:
    """The pack's tensors under the names of hooks alone."""
    return {name: form.golden(pack.tensors) for name, form in forms(pack).items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_layouts_are_undone(name, packs):
    """Each name's numbers come back as the pack's, each weight and nearly each activation and gradient among them."""
    pack = packs[name]
    found = translated(Dump(hooked(pack)), pack).tensors
    for each, tensor in found.items():
        assert np.array_equal(tensor, pack.tensors[each]), each
    for block in range(pack.config.n_layer):
        for each in ("norm_1", "attention.query", "attention.value", "attention.heads", "attention.output",
                     "residual_1", "feed_forward.up", "feed_forward.down", "residual_2"):  # fmt: skip
            assert {f"blocks.{block}.{each}", f"gradient.blocks.{block}.{each}"} <= found.keys()


def test_what_no_class_computes_has_no_such_names(packs):
    assert forms(packs["low-rank"]) == forms(packs["rms-norm"]) == {}
    assert with_hooked(packs["low-rank"]).keys() == packs["low-rank"].tensors.keys()


def test_layouts_by_hand(packs):
    """Spelt out: a projection's channels are head after head, Conv1D is transposed, q, k and v lie below each other."""
    pack = packs["qwen3"]
    names, query = hooked(pack), pack.tensors["blocks.1.attention.query"]
    D = pack.config.head_size
    q_proj = names["model.layers.1.self_attn.q_proj"]
    assert np.array_equal(q_proj[1, 2, 3 * D : 4 * D], query[1, 3, 2])
    assert np.array_equal(names["model.layers.1.self_attn.k_norm"][1, 2, 1],
                          pack.tensors["blocks.1.attention.key_norm"][1, 1, 2])  # fmt: skip
    joined = pack.tensors["gradient.blocks.1.attention.query_key_value.weight"]
    assert np.array_equal(names["model.layers.1.self_attn.v_proj.weight.grad"], joined[-2 * D :])
    assert np.array_equal(names["lm_head.weight.grad"], pack.tensors["gradient.token_embedding.weight"])
    gpt2 = hooked(packs["gpt2-tied"])
    key = packs["gpt2-tied"].tensors["gradient.blocks.0.attention.key"]
    assert np.array_equal(gpt2["transformer.h.0.attn.c_attn.grad"][1, 2, 6 + 3 : 6 + 6], key[1, 1, 2])
    up = packs["gpt2-tied"].tensors["gradient.blocks.0.feed_forward.up.weight"]
    assert np.array_equal(gpt2["transformer.h.0.mlp.c_fc.weight.grad"], up.T)
    gemma = hooked(packs["gemma3"])
    assert np.array_equal(
        gemma["model.layers.0.post_attention_layernorm"], packs["gemma3"].tensors["blocks.0.post_norm_1"]
    )
    assert np.array_equal(gemma["model.embed_tokens"], packs["gemma3"].tensors["scaled_embedding"])


@pytest.mark.parametrize("form", ["npz", "bin"])
def test_a_dump_of_hooks_is_checked(form, packs, tmp_path, run_cli):
    """Under those names alone, and mixed with ours; what is no name at all is told."""
    pack, path = packs["llama"], tmp_path / ("dump.npz" if form == "npz" else "dump")
    dump = hooked(pack) | {"loss": pack.tensors["loss"]}
    wrong = dump["model.layers.1.self_attn.k_proj"].copy()
    wrong[..., 6:] *= 2
    for changed, code, words in (
        ({}, 0, "all 101 tensors agree"),
        ({"model.layers.1.self_attn.k_proj": wrong}, 1, "first in dataflow order: blocks.1.attention.key["),
    ):
        if form == "npz":
            np.savez(path, **dump | changed | {"model.rotary_emb": np.ones(3)})
        else:
            path.mkdir(exist_ok=True)
            for name, tensor in (dump | changed | {"model.rotary_emb": np.ones(3)}).items():
                np.ascontiguousarray(tensor).tofile(path / f"{name}.bin")
        found, stdout, _ = run_cli("check", path, "--golden", "llama")
        assert (found, words in stdout) == (code, True), stdout
        assert "not in the pack: model.rotary_emb" in stdout


def test_one_tensor_twice(packs):
    """A module and the projection that it ends in are the same tensor: alike they pass, and otherwise they are told."""
    pack = packs["llama"]
    output = pack.tensors["blocks.0.attention.output"]
    twice = {"model.layers.0.self_attn": output, "model.layers.0.self_attn.o_proj": output}
    assert list(translated(Dump(twice), pack).tensors) == ["blocks.0.attention.output"]
    for name in ("model.layers.0.self_attn.o_proj", "blocks.0.attention.output"):
        with pytest.raises(
            UserError, match=r"which are one tensor, blocks\.0\.attention\.output, with different"
        ):
            translated(Dump(twice | {name: output + 1}), pack)


def test_parts_and_shapes(packs, tmp_path):
    """Query without key is no matrix of ours; a shape that no hook gives is named; ours under their name is taken."""
    pack = packs["llama"]
    names = hooked(pack)
    weight = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(UserError, match=r"has model.*q_proj.weight but not model.*k_proj.weight"):
        translated(Dump({weight: names[weight]}), pack)
    output = "model.layers.0.self_attn.q_proj"
    with pytest.raises(
        UserError, match=r"q_proj of the dump has shape \[2, 11, 4, 6\], expected \[2, 11, 24\]"
    ):
        translated(Dump({output: names[output].reshape(2, 11, 4, 6)}), pack)
    ours = pack.tensors["blocks.0.attention.query"]
    assert translated(Dump({output: ours}), pack).tensors["blocks.0.attention.query"] is ours
    np.savez(tmp_path / "dump.npz", **{"model.layers.0": np.ones((2, 11, 9))})
    report = check_dump(tmp_path / "dump.npz", pack)
    assert report.diverging[0].problem == "shape [2, 11, 9], wanted [2, 11, 8]"
