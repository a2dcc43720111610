"""A cache of kernels that cannot be had costs time, never an exception."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ANSWER = """
import numpy as np
import fastbn.functional as F

y = F.relu(np.arange(-2, 3, dtype=np.float32))
assert y.tolist() == [0, 0, 0, 1, 2], y
"""


def start(script, cache, **environment):
    """A process with ``cache`` for its kernels; warnings are shown, not raised."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), **environment}
    command = [sys.executable, "-c", script]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return errors


def kernels(cache):
    return list(cache.rglob("*.nb[ci]"))


def test_a_cache_is_written_and_read(tmp_path):
    assert finish(start(ANSWER, tmp_path)) == ""
    written = {path: path.stat().st_mtime_ns for path in kernels(tmp_path)}
    assert written
    assert finish(start(ANSWER, tmp_path)) == ""
    assert {path: path.stat().st_mtime_ns for path in kernels(tmp_path)} == written


def test_no_place_for_a_cache(tmp_path):
    """A home and a package that are read-only: none of Numba's locators finds a folder. Root could write anywhere."""
    nowhere = "import numba.core.caching as caching\ncaching.CacheImpl._locator_classes = []\n"
    errors = finish(start(nowhere + ANSWER, tmp_path))
    assert errors.count("RuntimeWarning: fastbn: kernels are compiled anew in every process, for want of a") == 1


def test_a_full_disk(tmp_path):
    """Files may not grow: a write fails as it does when nothing is left."""
    limit = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
    pytest.importorskip("resource")
    errors = finish(start(limit + ANSWER, tmp_path, PYTHONDONTWRITEBYTECODE="1"))
    assert errors.count("RuntimeWarning: fastbn: kernels are compiled anew in every process: the cache cannot be") == 1
    assert finish(start(ANSWER, tmp_path)) == ""  # and nothing half-written is left to stumble over


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", [b"", b"damaged"])
def test_a_damaged_cache(tmp_path, suffix, damage):
    finish(start(ANSWER, tmp_path))
    for path in tmp_path.rglob(f"*.{suffix}"):
        path.write_bytes(damage)
    errors = finish(start(ANSWER, tmp_path))
    assert errors.count("RuntimeWarning: fastbn: kernels are compiled anew: the cache cannot be read") <= 1
    assert finish(start(ANSWER, tmp_path)) == ""


def test_processes_that_race_for_a_cache(tmp_path):
    for process in [start(ANSWER, tmp_path) for _ in range(4)]:
        assert finish(process) == ""
