"""Memory of large arrays, kept for the next array of its size.

Fresh pages cost more than the arithmetic of a layer: the system zeroes them, one fault at a time. A block whose last
view is gone waits here, up to ``get_cache_limit()`` bytes of them.
"""

import ctypes
import math
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from fastbn.errors import ArgumentError

ALIGNMENT = 64  # bytes: so that whole vectors can be streamed
BYTE = np.dtype(np.uint8)
SMALLEST = 1 << 17  # bytes; below, the C library keeps its pages by itself
ROUNDING = 1 << 16
PAGE = 1 << 12
APART = 1 << 14  # bytes between the workspaces of two threads: what one asks for ahead is not what the other writes


def _default_limit() -> int:
    """An eighth of the machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8
    except (AttributeError, OSError, ValueError):
        return 1 << 30


class _Idle:
    """Blocks that nobody uses, the longest unused first. No method waits for the lock: a block may be freed anywhere,
    in a collection that began while this thread held it."""

    def __init__(self, limit: int) -> None:
        self.lock = threading.Lock()
        self.limit = limit
        self.held = 0
        self.blocks: OrderedDict[int, list[ctypes.Array]] = OrderedDict()  # by size

    def take(self, size: int) -> ctypes.Array | None:
        if not self.lock.acquire(False):
            return None
        try:
            waiting = self.blocks.get(size)
            if not waiting:
                return None
            self.held -= size
            return waiting.pop()
        finally:
            self.lock.release()

    def give(self, block: ctypes.Array) -> None:
        if not self.lock.acquire(False):
            return
        try:
            size = len(block)
            waiting = self.blocks.get(size)
            if waiting is None:
                self.blocks[size] = [block]
            else:
                waiting.append(block)
                self.blocks.move_to_end(size)
            self.held += size
            if self.held > self.limit:
                self.trim()
        finally:
            self.lock.release()

    def trim(self) -> None:
        """Free what is above the limit; under the lock."""
        while self.held > self.limit:
            size, waiting = next(iter(self.blocks.items()))
            if waiting:
                waiting.pop(0)
                self.held -= size
            if not waiting:
                del self.blocks[size]


_idle = _Idle(_default_limit())


class _Block(np.ndarray):
    """The owner of a block, and the base of every view of it: NumPy looks for owners behind arrays of its own type."""

    home = _idle

    def __del__(self, memory: type[ctypes.Array] = ctypes.Array) -> None:
        if isinstance(self.base, memory):  # not a view of a block, of its own type; modules may be gone by now
            self.home.give(self.base)


class _Source(NamedTuple):
    """Where arrays of ``smallest`` bytes or more come from, in blocks of multiples of ``rounding``."""

    idle: _Idle
    smallest: int
    rounding: int


_common = _Source(_idle, SMALLEST, ROUNDING)


class _Current(threading.local):
    """Of this Python thread."""

    source = _common


_current = _Current()


def empty(shape: tuple[int, ...], dtype: np.dtype, lasting: bool = False) -> np.ndarray:
    """A C-contiguous array, uninitialised; a large one lies on a multiple of 64 bytes. lasting: in no ``Arena``."""
    idle, smallest, rounding = _common if lasting else _current.source
    size = dtype.itemsize * math.prod(shape)
    if size < smallest:
        return np.empty(shape, dtype)
    size = -(-size // rounding) * rounding + ALIGNMENT
    memory: Any = idle.take(size)
    if memory is None:
        memory = (ctypes.c_char * size).from_buffer(np.empty(size, BYTE).data)
    block = _Block((size,), BYTE, memory)
    if idle is not _idle:
        block.home = idle
    return np.ndarray(shape, dtype, block, -ctypes.addressof(memory) % ALIGNMENT)


def empty_on_lines(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As ``empty``; a small one lies on a multiple of 64 bytes, too."""
    size = dtype.itemsize * math.prod(shape)
    if size >= _current.source.smallest:
        return empty(shape, dtype)
    memory = np.empty(size + ALIGNMENT, BYTE)
    return np.ndarray(shape, dtype, memory, -memory.__array_interface__["data"][0] % ALIGNMENT)


class _IdleOfAnySize(_Idle):
    """Blocks that smaller arrays may take, too, but none of less than half their size."""

    def take(self, size: int) -> ctypes.Array | None:
        fitting = [waiting for waiting, blocks in self.blocks.items() if size <= waiting <= 2 * size and blocks]
        return super().take(min(fitting)) if fitting else None


class Arena:
    """Blocks of their own for what is computed in ``used``: none leaves it, and what is freed is used there again."""

    def __init__(self) -> None:
        self.source = _Source(_IdleOfAnySize(sys.maxsize), PAGE, PAGE)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Of this Python thread, arrays come from here."""
        _current.source = self.source
        try:
            yield
        finally:
            _current.source = _common

    def view(self, array: np.ndarray) -> np.ndarray:
        """``array`` without its block, if that is from here: its memory may be used again meanwhile."""
        block = owner_of(array)
        if not isinstance(block, _Block) or block.home is not self.source.idle:
            return array
        memory: Any = block.base
        offset = array.__array_interface__["data"][0] - ctypes.addressof(memory)
        return np.ndarray(array.shape, array.dtype, memory, offset, array.strides)


def owner_of(array: np.ndarray) -> np.ndarray:
    """The array that owns the memory of ``array``: itself, or a block."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def offset_in(owner: np.ndarray, array: np.ndarray) -> int:
    """Bytes from where ``empty`` lets arrays begin in ``owner``, an ``owner_of`` something, to ``array``."""
    begin = owner.__array_interface__["data"][0]
    if isinstance(owner, _Block):
        begin += -begin % ALIGNMENT
    return int(array.__array_interface__["data"][0] - begin)


class _Scratch(threading.local):
    """A block of each Python thread, and views of its beginning."""

    block = np.empty(0, BYTE)

    def __init__(self) -> None:
        self.views: dict[tuple[tuple[int, ...], np.dtype], np.ndarray] = {}


_scratch = _Scratch()


def scratch(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """A workspace for one launch: the next one of this Python thread lies in the same memory, warm in the caches.

    Rows, one of each thread of a kernel, are longer than ``shape`` has them, by APART bytes at least.
    """
    view = _scratch.views.get((shape, dtype))
    if view is None:
        rows, elements = shape
        row_bytes = -(-(elements * dtype.itemsize + APART) // ALIGNMENT) * ALIGNMENT
        if _scratch.block.size < rows * row_bytes:
            _scratch.views.clear()
            _scratch.block = aligned(np.empty(rows * row_bytes, BYTE))
        view = np.ndarray((rows, row_bytes // dtype.itemsize), dtype, _scratch.block)
        _scratch.views[shape, dtype] = view
    return view


def aligned(array: np.ndarray) -> np.ndarray:
    """A C-contiguous copy on a multiple of 64 bytes, for vectors that are read time and again."""
    memory = np.empty(array.nbytes + ALIGNMENT, BYTE)
    copy: np.ndarray = np.ndarray(array.shape, array.dtype, memory, -memory.ctypes.data % ALIGNMENT)
    copy[...] = array
    return copy


def get_cache_limit() -> int:
    """Bytes of unused memory that the library keeps for its next outputs; at first an eighth of the machine's."""
    return _idle.limit


def set_cache_limit(limit: int) -> None:
    """Keep at most ``limit`` bytes of unused memory from now on; 0 frees it all. Raises ArgumentError."""
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise ArgumentError(f"set_cache_limit: limit must be a number of bytes, 0 or more, got {limit!r}")
    with _idle.lock:
        _idle.limit = limit
        _idle.trim()


def _after_fork() -> None:
    _idle.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
