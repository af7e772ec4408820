"""A program that does not zero its gradients: each step of AdamW has those of all steps before in its own."""

import numpy as np
import pytest

from contract.weights import Weights, weight_table
from numpy_llm import GPT, AdamW, clip_gradients
from parity.golden.check import compare_dump


def _steps(pack, clips_in_place: bool, count: int = 4) -> dict[str, np.ndarray]:
    """What such a program dumps. clips_in_place: whether the gradients that it adds to are those that it clipped"""
    config, settings, table = pack.config, pack.manifest["adamw"], weight_table(pack.config)
    weights, total = Weights.zeros(config, "float64"), Weights.zeros(config, "float64")
    for name in table:
        weights[name][...] = pack.tensors[name]
    adamw = AdamW(weights, **{name: settings[name] for name in ("beta1", "beta2", "eps", "weight_decay")})
    rows = {}
    for step in range(count):
        model = GPT(config, weights)
        _, loss, cache = model.forward(pack.tensors["tokens"], pack.tensors["targets"])
        total.flat[...] += model.backward(cache).flat
        used = total if clips_in_place else Weights(table, total.flat.copy())
        norm = clip_gradients(used, settings["max_norm"])
        adamw.update(used, pack.tensors["adamw.learning_rate"][step])
        found = {"loss": loss, "gradient_norm": norm} | {
            f"weights.{name}": weights[name].copy() for name in table
        }
        for kind, values in (("m", adamw.m), ("v", adamw.v)):
            found |= {f"{kind}.{name}": each.copy() for name, each in Weights(table, values).items()}
        for name, value in found.items():
            rows.setdefault(f"adamw.{name}", []).append(value)
    return {name: np.array(value) for name, value in rows.items()}


@pytest.mark.parametrize("clips_in_place", [False, True])
@pytest.mark.parametrize("name", ["gpt2-tied", "relu-sinusoidal", "untied-no-bias"])
def test_it_is_named(name, clips_in_place, packs):
    """In the norm, from which the rest follows; of a dump without it in each moment."""
    dump = _steps(packs[name], clips_in_place)
    report = compare_dump(dump, packs[name])
    assert report.diverging[0].name == "adamw.gradient_norm[2]"
    assert [each.explanations[0].name for each in report.faults] == ["norm_not_zeroed"]
    del dump["adamw.gradient_norm"]
    for kind in ("m", "v"):
        some = {
            each: value
            for each, value in dump.items()
            if each.startswith(("adamw.weights.", f"adamw.{kind}."))
        }
        fault = compare_dump(some, packs[name]).faults[0]
        assert [each.name for each in fault.explanations] == ["gradients_not_zeroed"]


def test_a_program_that_zeroes_them_agrees(packs):
    """The same loop with the gradients zeroed."""
    dump = _steps(packs["gpt2-tied"], True, count=1)
    assert compare_dump(dump, packs["gpt2-tied"]).diverging == []
