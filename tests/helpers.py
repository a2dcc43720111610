"""What tests share: tolerances by dtype and memory orders."""

import numpy as np

TOL = {np.float32: {"rtol": 1e-5, "atol": 1e-5}, np.float64: {"rtol": 1e-11, "atol": 1e-11}}


def channels_last(array: np.ndarray) -> np.ndarray:
    """The same values with memory lying as (N, *spatial, C)."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


ORDERS = {"nchw": np.ascontiguousarray, "channels_last": channels_last}


def assert_close(got, want, dtype, scale=1.0):
    """Compare with the tolerance of ``dtype``, times ``scale`` for sums over many terms."""
    tolerance = TOL[np.dtype(dtype).type]
    np.testing.assert_allclose(got, want, rtol=scale * tolerance["rtol"], atol=scale * tolerance["atol"])
