"""Attention in blocks: the numbers of plain attention, with memory that grows with the text and not its square."""

import tracemalloc
from itertools import product
from types import SimpleNamespace
from typing import NamedTuple
from zlib import crc32

import numpy as np
import pytest

import numpy_llm
from contract.numbers import relative_error
from numpy_llm import attend, attend_in_blocks, attention
from numpy_llm.threads import Team
from operations import attend_in_blocks as known
from operations.attend_in_blocks import ATTEND_IN_BLOCKS, COLUMNS, ROWS
from operations.operation import Mistake
from parity.cases import FAMILIES, Case, family_case
from parity.passes import in_blocks, reference_pass
from parity.tolerances import limit

LIMIT = 1e-12  # in float64; observed at most: 6e-14
RESULTS = ("heads", "dquery", "dkey", "dvalue")
QUERIES, KEYS = 4, 8  # of a small block


class Shape(NamedTuple):
    """T queries, the last of T + earlier tokens; H query heads, K of keys; what else the scores depend on."""

    T: int
    earlier: int = 0
    H: int = 2
    K: int = 2
    window: int | None = None
    cap: float | None = None
    scale: float = 0.5


def tensors_of(shape, dtype="float64", B=2, D=5, spread=2.0):
    """Query, key, value and the gradient of the heads; large enough that maxima differ from block to block."""
    random, (T, earlier, H, K, *_) = np.random.default_rng(crc32(repr(shape).encode())), shape
    sizes = ((H, T), (K, T + earlier), (K, T + earlier), (H, T))
    return [random.normal(0, spread, (B, *size, D)).astype(dtype) for size in sizes]


def run_in_blocks(shape, query, key, value, dheads):
    """Heads and the gradients of query, key and value."""
    heads, cache = attend_in_blocks.attend_in_blocks_forward(
        query, key, value, shape.scale, shape.window, shape.cap
    )
    return heads, *attend_in_blocks.attend_in_blocks_backward(dheads, cache)


def run_plain(shape, query, key, value, dheads):
    """The same, written out."""
    config = SimpleNamespace(score_scale=shape.scale, score_cap=shape.cap, dropout=0.0)
    heads, cache = attend.attend_forward(query, key, value, "attention", config, shape.window)
    return heads, *attend.attend_backward(dheads, cache)


def assert_same(found, wanted, shape, most=LIMIT):
    for name, ours, plain in zip(RESULTS, found, wanted, strict=True):
        assert ours.dtype == plain.dtype
        # Of a single key all of dquery and dkey is rounding: measure it by what flows in.
        size = None if np.abs(plain).max() > 1e-6 else 1.0
        assert relative_error(ours, plain, size) <= most, (name, shape)


@pytest.fixture
def small():
    """Blocks of a few queries and keys."""
    with in_blocks(numpy_llm, QUERIES, KEYS):
        yield


# --- the operation against the plain one ---

LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 25, 29)


@pytest.mark.parametrize("T", LENGTHS)
def test_heads_and_gradients_are_those_of_plain_attention(T, small):
    """On texts from one token to more than three blocks, cached tokens before them, in every combination."""
    heads, windows = ((2, 2), (4, 2), (3, 1)), (None, 1, 3, 11, 100)
    for earlier, (H, K), window, cap in product((0, 6, 19), heads, windows, (None, 1.5)):
        shape = Shape(T, earlier, H, K, window, cap)
        tensors = tensors_of(shape)
        assert_same(run_in_blocks(shape, *tensors), run_plain(shape, *tensors), shape)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
def test_scores_of_any_size(scale, small):
    """Scores in the thousands, whose exponentials no float holds, are as exact as small ones."""
    shape = Shape(29, scale=scale)
    tensors = tensors_of(shape)
    assert_same(run_in_blocks(shape, *tensors), run_plain(shape, *tensors), shape)


@pytest.mark.parametrize("window", [None, 300])
def test_blocks_as_they_are(window):
    """More than three blocks of queries and of keys, in the sizes that a model runs with."""
    T = 3 * attend_in_blocks._KEYS + 37
    assert T > 3 * attend_in_blocks._QUERIES
    shape = Shape(T, 5, 1, 1, window)
    tensors = tensors_of(shape, B=1)
    assert_same(run_in_blocks(shape, *tensors), run_plain(shape, *tensors), shape)


@pytest.mark.parametrize("T", LENGTHS)
def test_float32(T, small):
    """In float32 within the limits of the proof, against plain attention in float64."""
    for window, cap in ((None, None), (5, None), (11, 1.5)):
        shape = Shape(T, 3, 4, 2, window, cap)
        tensors = tensors_of(shape, spread=1.0)
        found = run_in_blocks(shape, *(each.astype(np.float32) for each in tensors))
        for name, ours, exact in zip(RESULTS, found, run_plain(shape, *tensors), strict=True):
            assert ours.dtype == np.float32
            quantity = "activation" if name == "heads" else "gradient"
            size = None if np.abs(exact).max() > 1e-3 else 1.0
            assert relative_error(ours, exact, size) <= limit(quantity, "float32"), (name, shape)


@pytest.mark.parametrize("T", [1, 2, 7, 8, 17, 29])
def test_the_twins_kernel(T, small):
    """PyTorch's scaled_dot_product_attention and its gradients, with groups, windows and cached tokens."""
    torch = pytest.importorskip("torch", reason="needs PyTorch (pip install -e '.[dev]')")
    from torch_llm.attend_in_blocks import attend_in_blocks as twin

    for earlier, (H, K), window in product((0, 6), ((2, 2), (4, 2)), (None, 1, 5, 100)):
        shape = Shape(T, earlier, H, K, window)
        *tensors, dheads = tensors_of(shape)
        theirs = [torch.tensor(each, requires_grad=True) for each in tensors]
        heads = twin(*theirs, shape.scale, window)
        heads.backward(torch.tensor(dheads))
        wanted = [heads.detach().numpy(), *(each.grad.numpy() for each in theirs)]
        assert_same(run_in_blocks(shape, *tensors, dheads), wanted, shape)


def test_results_are_written_where_they_are_wanted(small):
    """Into views of one array, as the layer hands them over."""
    shape = Shape(13, 0, 4, 2)
    query, key, value, dheads = tensors_of(shape)
    _, *wanted = run_plain(shape, query, key, value, dheads)
    joint = np.full((2, 13, 8, 5), np.nan)
    views = np.split(joint.swapaxes(1, 2), [4, 6], axis=1)
    _, cache = attend_in_blocks.attend_in_blocks_forward(query, key, value, shape.scale)
    found = attend_in_blocks.attend_in_blocks_backward(dheads, cache, views)
    for ours, view, plain in zip(found, views, wanted, strict=True):
        assert ours is view
        assert relative_error(view, plain) <= LIMIT


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(threads, small):
    """Heads and gradients are the same for every number of threads."""
    shape = Shape(29, 6, 4, 2, 11)
    tensors = tensors_of(shape)
    alone = run_in_blocks(shape, *tensors)
    with Team(threads).working():
        for ours, same in zip(run_in_blocks(shape, *tensors), alone, strict=True):
            np.testing.assert_array_equal(ours, same)


# --- memory ---


def peak_of(run, T):
    """The bytes that a pass forward and back over T tokens takes beside its arguments, at most."""
    shape = Shape(T, H=1, K=1)
    tensors = tensors_of(shape, B=1)
    tracemalloc.start()
    try:
        run(shape, *tensors)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_with_the_text():
    """Twice the tokens take at most twice the memory, where plain attention takes four times as much."""
    with in_blocks(numpy_llm, 32, 64):
        run_in_blocks(shape := Shape(256, H=1, K=1), *tensors_of(shape, B=1))  # fills the table of masks
        assert peak_of(run_in_blocks, 1024) < 2.1 * peak_of(run_in_blocks, 512)
        assert peak_of(run_in_blocks, 1024) < peak_of(run_plain, 1024) / 20
    assert peak_of(run_plain, 1024) > 3 * peak_of(run_plain, 512)


# --- the model ---


def which_ran(monkeypatch):
    """A list that gets the name of each path that attention takes."""
    ran = []

    def note(right):
        def noted(*arguments, **named):
            ran.append(right.__name__)
            return right(*arguments, **named)

        monkeypatch.setattr(attention, right.__name__, noted)

    note(attend.attend_forward)
    note(attend_in_blocks.attend_in_blocks_forward)
    return ran


@pytest.mark.parametrize("title", FAMILIES)
def test_a_model_in_blocks_is_the_traced_one(title, small, monkeypatch):
    """Loss and every weight's gradient of an untraced pass are those of the traced one, which writes attention out."""
    case, ran = family_case(title), which_ran(monkeypatch)
    inputs = case.inputs("float64")
    plain = reference_pass(numpy_llm, case.config, inputs)
    assert set(ran) == {"attend_forward"}
    ran.clear()
    found = reference_pass(numpy_llm, case.config, inputs, traced=False)
    assert ran == ["attend_in_blocks_forward"] * case.config.n_layer
    for name in ("logits", "loss"):
        assert relative_error(found.activations[name], plain.activations[name]) <= LIMIT
    for name, gradient in plain.weight_gradients.items():
        assert relative_error(found.weight_gradients[name], gradient) <= LIMIT, name


def test_dropout_takes_the_plain_path(small, monkeypatch, tiny_config):
    """Probabilities that are dropped must be there to drop; without a key the same model attends in blocks."""
    case, ran = Case("dropout", tiny_config(dropout=0.3, n_layer=2), T=4), which_ran(monkeypatch)
    inputs = case.inputs("float64")
    traced = reference_pass(numpy_llm, case.config, inputs)
    found = reference_pass(numpy_llm, case.config, inputs, traced=False)
    assert set(ran) == {"attend_forward"}
    np.testing.assert_array_equal(found.weight_gradients["token_embedding.weight"],
                                  traced.weight_gradients["token_embedding.weight"])  # fmt: skip
    ran.clear()
    reference_pass(numpy_llm, case.config, inputs._replace(dropout=None), traced=False)
    assert set(ran) == {"attend_in_blocks_forward"}


def test_short_texts_take_the_plain_path(monkeypatch, tiny_config):
    """From BLOCKS_FROM tokens on a text is attended to in blocks."""
    ran = which_ran(monkeypatch)
    monkeypatch.setattr(attention, "BLOCKS_FROM", 3)
    for T, path in ((2, "attend_forward"), (3, "attend_in_blocks_forward")):
        case = Case("", tiny_config(), T=T)
        reference_pass(numpy_llm, case.config, case.inputs("float64"), traced=False)
        assert ran.pop() == path


# --- the known mistakes ---

VISIBLE = 1e-3  # the least error of a mistake, relative to the right result's largest magnitude


@pytest.mark.parametrize("mistake", ATTEND_IN_BLOCKS.mistakes, ids=lambda mistake: mistake.name)
def test_a_mistake_can_be_seen(mistake: Mistake):
    """Each form differs from the right result by far more than rounding, in all that it calls wrong."""
    shape = Shape(3 * COLUMNS + ROWS, 0, 4, 2, 4, 3.0)
    *tensors, dheads = tensors_of(shape)
    heads, kept = ATTEND_IN_BLOCKS.run_keeping(*tensors, shape.scale, shape.window, shape.cap)
    right = ATTEND_IN_BLOCKS.differentiate(dheads, kept)
    arguments = (dheads, kept) if mistake.backward else (*tensors, shape.scale, shape.window, shape.cap)
    forms = mistake.forms(*arguments)
    assert forms
    for form in forms:
        wrong = form if mistake.backward else {"heads": form}
        for name, value in wrong.items():
            assert relative_error(value, (right | {"heads": heads})[name]) > VISIBLE, name


def test_steps_without_a_mistake_are_right():
    """What the mistakes are made in computes the right numbers where nothing is wrong."""
    shape = Shape(3 * COLUMNS + ROWS, 2, 4, 2, 4, 3.0)
    *tensors, dheads = tensors_of(shape)
    terms = shape.scale, shape.window, shape.cap
    heads, kept = ATTEND_IN_BLOCKS.run_keeping(*tensors, *terms)
    right = ATTEND_IN_BLOCKS.differentiate(dheads, kept)
    forward = (known._stepping(known._running()), known._seeing(known._visible))
    backward = (known._with_delta(lambda *of: [known._delta(*of)]),
                known._with_probabilities(lambda scores, cache: [known._probabilities(cache)]))  # fmt: skip
    for compute in forward:
        assert relative_error(compute(*tensors, *terms)[0], heads) <= LIMIT
    for compute in backward:
        for name, value in compute(dheads, kept)[0].items():
            assert relative_error(value, right[name]) <= LIMIT
