"""Threads that share out pieces of work and have no say in the result.

How work is cut never depends on the number of threads, and what is added up is added in the order of the pieces. So
the same numbers come out, bit for bit, for every number of threads.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, copy_context
from functools import wraps
from itertools import pairwise
from threading import Event, Semaphore

import numpy as np

# Numbers of a piece: enough for threads not to wait for each other's calls, and few enough for the next operation to
# find some of them in a core's cache.
PIECE = 1 << 18
# Rows and columns of a tile of a matrix product, the best first.
TILES = ((1024, 1024), (512, 512), (256, 512), (128, 256))
ENOUGH_TILES = 4
# BLAS multiplies so few rows faster as columns. At GPT-2's shapes the products of a step take, in milliseconds on two
# cores: 40 instead of 65 for 4 rows, 52 for 74 at 16, 64 for 83 at 32, 81 for 95 at 48; at 64 small matrices lose.
# A single row takes 19 as it is.
FEW_ROWS = 48
_BLOCK = 1024  # columns of y computed at once, which the cache holds while they are turned


class Team:
    """Threads that `each` shares work out to, inside `with team.working():`.

    threads: their number, that of the caller included
    alone: makes the context in which BLAS computes with the calling thread alone
    Raises RuntimeError if the system does not start so many.
    """

    def __init__(self, threads: int = 1, alone: Callable[[], AbstractContextManager] = nullcontext):
        self._alone = alone
        self._pool = ThreadPoolExecutor(max(1, threads - 1))
        self._free = Semaphore(threads - 1)
        begin = Event()
        try:
            for _ in range(threads - 1):  # started now, while none is free to take another's work
                self._pool.submit(begin.wait)
        except RuntimeError:
            self._pool.shutdown(wait=False)
            raise
        finally:
            begin.set()

    @contextmanager
    def working(self) -> Iterator[None]:
        """What runs inside shares its work out to this team."""
        token = _TEAM.set(self)
        try:
            with self._alone():
                yield
        finally:
            _TEAM.reset(token)

    def call(self, work: Callable[[], None], most: int):
        """Call `work` here and on as many threads as are free, `most` at most; it returns when all have.

        Raises what the first call to fail raised.
        """
        helpers = []
        while len(helpers) < most and self._free.acquire(blocking=False):
            helpers.append(self._pool.submit(copy_context().run, work))
        try:
            work()
        finally:
            for helper in helpers:
                helper.cancel() or helper.exception()  # has not begun, or ends
                self._free.release()
        for helper in helpers:
            if not helper.cancelled():
                helper.result()


_TEAM: ContextVar[Team | None] = ContextVar("team", default=None)
# Whether this is one of several pieces of work.
_SHARING: ContextVar[bool] = ContextVar("sharing", default=False)


def each(function: Callable, items: Iterable) -> list:
    """Call `function` with each item, on all threads of the team that are free.

    returns: the results, in order. Raises what the first call to fail raised, once no other is running.
    """
    items = list(items)
    team, results, places = _TEAM.get(), [None] * len(items), iter(range(len(items)))

    def work():
        token = _SHARING.set(True)
        try:
            for place in places:  # whoever asks gets the next
                results[place] = function(items[place])
        except BaseException:
            list(places)  # no other begins
            raise
        finally:
            _SHARING.reset(token)

    if team is None or len(items) < 2:
        return [function(item) for item in items]
    team.call(work, len(items) - 1)
    return results


def cut(length: int, size: int) -> list[slice]:
    """Cut `length` into the fewest slices of at most `size`, of nearly equal lengths."""
    count = -(-length // size)
    edges = [length * place // count for place in range(count + 1)]
    return [slice(*edge) for edge in pairwise(edges)]


def pieces(start: int, stop: int) -> list[slice]:
    """Slices of flat arrays, of PIECE numbers."""
    return [slice(at, min(at + PIECE, stop)) for at in range(start, stop, PIECE)]


def in_pieces(cache_type: Callable) -> Callable:
    """Make a forward function of one array, element by element, compute a large one piece by piece.

    cache_type: of the cache that it returns beside its result, whose fields are arrays like it
    """

    def decorate(forward: Callable) -> Callable:
        @wraps(forward)
        def computed(x):
            if x.size <= PIECE:
                return forward(x)
            results = [np.empty(x.shape, x.dtype) for _ in ("y", *cache_type._fields)]
            flat = [array.reshape(-1) for array in (x, *results)]

            def compute(piece):
                y, cache = forward(flat[0][piece])
                for whole, part in zip(flat[1:], (y, *cache), strict=True):
                    whole[piece] = part

            each(compute, pieces(0, x.size))
            return results[0], cache_type(*results[1:])

        return computed

    return decorate


def product(a, b, bias=None, out=None):
    """The matrix product a b, in tiles where a team works on it.

    a: float (N, M); b: float (M, O); bias: what to add to each row, float (O,); out: where to write
    returns: float (N, O)
    """
    if out is None and 1 < len(a) <= FEW_ROWS:
        y = _few_rows(a, b)
    elif _TEAM.get() is None or len(tiles := _tiles(len(a), b.shape[1])) < 2:
        y = np.matmul(a, b, out=out)
    else:
        return _in_tiles(a, b, bias, out, tiles)
    return y if bias is None else np.add(y, bias, out=y)


def _in_tiles(a, b, bias, out, tiles):
    out = np.empty((len(a), b.shape[1]), np.result_type(a, b)) if out is None else out

    def multiply(tile):
        rows, columns = tile
        y = np.matmul(a[rows], b[:, columns], out=out[rows, columns])
        if bias is not None:
            y += bias[columns]

    each(multiply, tiles)
    return out


def _few_rows(a, b):
    """a b as (bᵀ aᵀ)ᵀ, block by block."""
    y = np.empty((len(a), b.shape[1]), np.result_type(a, b))
    for block in cut(b.shape[1], _BLOCK):
        y[:, block] = (b.T[block] @ a.T).T  # (block, M) @ (M, N) -> (block, N)
    return y


def _tiles(rows: int, columns: int) -> list[tuple[slice, slice]]:
    """Tiles of a matrix; smaller ones where there would be too few for several threads, which have nothing else to do.

    A part of a batch is not alone, and the larger the tile, the nearer BLAS comes to its full rate.
    """
    for height, width in TILES:
        tiles = [(row, column) for row in cut(rows, height) for column in cut(columns, width)]
        if _SHARING.get() or len(tiles) >= ENOUGH_TILES:
            break
    return tiles
