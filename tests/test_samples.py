"""Batches of a data set: as NumPy indexes."""

import numpy as np
import pytest

import fastbn
from fastbn.errors import ArgumentError, DtypeError, ShapeError
from fastbn.functional.samples import samples


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(50, 1, 28, 28), (50, 3, 5, 7), (50, 33), (50,), (1, 2), (50, 0)], ids=str)
def test_samples_are_those_of_the_index(rng, shape, dtype):
    x = rng.standard_normal(shape).astype(dtype)
    for count in (0, 1, 17, 100):
        index = rng.integers(0, len(x), count)
        got = samples(x, index)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, x[index])
    np.testing.assert_array_equal(samples(x, index.astype(np.uint8)), x[index])
    np.testing.assert_array_equal(samples(x.T, index[: len(x.T)] * 0), x.T[index[: len(x.T)] * 0])


def test_the_bits_are_those_of_the_source():
    x = np.arange(2**31 - 40, 2**31 + 40, dtype=np.uint32).reshape(10, 8).view(np.float32)  # NaNs and denormals
    np.testing.assert_array_equal(samples(x, np.arange(10)).view(np.uint32), x.view(np.uint32))


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_any_number_of_threads(rng, threads):
    fastbn.set_num_threads(threads)
    x, index = rng.standard_normal((300, 1000), dtype=np.float32), rng.permutation(300)
    np.testing.assert_array_equal(samples(x, index), x[index])


@pytest.mark.parametrize("place", [-1, 10, 2**40])
def test_an_index_outside(place):
    with pytest.raises(ArgumentError, match=rf"samples: index must lie in \[0, 10\), got {place} at 2"):
        samples(np.zeros((10, 3), np.float32), np.array([0, 9, place]))


def test_what_is_no_index():
    x = np.zeros((10, 3), np.float32)
    with pytest.raises(DtypeError, match="samples: index must be a NumPy array of integers, got float64"):
        samples(x, np.zeros(2))
    with pytest.raises(DtypeError, match="samples: index must be a NumPy array of integers, got list"):
        samples(x, [1, 2])
    with pytest.raises(ShapeError, match="samples: index must have 1 axes"):
        samples(x, np.zeros((2, 2), np.int64))
    with pytest.raises(DtypeError, match="samples: x must be float32 or float64, got int64"):
        samples(x.astype(np.int64), np.zeros(2, np.int64))
