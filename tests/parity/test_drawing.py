"""Sampled texts: every mistake of drawing shows in a pack, and is named."""

import numpy as np
import pytest

from numpy_llm import GPT
from operations.sampling import MISTAKES, chosen
from parity.golden.check import compare_dump
from parity.golden.making import SAMPLING


def _texts(pack, mistake):
    """The logits and tokens of a program with the mistake, one for each of its forms."""
    model, prompt = GPT(pack.config, dtype="float64"), pack.tensors["sampled.prompt"].tolist()
    for name, weight in model.weights.items():
        weight[...] = pack.tensors[name]
    for form in range(
        len(mistake.forms(pack.tensors["sampled.logits"][0], pack.tensors["sampled.draws"], 0, SAMPLING))
    ):
        tokens, logits = list(prompt), []
        for place in range(len(pack.tensors["sampled.tokens"])):
            logits.append(model.forward(np.array([tokens[-pack.config.context_length :]]))[0][0, -1])
            tokens.append(mistake.forms(logits[-1], pack.tensors["sampled.draws"], place, SAMPLING)[form])
        yield {"sampled.logits": np.array(logits), "sampled.tokens": np.array(tokens[len(prompt) :])}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_of_drawing_is_named(mistake, packs):
    """In each of its forms it changes the text of a pack; where it does, its name is the first or fits as well."""
    shown = set()
    for name in ("gpt2-tied", "llama", "modern", "untied-no-bias"):
        pack = packs[name]
        for form, text in enumerate(_texts(pack, mistake)):
            if np.array_equal(text["sampled.tokens"], pack.tensors["sampled.tokens"]):
                continue
            for dump in (text, {"sampled.tokens": text["sampled.tokens"]}):
                report = compare_dump(dump, pack)
                first = next(f for f in report.faults if f.row.name.startswith("sampled.tokens"))
                assert mistake.name in [each.name for each in first.explanations], (name, form)
                assert len(first.explanations) <= 2
            shown.add(form)
    assert shown == set(range(len(list(_texts(packs["llama"], mistake)))))


def test_chance_is_no_mistake(packs):
    """One other token fits no mistake: it would have to draw the whole text."""
    pack = packs["llama"]
    tokens = pack.tensors["sampled.tokens"].copy()
    tokens[9] = (tokens[9] + 1) % 11
    report = compare_dump({"sampled.tokens": tokens}, pack)
    assert [fault.row.name for fault in report.faults] == ["sampled.tokens[10]"]
    assert report.faults[0].explanations == []


def test_top_k_and_top_p():
    """Of equal logits the lower id; top-p keeps at least one, and as few as reach p."""
    logits, settings = np.array([0.0, 1.0, 1.0, -9.0]), {"temperature": 1.0, "top_k": 3, "top_p": 0.5}
    assert [chosen(logits, np.array([draw]), 0, settings) for draw in (0.0, 0.49, 0.51, 0.99)] == [1, 1, 2, 2]
    assert chosen(logits, np.array([0.99]), 0, settings | {"top_p": 0.1}) == 1
    assert chosen(logits, np.array([0.99]), 0, {"temperature": 1.0, "top_k": 3}) == 0
