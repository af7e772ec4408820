"""What holds for the whole suite: its threads, its signals, and the last line, which says what was not tried."""

import gc
import signal
import sys
from collections import Counter
from functools import cache

import pytest
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits

# How long an example takes depends on what else the machine does.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_configure():
    """Let Ctrl-C reach the processes that tests start.

    A shell has the commands that it starts in the background ignore SIGINT, and their processes inherit that.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """Spare the collector of garbage all that was imported: a fifth of the time went into looking through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread():
    """Models this small are slower on several threads, and much slower where the CPUs are busy."""
    with threadpool_limits(1):
        yield


def pytest_runtest_setup():
    """The same for PyTorch's threads, as soon as a test has imported it."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
        draw_nothing_on_meta(torch)


@cache
def draw_nothing_on_meta(torch):
    """Give weights on PyTorch's meta device, which have no values, no initial ones: in a small model it takes longer
    to pretend to draw them than a pass forward and back does.
    """
    for layer in (torch.nn.Linear, torch.nn.Embedding):

        def reset_parameters(self, drawn=layer.reset_parameters):
            if not self.weight.is_meta:
                drawn(self)

        layer.reset_parameters = reset_parameters


def pytest_unconfigure(config):
    """Print what was not run behind pytest's own closing line."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if sentence := not_run([report.longrepr[2] for report in skipped]):
        reporter.write_line(sentence)


def not_run(reasons: list[str]) -> str:
    """One sentence: how many tests were skipped, and what they need, the most frequent need first; "" for none.

    reasons: of each skipped test, as pytest reports it: "Skipped: needs WHAT (how to have it)"
    """
    if not reasons:
        return ""
    needs = []
    for reason, count in Counter(reason.removeprefix("Skipped: ") for reason in reasons).most_common():
        need = reason.removeprefix("needs ")
        needs.append(f"{count} {'needs' if count == 1 else 'need'} {need}")
    were = "test was" if len(reasons) == 1 else "tests were"
    return f"{len(reasons)} {were} not run: {'; '.join(needs)}."
