"""The caches of the machine, read from it once: what is larger is written past them.

Linux tells the size of the last-level cache and the CPUs that share it; elsewhere the C library may; where neither
does, the cache is as large as the working set beyond which reading slows down. A virtual machine is told of its host's
whole cache, but not of the other machines that share it.
"""

import os
import time
from functools import lru_cache
from pathlib import Path

import numpy as np

from fastbn._threads import max_threads

SYSFS = Path("/sys/devices/system/cpu/cpu0/cache")
CPUINFO = Path("/proc/cpuinfo")
GUEST_SHARE = 32 << 20  # bytes for each core that a virtual machine may believe in: hardly a processor has more


def beyond_cache(moved: int) -> bool:
    """Whether an operation that reads and writes ``moved`` bytes leaves nothing worth having in the cache.

    Half of the cache is left to what the next operation writes.
    """
    return moved > last_level_share() // 2


@lru_cache(maxsize=1)
def last_level_share() -> int:
    """Bytes of the last-level cache that belong to this process's threads."""
    size, cpus = _from_sysfs() or _from_libc() or (_measured(), max_threads())
    share = int(size * min(1.0, max_threads() / cpus))
    return min(share, max_threads() * GUEST_SHARE) if _is_virtual() else share


def _is_virtual(cpuinfo: Path = CPUINFO) -> bool:
    """Whether the processor's flags name a hypervisor."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("flags") and "hypervisor" in line.split() for line in lines)


def _from_sysfs(folder: Path = SYSFS) -> tuple[int, int] | None:
    """Size in bytes of the outermost cache, and the number of CPUs that share it."""
    outermost = (0, 0, 0)
    try:
        for index in folder.glob("index*"):
            level, size = int((index / "level").read_text()), (index / "size").read_text().strip()
            cpus = _count((index / "shared_cpu_list").read_text())
            outermost = max(outermost, (level, int(size.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}[size[-1]], cpus))
    except (OSError, ValueError, KeyError):
        return None
    level, size_bytes, cpus = outermost
    return (size_bytes, cpus) if size_bytes and cpus else None


def _count(cpu_list: str) -> int:
    """CPUs in a list such as ``0-3,8``."""
    spans = (span.partition("-") for span in cpu_list.strip().split(","))
    return sum(int(last or first) - int(first) + 1 for first, _, last in spans)


def _from_libc() -> tuple[int, int] | None:
    for name in ("SC_LEVEL4_CACHE_SIZE", "SC_LEVEL3_CACHE_SIZE", "SC_LEVEL2_CACHE_SIZE"):
        try:
            size = os.sysconf(name)
        except (AttributeError, OSError, ValueError):
            continue
        if size > 0:
            return size, os.cpu_count() or 1
    return None


def _measured(largest: int = 1 << 29) -> int:
    """The largest power of two bytes that is read again at no less than half the best speed beyond 1 MB."""
    speeds = {}
    size = 1 << 20
    while size <= largest:
        block = np.ones(size // 8)
        block.sum()
        begun = time.perf_counter()
        for _ in range(2):
            block.sum()
        speeds[size] = size / (time.perf_counter() - begun)
        size *= 2
    return max(size for size, speed in speeds.items() if speed >= max(speeds.values()) / 2)
