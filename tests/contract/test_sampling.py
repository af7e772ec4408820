"""From logits to a token: which tokens are kept, how often each is drawn, and on what a draw depends."""

import inspect
from math import exp
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from contract.errors import ConfigError
from contract.randomness import uniform
from contract.sampling import Sampling, check_sampling, sample

LOGITS = np.array([0.5, 2.0, -1.0, 2.0, 0.0, 1.0])


def draws(logits, count=400, **options):
    return [sample(logits, position=position, **options) for position in range(count)]


def sample_at(u, logits, **options):
    """The token that `sample` takes where its random number is `u`."""
    with mock.patch("contract.sampling.uniform", return_value=u):
        return sample(logits, **options)


def plain_sample(u, logits, temperature, top_k, top_p):
    """The definition, in plain Python. None where a sum lies too near a limit for rounding to be sure."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[:top_k]
    weights = [exp((logits[token] - logits[order[0]]) / temperature) for token in order]
    kept, reached = [], 0.0
    for token, weight in zip(order, weights, strict=True):
        if top_p is not None and abs(reached - top_p) < 1e-9:
            return None
        if top_p is None or reached < top_p:
            kept.append((token, weight / sum(weights)))
        reached += weight / sum(weights)
    left = u * sum(probability for _, probability in kept)
    for token, probability in kept[:-1]:
        if abs(left - probability) < 1e-9:
            return None
        if left < probability:
            return token
        left -= probability
    return kept[-1][0]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    logits=st.lists(st.integers(-6, 6).map(lambda n: n / 2), min_size=1, max_size=12),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.none() | st.floats(0.01, 1.0),
    u=st.floats(0, 1, exclude_max=True),
)
def test_sample_is_its_definition(logits, temperature, top_k, top_p, u):
    """For any logits, settings and random number, the token is that of the definition written plainly."""
    expected = plain_sample(u, logits, temperature, top_k, top_p)
    assume(expected is not None)
    assert sample_at(u, np.array(logits), temperature=temperature, top_k=top_k, top_p=top_p) == expected


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        pytest.param({}, {0, 1, 2, 3, 4, 5}, id="all"),
        pytest.param({"top_k": 1}, {1}, id="one of two that tie"),
        pytest.param({"top_k": 3}, {1, 3, 5}, id="top 3"),
        pytest.param({"top_k": 100}, {0, 1, 2, 3, 4, 5}, id="more than there are"),
        pytest.param({"top_p": 1e-9}, {1}, id="a tiny p keeps the most likely"),
        pytest.param({"top_p": 0.7}, {1, 3}, id="two of 0.36 each reach p"),
        pytest.param({"top_p": 0.75}, {1, 3, 5}, id="the one that crosses p is kept"),
        pytest.param({"top_p": 1.0}, {0, 1, 2, 3, 4, 5}, id="p of 1"),
        pytest.param({"top_k": 2, "top_p": 0.6}, {1, 3}, id="p is of the k that are kept"),
        pytest.param({"top_k": 2, "top_p": 0.49}, {1}, id="p just below a half of two"),
    ],
)
def test_kept_tokens(options, kept):
    """Exactly the tokens that top-k and top-p keep can be drawn."""
    numbers = np.linspace(0, 1, 400, endpoint=False)
    assert {sample_at(u, LOGITS, **options) for u in numbers} == kept


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"temperature": 0.7}, [0, 1, 2, 3, 4, 5]),
        ({"temperature": 3.0}, [0, 1, 2, 3, 4, 5]),
        ({"top_k": 3}, [1, 3, 5]),
        ({"temperature": 2.0, "top_p": 0.6}, [1, 3, 5]),
    ],
    ids=str,
)
def test_frequencies(options, kept):
    """Kept tokens are drawn as often as the softmax over them says, and no others: chi-square of 6000 draws."""
    weights = np.exp(LOGITS[kept] / options.get("temperature", 1.0))
    expected = weights / weights.sum() * 6000
    counts = np.bincount(draws(LOGITS, 6000, seed=2, **options), minlength=6)
    assert counts[kept].sum() == 6000
    assert ((counts[kept] - expected) ** 2 / expected).sum() < 20.5  # 5 degrees of freedom, 1 in 1000


@pytest.mark.parametrize(
    ("count", "top_p", "kept"), [(2, 0.5, {0}), (4, 0.25, {0}), (4, 0.5, {0, 1}), (4, 0.75, {0, 1, 2})]
)
def test_p_reached_exactly(count, top_p, kept):
    """Where probabilities without rounding reach p exactly, no further token is kept."""
    assert {sample_at(u, np.zeros(count), top_p=top_p) for u in np.linspace(0, 1, 64, endpoint=False)} == kept


def test_limits_between_tokens():
    """A random number on the limit between two tokens takes the latter: each token has its half-open share."""
    taken = [sample_at(u, np.zeros(4)) for u in (0.0, 0.25 - 2**-53, 0.25, 0.5, 0.75, 1 - 2**-53)]
    assert taken == [0, 0, 1, 2, 3, 3]


def test_greedy():
    """Temperature 0 takes the most likely token, whatever the seed, the lowest id on a tie."""
    for seed in range(5):
        assert sample(LOGITS, temperature=0, seed=seed, top_p=0.5) == 1
        assert sample(np.zeros(4), temperature=0, seed=seed) == 0
        assert sample(np.array([-3.0, -np.inf, -1.0]), temperature=0, seed=seed) == 2


def test_ties_go_to_the_lower_id():
    """Where equally likely tokens compete for the last place, lower ids are kept."""
    logits = np.array([1.0] * 40)
    assert set(draws(logits, top_k=3)) == {0, 1, 2}
    assert set(draws(logits, top_p=0.05)) == {0, 1}


@pytest.mark.parametrize("values", [1, 2, 7, 300, None], ids=lambda count: f"{count or 'all'} different")
@pytest.mark.parametrize("excluded", [0, 1950])
def test_top_k_is_the_beginning_of_a_stable_sort(values, excluded):
    """However many logits tie, or are -inf, top-k keeps and orders the tokens as a stable sort of all would."""
    random = np.random.default_rng(values or 0)
    logits = random.normal(size=2000).astype(np.float32)
    if values:
        logits = random.permutation(logits)[:values][random.integers(values, size=2000)]
    logits[random.permutation(2000)[:excluded]] = -np.inf
    order = np.argsort(-logits, kind="stable")
    for k in (1, 2, 40, 49, 50, 51, 700, 1999, 2000, 2001):
        weights = np.exp((logits[order[:k]].astype(np.float64) - logits[order[0]]) / 0.9)
        limits = np.cumsum(weights / weights.sum())
        for u in np.linspace(0, 1, 97, endpoint=False):
            expected = order[np.searchsorted(limits[:-1], u * limits[-1], side="right")]
            assert sample_at(u, logits, temperature=0.9, top_k=k) == expected


def test_temperature():
    """Cold draws concentrate on the most likely token, hot ones spread out; both limits are reached."""
    share = [draws(np.array([1.0, 0.0]), temperature=t).count(0) / 400 for t in (0.1, 0.5, 1.0, 5.0, 1e6)]
    assert share == sorted(share, reverse=True)
    assert share[0] > 0.99
    assert 0.4 < share[-1] < 0.6
    assert set(draws(LOGITS, temperature=1e-3)) == {1, 3}


def test_repetition_penalty():
    """What was seen becomes less likely, whatever its logit's sign and however often; the logits stay as they are."""
    logits = np.array([3.0, 2.0, -1.0, -1.5, 0.5])
    before = logits.copy()

    def order(seen, penalty):
        left, found = logits.copy(), []
        for _ in logits:
            found.append(sample(left, temperature=0, repetition_penalty=penalty, seen=seen))
            left[found[-1]] = -np.inf
        return found

    assert order([], 2.0) == order([0, 2, 4], 1.0) == [0, 1, 4, 2, 3]
    assert order([0, 0, 0, 2], 2.0) == [1, 0, 4, 3, 2]
    np.testing.assert_array_equal(logits, before)


def test_repetition_penalty_is_that_of_transformers():
    """An independent witness, if it is installed."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (pip install -e '.[dev]')")
    torch = pytest.importorskip("torch", reason="needs torch (pip install -e '.[dev]')")
    random = np.random.default_rng(5)
    theirs = transformers.RepetitionPenaltyLogitsProcessor(1.3)
    for _ in range(50):
        logits, seen = random.normal(size=9), random.integers(0, 9, 4)
        wanted = theirs(torch.tensor(seen[None]), torch.tensor(logits[None]))[0].argmax()
        assert sample(logits, temperature=0, repetition_penalty=1.3, seen=seen) == wanted


def test_excluded_tokens():
    """A logit of -inf is never drawn, and huge ones overflow nothing."""
    assert set(draws(np.array([0.0, -np.inf, 0.5]))) == {0, 2}
    assert set(draws(np.array([1e30, -1e30, 1e30]), temperature=0.5)) == {0, 2}
    assert sample_at(1 - 2**-53, np.array([0.0, -np.inf])) == 0


def test_pure_function():
    """The same arguments draw the same token in any order of calls, and the logits are left alone."""
    places = [(seed, sequence, position) for seed in (0, 1) for sequence in (0, 1) for position in range(20)]
    logits = np.linspace(0, 1, 50, dtype=np.float32)
    before = logits.copy()

    def at(place):
        seed, sequence, position = place
        return sample(logits, top_p=0.9, seed=seed, sequence=sequence, position=position)

    forward = {place: at(place) for place in places}
    assert forward == {place: at(place) for place in reversed(places)}
    np.testing.assert_array_equal(logits, before)
    rows = {tuple(forward[seed, sequence, p] for p in range(20)) for seed in (0, 1) for sequence in (0, 1)}
    assert len(rows) == 4  # seed and sequence each change the draws
    assert all(len(set(row)) > 5 for row in rows)  # and so does the position


def test_draw_is_the_documented_one():
    """A draw is the inverse of the cumulative distribution at uniform(seed, "sampling", sequence, position)."""
    for position in range(30):
        u = uniform(4, "sampling", 2, position)
        expected = plain_sample(u, list(LOGITS), 0.8, None, None)
        assert sample(LOGITS, temperature=0.8, seed=4, sequence=2, position=position) == expected


def test_top_k_of_any_integer_type():
    """NumPy's integers are as good as Python's, unsigned ones included."""
    for k in (3, np.int64(3), np.uint8(3)):
        assert set(draws(LOGITS, top_k=k)) == {1, 3, 5}


def test_result_is_an_int():
    """A token is a plain int, greedy or not."""
    assert type(sample(LOGITS)) is int
    assert type(sample(LOGITS, temperature=0)) is int


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((-0.1, None, None), ["temperature", "-0.1"]),
        ((float("nan"), None, None), ["temperature", "nan"]),
        ((float("inf"), None, None), ["temperature", "inf"]),
        ((1.0, 0, None), ["top-k", "0"]),
        ((1.0, -5, None), ["top-k", "-5"]),
        ((1.0, None, 0.0), ["top-p", "0.0"]),
        ((1.0, None, 1.1), ["top-p", "1.1"]),
        ((1.0, None, float("nan")), ["top-p", "nan"]),
        ((1.0, None, None, 0, 0, 0.0), ["repetition-penalty", "0.0"]),
        ((1.0, None, None, 0, 0, float("inf")), ["repetition-penalty", "inf"]),
    ],
)
def test_impossible_settings(options, words):
    """A setting without meaning is refused by name, with what was given."""
    with pytest.raises(ConfigError) as error:
        check_sampling(*options)
    for word in words:
        assert word in str(error.value)


def test_possible_settings():
    """The edges of what makes sense are accepted."""
    for options in ((0, None, None), (0.0, 1, 1.0), (100.0, 10**9, 1e-9)):
        check_sampling(*options)


def test_the_settings_are_those_of_sample():
    """The grouped settings have the names and defaults of `sample`, and lack only what grows with the text."""
    settings = {name: each.default for name, each in inspect.signature(sample).parameters.items()}
    assert Sampling()._asdict() | {"logits": inspect.Parameter.empty, "position": 0, "seen": ()} == settings
