"""Work shared out to threads: every piece once, the results in order, and the same bits for any number of them."""

import threading
import time

import numpy as np
import pytest

from numpy_llm.gradients import GradientSum
from numpy_llm.layers import EmbeddingGradient, LinearGradient
from numpy_llm.threads import Team, cut, each, pieces, product

THREADS = pytest.mark.parametrize("threads", [1, 2, 3])


@THREADS
def test_each(threads):
    """The results come in the order of the items, whoever computed them and however long each took."""

    def square(number):
        time.sleep(0.001 * (number % 3))
        return number * number, threading.get_ident()

    with Team(threads).working():
        results = each(square, range(40))
    assert [value for value, _ in results] == [number * number for number in range(40)]
    assert 1 <= len({thread for _, thread in results}) <= threads


def test_all_threads_work():
    """Two pieces that wait for each other both run, and so do those inside a piece."""
    both = threading.Barrier(2, timeout=10)
    with Team(2).working():
        each(lambda _: both.wait(), range(2))
    with Team(3).working():
        assert each(lambda _: each(lambda _: 1, range(3)), range(2)) == [[1, 1, 1]] * 2


@THREADS
def test_a_failure_comes_out(threads):
    """The error of a piece is raised, no piece begins after it, and the team can work on."""
    begun = []

    def fail(number):
        begun.append(number)
        if number == 3:
            raise MemoryError("too large")
        time.sleep(0.001)

    team = Team(threads)
    with team.working():
        with pytest.raises(MemoryError, match="too large"):
            each(fail, range(1000))
        assert len(begun) < 100
        assert each(abs, [-1, -2]) == [1, 2]


def test_outside_a_team_all_is_done_here():
    """Without a team the caller does everything, also where one has worked before."""
    with Team(2).working():
        pass
    assert set(each(lambda _: threading.get_ident(), range(9))) == {threading.get_ident()}


@pytest.mark.parametrize(("length", "size"), [(1, 5), (5, 5), (6, 5), (1000, 256), (7, 1)])
def test_cut(length, size):
    """The fewest slices that are small enough, of nearly equal lengths, one behind the other."""
    found = cut(length, size)
    lengths = [each.stop - each.start for each in found]
    assert [each.start for each in found] == [0, *(each.stop for each in found[:-1])]
    assert sum(lengths) == length
    assert len(found) == -(-length // size)
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert sum(each.stop - each.start for each in pieces(3, 3 + length)) == length


@pytest.mark.parametrize("shape", [(1, 7, 5), (3, 7, 5000), (300, 20, 600), (1100, 9, 2100)])
def test_product_has_the_same_bits_for_all_threads(shape):
    """A matrix product in tiles is the product, and each tile is the same whoever computes it."""
    N, M, O = shape  # noqa: E741
    random = np.random.default_rng(0)
    a, b = random.normal(size=(N, M)).astype("f"), random.normal(size=(O, M)).astype("f").T
    found = []
    for threads in (1, 2, 3):
        with Team(threads).working():
            found.append(product(a, b))
            found.append(each(lambda _: product(a, b), range(2))[1])
    assert all(np.array_equal(each, found[place % 2]) for place, each in enumerate(found))
    np.testing.assert_allclose(found[0], a.astype("d") @ b.astype("d"), rtol=1e-4, atol=1e-4)


def test_gradients_of_parts_are_added_up():
    """Products, rows and arrays of all parts, in their order; what was there is overwritten only if it is empty."""
    random = np.random.default_rng(1)
    dy, x, tokens = (
        random.normal(size=(2, 6, 600)),
        random.normal(size=(2, 6, 5)),
        random.integers(0, 4, (2, 6)),
    )
    parts = [
        {"a": LinearGradient(dy[at], x[at]), "b": EmbeddingGradient(x[at], tokens[at]), "c": x[at], "d": None}
        for at in (0, 1)
    ]
    rows = np.stack([sum(x[tokens == token], np.zeros(5)) for token in range(4)])
    expected = {"a": dy[0].T @ x[0] + dy[1].T @ x[1], "b": rows, "c": x[0] + x[1], "d": np.ones(3)}
    for empty in (True, False):
        total = {name: np.full(value.shape, 1.0) for name, value in expected.items()}
        for work in GradientSum(total, empty=empty).work(parts):
            work()
        for name, value in expected.items():
            added = 0 if empty or name == "d" else 1
            np.testing.assert_allclose(total[name], value + added, rtol=1e-12, atol=1e-12, err_msg=name)
