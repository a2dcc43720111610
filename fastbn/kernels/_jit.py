"""Every Numba option in the library.

``driver`` compiles the entry of a kernel: it may hold ``prange`` and is kept in Numba's disk cache.
``body`` and ``sum_body`` compile what a driver calls, as far as LLVM's code; what is left is done in each driver, see
``_once``. ``inlined`` is for what is short or called once.
A ``prange`` index is unsigned: drivers pass ``int64(index)`` on, so that the serial and the parallel loop share one
version of the body, and ``divmod`` stays an integer.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Any

import numba.np.arraymath  # noqa: F401  The first kernel needs it, and it SciPy where that is installed: not in a call
from numba import njit
from numba.core.cpu import ParallelOptions

from fastbn.kernels._once import KernelCompiler

# A product and a sum may be fused. Nothing is reordered: a constant pulled out of a loop can overflow or cancel.
ELEMENTWISE = {"contract"}
# Sums vectorise only if they may be reordered. No "nnan"/"ninf": a NaN or an Inf that comes in must come out.
SUMS = ELEMENTWISE | {"reassoc", "nsz"}

# Only the explicit prange loops are parallel; array expressions and reductions are never rewritten. A dict would be
# emptied by the first compilation that reads it.
PRANGE_ONLY = ParallelOptions(
    {
        "prange": True,
        "comprehension": False,
        "inplace_binop": False,
        "reduction": False,
        "setitem": False,
        "stencil": False,
        "numpy": False,
        "fusion": False,
    }
)

# Whoever calls a kernel holds its arrays, so references are not counted: that is a locked addition wherever an array
# is passed on, and as long as the work itself on small arrays. What makes arrays must count them: ``allocating_...``.
COMMON: dict[str, Any] = {"_nrt": False, "nogil": True, "error_model": "numpy", "boundscheck": False}
ALLOCATING: dict[str, Any] = {"_nrt": True}


# What only kernels call needs no entry from Python or C.
INTERNAL: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **COMMON}


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function into each of its callers, with the caller's options."""
    return njit(inline="always", **INTERNAL)(function)


def body(function: Callable[..., Any]) -> Any:
    """Compile a function that drivers call; its arithmetic keeps its written order."""
    return njit(fastmath=ELEMENTWISE, **INTERNAL)(function)


def part(function: Callable[..., Any]) -> Any:
    """As ``body``, of what LLVM puts into each caller: called as cheaply as ``inlined``, and compiled sooner."""
    return njit(fastmath=ELEMENTWISE, forceinline=True, **INTERNAL)(function)


def allocating_body(function: Callable[..., Any]) -> Any:
    """As ``body``, of a function that makes arrays; if it returns one, its callers are allocating, too."""
    return njit(fastmath=ELEMENTWISE, **{**INTERNAL, **ALLOCATING})(function)


def sum_body(function: Callable[..., Any]) -> Any:
    """Compile a function that drivers call, free to reorder its sums."""
    return njit(fastmath=SUMS, **INTERNAL)(function)


DRIVER: dict[str, Any] = {
    "fastmath": ELEMENTWISE,
    "no_cfunc_wrapper": True,
    "pipeline_class": KernelCompiler,
    **COMMON,
}


class Kernel:
    """The two versions of a kernel's entry, each made when it is first asked for and compiled when first called.

    They are one function, whose last argument is None in ``serial`` and True in ``parallel``: Numba leaves out the
    branch not taken, and its disk cache tells them apart by the argument's type.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self._function = function
        self._options = options

    @cached_property
    def serial(self) -> Any:
        """The version for one thread."""
        return _cached(self._function, self._options)

    @cached_property
    def parallel(self) -> Any:
        """The version for all threads."""
        return _cached(self._function, {"parallel": PRANGE_ONLY, **self._options})


def driver(function: Callable[..., Any]) -> Kernel:
    """Compile a kernel's entry, from Numba's disk cache where one can be written."""
    return Kernel(function, DRIVER)


def allocating_driver(function: Callable[..., Any]) -> Kernel:
    """As ``driver``, of a kernel that makes arrays."""
    return Kernel(function, {**DRIVER, **ALLOCATING})


def serial_driver(function: Callable[..., Any]) -> Any:
    """Compile the entry of a kernel that is never worth a second thread; it is called by itself."""
    return _cached(function, DRIVER)


def _cached(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    try:
        dispatcher = njit(cache=True, **options)(function)
    except RuntimeError as error:  # numba#4908: no cache directory can be written
        _warn_once("kernels are compiled anew in every process, for want of a writable cache", error)
        return njit(**options)(function)
    _tolerate(dispatcher._cache)
    return dispatcher


def _tolerate(cache: Any) -> None:
    """A kernel that cannot be read from the disk is compiled, and one that cannot be written is used all the same."""
    load, save = cache.load_overload, cache.save_overload

    def load_or_compile(*args: Any) -> Any:
        try:
            return load(*args)
        except Exception as error:  # whatever a damaged file makes of unpickling
            _warn_once("kernels are compiled anew: the cache cannot be read", error)
            with suppress(OSError):
                cache.flush()
            return None

    def save_or_go_on(*args: Any) -> None:
        try:
            save(*args)
        except Exception as error:
            _warn_once("kernels are compiled anew in every process: the cache cannot be written", error)

    cache.load_overload, cache.save_overload = load_or_compile, save_or_go_on


_warned: set[str] = set()


def _warn_once(message: str, error: Exception) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(f"fastbn: {message} ({error})", RuntimeWarning, stacklevel=4)
