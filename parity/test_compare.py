"""The comparison itself: whatever could fool it counts as a divergence, and the message says what to look at."""

import numpy as np
import pytest

from parity import tolerances
from parity.compare import Comparison, ParityError, compare


def tensors(**changes) -> dict:
    """Two tensors, with others in place of them; None leaves one out."""
    record = {"a": np.array([[1.0, -2.0], [0.5, 4.0]]), "b": np.array([3.0])} | changes
    return {name: value for name, value in record.items() if value is not None}


def comparison(reference, twin, dtype="float64") -> Comparison:
    return Comparison("a test", dtype, 7, compare("activation", reference, twin, dtype))


def test_equal_records_pass():
    """Equal numbers in memory of their own hold, with error 0."""
    found = comparison(tensors(), tensors())
    found.require()
    assert [(row.name, row.shape, row.error) for row in found.rows] == [("a", (2, 2), 0), ("b", (1,), 0)]


@pytest.mark.parametrize(
    ("reference", "twin", "problem"),
    [
        (tensors(), tensors(a=np.array([[1.0, -2.0], [np.nan, 4.0]])), "nan in the twin at [1, 0]"),
        (tensors(b=np.array([np.nan])), tensors(b=np.array([np.nan])), "nan in the reference at [0]"),
        (tensors(b=np.array([np.inf])), tensors(b=np.array([np.inf])), "inf in the reference at [0]"),
        (tensors(), tensors(b=None), "missing in the twin"),
        (tensors(), tensors(c=np.array([1.0])), "missing in the reference"),
        (tensors(), tensors(b=np.array(3.0)), "shape (1,) in the reference, () in the twin"),
        (tensors(a=np.ones((2, 2))), tensors(a=np.ones((2, 1))), "shape (2, 2) in the reference, (2, 1) in"),
        (tensors(), tensors(b=np.array([3.0], "f4")), "float64 in the reference, float32 in the twin"),
        (tensors(b=np.zeros(0)), tensors(b=np.zeros(0)), "empty"),
        (tensors(a=np.zeros((2, 2)), b=np.zeros(1)), tensors(a=np.zeros((2, 2)), b=np.array([1e-300])), "b[0]"),
    ],
)  # fmt: skip
def test_what_could_fool_it(reference, twin, problem):
    """Values that are not finite, names, shapes, precisions, nothing at all: each is a divergence."""
    with pytest.raises(ParityError) as error:
        comparison(reference, twin).require()
    assert problem in str(error.value)


def test_a_tensor_is_not_compared_with_itself():
    """A twin that hands back the reference's own memory has computed nothing."""
    record = tensors()
    with pytest.raises(ParityError, match="one piece of memory"):
        comparison(record, record).require()
    with pytest.raises(ParityError, match="one piece of memory"):
        comparison(record, {name: value[:] for name, value in record.items()}).require()


def test_comparing_nothing_is_an_error():
    """Two empty records are not equal twins."""
    with pytest.raises(ParityError, match="nothing was compared"):
        comparison({}, {}).require()


def test_the_wrong_precision_in_both():
    """Both in float32 where float64 was asked for would be held to float64's limits by luck alone."""
    single = {"a": np.ones(2, "f4")}
    with pytest.raises(ParityError, match="float32 in the reference, float32 in the twin, wanted float64"):
        comparison(single, {"a": np.ones(2, "f4")}).require()


@pytest.mark.parametrize("sign", [1, -1])
def test_errors_are_relative_to_the_largest(sign):
    """The limit is a share of the tensor's largest magnitude, in either direction, whatever its size."""
    limit = tolerances.limit("activation", "float64")
    for factor, holds in ((0.5, True), (2.0, False)):
        for scale in (1e-30, 1.0, 1e30):
            twin = tensors(a=scale * (tensors()["a"] + [[0, 0], [sign * 4 * factor * limit, 0]]))
            row = comparison(tensors(a=scale * tensors()["a"]), twin).rows[0]
            assert row.error == pytest.approx(factor * limit, rel=1e-2)
            assert row.holds == holds


def test_zeros_are_measured_by_what_flows_in():
    """A tensor that is 0 everywhere is held to the size of the tensor before it, of which it is a difference."""
    limit = tolerances.limit("activation", "float64")
    for value, holds in ((2 * limit, True), (8 * limit, False), (-8 * limit, False)):
        twin = tensors(b=np.array([value]))
        assert comparison(tensors(b=np.zeros(1)), twin).rows[1].holds == holds


def test_the_message():
    """It names title, precision, seed, tensor, index, both values, error, limit, and the first in dataflow order."""
    twin = tensors(a=np.array([[1.0, -2.0], [0.5, 4.004]]), b=np.array([6.0]))
    with pytest.raises(ParityError) as error:
        comparison(tensors(), twin).require()
    limit = tolerances.limit("activation", "float64")
    assert str(error.value).splitlines() == [
        "a test, float64, seed 7: 2 of 2 tensors diverge",
        "  first in dataflow order: activation a[1, 1]: reference 4.0, twin 4.004, "
        f"error 0.001 of the reference's largest magnitude, limit {limit:g}",
        "  worst: activation b[0]: reference 3.0, twin 6.0, "
        f"error 1 of the reference's largest magnitude, limit {limit:g}",
    ]
    assert error.value.where == "activation a"


def test_limits():
    """No limit is above what the project promises, and none is below what was observed."""
    for (quantity, dtype), limit in tolerances.LIMITS.items():
        assert limit.observed < limit.value, quantity
        if quantity == "family gradient" and dtype == "float32":
            assert limit.value <= 3e-5  # their norms sum in another order
        elif any(word in quantity for word in ("activation", "gradient", "output", "transformers")):
            assert limit.value <= {"float64": 1e-10, "float32": 1e-5}[dtype], quantity
    assert tolerances.limit("optimizer", "float64") <= 1e-12
    assert tolerances.limit("trajectory", "float64") <= 1e-9
