"""The derivations of the family's operations: rotary positions and their scalings, caps, gates, norms, dropout."""

from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
pytest.importorskip("jinja2", reason="needs the extra 'study' (pip install -e '.[dev]')")
pytest.importorskip("latex2mathml", reason="needs the extra 'study' (pip install -e '.[dev]')")

from contract.presets import preset
from learn.study.chapters import SIDES, chapters_of, place
from learn.study.derivations import shapes, step_errors
from learn.study.formulas import Formula
from learn.study.witness import run_witness
from operations.dataflow import record

SMALL = {"vocab_size": 9, "n_layer": 1, "d_model": 16, "head_size": 4, "context_length": 16}
MODELS = {
    "llama3": preset(
        "llama-3.2-1b",
        **SMALL,
        rotary={"theta": 5e5, "scaling": "llama3", "factor": 32.0, "original_context_length": 16},
    ),
    "linear": preset("qwen2.5-0.5b", **SMALL, rotary={"theta": 1e4, "scaling": "linear", "factor": 8.0}),
    "gemma2 with QK-norm": preset("gemma-2-2b", **SMALL | {"n_layer": 2}, window=4, query_key_norm="head"),
    "layer norm of heads, dropout": preset("nano", vocab_size=9, query_key_norm="head", dropout=0.1),
}
WITNESS_LIMIT, DIFFERENCE_LIMIT = 1e-13, 1e-8


@pytest.fixture(scope="module", params=list(MODELS))
def model(request):
    """The nodes, the chapters and the witness of one of the models."""
    config = MODELS[request.param]
    nodes = record(config).nodes
    chapters = chapters_of(nodes, config)
    return config, nodes, chapters, run_witness({n for each in chapters for n in each.functions()}, config)


def test_every_formula_holds(model):
    """Both sides are the same numbers, on what the variables of the tested code held; steps point at their lines."""
    _, _, chapters, witness = model
    for chapter in chapters:
        for step, error in zip(chapter.steps, step_errors(chapter, witness), strict=True):
            limit = DIFFERENCE_LIMIT if "partial(" in step.formula.text else WITNESS_LIMIT
            assert error < limit, (chapter.name, step.formula.text)
        for side in SIDES:
            explaining = {at for steps in chapter.explained(side).values() for at in steps}
            assert explaining == {at for at, step in enumerate(chapter.steps) if step.explains(side)}


def test_every_tensor_has_a_chapter(model):
    """Norms after branches and of heads, turned queries, capped scores: each is shown, and dropout where it is on."""
    config, nodes, chapters, _ = model
    shown = {name for each in chapters for node in each.nodes(nodes) for name in each.tensors(node)}
    made = {name for node in nodes if node.operation != "dropout" or config.dropout for name in node.results}
    hidden = {"attention.query_key_value", "attention.merged"}  # noted, not traced
    assert {place(name) for name in made - shown} <= hidden


def by_name(model):
    """The chapters of the model called `model`, and its witness."""
    config = MODELS[model]
    chapters = chapters_of(record(config).nodes, config)
    return {each.name: each for each in chapters}, run_witness(
        {n for each in chapters for n in each.functions()}, config
    )


@pytest.mark.parametrize(
    ("model", "wrongs"),
    [
        (
            "llama3",
            (
                ("rotate", "(1 - keep[i]) * base[i] / factor", "(1 - keep[i]) * base[i]"),
                ("rotate", "== t * f[i]", "== (t + 1) * f[i]"),
                ("rotate", "2 * i / D", "i / D"),
                ("rotate", "x[h, t, i] * cosine[t, i] - x", "x[h, t, i] * cosine[t, i] + x"),
                ("rotate", "dy[h, t, i + M] * sine[t, i]", "0"),
                ("silu", "(1 - s[t, f])", "1"),
                ("gate", "dm[t, f] * u[t, f]", "dm[t, f] * a[t, f]"),
            ),
        ),
        (
            "gemma2 with QK-norm",
            (
                ("rms_norm_plus_one", "1 + w[i]", "w[i]"),
                (
                    "query_key_norm",
                    "sum(dy[b, h, t, i] * n[b, h, t, i]",
                    "sum(dy[b, 0, t, i] * n[b, 0, t, i]",
                ),
                ("soft_cap", "1 - h[t, s] ** 2", "1 - h[t, s]"),
                ("logit_cap", "cap * h[t, v]", "h[t, v]"),
                ("scale", "* f", "/ f"),
            ),
        ),
        ("layer norm of heads, dropout", (("dropout", "1 / (1 - rate)", "1"),)),
    ],
)
def test_a_wrong_formula_is_found(model, wrongs):
    """A lost factor, sign, square, 1 or head each show as an error."""
    chapters, witness = by_name(model)
    for name, right, wrong in wrongs:
        chapter = chapters[name]
        texts = [step.formula.text.replace(right, wrong) for step in chapter.steps]
        steps = [
            replace(step, formula=Formula(text, step.formula.indices))
            for step, text in zip(chapter.steps, texts, strict=True)
        ]
        assert texts != [step.formula.text for step in chapter.steps], right
        assert max(step_errors(replace(chapter, steps=steps), witness)) > 1e-3, (name, wrong)


def test_heads_have_their_own_shapes():
    """The norm of heads runs over D, in the formulas and in the shapes; angles are one for each pair."""
    chapters, witness = by_name("gemma2 with QK-norm")
    of_heads = shapes(chapters["query_key_norm"], witness)
    assert (of_heads["x"], of_heads["dn"], of_heads["w"]) == ("B, H, T, D", "B, H, T, D", "D")
    assert "1 / D" in chapters["query_key_norm"].steps[0].formula.text
    assert shapes(chapters["rotate"], witness)["a"] == "T, D/2"
