"""Skips the proof where PyTorch is missing, and prints what was observed and which faults were found."""

from importlib.util import find_spec

import pytest

from parity import tolerances


class _WithoutTorch(pytest.Module):
    def collect(self):
        pytest.skip("needs PyTorch (pip install -e '.[dev]')", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    """In place of a module that could not be imported without PyTorch, one that says so."""
    if find_spec("torch") is None:
        return _WithoutTorch.from_parent(parent, path=module_path)
    return None


@pytest.fixture
def record_fault(record_property):
    """A function that takes a fault's title, its proof and where that saw it, None where it did not, for the table at
    the end.
    """
    return lambda title, check, where: record_property("fault", (title, check, where))


def pytest_sessionfinish(session):
    """A worker of pytest-xdist sends the errors that it observed."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["observed"] = [
            [*key, error] for key, error in tolerances.observed().items()
        ]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """The main process receives them."""
    for quantity, dtype, error in getattr(node, "workeroutput", {}).get("observed", []):
        tolerances.observe(quantity, dtype, error)


def pytest_terminal_summary(terminalreporter):
    """The figures that `parity/tolerances.py` and the README quote."""
    observed = tolerances.observed()
    if observed:
        terminalreporter.section("largest errors, relative to the reference's largest magnitude")
        for (quantity, dtype), error in observed.items():
            limit, recorded = tolerances.LIMITS[quantity, dtype]
            terminalreporter.line(
                f"{quantity:<24} {dtype}  observed {error:7.1e}   recorded {recorded:7.1e}   limit {limit:g}"
            )
    reports = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    faults = [fault for report in reports for name, fault in report.user_properties if name == "fault"]
    if faults:
        terminalreporter.section("injected faults, the proof that must see each, and where it did")
        for title, check, where in faults:
            terminalreporter.line(f"{title:<44} {check:<13} {where or 'SURVIVED'}")
        killed = sum(where is not None for _, _, where in faults)
        terminalreporter.line(f"{killed} of {len(faults)} faults killed")
