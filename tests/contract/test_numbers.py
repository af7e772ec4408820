"""The one relative error and the one central difference."""

import math

import numpy as np
import pytest

from contract.numbers import central_difference, magnitude, relative_error, slope


def test_relative_error():
    """The largest difference over the largest magnitude of the reference, in float64, or over a given scale."""
    assert relative_error(np.array([1.0, -7.5]), np.array([1.5, -8.0])) == 0.5 / 8
    assert relative_error(np.array([1.5, -8.0]), np.array([1.0, -7.5])) == 0.5 / 7.5
    assert relative_error(np.array([1.0, -7.5]), np.array([1.5, -8.0]), 2.0) == 0.25
    assert relative_error(np.float32([2.0**127]), np.float32([-(2.0**127)])) == 2  # float32 would overflow
    assert relative_error(np.array(3), np.array(4)) == 0.25


@pytest.mark.parametrize(
    ("found", "reference", "error"),
    [
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 1e-300], [0.0, 0.0], math.inf),
        ([0.0, 0.0], [0.0, 2.0], 1.0),
        ([], [], 0.0),
        ([1.0], [1.0, 1.0], math.inf),
        ([[1.0, 1.0]], [1.0, 1.0], math.inf),
        ([math.nan, 1.0], [math.nan, 1.0], math.inf),
        ([1.0], [math.nan], math.inf),
        ([math.inf], [math.inf], math.inf),
        ([1.7e308], [-1.7e308], math.inf),
    ],
)
def test_relative_error_of_what_cannot_be_compared(found, reference, error):
    """Zeros have no magnitude; another shape, nan and infinity are never near anything, not even themselves."""
    assert relative_error(np.array(found), np.array(reference)) == error


def test_magnitude():
    """The largest absolute value, whatever its sign; an empty tensor has none."""
    assert magnitude(np.array([[1.0, -3.0]])) == 3
    assert magnitude(np.zeros((0, 2))) == 0


def test_central_difference():
    """Exact for a polynomial of degree four, unlike the two-point formula, and element by element."""
    assert central_difference(lambda x: (1 + x) ** 4, 0.5) == pytest.approx(4, rel=1e-14)
    found = central_difference(lambda x: np.array([3 * x, np.sin(x)]), 1e-3)
    np.testing.assert_allclose(found, [3, 1], rtol=1e-11)


def test_slope():
    """Along one element, a part and a direction; the tensor is restored to the bit, also after an error."""
    tensor = np.arange(6.0).reshape(2, 3).T / 7  # a view that is not contiguous
    before = tensor.copy()

    def loss():
        return float((tensor**2).sum())

    assert slope(loss, tensor, 1e-3, index=(2, 1)) == pytest.approx(2 * before[2, 1], rel=1e-11)
    assert slope(loss, tensor, 1e-3, index=(2,)) == pytest.approx(2 * before[2].sum(), rel=1e-11)
    direction = np.random.default_rng(1).standard_normal(tensor.shape)
    assert slope(loss, tensor, 1e-3, direction=direction) == pytest.approx(
        2 * (before * direction).sum(), rel=1e-9
    )
    with pytest.raises(ZeroDivisionError):
        slope(lambda: 1 / 0, tensor, 1e-3)
    np.testing.assert_array_equal(tensor, before)
