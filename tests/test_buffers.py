"""Large arrays in kept memory, and the caches that decide how they are written."""

import gc
import weakref

import numpy as np
import pytest

import fastbn
from fastbn import _cache, _memory
from fastbn.errors import ArgumentError

FLOAT32 = np.dtype(np.float32)
LARGE = (3, 1 << 20)


@pytest.fixture(autouse=True)
def _nothing_kept():
    limit = fastbn.get_cache_limit()
    fastbn.set_cache_limit(0)
    fastbn.set_cache_limit(limit)
    yield
    fastbn.set_cache_limit(limit)


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_comes_back_when_the_last_view_is_gone():
    array = _memory.empty(LARGE, FLOAT32)
    array[...] = 1
    first, view = address(array), array[1:, ::2].T
    del array
    other = _memory.empty(LARGE, FLOAT32)
    assert address(other) != first
    assert (view == 1).all()
    del view
    gc.collect()
    assert address(_memory.empty(LARGE, FLOAT32)) == first


@pytest.mark.parametrize("shape", [(0,), (5, 0), (3, 4), LARGE, (1 << 18,), ((1 << 18) + 1,)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32])
def test_arrays_are_as_numpy_makes_them(shape, dtype):
    array = _memory.empty(shape, np.dtype(dtype))
    assert (type(array), array.shape, array.dtype) == (np.ndarray, shape, dtype)
    assert array.flags.carray
    if array.nbytes >= _memory.SMALLEST:
        assert address(array) % 64 == 0


def test_no_two_living_arrays_share_memory():
    arrays = [_memory.empty(LARGE, FLOAT32) for _ in range(4)]
    del arrays[1]
    arrays += [_memory.empty(LARGE, FLOAT32) for _ in range(3)]
    for number, array in enumerate(arrays):
        array[...] = number
    for number, array in enumerate(arrays):
        assert (array == number).all()


def test_at_most_the_limit_is_kept():
    fastbn.set_cache_limit(2 * (12 << 20) + 1000)
    arrays = [_memory.empty(LARGE, FLOAT32) for _ in range(5)]
    assert _memory._idle.held == 0
    arrays.clear()
    assert 0 < _memory._idle.held <= fastbn.get_cache_limit()
    fastbn.set_cache_limit(0)
    assert _memory._idle.held == 0
    assert not _memory._idle.blocks


def test_the_longest_unused_size_goes_first():
    sizes = [(1 << 20, 3), (1 << 20, 4), (1 << 20, 5)]
    fastbn.set_cache_limit(4 * 9 * (1 << 20) + 200000)
    for shape in sizes:
        array = _memory.empty(shape, FLOAT32)
        del array
    assert [size >> 22 for size in _memory._idle.blocks] == [4, 5]


def test_a_block_freed_while_the_lock_is_held_is_given_back_to_the_system():
    array = _memory.empty(LARGE, FLOAT32)
    with _memory._idle.lock:
        del array
        assert _memory._idle.held == 0
        assert _memory.empty(LARGE, FLOAT32).shape == LARGE


@pytest.mark.parametrize("limit", [-1, 1.5, "1", None, True])
def test_a_limit_that_is_no_number_of_bytes(limit):
    sentence = r"^set_cache_limit: limit must be a number of bytes, 0 or more, got "
    with pytest.raises(ArgumentError, match=sentence):
        fastbn.set_cache_limit(limit)


# The size of the cache


def write_cache(folder, **levels):
    for number, (level, size, cpus) in enumerate(levels.values()):
        index = folder / f"index{number}"
        index.mkdir()
        for name, text in (("level", level), ("size", size), ("shared_cpu_list", cpus)):
            (index / name).write_text(f"{text}\n")


def test_the_outermost_cache_is_read_from_sysfs(tmp_path):
    write_cache(tmp_path, data=(1, "48K", "0"), third=(3, "32M", "0-3,8,10-11"), second=(2, "2048K", "0-1"))
    assert _cache._from_sysfs(tmp_path) == (32 << 20, 7)


@pytest.mark.parametrize("size", ["", "many", "32X"])
def test_a_sysfs_that_says_nothing(tmp_path, size):
    assert _cache._from_sysfs(tmp_path) is None
    write_cache(tmp_path, only=(3, size, "0"))
    assert _cache._from_sysfs(tmp_path) is None


def test_without_sysfs_and_libc_the_cache_is_measured(monkeypatch):
    monkeypatch.setattr(_cache, "_from_sysfs", lambda: None)
    monkeypatch.setattr(_cache, "_from_libc", lambda: None)
    monkeypatch.setattr(_cache, "_measured", lambda: 1 << 25)
    assert _cache.last_level_share.__wrapped__() == 1 << 25


def test_the_measurement_is_a_size_that_it_tried():
    assert _cache._measured(1 << 22) in (1 << 20, 1 << 21, 1 << 22)


def test_fewer_threads_than_share_the_cache_have_their_part_of_it(monkeypatch):
    monkeypatch.setattr(_cache, "_from_sysfs", lambda: (32 << 20, 32))
    assert _cache.last_level_share.__wrapped__() == (32 << 20) * 8 // 32


@pytest.mark.parametrize(("flags", "virtual"), [("fpu vme hypervisor avx2", True), ("fpu vme avx2", False)])
def test_the_flags_of_the_processor_name_a_hypervisor(tmp_path, flags, virtual):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nmodel name : hypervisor\nflags : {flags}\n")
    assert _cache._is_virtual(cpuinfo) is virtual
    assert not _cache._is_virtual(tmp_path / "none")


@pytest.mark.parametrize(("virtual", "cores"), [(True, 64 << 20), (False, 480 << 20)])
def test_a_guest_does_not_have_all_of_its_host_s_cache(monkeypatch, virtual, cores):
    monkeypatch.setattr(_cache, "_from_sysfs", lambda: (480 << 20, 2))
    monkeypatch.setattr(_cache, "_is_virtual", lambda: virtual)
    monkeypatch.setattr(_cache, "max_threads", lambda: 2)
    assert _cache.last_level_share.__wrapped__() == cores


def test_beyond_is_more_than_half():
    half = _cache.last_level_share() // 2
    assert not _cache.beyond_cache(half)
    assert _cache.beyond_cache(half + 1)


def test_an_arena_uses_its_memory_again_and_gives_none_away():
    arena, shape = _memory.Arena(), (100, 1000)
    with arena.used():
        first = _memory.empty(shape, FLOAT32)
        place, view = address(first), arena.view(first.T[3:])
        lasting = _memory.empty(shape, FLOAT32, lasting=True)
        del first
        smaller = _memory.empty((60, 1000), FLOAT32)
        assert address(smaller) == place
        assert address(_memory.empty((10, 1000), FLOAT32)) != place
        assert arena.view(lasting) is lasting
    smaller[0, 5] = 7
    assert view[2, 0] == 7
    assert view.shape == (997, 100)
    outside = _memory.empty(shape, FLOAT32)
    assert arena.view(outside) is outside
    del smaller
    assert address(_memory.empty(shape, FLOAT32)) != place


def test_what_an_arena_held_is_free_as_soon_as_nobody_looks():
    arena = _memory.Arena()
    with arena.used():
        block = _memory.owner_of(_memory.empty((1 << 20,), FLOAT32))
    memory = weakref.ref(block.base)
    gc.disable()
    try:
        del block
        assert memory() is not None
        del arena
        assert memory() is None
    finally:
        gc.enable()


def test_where_an_array_is_in_what_owns_its_memory():
    array = _memory.empty((1000, 100), FLOAT32)
    assert _memory.offset_in(_memory.owner_of(array), array[3]) == 1200
    small = np.zeros((4, 5), np.float32)
    assert _memory.owner_of(small[1:].T) is small
    assert _memory.offset_in(small, small[2, 1:]) == 44
