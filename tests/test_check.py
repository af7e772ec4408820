"""The check: it finds the operation at fault in somebody's port, and what is wrong with it."""

import pytest
from wrong_ports import WRONG_PORTS

import numpy_llm
from contract.weights import Weights
from parity.check import compare_dump
from parity.explanations import known_mistakes
from parity.faults import injected
from parity.packs import computed, load_pack


@pytest.fixture(scope="session")
def packs():
    return {name: load_pack(name) for name in ("relu-sinusoidal", "gpt2-tied", "untied-no-bias")}


def dump_of(pack, dtype="float32", package=numpy_llm):
    """What a program that computes in `dtype` would dump: the pack's givens, and all that it computes."""
    given = Weights.zeros(pack.config, dtype)
    for name, weight in given.items():
        weight[...] = pack.tensors[name]
    tokens, targets = pack.tensors["tokens"], pack.tensors["targets"]
    adamw = pack.manifest["adamw"]
    computed_here = computed(pack.config, given, tokens, targets, adamw, package)
    return {"tokens": tokens, "targets": targets, **given, **computed_here}


@pytest.mark.parametrize("port", WRONG_PORTS, ids=lambda port: f"{port.explanation}-{port.pack}")
def test_a_mistake_is_explained(port, packs):
    """The operation with the injected mistake is found, its inputs are right, and its explanation comes first."""
    pack = packs[port.pack]
    if port.fault:
        with injected(port.fault) as twins:
            dump = dump_of(pack, package=twins.reference)
    else:
        dump = dump_of(pack)
        dump[port.tensor] = port.change(dump[port.tensor])
    first = compare_dump(dump, pack).faults[0]
    names = [explanation.name for explanation in first.explanations]
    assert names[:1] == [port.explanation]
    assert first.own


def test_every_mistake_is_injected():
    assert {port.explanation for port in WRONG_PORTS} - {"constant_factor"} == {
        each.name for each in known_mistakes()
    }
