"""How every command ends on Ctrl-C, a termination signal or a closed terminal (SIGHUP).

Python runs a signal handler between two bytecode instructions of the main thread, so not during a long matrix product
or a backward pass of PyTorch. Therefore a thread watches as well: Python's C code writes the number of each signal to
a pipe at once, and the thread reads it. It acknowledges the first signal on stderr, and ends the process at the second
Ctrl-C or if the main thread stays in native code.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

INTERRUPTED = 130  # the exit code, of SIGTERM and SIGHUP too
INTERRUPTED_LINE = "error: interrupted"
NATIVE_SECONDS = 1.0  # native code may run this long after the first signal
CLEANUP_SECONDS = 10.0  # allowed for cleanup after it
# timeout(1) sends SIGTERM twice at once, and a closing terminal sends SIGHUP twice: from its shell, and from the
# system when the shell has exited. torchrun passes a Ctrl-C on, which the terminal has sent to all. None of these is a
# second request by a person.
REPEAT_SECONDS = 1.0
ENDING = (signal.SIGINT, signal.SIGTERM)


class _Interruption:
    """The state of this process's signals.

    handled: the signals that end it; line: acknowledges one while work may finish by itself, else ""
    came: one has arrived; reached: the main thread has seen it; said: it was acknowledged
    """

    def __init__(self):
        self.handled: set[int] = set()
        self.line, self.said = "", False
        self.came, self.reached, self.saying = threading.Event(), threading.Event(), threading.Lock()


_state = _Interruption()


def handle_signals():
    """End on SIGINT, SIGTERM and SIGHUP from now on; an ignored SIGHUP (nohup) stays ignored."""
    reader, writer = os.pipe()
    if os.name != "nt":
        os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    with suppress(RuntimeError):  # no thread can start: the main thread alone answers signals
        threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # A script's "&" ignores SIGINT too, but whoever sends one wants the run to end.
        if number is not None and (name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN):
            _state.handled.add(number)
            signal.signal(number, _meet)


@contextmanager
def finishing(line: str) -> Iterator[Callable[[], bool]]:
    """Let the work inside finish by itself; yields a function that says whether a signal has arrived."""
    _state.line = line
    try:
        yield _state.came.is_set
    finally:
        if _state.came.is_set():
            acknowledge(line)
        _state.line = ""


def acknowledge(line: str = INTERRUPTED_LINE):
    """Acknowledge a signal on stderr, once; wait if another thread is doing so."""
    with _state.saying:
        if not _state.said:
            _state.said = bool(_state.handled)
            print(line, file=sys.stderr, flush=True)


def leave_if_interrupted(code: int):
    """End the process after a signal without waiting for threads that still compute; return if none arrived."""
    if _state.came.is_set():
        with _state.saying:
            os._exit(code)


def ignore_signals():
    """Leave signals from now on to the process that leads this one."""
    for number in _state.handled:
        signal.signal(number, signal.SIG_IGN)
    _state.handled.clear()


def _meet(number, frame):
    """The handler in the main thread."""
    first = not _state.reached.is_set()
    _state.came.set()
    _state.reached.set()
    if first and not _state.line:
        raise KeyboardInterrupt


def _watch(reader: int):
    """Read the signals as they arrive."""
    first, launched = None, "TORCHELASTIC_RUN_ID" in os.environ
    while byte := os.read(reader, 1):
        number, now = byte[0], time.monotonic()
        if number not in _state.handled:
            continue
        if first is None:
            first = now
            _state.came.set()
            threading.Thread(target=_follow, daemon=True).start()
        elif (number == signal.SIGINT and not launched) or (
            number in ENDING and now - first > REPEAT_SECONDS
        ):
            _leave()


def _follow():
    """Acknowledge the first signal, and end the process unless it may finish by itself."""
    line = _state.line
    # In its own thread, since a stderr that nobody reads may block.
    threading.Thread(target=acknowledge, args=(line or INTERRUPTED_LINE,), daemon=True).start()
    if not line:
        if _state.reached.wait(NATIVE_SECONDS):
            time.sleep(CLEANUP_SECONDS)
        _leave()


def _leave():
    with suppress(OSError):
        if os.isatty(2):
            os.write(2, b"\r\x1b[K")  # erase a progress bar
    os._exit(INTERRUPTED)
