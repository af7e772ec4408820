"""The study page without a browser: derivations, source, tensors, slider, and the page that is made of them."""

import base64
import json
import math
import re
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
pytest.importorskip("jinja2", reason="needs the extra 'study' (pip install -e '.[dev]')")
pytest.importorskip("latex2mathml", reason="needs the extra 'study' (pip install -e '.[dev]')")

import numpy_llm
from cli import main
from contract.presets import preset
from contract.trace import Trace
from contract.weights import Weights
from data.tokenizers import encoding_of
from harness.training.checkpoint import Checkpoint, save_checkpoint
from learn.study.chapters import EVERY, FOLDER, SIDES, all_chapters, chapters_of, place, side_of
from learn.study.derivations import shapes, step_errors
from learn.study.formulas import Formula, partial_derivative
from learn.study.layout import math as mathml
from learn.study.one_pass import adam_step, run_pass
from learn.study.page import Subject, number, study_page, visible
from learn.study.proof import proof_strip
from learn.study.slider import POINTS, sweeps
from learn.study.source import excerpt, highlighted, statement_lines, variables
from learn.study.tensors import sample
from learn.study.witness import run_witness
from learn.study.write import labels, open_subject, write_study
from numpy_llm.attend_in_blocks import BLOCKS_FROM
from operations.dataflow import record
from parity.cases import lively_weights

ROOT = Path(__file__).parents[2]
FORMS = [
    ("relu", "sinusoidal", "layer_norm"),
    ("gelu_tanh", "learned", "layer_norm"),
    ("relu", "learned", "rms_norm"),
]
FAMILY = [
    preset("modern", vocab_size=9, n_layer=2, d_model=16, head_size=4),
    preset("nano", vocab_size=9, bias=False, tie_embeddings=False),
    preset("qwen2.5-0.5b", vocab_size=9, n_layer=1, d_model=16, head_size=4),
    preset("mistral-7b", vocab_size=9, n_layer=1, d_model=16, head_size=4, window=8),
    preset("gemma-2-2b", vocab_size=9, n_layer=2, d_model=16, head_size=4),
    preset("tense", vocab_size=9, n_layer=2, n_head=2, d_model=16, block="post_norm"),
]
UNEXPLAINED = {"low_rank"}  # pairs are merged into their projections before a page is made
WITNESS_LIMIT, DIFFERENCE_LIMIT = 1e-13, 1e-8


def form(activation, position, norm="layer_norm"):
    """A configuration with these choices."""
    return preset("tense", vocab_size=9, activation=activation, position=position, norm=norm)


def witness_of(config):
    """A small model with the choices of a configuration, and its chapters."""
    chapters = chapters_of(record(config).nodes, config)
    return run_witness({name for each in chapters for name in each.functions()}, config), chapters


# --- the derivations ---


def test_every_operation_has_a_chapter():
    """Every pair of the catalogue that has a derivation is shown by a chapter, and no file is left over."""
    assert {path.stem for path in FOLDER.glob("*.toml")} <= {*EVERY, "adamw"}
    shown = {function for chapter in all_chapters() for function in chapter.functions()}
    for operation in EVERY.values():
        if operation.name in UNEXPLAINED:
            continue
        for function in (operation.forward, operation.backward):
            if function and function.__module__.startswith("numpy_llm"):
                assert f"{function.__module__}.{function.__name__}" in shown
    assert "numpy_llm.positions.sinusoidal_positions" in shown
    assert "numpy_llm.adam.update_piece" in shown


@pytest.mark.parametrize("choices", FORMS, ids=" ".join)
def test_every_operation_of_a_model_is_in_a_chapter(choices):
    """Each tensor that a model makes and traces is shown by a chapter; the chapters follow the dataflow."""
    nodes, (activation, _, norm) = record(form(*choices)).nodes, choices
    chapters = chapters_of(nodes, form(*choices))
    shown = {name for each in chapters for node in each.nodes(nodes) for name in each.tensors(node)}
    made = {name for node in nodes if node.operation != "dropout" for name in node.results}
    hidden = {"positions", "attention.query_key_value", "attention.merged"}  # noted, not traced
    assert {place(name) for name in made - shown} <= hidden
    assert [each.name for each in chapters] == [
        "embedding", "position", norm, "query_key_value", "scores", "mask", "softmax", "weighted_sum",
        "output_projection", "residual", "feed_forward", activation.removesuffix("_tanh"), "final_norm",
        "logits", "cross_entropy", "adam",
    ]  # fmt: skip


@pytest.mark.parametrize("chapter", all_chapters(), ids=lambda chapter: chapter.name)
def test_a_chapter_is_whole(chapter):
    """Two sentences or three, a step at least for each side, code for each twin, and a formula in every step."""
    assert 2 <= len(re.findall(r"[.:](?= |$)", chapter.summary)) <= 4
    sides = {side_of(each["function"]) for each in chapter.code}
    assert sides == set(SIDES) - ({"backward"} if chapter.name == "adam" else set())
    assert {step.side for step in chapter.steps} == sides - {"torch"}
    # A derivative is a thought on the way, which no line has to write down; so is what puts two chapters together.
    for step in chapter.steps:
        assert step.shows or "partial(" in step.formula.text or "G[" in step.formula.text
        assert step.torch or step.side == "backward" or chapter.name in ("adam", "gelu", "silu"), (
            step.formula.text
        )


@pytest.mark.parametrize("chapter", all_chapters(), ids=lambda chapter: chapter.name)
def test_every_symbol_names_a_variable(chapter):
    """Each symbol of a formula is in the table, each of the table is used, and the code has its variable."""
    used = {name for step in chapter.steps for name in step.formula.symbols}
    assert used == chapter.symbols.keys()
    for name, symbol in chapter.symbols.items():
        functions = [symbol.function] if symbol.function else chapter.functions()
        assert any(symbol.code in variables(each) for each in functions), (
            f"{name}: no {symbol.code} in the code"
        )


@pytest.mark.parametrize("config", [*(form(*each) for each in FORMS), *FAMILY])
def test_every_step_points_at_lines(config):
    """What a step explains is assigned in the code that is shown beside it."""
    for chapter in chapters_of(record(config).nodes, config):
        for side in SIDES:
            explaining = {at for steps in chapter.explained(side).values() for at in steps}
            assert explaining == {at for at, step in enumerate(chapter.steps) if step.explains(side)}


def test_a_step_that_names_no_variable_is_found():
    """A name that no code beside the step assigns is an error that says where."""
    (chapter,) = [each for each in all_chapters() if each.name == "relu"]
    wrong = replace(chapter, steps=[replace(chapter.steps[0], shows=["z"])])
    with pytest.raises(ValueError, match=r"operations/relu.toml, relu: no code beside 'a.* assigns z"):
        wrong.explained("forward")


def test_a_step_points_at_no_line_that_does_something_else():
    """The derivatives of softmax, of a looked-up row and of a product are read off, and no line computes them."""
    by_name = {chapter.name: chapter for chapter in all_chapters()}
    for name, text in (
        ("softmax", "partial(p[t, i], z[t, j]) =="),
        ("softmax", "dz[t, j] == sum(dp[t, i] * partial("),
        ("embedding", "partial(y[b, t, c], E[v, c])"),
        ("output_projection", "partial(y[c], x[i])"),
        ("output_projection", "partial(y[c], W[r, i])"),
        ("layer_norm", "dx[j] == sum(dn[i] * partial("),
    ):
        (step,) = [step for step in by_name[name].steps if step.formula.text.startswith(text)]
        assert step.shows == []


@pytest.mark.parametrize("config", [*(form(*each) for each in FORMS), *FAMILY])
def test_every_formula_holds(config):
    """Both sides of every formula are the same numbers, on what the variables of the tested code held."""
    witness, chapters = witness_of(config)
    for chapter in chapters:
        for step, error in zip(chapter.steps, step_errors(chapter, witness), strict=True):
            limit = DIFFERENCE_LIMIT if "partial(" in step.formula.text else WITNESS_LIMIT
            assert error < limit, (chapter.name, step.formula.text)


def test_symbols_have_shapes():
    """Dimension letters are read off the code's own variables; a formula's symbol says its shape itself."""
    witness, chapters = witness_of(form("gelu_tanh", "learned"))
    for chapter in chapters:
        for letters in shapes(chapter, witness).values():
            assert set(re.findall(r"[A-Z]", letters)) <= set("BTCHKDFVPN"), chapter.name
    by_name = {chapter.name: shapes(chapter, witness) for chapter in chapters}
    assert by_name["layer_norm"]["x"] == "B, T, C"
    assert by_name["layer_norm"]["s"] == "B, T, 1"
    assert by_name["layer_norm"]["eps"] == ""
    assert by_name["query_key_value"]["W"] == "(H+2K)·D, C"
    assert by_name["softmax"]["dz"] == "B, H, T, T"


def test_fewer_heads_of_keys_have_their_own_letter():
    """In a model that shares keys and values among query heads, K stands in the tables of symbols."""
    witness, chapters = witness_of(FAMILY[0])
    by_name = {chapter.name: shapes(chapter, witness) for chapter in chapters}
    for name, symbols in (
        ("query_key_value", ("k", "v", "dk", "dv")),
        ("scores", ("k", "dk")),
        ("weighted_sum", "v"),
    ):
        assert {by_name[name][each] for each in symbols} == {"B, K, T, D"}
    assert by_name["query_key_value"]["q"] == by_name["scores"]["q"] == "B, H, T, D"
    assert by_name["query_key_value"]["W"] == "(H+2K)·D, C"
    assert by_name["output_projection"]["W"] == "C, H·D"


def test_a_wrong_formula_is_found():
    """A term left out of layer norm's backward, a lost sign and a lost factor each show as an error."""
    witness, chapters = witness_of(form("relu", "sinusoidal"))
    by_name = {chapter.name: chapter for chapter in chapters}
    for name, right, wrong in (
        ("layer_norm", "dn[j] - 1 / C", "dn[j] + 1 / C"),
        ("layer_norm", " - n[i] * n[j] / C", ""),
        ("layer_norm", "-(s ** 3 / 2", "-(s ** 3"),
        ("softmax", "for k in T) ** 2", "for k in T)"),
        ("scores", "scale * sum(da", "sum(da"),
        ("cross_entropy", "/ (B * T)", "/ T"),
        ("embedding", " if k[b, t] == v", ""),
        ("adam", "(1 - beta1 ** t)", "1"),
    ):
        assert_found(by_name[name], witness, right, wrong)


def assert_found(chapter, witness, right, wrong):
    """A piece of a chapter's formulas written wrongly shows as an error."""
    steps = [
        replace(step, formula=Formula(step.formula.text.replace(right, wrong), step.formula.indices))
        for step in chapter.steps
    ]
    assert steps != chapter.steps, right
    errors = step_errors(replace(chapter, steps=steps), witness)
    assert max(errors) > 1e-3, (chapter.name, wrong)


def test_a_wrong_formula_of_attention_in_blocks_is_found():
    """Sums that are not rescaled, the maximum and delta left out, on a row whose maximum grows with the last block."""
    witness, chapters = witness_of(replace(form("relu", "learned", "rms_norm"), context_length=1024))
    (chapter,) = (each for each in chapters if each.name == "attend_in_blocks")
    for right, wrong in (
        ("exp(m[t, i] - m[t, i + 1]) * l[t, i]", "l[t, i]"),
        ("exp(m[t, i] - m[t, i + 1]) * u[t, i, d]", "u[t, i, d]"),
        ("m[t, J - 1] + log", "log"),
        (" - dlt[t]", ""),
    ):
        assert_found(chapter, witness, right, wrong)


def test_attention_in_blocks_is_shown_where_texts_are_long():
    """Behind the weighted sum, whose heads it shows, and only in a model that has texts of several blocks."""
    for length, shown in ((BLOCKS_FROM - 1, False), (BLOCKS_FROM, True)):
        config = replace(form("relu", "learned"), context_length=length)
        nodes = record(config).nodes
        chapters = chapters_of(nodes, config)
        names = [each.name for each in chapters]
        assert ("attend_in_blocks" in names) == shown
    place = names.index("attend_in_blocks")
    assert names[place - 1] == "weighted_sum"
    (node,) = (each for each in chapters[place].nodes(nodes) if each.results[0].startswith("blocks.0."))
    assert chapters[place].tensors(node) == ["blocks.0.attention.heads"]


# --- formulas ---


def test_a_formula_is_set_and_evaluated():
    """A product with a sum, a largest number, a fraction, a power, and brackets where the mathematics needs them."""
    formula = Formula("y[i] == (a + sum(x[k] ** 2 for k in C) * a) / C", {"i": "C", "k": "C"})
    assert formula.symbols == {"y", "a", "x"}
    assert formula.latex({}) == [r"y_{i} = \frac{a + \left(\sum\limits_{k} {x_{k}}^{2}\right) \, a}{C}"]
    assert Formula("a == 1 == bias", {}).latex({"a": r"\alpha"}) == [r"\alpha = 1", r"= \text{bias}"]
    formula = Formula("a == max(x[k] for k in C if k > 0)", {"k": "C"})
    assert formula.latex({}) == [r"a = \max\limits_{k :\, k > 0} x_{k}"]
    assert formula.error({"a": np.array(3.0), "x": np.array([5.0, 2.0, 3.0])}, {"C": 3}) == 0


def test_a_formula_is_held_against_numbers():
    """The largest difference of its sides counts, and a number that is not finite on one side alone."""
    formula = Formula("y[i] == (a + sum(x[k] ** 2 for k in C) * a) / C", {"i": "C", "k": "C"})
    values = {"y": np.full(2, 7.5), "a": np.array(3.0), "x": np.array([1.0, math.sqrt(3)])}
    assert formula.error(values, {"C": 2}) < 1e-15
    assert formula.error(values | {"y": np.array([7.5, 7.6])}, {"C": 2}) == pytest.approx(0.1 / 7.5)
    assert formula.error(values | {"y": np.array([7.5, np.inf])}, {"C": 2}) == math.inf


def test_what_formulas_cannot_say_is_refused():
    """Something that is no equation, and a construction without mathematics, are named."""
    with pytest.raises(ValueError, match="an equation with =="):
        Formula("y + 1", {})
    with pytest.raises(ValueError, match="no mathematics for"):
        Formula("y == [1]", {}).latex({})


def test_a_partial_derivative():
    """The derivative of x², one number at a time."""
    values = {"x": np.array([1.0, 3.0])}
    partial = partial_derivative(lambda by, value, of: value**2, values)
    assert partial("y", (1,), "x", (1,)) == pytest.approx(6)
    assert partial("y", (0,), "x", (1,)) == 0


def test_mathematics_is_escaped():
    """LaTeX goes into an attribute without ending it."""
    assert 'alttext="a &lt; &#34;b&#34;"' in mathml('a < "b"')


# --- source ---


def test_source_is_the_files_own():
    """The lines shown are the file's, by number, without the docstring, or of them those that assign some names."""
    shown = excerpt("numpy_llm.norms.layer_norm_backward")
    lines = (ROOT / shown.path).read_text(encoding="utf-8").splitlines()
    assert all(lines[number - 1] == text for number, text in shown.lines.items())
    assert next(iter(shown.lines.values())).startswith("def layer_norm_backward")
    assert not any("Differentiate" in text for text in shown.lines.values())
    method = excerpt("torch_llm.attention.Attention.forward", ("y", "query from split_heads"))
    assert [text.split("(")[0] for text in method.lines.values()] == [
        "    query, key, value = split_heads",
        "    y = self.output",
    ]
    with pytest.raises(ValueError, match="has no statement that assigns nowhere"):
        excerpt("torch_llm.feed_forward.relu", ("nowhere",))


def test_statements_are_found_by_what_they_assign():
    """A change in place is an assignment, by an operator, of a part, or by a function that is told where to write."""

    def lines(function, shown):
        texts = excerpt(function).lines
        return [
            texts[number].strip().partition("  #")[0] for number in sorted(statement_lines(function, shown))
        ]

    assert lines("numpy_llm.attend.softmax_forward", "y") == [
        "y = np.subtract(x, x.max(axis=-1, keepdims=True), out=out)",
        "np.exp(y, out=y)",
        "y /= y.sum(axis=-1, keepdims=True)",
    ]
    assert lines("numpy_llm.norms.layer_norm_backward", "dx from dy") == ["dx = dy * weight"]
    assert lines("numpy_llm.positions.position_backward", "dtable from sum") == [
        "dtable[cache.start : cache.start + cache.T] = dy.sum(axis=0)"
    ]
    assert lines("numpy_llm.adam.update_piece", "denominator from divide") == [
        "np.divide(m, denominator, out=denominator)"
    ]
    assert lines("numpy_llm.feed_forward.relu_backward", "return") == ["return dy * (cache.y > 0)"]
    assert lines("numpy_llm.feed_forward.relu_backward", "dy") == []


def test_highlighting_keeps_every_line():
    """A coloured line without its tags is the line."""
    for chapter in all_chapters():
        for each in chapter.code:
            shown = excerpt(each["function"], tuple(each.get("shows", ())))
            assert {number_: _text(html) for number_, html in highlighted(shown).items()} == shown.lines


def _text(html: str) -> str:
    parts: list[str] = []
    parser = HTMLParser(convert_charrefs=True)
    parser.handle_data = parts.append
    parser.feed(html)
    parser.close()
    return "".join(parts)


# --- the run ---


@pytest.fixture(scope="module")
def subject():
    """A small model with a text that looks like markup, over tokens that do so too."""
    tokens = [bytes([byte]) for byte in range(256)] + [
        b"</script>",
        b"<img src=x onerror=alert(1)>",
        b"&amp;",
    ]
    config = preset(
        "tense", vocab_size=len(tokens), n_layer=2, n_head=2, d_model=12, context_length=8, d_ff=200
    )
    text = "</script><img src=x onerror=alert(1)>&amp;a"
    ids = np.array([256, 257, 258, 97, 97])
    return Subject(
        "a small model",
        config,
        lively_weights(config, 1, "float32"),
        ids,
        labels(encoding_of("ranks", tokens)),
        text,
        note="a <b>note</b>",
    )


@pytest.fixture(scope="module")
def run(subject):
    return run_pass(subject.config, subject.weights, subject.tokens)


@pytest.fixture(scope="module")
def page(subject):
    return study_page(subject)


@pytest.fixture(scope="module")
def data(page):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_the_twins_agree(run):
    """Every tensor of both precisions is compared, and holds."""
    for dtype, rows in run.rows.items():
        assert {row.quantity for row in rows} >= {"activation", "gradient", "weight gradient"}, dtype
        assert all(row.holds for row in rows)


def test_views_are_the_traces_numbers(subject, run, data):
    """The numbers of the page, decoded as its script does, are those of a pass made here, bit for bit."""
    weights = Weights.zeros(subject.config, "float32")
    weights.flat[...] = subject.weights.flat
    trace, model = Trace(), numpy_llm.GPT(subject.config, weights)
    _, loss, cache = model.forward(subject.tokens[None, :-1], subject.tokens[None, 1:], trace=trace)
    gradients = model.backward(cache, trace=trace)
    kinds = {"activation": trace.activations, "gradient": trace.gradients, "weight gradient": gradients}
    assert float(run.by_hand("activation")["loss"]) == pytest.approx(float(loss), rel=1e-5)
    checked = set()
    for key, tensor in data["tensors"].items():
        if tensor["kind"] in ("optimizer", "inner"):
            continue
        whole = kinds[tensor["kind"]][tensor["name"]]
        assert list(whole.shape) == tensor["shape"]
        whole = whole.reshape((1, 1, 1, *whole.shape)[-3:] if whole.ndim < 4 else whole.shape[1:])
        wanted = whole[np.ix_(tensor["panels"], tensor["rows"], tensor["columns"])]
        found = np.frombuffer(base64.b64decode(tensor["manual"]), "<f4").reshape(wanted.shape)
        np.testing.assert_array_equal(found, wanted, err_msg=key)
        checked.add(key)
    names = {f"activation {name}" for name in trace.activations} | {f"gradient {name}" for name in gradients}
    missing = {name for name in names if name.startswith("activation")} - checked
    assert {name for name in missing if "dropout" not in name} == set()  # off: the same as the one before it
    assert {f"weight gradient {name}" for name in gradients} <= checked


def test_a_sample_is_honest(run, page):
    """A long axis is cut, the worst place kept, and the page says what was left out."""
    view = run.views["weight gradient", "token_embedding.weight"]
    assert len(view.rows) < view.shape[0]
    assert {97, 256, 257, 258} <= set(view.rows)
    wide = run.views["activation", "blocks.0.feed_forward.up"]
    assert len(wide.columns) in (128, 129)
    assert wide.row.index[-1] in wide.columns
    assert f"{len(view.rows)} of 259 rows" in page
    assert sample(5, 10, [2]) == [0, 1, 2, 3, 4]
    assert sample(1000, 3, [7]) == [0, 7, 500, 999]


def test_adam_of_both(subject, run):
    """Two steps, the second on halved gradients: the running means count, and decay as the formulas say."""
    weights = Weights.zeros(subject.config, "float64")
    weights.flat[...] = subject.weights.flat
    gradients = {name: np.ones_like(weight) for name, weight in weights.items()}
    by_hand, twin = adam_step(subject.config, weights, gradients)
    moved = by_hand["weight final_norm.weight"] - weights["final_norm.weight"]
    mean = (0.9 * 0.1 + 0.1 * 0.5) / (1 - 0.9**2)
    square = (0.999 * 0.001 + 0.001 * 0.25) / (1 - 0.999**2)
    np.testing.assert_allclose(moved, -1e-3 * (1 + mean / np.sqrt(square)), rtol=1e-6)
    np.testing.assert_allclose(by_hand["mean final_norm.weight"], 0.14, rtol=1e-12)
    np.testing.assert_array_equal(gradients["final_norm.weight"], 1)
    assert by_hand.keys() == twin.keys()
    assert any(row.quantity == "optimizer" for row in run.rows["float64"])


def test_sweeps_follow_the_gradient(run):
    """Every sweep's central difference is the gradient; the middle is the loss; the weights are left alone."""
    weights = run.inputs["float64"].weights
    before = weights.flat.copy()
    found = sweeps(run)
    assert {each.name for each in found} == set(weights)
    for each in found:
        assert each.difference == pytest.approx(each.gradient, rel=1e-5)
        assert len(each.steps) == len(each.losses) == POINTS
        assert each.steps[POINTS // 2] == pytest.approx(0, abs=1e-15)
        assert each.losses[POINTS // 2] == pytest.approx(float(run.by_hand("activation")["loss"]), abs=1e-12)
    np.testing.assert_array_equal(weights.flat, before)


def test_the_strip_has_every_tensor(run):
    """A dot for each comparison, left of its limit where it holds."""
    strip = proof_strip(run.rows)
    assert sum(lane["count"] for lane in strip["lanes"]) == sum(map(len, run.rows.values()))
    for lane in strip["lanes"]:
        assert all(dot["x"] < lane["limit_x"] < 100 for dot in lane["dots"])


# --- the page ---


class _Page(HTMLParser):
    """Ids, links and tags of the page."""

    def __init__(self, page):
        super().__init__()
        self.ids, self.links, self.tags, self.sources = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if "href" in values else []
        self.sources += [values[name] for name in ("src", "srcset", "data", "poster") if name in values]


def test_links_resolve(page, data):
    """Every link leads into the page: to an id, and to a tensor where it names one. No id is given twice."""
    found = _Page(page)
    assert len(set(found.ids)) == len(found.ids)
    assert len(found.links) > 200
    for link in found.links:
        assert link.startswith("#"), link
        target, _, tensor = link[1:].partition(":")
        assert target in found.ids, link
        assert not tensor or tensor.replace("~", " ") in data["tensors"], link


def test_nothing_is_fetched(page):
    """The page names no address that a browser would ask for, and its policy forbids to ask."""
    found = _Page(page)
    assert not found.sources
    assert not {"link", "iframe", "object", "embed", "base"} & set(found.tags)
    assert not re.search(r"url\(|@import|\bfetch\(|XMLHttpRequest|import\(", page)
    assert "default-src 'none'" in page
    addresses = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert addresses <= {
        f"http://www.w3.org/{each}" for each in ("1998/Math/MathML", "2000/svg", "1999/xhtml")
    }


def test_steps_show_their_lines(page):
    """Each step carries the lines of code that do it, linked to their place, and its text's indices are set."""
    (step,) = re.findall(r'<li id="layer_norm-step-9".*?</li>', page, re.DOTALL)
    number_, text = next(
        each
        for each in excerpt("numpy_llm.norms.layer_norm_backward").lines.items()
        if "through_deviation = " in each[1]
    )
    assert f'href="#layer_norm-numpy_llm-norms-L{number_}"' in step
    assert text.strip() in _text(step)
    assert "<var>x<sub>j</sub></var>" in page


def test_shapes_have_this_runs_numbers(page, subject):
    """Symbols' shapes stand in letters and in this run's sizes."""
    (chapter,) = re.findall(r'<details class="chapter" id="scores">.*?</table>', page, re.DOTALL)
    assert "<td>B, H, T, D</td><td>1 × 2 × 4 × 6</td>" in chapter
    assert "<td>B, H, T, T</td><td>1 × 2 × 4 × 4</td>" in chapter


def test_the_text_stays_text(page, subject):
    """Markup in the text, in tokens and in the note is shown as it is and makes no element."""
    found = _Page(page)
    assert found.tags.count("script") == 2
    assert not {"img", "q\n"} & set(found.tags)
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;&amp;amp;a" in page
    assert "a &lt;b&gt;note&lt;/b&gt;" in page
    assert page.count("</script>") == 2


def test_control_characters_are_written_out():
    """A character that would turn the words around it about is shown as its escape."""
    assert visible("a\u202eb\x1b") == "a\\u202eb\\x1b"
    assert visible("ä\n") == "ä\n"


def test_what_differs_is_found(subject, run, monkeypatch):
    """A tensor past its limit is named and linked in the proof, and marked at its dot, its rows and its badge."""
    tight = run_with_limit(run, "float32", ("gradient", "blocks.1.norm_2"))
    tight = run_with_limit(tight, "float64", ("activation", "blocks.0.attention.probabilities_dropout"))
    monkeypatch.setattr("learn.study.page.run_pass", lambda *_: tight)
    page = study_page(subject)
    link = "#layer_norm:gradient~blocks.1.norm_2"
    assert '✗ 2 comparisons differ by more than the limit: <a href="#proof">' in page
    (failing,) = re.findall(r'<ul class="failing">.*?</ul>', page, re.DOTALL)
    assert f'href="{link}"' in failing
    assert "blocks.1.norm_2</code></a> in float32: " in failing
    (unshown,) = re.findall(r'href="(#fails-\d)"', failing)  # no chapter shows it: its row of the table
    assert f'<tr class="fails" id="{unshown[1:]}">' in page
    assert "Closest to its limit" not in page
    (strip,) = re.findall(r'<svg class="strip".*?</svg>', page, re.DOTALL)
    assert re.findall(r'<a href="([^"]*)"><circle class="float32 differs"', strip) == [link]
    (table,) = re.findall(r'<details id="errors">.*?</details>', page, re.DOTALL)
    assert table.count('class="fails"') == 2
    assert f'✗ <a href="{link}"><code>blocks.1.norm_2</code></a>' in table
    (chapter,) = re.findall(r'<details class="chapter" id="layer_norm">.*?<h4>Symbols', page, re.DOTALL)
    assert re.search(r'<span class="badge bad">✗ 1 of \d+ tensors differs', chapter)
    assert 'data-key="gradient blocks.1.norm_2" class="fails">' in page
    assert "past its limit in float32" in page
    assert page.count('class="badge bad"') == 1
    found = _Page(page)
    assert {link[1:].partition(":")[0] for link in found.links} <= set(found.ids)


def run_with_limit(run, dtype, key):
    """The run with one comparison held to a limit that nothing can keep."""
    rows = [row._replace(limit=1e-30) if row[:2] == key else row for row in run.rows[dtype]]
    return run._replace(
        rows=run.rows | {dtype: [row._replace(error=1e-9) if row.limit == 1e-30 else row for row in rows]}
    )


def test_what_agrees_is_said_exactly(page):
    """Adam is compared in float64 alone, for a few weights: the head of the page says so."""
    assert "in float64 and in float32; so do two steps of Adam on 3 of the weights, in float64." in page
    assert "Every tensor of both twins" not in page
    (adam,) = re.findall(r'<details class="chapter" id="adam">.*?</div>\n</div>', page, re.DOTALL)
    assert "<h5>PyTorch, torch.optim</h5>" in adam
    assert "autograd</h5>" not in adam


def test_a_tied_table_is_shown_at_both_ends(page, data):
    """The gradient of a tied table is the sum of both uses: both chapters show it and say so."""
    for name, other in (("embedding", "logits"), ("logits", "embedding")):
        (chapter,) = re.findall(
            rf'<details class="chapter" id="{name}">.*?</details>\n</details>', page, re.DOTALL
        )
        assert 'data-key="weight gradient token_embedding.weight"' in chapter
        assert f'href="#{other}' in chapter.partition("The tensors of this run")[2]
    assert "that use gives every row a gradient" in page


def test_forward_steps_mark_both_twins(page):
    """A forward step lights up the line of PyTorch that does the same, too."""
    (number_,) = statement_lines("torch_llm.attend.softmax", "return")
    (step,) = re.findall(r'<li id="softmax-step-1".*?>', page)
    assert f" softmax-torch_llm-attend-L{number_} " in step


def test_numbers_of_the_tables_are_the_comparisons(page, run):
    """Worst error, both values there and the loss stand in the page as the comparison has them."""
    assert f'<output class="loss">{number(float(run.by_hand("activation")["loss"]))}</output>' in page
    for view in run.views.values():
        if "dropout" in view.name:
            continue
        row = re.search(
            rf'data-key="{re.escape(f"{view.kind} {view.name}")}">(.*?)</tr>', page, re.DOTALL
        ).group(1)
        assert f"<td>{number(view.row.reference)}</td><td>{number(view.row.twin)}</td>" in row
        assert f"<td>{view.row.error:.2e}</td>" in row


def test_shapes_have_letters(run):
    """The letters of every shape, with this model's sizes put in, give the shape."""
    for view in run.views.values():
        assert tuple(run.sizes[each] for each in view.letters) == view.shape, view.name
        assert len(view.axes) == 2


def test_learned_positions_gelu_and_an_untied_output():
    """The other form of each operation makes a page too, and a model without biases."""
    config = preset(
        "nano",
        vocab_size=7,
        n_layer=1,
        n_head=1,
        d_model=4,
        context_length=4,
        bias=False,
        tie_embeddings=False,
    )
    tokens = np.array([0, 1, 6])
    page = study_page(
        Subject("nano", config, lively_weights(config, 0, "float64"), tokens, list("abcdefg"), "abg")
    )
    assert 'id="gelu"' in page
    assert 'id="relu"' not in page
    assert "gradient of weight position_embedding.weight" in page
    assert "gradient of weight output.weight" in page
    assert "its gradient in all, where the two are tied" not in page
    assert "table is tied" not in page
    assert "weight gradient token_embedding.weight" in page


def test_a_page_with_rms_norm():
    """The norm's own chapter stands in the place of layer norm's, with its tensors on the map."""
    config = preset("tense", vocab_size=7, n_layer=1, n_head=1, d_model=4, context_length=4, norm="rms_norm")
    page = study_page(
        Subject("rms", config, lively_weights(config, 0, "float64"), np.arange(3), list("abcdefg"), "abc")
    )
    assert '<details class="chapter" id="rms_norm">' in page
    assert 'id="layer_norm"' not in page
    assert 'href="#rms_norm:activation~blocks.0.norm_1"' in page
    assert 'href="#final_norm:activation~final_norm"' in page


@pytest.mark.parametrize("config", [FAMILY[0], *FAMILY[2:]])
def test_a_page_of_the_family(config):
    """Models of other families have a page: what has a derivation, and the tensors, which agree."""
    weights = lively_weights(config, 0, "float64")
    page = study_page(Subject("family", config, weights, np.arange(4), list("abcdefghi"), "abcd"))
    assert "✓ Every tensor of both passes agrees" in page
    assert ('id="gated_feed_forward"' in page) == (config.feed_forward == "gated")
    assert ("<td>B, K, T, D</td><td>1 × " in page) == (config.n_kv_head < config.n_head)
    found = _Page(page)
    assert {link[1:].partition(":")[0] for link in found.links} <= set(found.ids)


# --- the command ---


def test_the_command_writes_the_default_page(tmp_path, capsys):
    """Without a run, with a text that fills the context: under 5 MB, under 10 s, and nothing on stdout."""
    out, start = (
        tmp_path / "page.html",
        time.process_time(),
    )  # of this process: others may keep the machine busy
    sys.argv = ["cli.py", "study", "--text", "The baby is sleeping. " * 6, "--out", str(out)]
    assert main() == 0
    assert time.process_time() - start < 10
    assert out.stat().st_size < 5e6
    said = capsys.readouterr()
    assert said.out == ""
    assert "open it in a browser" in said.err


def test_a_run_and_its_tokenizer(tmp_path, subject):
    """A checkpoint's weights and tokenizer make the page; a text too long is cut, and that is said."""
    encoding = encoding_of("bytes", [bytes([byte]) for byte in range(97, 107)])
    config = preset("tense", vocab_size=10, n_layer=1, n_head=2, d_model=8, context_length=4)
    weights = lively_weights(config, 2, "float32")
    save_checkpoint(tmp_path / "run" / "best", Checkpoint(config, weights, encoding, step=12))
    made = write_study(tmp_path / "page.html", tmp_path / "run" / "best", "abcdefg")
    assert made.tokens.tolist() == [0, 1, 2, 3, 4]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "the checkpoint best of run, step 12" in page
    assert "the text has 7 tokens; the page shows the first 5" in page
    assert "<q><bdi>abcde…</bdi></q>" in page


def test_a_text_too_long_is_shown_as_far_as_it_is_used():
    """The rest does not stand in the page, and a character that the cut goes through is left out."""
    made = open_subject(None, "The baby is sleeping. " * 1000)
    assert made.text.startswith("The baby is sleeping. The baby")
    assert len(made.text) < 300
    assert made.text.endswith("…")
    assert "".join(made.labels[token] for token in made.tokens).replace("␣", " ") + "…" == made.text
    whole = open_subject(None, "The baby is sleeping.")
    assert whole.text == "The baby is sleeping."
    assert "\ufffd" not in open_subject(None, "€" * 1000).text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text", "The"], "at least 2 are needed"),
        (["--text", ""], "has 0 tokens"),
        (["nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    """A text too short and a run that is not there are named; no file is written."""
    out = tmp_path / "page.html"
    monkeypatch.setattr(sys, "argv", ["cli.py", "study", *arguments, "--out", str(out)])
    assert main() in (1, 2)
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_an_absent_extra_is_named(monkeypatch, capsys, tmp_path):
    """Without Jinja2 the command says what to install."""
    for name in [each for each in sys.modules if each.startswith("learn.study.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setattr(sys, "argv", ["cli.py", "study", "--out", str(tmp_path / "page.html")])
    assert main() == 1
    assert '".[study]"' in capsys.readouterr().err


def test_labels_can_be_read():
    """Spaces are seen, bytes that are no text are named, and the empty text has no label but its bytes."""
    encoding = encoding_of("ranks", [b" the", b"\n", b"\xff", b"\x00", b"a"])
    assert labels(encoding) == ["␣the", "\\n", "\\xff", "\\x00", "a"]


def test_the_default_subject():
    """The shipped tokenizer and the default preset's shape."""
    made = open_subject(None, "The baby is sleeping.")
    assert made.config == preset("tense", vocab_size=768)
    assert "".join(made.labels[token] for token in made.tokens) == "The␣baby␣is␣sleeping."


def test_nothing_below_knows_the_page():
    """`study` stands on parity; the rooms below load without it and without its extra."""
    program = "import parity.summary, harness.training.runs, cli, sys; print(list(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    # PyTorch may load Jinja2 for itself; the room and its mathematics are ours alone.
    assert not re.findall(r"'(?:learn[.]study|latex2mathml)[.']", result.stdout)
