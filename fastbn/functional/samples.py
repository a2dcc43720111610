"""A batch of a data set."""

import numpy as np

from fastbn._checks import check_float, check_rank
from fastbn._memory import empty
from fastbn._threads import launch
from fastbn._views import as_flat
from fastbn.errors import ArgumentError, DtypeError
from fastbn.kernels.samples import gather_samples


def samples(x: np.ndarray, index: np.ndarray) -> np.ndarray:
    """``x[index]`` of the first axis, gathered by all threads if x is C-contiguous.

    x: (N, *), float32 or float64. index: (M,), integers in [0, N). Raises ShapeError, DtypeError, ArgumentError.
    """
    who = "samples"
    check_float(who, "x", x)
    if not isinstance(index, np.ndarray) or index.dtype.kind not in "iu":
        kind = index.dtype if isinstance(index, np.ndarray) else type(index).__name__
        raise DtypeError(f"{who}: index must be a NumPy array of integers, got {kind}")
    check_rank(who, "index", index, (1,), "(M,)")
    size = x.size // max(1, len(x))
    if not (x.flags.carray and x.dtype.isnative and size):
        return x[index]
    out = empty((len(index), *x.shape[1:]), x.dtype)
    places = np.ascontiguousarray(index, np.int64)
    wrong = launch(gather_samples, as_flat(x), size, as_flat(places), out.reshape(-1), work=out.size)
    if wrong >= 0:
        raise ArgumentError(f"{who}: index must lie in [0, {len(x)}), got {index[wrong]} at {wrong}")
    return out
