"""Ports of the family by somebody else: right ones agree, and each known mistake is told by its name."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")

from family_mistakes import WRONG  # noqa: E402
from family_port import FamilyPort, of_modules  # noqa: E402
from wrong_ports import IN_FAMILY_PORTS  # noqa: E402

from parity.golden import same_mistake  # noqa: E402
from parity.golden.check import Report, compare_dump  # noqa: E402
from parity.golden.packs import Pack  # noqa: E402

FAMILY_PACKS = ["gemma3", "llama", "modern", "qwen2", "qwen3"]
# Numbers of the family's list of mistakes of which no dump of these packs can tell.
NOT_SHOWN = {
    7: "in 16 bits alone: test_sixteen_bits.py",
    12: "in 16 bits alone: test_sixteen_bits.py",
    19: "in 16 bits alone: test_sixteen_bits.py",
    24: "queries, keys and values of another size do not fit the pack's weights: an error of shapes",
    26: "positions of a cache: of a pass without one no tensor depends on them",
}


@pytest.fixture(autouse=True)
def few_numbers(monkeypatch):
    """Derivatives by single numbers take most of a check's time: a few of each tensor tell as much."""
    monkeypatch.setattr(same_mistake, "MAX_NUMBERS", 4)


def _dump(pack: Pack, dtype=torch.float64, **changes) -> dict[str, np.ndarray]:
    return FamilyPort(pack.config, pack.tensors, dtype, **changes).dump()


def _independent(report: Report) -> list[str]:
    """The names of the faults that do not follow from another."""
    return [f.explanations[0].name for f in report.faults if f.explanations and not f.cause]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", FAMILY_PACKS)
def test_a_right_port_agrees(name, dtype, packs):
    """In everything that a pass computes."""
    dump = _dump(packs[name], dtype)
    report = compare_dump(dump, packs[name])
    assert report.diverging == []
    assert all(each.startswith(("greedy.", "sampled.")) for each in report.missing)
    assert compare_dump(of_modules(dump), packs[name]).diverging == []


def test_every_number_is_shown_or_accounted_for():
    """Those of the list, 1 to 28."""
    assert sorted({wrong.number for wrong in WRONG} | {*NOT_SHOWN}) == [*range(1, 29)]
    assert not {wrong.number for wrong in WRONG} & {*NOT_SHOWN}
    assert {name for _, name in IN_FAMILY_PORTS} <= {wrong.told[0] for wrong in WRONG}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: f"{wrong.number}-{wrong.title}")
def test_a_mistake_is_told_by_its_name(wrong, packs):
    """First, and no fault has a name that is not this mistake's; with the whole dump and with that of hooks."""
    dump = _dump(packs[wrong.pack], **wrong.changes)
    for seen, first in ((dump, wrong.told[0]), (of_modules(dump), wrong.hooked or wrong.told[0])):
        told = _independent(compare_dump(seen, packs[wrong.pack]))
        assert told[:1] == [first]
        assert {*told} <= {*wrong.told}


def test_noise_has_no_name(packs):
    """Of 20 tensors in turn, by a thousandth of their largest number."""
    random = np.random.default_rng(0)
    dumps = {name: _dump(packs[name]) for name in FAMILY_PACKS}
    for turn in range(20):
        name = FAMILY_PACKS[turn % len(FAMILY_PACKS)]
        names = [each for each in dumps[name] if each not in ("tokens", "targets") and dumps[name][each].ndim]
        moved = names[random.integers(len(names))]
        value = dumps[name][moved]
        noise = random.uniform(-1e-3, 1e-3, value.shape) * np.abs(value).max()
        report = compare_dump(dumps[name] | {moved: value + noise}, packs[name])
        assert report.diverging, (name, moved)
        assert _independent(report) == [], (name, moved)


@pytest.mark.parametrize(
    ("pack", "first", "second"),
    [
        ("gemma3", "embedding not scaled", "exact GELU"),
        ("gemma3", "eps fixed, 1 + w", "scale of the head size"),
        ("llama", "theta ignored, scaled", "untied head overwritten"),
        ("modern", "window one too small", "logits not capped"),
        ("qwen3", "interleaved pairs after a norm", "tied head a copy"),
    ],
)
def test_of_two_mistakes_the_first_is_told_first(pack, first, second, packs):
    """The one that comes first in the dataflow."""
    wrong = {each.title: each for each in WRONG}
    dump = _dump(packs[pack], **wrong[first].changes, **wrong[second].changes)
    for seen in (dump, of_modules(dump)):
        told = _independent(compare_dump(seen, packs[pack]))
        assert told[0] == wrong[first].told[0]
        assert {*told} <= {*wrong[first].told, *wrong[second].told}
