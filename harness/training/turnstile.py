"""Threads that add to one sum in a fixed order."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import BrokenBarrierError, Condition


class Turnstile:
    """Lets threads through one at a time in the order of their places, again and again: 0, 1, 2, 0, 1, 2, ...

    So they can add to one sum in the same order in every run.

    threads: their number; each must pass equally often
    """

    def __init__(self, threads: int):
        self._threads, self._next, self._broken = threads, 0, False
        self._changed = Condition()

    @contextmanager
    def turn(self, place: int) -> Iterator[None]:
        """Wait for the turn of the thread at `place`, and pass it on after the block.

        Raises BrokenBarrierError if another thread has failed, whose turn would never come.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._broken or self._next == place)
            if self._broken:
                raise BrokenBarrierError
        yield
        with self._changed:
            self._next = (self._next + 1) % self._threads
            self._changed.notify_all()

    @contextmanager
    def aborted_by_failure(self) -> Iterator[None]:
        """If the block fails, release all threads that wait for a turn, now and later."""
        try:
            yield
        except BaseException:
            with self._changed:
                self._broken = True
                self._changed.notify_all()
            raise
