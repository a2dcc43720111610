"""Settings that must stand before Numba is imported, and what all tests share."""

import hashlib
import os
import tempfile
from pathlib import Path

# Numba's cache does not see an edit in a callee's file: a cache folder for each state of the kernels.
_sources = sorted((Path(__file__).parents[1] / "fastbn" / "kernels").glob("*.py"))
_digest = hashlib.sha256(b"".join(path.read_bytes() for path in _sources)).hexdigest()[:16]
os.environ["NUMBA_CACHE_DIR"] = os.path.join(tempfile.gettempdir(), f"fastbn-numba-{_digest}")
os.environ["NUMBA_NUM_THREADS"] = "8"  # so that 1, 2 and 7 threads can be compared on any machine

import numpy as np  # noqa: E402
import pytest  # noqa: E402

import fastbn  # noqa: E402

# Files of few tests that take minutes, compiling for other machines or starting interpreters: begun last, as xdist
# would have it, they would keep one worker busy alone.
LONG = ("narrow_registers", "signatures", "warmup", "cold_start", "replay", "matrix_unit", "readme")


def pytest_configure(config):
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = fastbn.get_num_threads()
    yield
    fastbn.set_num_threads(before)
