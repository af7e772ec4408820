"""The study page in a real browser: it loads in silence, every operation opens, its numbers are the trace's.

The screenshots stay in `STUDY_SCREENSHOTS` of the environment, or in pytest's temporary folder.
"""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
pytest.importorskip("jinja2", reason="needs the extra 'study' (pip install -e '.[dev]')")
pytest.importorskip("latex2mathml", reason="needs the extra 'study' (pip install -e '.[dev]')")
pytest.importorskip("websocket", reason="needs websocket-client (pip install -e '.[dev]')")

from browser import find_browser, open_browser

import numpy_llm
from contract.trace import Trace
from contract.weights import Weights
from learn.study.write import write_study

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(
    BROWSER is None,
    reason="needs Chromium (apt-get install chromium, or name its program in CHROMIUM)",
)
# Looks like markup in every way that has fooled a page.
TEXT = "The baby </script><img src=x onerror=alert(1)> is &amp; sleeping."

# Text whose contrast with what it stands on is under 4.5, the least that WCAG 2 (AA) asks for.
FAINT_TEXT = """(() => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => colour.slice(0, 3).map((each) => each / 255)
        .map((each) => each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
        .reduce((sum, each, i) => sum + each * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (node) => {
        const colour = numbers(getComputedStyle(node).backgroundColor);
        return colour.length === 4 && colour[3] === 0 ? behind(node.parentElement) : colour;
    };
    return [...document.querySelectorAll('body :not(script, style, noscript)')]
        .filter((each) => [...each.childNodes].some((text) => text.nodeType === 3 && text.data.trim()))
        .filter((each) => {
            const colour = getComputedStyle(each)[each.closest('svg') ? 'fill' : 'color'];
            const [low, high] = [light(numbers(colour)), light(behind(each))].sort((a, b) => a - b);
            return (high + 0.05) / (low + 0.05) < 4.5;
        })
        .map((each) => `${each.tagName} ${each.className}: ${each.textContent}`);
})()"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def subject(place):
    return write_study(place / "study.html", None, TEXT)


@pytest.fixture(scope="module")
def trace(subject):
    """The same pass, made here, with as many threads: they decide in which order a product is summed."""
    weights = Weights.zeros(subject.config, "float32")
    weights.flat[...] = subject.weights.flat
    found, model = Trace(), numpy_llm.GPT(subject.config, weights)
    with threadpool_limits(1):
        _, _, cache = model.forward(subject.tokens[None, :-1], subject.tokens[None, 1:], trace=found)
        model.backward(cache, trace=found)
    return found


@pytest.fixture(scope="module")
def page(place, subject):
    with open_browser(BROWSER, place / "profile") as page:
        page.resize(1280, 900)
        page.open((place / "study.html").as_uri())
        yield page


@pytest.fixture(scope="module")
def screenshots(place):
    return Path(os.environ.get("STUDY_SCREENSHOTS") or place / "screenshots")


def test_it_loads_in_silence(page, place):
    """No error and no warning in the console, nothing fetched beside the file, and no markup of the text's own."""
    assert page.evaluate("document.title") == "Backpropagation by hand, beside autograd"
    assert page.complaints == []
    assert set(page.requests) == {(place / "study.html").as_uri()}
    assert page.evaluate("document.images.length") == 0
    shown = page.evaluate("document.querySelector('q').textContent")
    assert shown.endswith("…")  # of the text as much as fits the context
    assert TEXT.startswith(shown[:-1])
    assert "</script><img src=x" in shown


def test_every_operation_opens(page):
    """A click on a summary opens it and draws its pictures; the mathematics has a size; nothing complains."""
    names = page.evaluate("[...document.querySelectorAll('details.chapter')].map((each) => each.id)")
    assert len(names) == 16
    for name in names:
        page.evaluate(f"document.querySelector('#{name} > summary').click()")
        page.evaluate("new Promise((done) => setTimeout(done, 30))")
        opened = page.evaluate(
            f"""(() => {{
            const chapter = document.getElementById('{name}'), math = [...chapter.querySelectorAll('.formula math')];
            return [chapter.open, chapter.querySelectorAll('canvas').length, math.length,
                    math.every((each) => each.getBoundingClientRect().width > 10)]; }})()"""
        )
        assert opened[0], name
        assert opened[1] >= 3, name
        assert opened[2] >= 2, name
        assert opened[3], name
    page.evaluate("byId('close-all').click()")
    assert page.complaints == []


@pytest.mark.parametrize(
    ("operation", "kind", "name"),
    [
        ("layer_norm", "activation", "blocks.0.norm_1"),
        ("layer_norm", "gradient", "blocks.1.norm_2"),
        ("softmax", "activation", "blocks.2.attention.probabilities"),
        ("cross_entropy", "activation", "loss"),
    ],
)
def test_numbers_are_the_traces(page, trace, operation, kind, name):
    """What the table of numbers shows, read back from the page, is the trace's float32, bit for bit."""
    page.evaluate(f"location.hash = '#{operation}:{kind}~{name}'")
    page.evaluate("new Promise((done) => setTimeout(done, 100))")
    page.evaluate(f"document.querySelector('#{operation} .numbers > summary').click()")
    page.evaluate("new Promise((done) => setTimeout(done, 100))")
    shown = page.evaluate(
        f"""[...document.querySelectorAll('#{operation} .numbers table')]
        .filter((each) => each.caption.textContent.startsWith('By hand'))
        .flatMap((each) => [...each.querySelectorAll('td')].map((cell) => cell.textContent))"""
    )
    whole = {"activation": trace.activations, "gradient": trace.gradients}[kind][name]
    np.testing.assert_array_equal(np.array(shown, np.float64).astype(np.float32), whole.reshape(-1))


def test_the_keyboard_reads_numbers(page, trace):
    """With a picture in focus the arrow keys go from number to number, and each is said with its place."""
    page.evaluate("location.hash = '#layer_norm:activation~blocks.0.norm_1'")
    page.evaluate("new Promise((done) => setTimeout(done, 100))")
    page.evaluate("document.querySelector('#layer_norm canvas').focus()")
    readout = "document.querySelector('#layer_norm .readout').textContent"
    page.press("ArrowRight")
    first = _place(page.evaluate(readout))
    page.press("ArrowRight" if first[1] < 95 else "ArrowLeft")
    token, channel, value = _place(page.evaluate(readout))
    assert (token, abs(channel - first[1])) == (first[0], 1)
    assert np.float32(value) == trace.activations["blocks.0.norm_1"][0, token, channel]


def _place(readout: str) -> tuple[int, int, float]:
    found = re.match(r"token (\d+) .*channel (\d+): by hand (\S+),", readout)
    assert found, readout
    return int(found[1]), int(found[2]), float(found[3])


def test_links_lead_somewhere(page):
    """Every link's target is there, and a link from the map opens its operation with its tensor."""
    broken = page.evaluate(
        """[...document.querySelectorAll('a')].map((each) => each.hash)
        .filter((hash) => !byId(hash.slice(1).split(':')[0]))"""
    )
    assert broken == []
    page.evaluate("byId('close-all').click()")
    page.evaluate("""document.querySelector('.map a[data-tensor="blocks.1.attention.heads"]').click()""")
    page.evaluate("new Promise((done) => setTimeout(done, 100))")
    assert page.evaluate("document.querySelector('#weighted_sum').open")
    chosen = page.evaluate("document.querySelector('#weighted_sum select').value")
    assert chosen == "activation blocks.1.attention.heads"


def test_the_choice_of_a_tensor_is_a_link(page):
    """The address names the tensor that is chosen, so that it can be passed on."""
    page.evaluate("byId('close-all').click()")
    page.evaluate("location.hash = '#softmax'")
    page.evaluate("new Promise((done) => setTimeout(done, 100))")
    page.evaluate(
        """(() => { const select = document.querySelector('#softmax select');
        select.value = 'gradient blocks.1.attention.probabilities';
        select.dispatchEvent(new Event('change')); })()"""
    )
    assert page.evaluate("location.hash") == "#softmax:gradient~blocks.1.attention.probabilities"


def test_a_node_shows_its_tensor(page):
    """Choosing a node of the map brings its tensor's pictures into the window, again after all was closed, too."""
    for _ in range(2):
        page.evaluate("byId('close-all').click()")
        page.evaluate("""document.querySelector('.map a[data-tensor="blocks.1.attention.query"]').click()""")
        page.evaluate("new Promise((done) => setTimeout(done, 100))")
        top, height = page.evaluate(
            "[document.querySelector('#query_key_value .viewer').getBoundingClientRect().top, innerHeight]"
        )
        assert 0 <= top < height / 2
        chosen = page.evaluate("document.querySelector('#query_key_value select').value")
        assert chosen == "activation blocks.1.attention.query"


def test_the_map_has_its_edges(page):
    """Queries and keys lead to the scores, values to their sum, and the stream passes each branch by."""
    nodes = page.evaluate(
        "[...document.querySelectorAll('.block:nth-child(2) [data-tensor]')].map((each) => each.dataset.tensor)"
    )
    assert {f"blocks.0.attention.{name}" for name in ("query", "key", "value")} <= set(nodes)
    edges = page.evaluate(
        """[...document.querySelectorAll('.block:nth-child(2) [data-reads]')]
        .map((each) => [each.dataset.tensor, each.dataset.reads])"""
    )
    assert edges == [
        ["blocks.0.attention.scores", "blocks.0.attention.query blocks.0.attention.key"],
        ["blocks.0.attention.heads", "blocks.0.attention.value"],
        ["blocks.0.residual_1", "lane"],
        ["blocks.0.residual_2", "blocks.0.residual_1"],
    ]
    drawn = page.evaluate(
        """[...document.querySelectorAll('.block:nth-child(2) .edges path')]
        .filter((each) => each.getBoundingClientRect().height > 5).length"""
    )
    assert drawn == 5


def test_values_stay_in_sight(page):
    """Pointing at the first head of a tall picture shows its value in the window; a finger's touch does too."""
    page.evaluate("location.hash = '#softmax:activation~blocks.1.attention.probabilities'")
    page.evaluate("new Promise((done) => setTimeout(done, 100))")
    for kind in ("pointermove", "pointerdown"):
        readout = page.evaluate(
            f"""(() => {{
            const viewer = document.querySelector('#softmax .viewer'), canvas = viewer.querySelector('canvas');
            const out = viewer.querySelector('.readout'), box = canvas.getBoundingClientRect();
            out.textContent = '';
            const at = {{ clientX: box.right - 8, clientY: box.bottom - 8, bubbles: true }};
            canvas.dispatchEvent(new PointerEvent('{kind}', at));
            const where = out.getBoundingClientRect();
            return [out.textContent, where.top >= 0 && where.bottom <= innerHeight + 1]; }})()"""
        )
        assert readout[0].startswith("head 0, token "), kind
        assert readout[1], "the value is outside the window"


def test_what_is_compared_stands_side_by_side(page):
    """Head by head: by hand, autograd and their difference in one row, in a wide window."""
    page.evaluate("location.hash = '#softmax:activation~blocks.1.attention.probabilities'")
    page.evaluate("new Promise((done) => setTimeout(done, 100))")
    tops = page.evaluate(
        """[...document.querySelectorAll('#softmax .viewer .panels')]
        .map((each) => [...each.querySelectorAll('canvas')].map((one) => one.getBoundingClientRect().top))"""
    )
    assert len(tops) == 4
    assert all(len(each) == 3 and len(set(each)) == 1 for each in tops)


def test_a_sample_says_what_it_has(page):
    """Rows and columns that are shown, of how many, and which; dropped heads too."""
    page.evaluate("location.hash = '#embedding:weight~gradient~token_embedding.weight'")
    page.evaluate("new Promise((done) => setTimeout(done, 100))")
    about = page.evaluate("document.querySelector('#embedding .about').textContent")
    assert re.search(
        r"numbers: \d+ of 768 rows \(32 evenly spaced, plus the text's tokens and the worst place\)\.$", about
    )
    many_heads = (
        "{ shape: [1, 20, 2, 2], panels: [0, 9, 19], rows: [0, 1], columns: [0, 1], axes: ['T', 'T'] }"
    )
    said = page.evaluate(f"sampled({many_heads})")
    assert said == "3 of 20 heads (16 evenly spaced, plus the worst place)"


@pytest.mark.parametrize("address", ["%E0%A4%A", "softmax:nothing", "softmax:toString", "nowhere"])
def test_a_broken_address_is_harmless(page, address):
    """An address that cannot be read, or names nothing, complains about nothing."""
    page.evaluate(f"location.hash = '#{address}'")
    page.evaluate("new Promise((done) => setTimeout(done, 100))")
    assert page.complaints == []


def test_everything_has_a_name(page):
    """Whatever the keyboard reaches says what it is, and the first stop skips the chapter list."""
    nameless = page.evaluate(
        """[...document.querySelectorAll('a, button, select, input, canvas, summary, [tabindex]')]
        .filter((each) => !each.getAttribute('aria-label') && !each.textContent.trim() && !each.labels?.length)
        .map((each) => each.outerHTML)"""
    )
    assert nameless == []
    assert page.evaluate("document.querySelector('a').className") == "skip"


def test_search_narrows(page):
    """A word of the code leaves the operations that have it; none typed leaves all."""
    count = "[...document.querySelectorAll('details.chapter')].filter((each) => !each.hidden).length"
    set_to = "(word) => { byId('search').value = word; byId('search').dispatchEvent(new Event('input')); }"
    page.evaluate(f"({set_to})('through_deviation')")
    assert page.evaluate(count) == 2  # the layer norm and the final norm
    for word in ("cross entropy", "Cross-Entropy", "cross  entropy"):
        page.evaluate(f"({set_to})('{word}')")
        assert not page.evaluate("byId('cross_entropy').hidden"), word
    page.evaluate(f"({set_to})('autograd there')")  # only above a column of every chapter
    assert page.evaluate(count) == 0
    page.evaluate(f"({set_to})('through_deviation')")
    page.evaluate("location.hash = '#softmax'")
    page.evaluate("new Promise((done) => setTimeout(done, 100))")
    assert page.evaluate("byId('search').value") == ""
    assert page.evaluate(count) == 16


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("layernorm", "layer_norm"),
        ("Jacobian", "softmax"),
        ("broadcast", "position"),
        ("AdamW", "adam"),
        ("crossentropy", "cross_entropy"),
        ("flash attention", ""),
    ],
)
def test_search_knows_the_fields_words(page, word, name):
    """What readers call an operation finds it, though no sentence says so; nothing else is invented."""
    set_to = "(word) => { byId('search').value = word; byId('search').dispatchEvent(new Event('input')); }"
    page.evaluate(f"({set_to})('{word}')")
    found = page.evaluate(
        "[...document.querySelectorAll('details.chapter')].filter((each) => !each.hidden).map((each) => each.id)"
    )
    page.evaluate(f"({set_to})('')")
    assert (name in found) if name else found == []


def test_what_is_inside_has_no_autograd(page):
    """The weights and inner quantities of a norm can be chosen: one picture, and its numbers by hand."""
    page.evaluate("location.hash = '#layer_norm:inner~layer_norm.s'")
    page.evaluate("new Promise((done) => setTimeout(done, 100))")
    shown = "document.querySelector('#layer_norm .viewer').querySelectorAll('canvas').length"
    assert page.evaluate(shown) == 1
    page.evaluate("document.querySelector('#layer_norm .numbers > summary').click()")
    page.evaluate("new Promise((done) => setTimeout(done, 100))")
    assert page.evaluate("document.querySelectorAll('#layer_norm .numbers table').length") == 1
    page.evaluate("byId('close-all').click()")


@pytest.mark.parametrize("start", ["close-all", "open-all"])
def test_paper_has_every_chapter_uncut(page, start):
    """Before printing every chapter opens with its pictures, nothing is cut off, and it is as it was afterwards."""
    page.evaluate(f"byId('{start}').click()")
    was_open = page.evaluate("document.querySelectorAll('details.chapter[open]').length")
    page.call("Emulation.setEmulatedMedia", media="print")
    page.call("Emulation.setDeviceMetricsOverride", width=720, height=1000, deviceScaleFactor=1, mobile=False)
    try:
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        found = page.evaluate(
            """[...document.querySelectorAll('details.chapter')].map((each) => [each.id, each.open,
            each.querySelectorAll('canvas').length,
            [...each.querySelectorAll('.formula, .scroll, figure, .code')].filter((box) =>
                getComputedStyle(box).overflowX !== 'visible' && box.scrollWidth > box.clientWidth + 1).length,
            [...each.querySelectorAll('canvas, .formula math')].filter((box) =>
                box.getBoundingClientRect().right > innerWidth).length])"""
        )
        assert len(found) == 16
        for name, is_open, canvases, cut, outside in found:
            assert (is_open, canvases >= 1, cut, outside) == (True, True, 0, 0), name
        page.evaluate("dispatchEvent(new Event('afterprint'))")
    finally:
        page.call("Emulation.setEmulatedMedia", media="")
        page.resize(1280, 900)
    assert page.evaluate("document.querySelectorAll('details.chapter[open]').length") == was_open
    page.evaluate("byId('close-all').click()")


def test_tables_fit_a_phone(page):
    """At 390 px no table but that of a tensor's numbers is scrolled sideways."""
    page.resize(390, 900)
    try:
        page.evaluate("byId('open-all').click()")
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        page.evaluate("new Promise((done) => setTimeout(done, 300))")
        wide = page.evaluate(
            """[...document.querySelectorAll('.scroll')].filter((each) => !each.closest('.numbers'))
            .filter((each) => each.clientWidth && each.scrollWidth > each.clientWidth + 1)
            .map((each) => `${each.getAttribute('aria-label')}: ${each.scrollWidth}`)"""
        )
        assert wide == []
    finally:
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = false; })")
        page.resize(1280, 900)


def test_the_slider_moves(page):
    """ε changes by the keyboard; the loss said is the sweep's."""
    page.evaluate("epsilon.focus()")
    before = page.evaluate("[epsilon.value, byId('moved').textContent]")
    page.press("ArrowRight")
    value, text = page.evaluate("[epsilon.value, byId('moved').textContent]")
    assert int(value) == int(before[0]) + 1
    assert text != before[1]
    loss = page.evaluate(f"data.sweeps[byId('weight').value].losses[{value}]")
    assert f"loss {float(f'{loss:.9g}')}" in text


@pytest.mark.parametrize(
    ("width", "dark"),
    [
        (1280, False),
        (390, True),
        pytest.param(1280, True, marks=pytest.mark.endurance),
        pytest.param(390, False, marks=pytest.mark.endurance),
    ],
)
def test_it_fits(page, screenshots, width, dark):
    """At both widths nothing scrolls sideways, text stands out; pictures of what it looks like are kept."""
    page.resize(width, 900, dark=dark)
    try:
        page.evaluate("byId('open-all').click()")
        page.evaluate("new Promise((done) => setTimeout(done, 300))")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(FAINT_TEXT) == []
        cut_off = """[...document.querySelectorAll('.formula')].filter((each) => each.scrollWidth > each.clientWidth)
            .map((each) => each.closest('.step').id)"""
        assert page.evaluate(cut_off) == []
        outside = """[...document.querySelectorAll('#proof circle, #proof svg text')]
            .map((each) => each.getBoundingClientRect())
            .filter((each) => each.left < 0 || each.right > innerWidth).length"""
        assert page.evaluate(outside) == 0
        scrolls = "document.querySelector('.map').scrollWidth > document.querySelector('.map').clientWidth"
        assert page.evaluate("!byId('map-hint').hidden") == page.evaluate(scrolls) == (width == 390)
        page.evaluate("byId('close-all').click()")
        for name in ("map", "layer_norm", "softmax", "slider"):
            page.evaluate(f"location.hash = '#{name}'")
            page.evaluate("new Promise((done) => setTimeout(done, 150))")
            path = screenshots / f"{name}-{width}-{'dark' if dark else 'light'}.png"
            page.screenshot(path)
            assert path.stat().st_size > 10_000
    finally:
        page.resize(1280, 900)
