"""One number that multiplies an array and one that is added: a batch norm of constant statistics 0 and 1."""

import numpy as np

from fastbn._checks import STORED, check_float, check_rank, check_same_dtype, check_shape
from fastbn._threads import launch
from fastbn._views import as_flat, dense, storage
from fastbn.functional.norm import AXES, RANKS, BatchNormSaved, batch_norm, batch_norm_backward, batch_norm_forward
from fastbn.kernels.sums import chunk_count, chunk_grid, sums_ncs


def scalar_affine(x: np.ndarray, weight: np.ndarray | None = None, bias: np.ndarray | None = None) -> np.ndarray:
    """``weight x + bias``.

    x: (N, C, *spatial), 2 to 5 axes, in the dtypes of ``batch_norm``. weight, bias: (1,), float32 or float64, or None
    for 1 and 0. Returns an array like x. Raises ShapeError, DtypeError.
    """
    operands = _operands("scalar_affine", x, weight, bias)
    return batch_norm(x, *operands[2:], *operands[:2], eps=0.0)


def scalar_affine_forward(
    x: np.ndarray, weight: np.ndarray | None = None, bias: np.ndarray | None = None
) -> tuple[np.ndarray, BatchNormSaved | None]:
    """``scalar_affine`` and what its backward pass needs: (y, saved); without a weight that is None."""
    scale, shift, mean, var = _operands("scalar_affine_forward", x, weight, bias)
    if weight is None:
        return batch_norm(x, mean, var, None, shift, eps=0.0), None
    return batch_norm_forward(x, scale, shift, running_mean=mean, running_var=var, eps=0.0, training=False)


def scalar_affine_backward(
    dy: np.ndarray, saved: BatchNormSaved | None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Gradients of ``scalar_affine_forward``: (dx, dweight, dbias).

    dx = weight dy (dy itself without a weight), dweight = sum dy x or None without one, dbias = sum dy, None where a
    weight came without a bias; sums in float64. Raises ShapeError, DtypeError.
    """
    if saved is None:
        check_float("scalar_affine_backward", "dy", dy, STORED)
        return dy, None, _total(dy)
    dx, dweight, dbias, _ = batch_norm_backward(dy, saved)
    return dx, *(None if sums is None else _sum(sums) for sums in (dweight, dbias))  # type: ignore[return-value]


def _operands(
    who: str, x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray, np.ndarray]:
    """What ``batch_norm`` takes for each channel: weight, bias, mean and variance."""
    check_float(who, "x", x, STORED)
    check_rank(who, "x", x, RANKS, AXES)
    given = weight if bias is None else bias
    dtype = np.dtype(np.float32) if given is None else given.dtype
    for name, number in (("weight", weight), ("bias", bias)):
        if number is not None:
            check_float(who, name, number)
            check_shape(who, name, number, (1,))
    if weight is not None and bias is not None:
        check_same_dtype(who, "weight", weight, "bias", bias)
    channels = x.shape[1]
    scale, shift = (None if number is None else np.repeat(number, channels) for number in (weight, bias))
    return scale, shift, np.zeros(channels, dtype), np.ones(channels, dtype)


def _total(dy: np.ndarray) -> np.ndarray:
    """(1,), the sum of all of ``dy``."""
    flat = storage(as_flat(dense(dy))).reshape(1, 1, -1)
    sums = np.zeros((chunk_count(1, dy.size), 1))
    if dy.size:
        launch(sums_ncs, flat, *chunk_grid(1, dy.size), sums, work=dy.size)
    return _sum(sums).astype(np.float64 if dy.dtype.itemsize == 8 else np.float32)


def _sum(sums: np.ndarray) -> np.ndarray:
    return np.array([sums.sum(dtype=np.float64)], sums.dtype)
