"""Limits of float32: what honest programs that add up otherwise than NumPy stray."""

import numpy as np
import pytest
from wrong_ports import right_dump

from contract.numbers import magnitude, relative_error
from contract.weights import Weights
from numpy_llm import losses
from parity.golden.check import compare_dump
from parity.golden.rounding import ROOM, strays


@pytest.mark.parametrize("seed", range(3))
def test_a_large_vocabulary(seed, tiny_config):
    """PyTorch adds up 50,000 exponentials less exactly than NumPy, and stays within the limit all the same."""
    torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
    V, config = 50_000, tiny_config()
    logits = np.random.default_rng(seed).normal(size=(1, 3, V))
    logits[..., 0] = np.log(V) + 1  # one token is likely: its probability is wrong by as much as the sum
    logits, targets = logits.astype(np.float32), np.full((1, 3), 5)

    def gradient(dtype):
        _, cache = losses.cross_entropy_forward(logits.astype(dtype), targets)
        return losses.cross_entropy_backward(np.ones((), dtype), cache)

    exact = gradient("float64")
    ours = relative_error(gradient("float32"), exact, magnitude(exact))
    theirs = torch.tensor(logits, requires_grad=True)
    torch.nn.functional.cross_entropy(theirs.flatten(0, 1), torch.tensor(targets).flatten()).backward()
    theirs = relative_error(theirs.grad.numpy(), exact, magnitude(exact))
    given, name = Weights.zeros(config, "float64"), "gradient.logits"
    stray = strays(config, given, {name: exact}, lambda weights: {name: gradient("float32")})[name]
    assert 5 * ours < theirs < ROOM * stray


@pytest.mark.parametrize("name", ["gradient.blocks.0.norm_1.weight", "gradient.blocks.1.attention.value"])
def test_a_wide_limit_hides_no_mistake(name, packs):
    """Where rounding may have grown, what an operation makes of the dump's own tensors is held to its own rounding."""
    pack = packs["gpt2-tied"]
    rows = [row | {"float32": max(row["float32"], 1e-2)} for row in pack.manifest["tensors"]]
    wide = pack._replace(manifest=pack.manifest | {"tensors": rows})
    dump = dict(right_dump("gpt2-tied", "float32"))
    assert compare_dump(dump, wide).diverging == []
    dump[name] = dump[name] * np.float32(1.002)
    report = compare_dump(dump, wide)
    assert report.faults[0].row.name == name
    assert (report.faults[0].own, report.faults[0].explanations[0].name) == (True, "constant_factor")
    # Made by way of tensors that the dump lacks, it is held to the wide limit.
    alone = {each: dump[each] for each in ("loss", name)}
    assert compare_dump(alone, wide).diverging == []
