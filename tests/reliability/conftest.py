"""What the reliability proofs share: the figures printed at the end."""

import pytest

FIGURES = pytest.StashKey[list]()


@pytest.fixture
def figure(request):
    """A function that takes a line for the end of the session: what was tried, and what came of it."""
    return lambda line: request.config.stash.setdefault(FIGURES, []).append(line)


def pytest_terminal_summary(terminalreporter, config):
    """The figures of this session."""
    figures = config.stash.get(FIGURES, [])
    if figures:
        terminalreporter.section("reliability")
        for line in figures:
            terminalreporter.line(line)
