"""Sensitivity: each classic mistake, made in a copy of a twin, turns its proof red."""

import sys

import pytest

import numpy_llm
from parity.checks import CHECKS
from parity.compare import ParityError
from parity.fault_table import FAULTS, OPERATION_FAULTS, PLUMBING_FAULTS, STEP_FAULTS
from parity.faults import Fault, injected


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.title)
def test_fault_is_found(fault, record_fault):
    """The proof named beside the fault raises ParityError, and no other error."""
    with injected(fault) as twins:
        try:
            CHECKS[fault.check](twins)
        except ParityError as error:
            record_fault(fault, error.where)
        else:
            record_fault(fault, None)
            pytest.fail(f"{fault.title} survives the check of {fault.check}: the suite has a hole")


@pytest.mark.parametrize("check", CHECKS)
def test_a_copy_without_fault_passes(check):
    """It is the fault that is found, and not the copying."""
    with injected(None) as twins:
        assert twins.reference is not numpy_llm
        CHECKS[check](twins)


def test_the_twins_are_left_alone():
    """The copy has a name of its own, is forgotten afterwards, and changes nothing in the package."""
    before, real = set(sys.modules), numpy_llm.layers.linear_backward
    with injected(PLUMBING_FAULTS[0]) as twins:
        assert twins.reference.GPT is not numpy_llm.GPT
        assert sys.modules["numpy_llm"] is numpy_llm
    assert set(sys.modules) == before
    assert numpy_llm.layers.linear_backward is real


@pytest.mark.parametrize(
    "fault", [OPERATION_FAULTS[0], OPERATION_FAULTS[-1], STEP_FAULTS[0], STEP_FAULTS[-1]]
)
def test_a_mistake_is_undone(fault):
    """Once it was made, every function of the package is the right one again."""
    before = _functions()
    with injected(fault):
        assert _functions() != before
    assert _functions() == before


def _functions() -> dict:
    modules = [name for name in sys.modules if name.partition(".")[0] == "numpy_llm"]
    return {name: {k: v for k, v in vars(sys.modules[name]).items() if callable(v)} for name in modules}


def test_there_are_many_faults():
    """At least 118, no two of one title."""
    assert len({fault.title for fault in FAULTS}) == len(FAULTS) >= 118


@pytest.mark.parametrize(
    ("place", "old"),
    [
        ("numpy_llm.layers.linear_backward", "no such text"),
        ("numpy_llm.layers.linear_backward", "dx"),
        ("numpy_llm.layers.no_such_function", "dx"),
        ("numpy_llm.layers.embedding_backward", "dweight[tokens] = dy"),  # stands in the docstring alone
    ],
)
def test_a_fault_that_no_longer_fits_is_an_error(place, old):
    """Code that was rewritten cannot leave a fault behind that changes nothing."""
    with pytest.raises(LookupError), injected(Fault("gone", place, old, "")):
        pytest.fail("the copy was made")
