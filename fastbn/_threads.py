"""How many threads a kernel gets, and whether it may have more than one right now."""

import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numba
from numba.np.ufunc import parallel as pool

from fastbn._tape import Launch, tapes
from fastbn.errors import ArgumentError


class Kernel(Protocol):
    """One kernel, compiled twice: the last argument of ``serial`` is None, that of ``parallel`` True."""

    @property
    def serial(self) -> Callable[..., Any]: ...
    @property
    def parallel(self) -> Callable[..., Any]: ...


# Below this many elements the start of a parallel region costs more than a second core saves.
MIN_PARALLEL_WORK = 32768


def _cgroup_quota() -> float:
    """CPUs that the control group allows, or infinity."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        try:
            with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") as file:
                quota = file.read().strip()
            with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as file:
                period = file.read().strip()
        except OSError:
            return math.inf
    if not quota.isdigit() or not period.isdigit():  # "max" or -1
        return math.inf
    return int(quota) / int(period)


def max_threads() -> int:
    """The most threads a kernel can have: the first axis of every per-thread workspace."""
    return int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


def _default_threads() -> int:
    return max(1, math.ceil(min(max_threads(), _cgroup_quota())))


_count = _default_threads()
_lock = threading.Lock()
_loaded = False  # a kernel has been loaded here or in the process this one was forked from: Numba's pool runs
_mask: Callable[[], int] = numba.get_num_threads  # threads that this Python thread gets from Numba, see ``_sooner``
_unguarded = False  # a parallel loop has run, on a layer that takes several at once: Numba's workqueue aborts
_serial_only = False
_both = False


def get_num_threads() -> int:
    """Threads that a kernel may use, in whichever Python thread it is called."""
    return _count


def set_num_threads(n: int) -> None:
    """Let kernels use ``n`` threads, in every Python thread from now on. Raises ArgumentError."""
    global _count
    limit = max_threads()
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= limit:
        raise ArgumentError(
            f"set_num_threads: n must be an integer from 1 to {limit}, got {n!r}; "
            "set NUMBA_NUM_THREADS before the start for more"
        )
    _count = n


def launch(kernel: Kernel, *args: Any, work: int) -> Any:
    """Run a kernel: its parallel version where ``work``, in elements, repays it and where it is safe."""
    return run(kernel, args, work)


def run(kernel: Kernel, args: tuple[Any, ...], work: int) -> Any:
    """As ``launch``, of arguments that are a tuple already: sooner begun."""
    global _loaded, _unguarded, _mask
    _loaded = True
    if tapes and (tape := tapes.get(threading.get_ident())) is not None:
        tape.append(Launch(kernel, args, work))
    if _both:
        kernel.serial(*args, None)
    elif work < MIN_PARALLEL_WORK or _count == 1:
        return kernel.serial(*args, None)
    if _serial_only:
        return kernel.serial(*args, None)
    if _unguarded:
        return _parallel(kernel, args)
    if not _lock.acquire(blocking=False):
        return kernel.serial(*args, None)
    try:
        result = _parallel(kernel, args)
        _unguarded = _layer() != "workqueue"
        _mask = _sooner()
        return result
    finally:
        _lock.release()


def repeat(launched: Launch) -> Any:
    """Compute it again."""
    kernel, operands, work = launched
    return kernel(*operands) if work is None else run(kernel, operands, work)


def _parallel(kernel: Kernel, args: tuple[Any, ...]) -> Any:
    if _mask() != _count:
        numba.set_num_threads(_count)
    return kernel.parallel(*args, True)


def _sooner() -> Callable[[], int]:
    """``numba.get_num_threads`` without the locks around the start of its pool, which has started: a sixth of it."""
    return getattr(pool, "_get_num_threads", numba.get_num_threads)


@contextmanager
def both_versions() -> Iterator[None]:
    """Every kernel runs twice, in its serial and in its parallel version, so that both are compiled."""
    global _both
    _both = True
    try:
        yield
    finally:
        _both = False


def _after_fork() -> None:
    """A pool of threads does not survive a fork: GNU OpenMP ends the child that uses it, workqueue hangs."""
    global _serial_only, _lock
    _lock = threading.Lock()
    _serial_only = _loaded and _layer() != "tbb"


def _layer() -> str:
    """The threading layer in use; "none" before there is one."""
    try:
        return str(numba.threading_layer())
    except ValueError:
        return "none"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
