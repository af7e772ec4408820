"""What the reliability proofs share: a small run on a real text, and the figures printed at the end."""

import pytest

from data.grammar import corpus

FIGURES = pytest.StashKey[list]()


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A text of a thousand sentences."""
    path = tmp_path_factory.mktemp("text") / "sentences.txt"
    path.write_text("".join(f"{sentence}\n" for sentence in corpus()[:1000]), newline="")
    return path


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
