"""Skips the proof where PyTorch is missing, and prints what was observed and which faults were found."""

from importlib.util import find_spec

import pytest

from parity import tolerances

FAULTS = pytest.StashKey[list]()


class _WithoutTorch(pytest.Module):
    def collect(self):
        pytest.skip("PyTorch is not installed, so there is no twin to compare", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    """In place of a module that could not be imported without PyTorch, one that says so."""
    if find_spec("torch") is None:
        return _WithoutTorch.from_parent(parent, path=module_path)
    return None


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Models this small are slower on several threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def record_fault(request):
    """A function that takes a fault and where its proof saw it, None where it did not, for the table at the end."""
    return lambda fault, where: request.config.stash.setdefault(FAULTS, []).append((fault, where))


def pytest_terminal_summary(terminalreporter, config):
    """The figures that `parity/tolerances.py` and the README quote."""
    observed = tolerances.observed()
    if observed:
        terminalreporter.section("largest errors, relative to the reference's largest magnitude")
        for (quantity, dtype), error in observed.items():
            limit, recorded = tolerances.LIMITS[quantity, dtype]
            terminalreporter.line(
                f"{quantity:<24} {dtype}  observed {error:7.1e}   recorded {recorded:7.1e}   limit {limit:g}"
            )
    faults = config.stash.get(FAULTS, [])
    if faults:
        terminalreporter.section("injected faults, the proof that must see each, and where it did")
        for fault, where in faults:
            terminalreporter.line(f"{fault.title:<44} {fault.check:<13} {where or 'SURVIVED'}")
        killed = sum(where is not None for _, where in faults)
        terminalreporter.line(f"{killed} of {len(faults)} faults killed")
