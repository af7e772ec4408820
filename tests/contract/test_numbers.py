"""The one relative error and the one central difference."""

import math

import numpy as np
import pytest

from contract.numbers import (
    SIXTEEN_BITS,
    central_difference,
    magnitude,
    relative_error,
    rounded,
    slope,
    spacing,
)


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


@pytest.mark.parametrize(
    ("precision", "number", "nearest"),
    [
        ("bfloat16", 1 + 2**-8, 1.0),  # a tie goes to the even one
        ("bfloat16", 1 + 3 * 2**-8, 1 + 2**-6),
        ("bfloat16", 3.4e38, math.inf),
        ("bfloat16", 2**-133, 2**-133),
        ("bfloat16", 2**-135, 0.0),
        ("float16", 1 + 2**-11, 1.0),
        ("float16", 65519.0, 65504.0),
        ("float16", -65520.0, -math.inf),
        ("float16", 3 * 2**-25, 2**-23),
    ],
)
def test_rounded_to_16_bits(precision, number, nearest):
    """As IEEE 754 rounds, in either type of the tensor, 0-dimensional too."""
    for dtype in (np.float32, np.float64):
        found = rounded(np.array(number, dtype), precision)
        assert (found.dtype, found.shape, float(found)) == (dtype, (), nearest)


def test_rounded_is_what_numpy_rounds():
    """For float16, which NumPy has, at every size that it holds."""
    random = np.random.default_rng(0)
    tensor = (random.normal(size=20_000) * 10.0 ** random.uniform(-9, 5, 20_000)).astype(np.float32)
    with np.errstate(over="ignore"):
        assert np.array_equal(rounded(tensor, "float16"), tensor.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("precision", SIXTEEN_BITS)
def test_rounded_by_chance(precision):
    """To one of the two neighbours, so that the mean is the number; what 16 bits hold stays."""
    step = float(spacing(np.array(1.3), precision))
    found = rounded(np.full(40_000, 1 + 0.3 * step), precision, np.random.default_rng(1))
    assert {*found.tolist()} == {1.0, 1 + step}
    assert abs((found.mean() - 1) / step - 0.3) < 0.01
    assert np.array_equal(rounded(found, precision, np.random.default_rng(2)), found)
