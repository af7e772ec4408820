"""How every command ends by Ctrl-C, a termination signal or a closed terminal (SIGHUP).

Python runs a signal's handler in the main thread, between two of its own instructions: not while a long matrix
product or a backward pass of PyTorch runs there. So a thread watches as well. Python's C code puts the number of
each signal into a pipe at once, and the thread reads it: it acknowledges the first signal on stderr, ends the process
where the main thread does not come out of native code, and ends it at the second Ctrl-C.
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
NATIVE_SECONDS = 1.0  # that native code may go on after the first signal
CLEANUP_SECONDS = 10.0  # allowed for cleanup after it
# timeout(1) sends SIGTERM twice at once, and a closing terminal SIGHUP twice: neither is a second request.
REPEAT_SECONDS = 1.0


class _Interruption:
    """What is known of the signals of this process.

    handled: the signals that end it; line: what acknowledges one while work may come to its own end, else ""
    came: whether there was one; reached: whether the main thread has met it; said: whether it was acknowledged
    """

    def __init__(self):
        self.handled: set[int] = set()
        self.line, self.said = "", False
        self.came, self.reached, self.saying = threading.Event(), threading.Event(), threading.Lock()


_state = _Interruption()


def handle_signals():
    """From now on end by SIGINT, SIGTERM and SIGHUP as this module says; a SIGHUP that is ignored (nohup) stays so."""
    reader, writer = os.pipe()
    if os.name != "nt":
        os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    with suppress(RuntimeError):  # no thread can start here: signals are answered between two instructions
        threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # A script's "&" has SIGINT ignored, yet whoever sends it wants the run to end.
        if number is not None and (name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN):
            _state.handled.add(number)
            signal.signal(number, _meet)


@contextmanager
def finishing(line: str) -> Iterator[Callable[[], bool]]:
    """Let the work inside stop by itself; gives the function that says whether to. line: acknowledges a signal"""
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
    """After a signal, end the process without waiting for threads that still compute; else return."""
    if _state.came.is_set():
        with _state.saying:
            os._exit(code)


def _meet(number, frame):
    """The handler in the main thread."""
    first = not _state.reached.is_set()
    _state.came.set()
    _state.reached.set()
    if first and not _state.line:
        raise KeyboardInterrupt


def _watch(reader: int):
    """Read the signals as they come."""
    first = None
    while byte := os.read(reader, 1):
        number, now = byte[0], time.monotonic()
        if number not in _state.handled:
            continue
        if first is None:
            first = now
            _state.came.set()
            threading.Thread(target=_follow, daemon=True).start()
        elif number == signal.SIGINT or (number == signal.SIGTERM and now - first > REPEAT_SECONDS):
            _leave()


def _follow():
    """Acknowledge the first signal, and end the process unless it may come to its own end."""
    line = _state.line
    # In a thread of its own, since a stderr without a reader may block.
    threading.Thread(target=acknowledge, args=(line or INTERRUPTED_LINE,), daemon=True).start()
    if not line:
        if _state.reached.wait(NATIVE_SECONDS):
            time.sleep(CLEANUP_SECONDS)
        _leave()


def _leave():
    with suppress(OSError):
        if os.isatty(2):
            os.write(2, b"\r\x1b[K")  # where a bar may stand
    os._exit(INTERRUPTED)
