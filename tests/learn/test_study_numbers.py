"""The study page's own numbers, step by step; what it defines, leaves out, finds and links."""

import base64
import json
import math
import re
from html import unescape

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
pytest.importorskip("jinja2", reason="needs the extra 'study' (pip install -e '.[dev]')")
pytest.importorskip("latex2mathml", reason="needs the extra 'study' (pip install -e '.[dev]')")

from contract.errors import ConfigError
from contract.presets import preset
from learn.exercises.catalogue import EXERCISES
from learn.exercises.start import starter
from learn.study import page as page_module
from learn.study.chapters import all_chapters, chapters_of
from learn.study.derivations import shapes
from learn.study.inner import Shown, look_inside, watch_pass
from learn.study.layout import exercises_of
from learn.study.one_pass import run_pass
from learn.study.page import Subject, spread, study_page
from learn.study.slider import opening, sweeps
from learn.study.witness import run_witness
from learn.study.write import MAX_TOKENS, open_subject, parse_layers
from numpy_llm.norms import layer_norm_forward
from parity.cases import lively_weights

TINY = {"vocab_size": 9, "n_layer": 3, "n_head": 2, "d_model": 8, "d_ff": 12, "context_length": 8}
MODELS = {
    "tense": preset("tense", **TINY),
    "gemma": preset(
        "gemma-2-2b",
        **TINY | {"n_head": 4},
        n_kv_head=2,
        head_size=4,
        window=2,
        query_key_norm="head",
    ),
    "llama": preset("llama-3.2-1b", **TINY | {"n_head": 4}, n_kv_head=2, head_size=4),
}


def subject_of(config, length=6, text="abcde"):
    """A subject with lively weights and some tokens."""
    tokens = np.arange(length) * 5 % config.vocab_size
    return Subject("tiny", config, lively_weights(config, 0, "float64"), tokens, list("abcdefghi"), text)


@pytest.fixture(scope="module", params=list(MODELS))
def inside(request):
    """The chapters of a tiny model, and what is inside each of the run's."""
    config = MODELS[request.param]
    subject = subject_of(config)
    run = run_pass(config, subject.weights, subject.tokens)
    chapters = chapters_of(run.flow.nodes, config)
    witness = run_witness({name for each in chapters for name in each.functions()}, config)
    watched = watch_pass(run, chapters)
    shown = Shown(run)
    found = {each.name: look_inside(each, run, watched, shapes(each, witness), shown) for each in chapters}
    return config, run, chapters, found


@pytest.fixture(scope="module")
def page():
    return study_page(subject_of(MODELS["tense"]))


def calculated(text: str) -> float:
    """What a reader's calculator makes of a step's right side; sums are taken as they are told."""
    text = re.sub(r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))* = ([^(),]*), \d+ terms\)", r"(\1)", text)
    for sign, python in (("−", "-"), ("×", "*"), ("^", "**"), ("√", "sqrt"), ("∞", "inf")):
        text = text.replace(sign, python)
    names = {name: getattr(math, name) for name in ("sqrt", "exp", "log", "tanh", "sin", "cos", "inf")}
    return eval(text, {"__builtins__": {}} | names)


def test_a_reader_can_follow_with_a_calculator(inside):
    """Every step that is not about derivatives alone has its numbers, and they come to what is said."""
    _, _, chapters, found = inside
    for chapter in chapters:
        if chapter.name == "attend_in_blocks":  # a traced pass has none
            continue
        for step, worked in zip(chapter.steps, found[chapter.name].steps, strict=True):
            right = step.formula.text.rpartition("==")[2]
            assert worked or "partial(" in right, (chapter.name, step.formula.text)
            if worked:
                value = float(worked.value.replace("−", "-").replace("∞", "inf"))
                scale = max(map(float, re.findall(r"\d+\.\d+", worked.text)), default=0)
                assert calculated(worked.text) == pytest.approx(value, rel=1e-3, abs=1e-4 * scale), worked


def test_the_inside_of_a_norm_is_what_the_code_held(inside):
    """s, n, the weight and dx are the norm's own, made of what the block reads; what is traced is not there twice."""
    config, run, _, found = inside
    choices = {each.symbol: each.key for each in found[config.norm].choices}
    assert {"x", "s", "n", "w", "y", "dy", "dn", "dx", "dw"} <= choices.keys()
    assert choices["y"] == "activation blocks.0.norm_1"
    assert choices["dy"] == "gradient blocks.0.norm_1"
    assert choices["dw"] == "weight gradient blocks.0.norm_1.weight"
    if config.norm != "layer_norm":
        return
    views = {each.name.partition(".")[2]: each for each in found["layer_norm"].views}
    assert views.keys() == {"m", "s", "eps", "n", "w", "bias", "dn", "dx"}
    weights, x = run.inputs["float32"].weights, run.tensors["float32"]["activation"][0]["embedding"]
    names = "blocks.0.norm_1.weight", "blocks.0.norm_1.bias"
    _, cache = layer_norm_forward(x, *map(weights.get, names), config.norm_eps)
    np.testing.assert_array_equal(views["n"].manual[0], cache.normal[0])
    np.testing.assert_array_equal(views["s"].manual[0], cache.inverse_deviation[0])
    np.testing.assert_array_equal(views["w"].manual[0, 0], weights[names[0]])
    assert views["m"].manual.item() == pytest.approx(x[0, -1].mean(), rel=1e-5)


def test_autograds_numbers_are_told_by_their_distance(page):
    """The float so many steps from the one by hand is autograd's, bit for bit; far ones are written as they are."""
    run = run_pass(MODELS["tense"], *subject_of(MODELS["tense"])[2:4])
    told = [each.as_json() for key, each in run.views.items() if key[0] != "optimizer"]
    assert sum(each["steps"] is not None for each in told) > len(told) / 2
    for view, each in zip([v for k, v in run.views.items() if k[0] != "optimizer"], told, strict=True):
        assert (each["steps"] is None) != (each["autograd"] is None)
        if each["steps"] is not None:
            steps = np.frombuffer(base64.b64decode(each["steps"]), "<i2")
            bits = view.manual.reshape(-1).view(np.int32).astype(np.int64)
            at = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits) + steps
            found = np.where(at < 0, -at | 0x80000000, at).astype(np.uint32).view(np.float32)
            np.testing.assert_array_equal(found, view.autograd.reshape(-1))


def test_the_inside_can_be_chosen(page):
    """The viewer offers it, and the script gets its numbers, without autograd's."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    tensors = json.loads(text)["tensors"]
    assert tensors["inner layer_norm.n"]["autograd"] is None
    assert tensors["inner layer_norm.n"]["shape"] == [1, 5, 8]
    assert '<option value="inner layer_norm.n">n: ' in page


def steps_of(page: str) -> dict[str, str]:
    """Each step's HTML by its id."""
    return {
        found[1]: found[0] for found in re.finditer(r'<li id="([\w-]+-step-\d+)".*?</li>', page, re.DOTALL)
    }


def test_symbols_are_defined_where_they_first_stand(page):
    """In the step that has them first, with δ and ∂; and not again."""
    steps = steps_of(page)
    words = {
        name: unescape("".join(re.findall(r'<p class="defines">.*?</p>', each, re.DOTALL)))
        for name, each in steps.items()
    }
    delta, partial = "1 where its two indices are equal", "by how much a moves when b moves"
    assert [name for name, each in words.items() if "layer_norm-" in name and delta in each] == [
        "layer_norm-step-10"
    ]
    assert [name for name, each in words.items() if "layer_norm-" in name and partial in each] == [
        "layer_norm-step-8"
    ]
    assert delta in words["softmax-step-2"]
    assert "one over their standard deviation" in words["layer_norm-step-2"]
    for chapter in all_chapters():
        own = "".join(each for name, each in words.items() if name.startswith(f"{chapter.name}-step"))
        if own and not any(symbol.needs for symbol in chapter.symbols.values()):
            shown = [symbol.means for symbol in chapter.symbols.values() if symbol.means in own]
            assert shown
    assert "Indices: <var>b</var> of B = 1 sequences" in page


def test_one_tensor_has_one_letter():
    """What two chapters show under the variable's own name has the same letter in both."""
    letters = {}
    for chapter in all_chapters():
        for name, symbol in chapter.symbols.items():
            if symbol.code in ("heads", "dheads", "probabilities", "logits", "dlogits", "active", "doutput"):
                where = chapter.name in ("feed_forward", "gated_feed_forward", "gate", "relu", "gelu", "silu")
                if symbol.code != "active" or where:
                    letters.setdefault(symbol.code, {}).setdefault(name, []).append(chapter.name)
    assert {code: sorted(found) for code, found in letters.items()} == {
        "active": ["a"], "dheads": ["do"], "dlogits": ["dx", "dz"], "doutput": ["dW"], "heads": ["o"],
        "logits": ["z"], "probabilities": ["p"],
    }  # fmt: skip
    assert letters["dlogits"]["dx"] == ["logit_cap"]  # in front of the cap


# --- size ---


@pytest.fixture
def unproved(monkeypatch):
    """Pages whose formulas are not checked, with few weights to move: other tests have both."""
    monkeypatch.setattr("learn.study.layout.step_errors", lambda chapter, _: [0.0] * len(chapter.steps))
    monkeypatch.setattr("learn.study.slider._MAX_WORK", 0)


def test_a_deep_model_fits(unproved, monkeypatch):
    """More blocks than a page holds, and a text of the whole context: below its size, with what was left out told."""
    config = preset("tense", **TINY | {"n_layer": 6})
    limit = len(study_page(subject_of(config)).encode()) - 50_000
    monkeypatch.setattr(page_module, "MAX_BYTES", limit)
    page = study_page(subject_of(config))
    assert len(page.encode()) < limit
    assert re.search(
        r"the page shows of 6 blocks the tensors of 0, [\d, ]*5 \(choose others with --layers\)", page
    )
    assert "comparisons were made" in page
    blocks = re.findall(r'data-key="activation blocks\.(\d)\.norm_1"', page)
    assert (blocks[0], blocks[-1]) == ("0", "5")
    assert len(blocks) < 6


def test_less_of_each_tensor_is_shown_before_a_page_is_refused(unproved, monkeypatch):
    """Layers that were chosen are kept; their tensors are sampled further, and too many are refused in words."""
    subject = subject_of(preset("tense", **TINY | {"n_layer": 2, "d_ff": 100}))
    whole = len(study_page(subject).encode())
    monkeypatch.setattr(page_module, "MAX_BYTES", whole - 2_000)
    page = study_page(subject, [0, 1])
    assert "of each tensor at most 8 heads, 16 rows and 64 columns" in page
    assert 'data-key="activation blocks.1.norm_1"' in page
    monkeypatch.setattr(page_module, "MAX_BYTES", 100_000)
    with pytest.raises(ConfigError, match=r"2 blocks make a page of .* MB.*choose fewer with --layers"):
        study_page(subject, [0, 1])


def test_layers_are_chosen():
    """Numbers and spans; what fits no block is named with what does."""
    assert parse_layers("5, 0-2,2", 6) == [0, 1, 2, 5]
    for wrong in ("6", "2-1", "a", "", "1,", "-1", "³"):
        with pytest.raises(
            ConfigError, match=r"--layers .* does not fit a model of 6 blocks; give numbers from 0 to 5"
        ):
            parse_layers(wrong, 6)
    assert spread(30, 5) == (0, 7, 14, 22, 29)
    assert (spread(3, 12), spread(9, 1)) == ((0, 1, 2), (0,))


def test_a_chosen_layer_is_the_one_followed(unproved):
    """The tensors, the map and the numbers of block 2 alone."""
    page = study_page(subject_of(MODELS["tense"]), [2])
    assert 'data-key="activation blocks.2.norm_1"' in page
    assert 'data-key="activation blocks.0.norm_1"' not in page
    assert "channel 0 of block 2" in page
    assert "<h3>Block 2</h3>" in page
    assert "<h3>Block 0</h3>" not in page


def test_a_long_text_is_cut(monkeypatch):
    """At what a page can hold, where the model's context is longer."""
    monkeypatch.setattr(
        "learn.study.write.preset", lambda *_, **given: preset("nano", **given, context_length=512)
    )
    made = open_subject(None, "The baby is sleeping. " * 100)
    assert len(made.tokens) == MAX_TOKENS + 1
    assert "the page shows the first 129, as many as a page can hold" in made.note


# --- slider, search, exercises, pictures ---


def test_the_slider_opens_where_the_loss_bends(page):
    """The gap between the curve and its tangent is a third of the picture at least, where both are in it."""
    config = MODELS["tense"]
    subject = subject_of(config)
    moved = sweeps(run_pass(config, subject.weights, subject.tokens))
    chosen = moved[opening(moved)]
    losses, line = np.array(chosen.losses), chosen.losses[15] + chosen.gradient * np.array(chosen.steps)
    low, high = losses.min(), losses.max()
    seen = (line > low - 0.2 * (high - low)) & (line < high + 0.2 * (high - low))
    assert np.abs(losses - line)[seen].max() > (high - low) / 3
    assert f'<option value="{opening(moved)}" selected>' in page


@pytest.mark.parametrize(
    "word", ["layernorm", "jacobian", "broadcast", "adamw", "softmax", "rope", "swiglu", "mlp"]
)
def test_the_fields_words_are_known(word):
    """Each is a keyword or in the title of a chapter."""
    assert [each.name for each in all_chapters() if word in " ".join([each.title.lower(), *each.keywords])]


def test_every_exercise_is_linked(page):
    """Each belongs to a chapter, which names its command; a student's file names the page."""
    linked = {name for chapter in all_chapters() for name in exercises_of(chapter)}
    assert linked == EXERCISES.keys()
    (chapter,) = re.findall(r'<details class="chapter" id="relu">.*?<h4>', page, re.DOTALL)
    assert "<code>python cli.py exercise start relu</code>" in chapter
    assert 'python cli.py study; search its page for "layer-norm"' in starter(EXERCISES["layer-norm"], 0)


def test_pictures_are_the_models(unproved):
    """A dial for each place and pair, and for sliding layers a grid beside that of full ones."""
    page = study_page(subject_of(MODELS["gemma"]))
    (rotary,) = re.findall(r'id="rotate">.*?(<svg class="picture".*?</svg>)', page, re.DOTALL)
    assert rotary.count('class="dial"') == 2 * 8 + 3
    assert rotary.count('class="arc"') == 3
    (window,) = re.findall(r'id="mask">.*?(<svg class="picture".*?</svg>)', page, re.DOTALL)
    assert window.count('class="seen"') == 15 + 14  # 5 tokens, of which 4 are in the window that is drawn
    assert window.count('class="future"') == 20
    assert "sliding layers, drawn with a window of 4; here 2" in window
