"""What the reliability proofs share: the figures printed at the end."""

import pytest


@pytest.fixture
def figure(record_property):
    """A function that takes a line for the end of the session: what was tried, and what came of it."""
    return lambda line: record_property("figure", line)


def pytest_terminal_summary(terminalreporter):
    """The figures of this session, from whichever process ran their tests."""
    reports = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    figures = [line for report in reports for name, line in report.user_properties if name == "figure"]
    if figures:
        terminalreporter.section("reliability")
        for line in figures:
            terminalreporter.line(line)
