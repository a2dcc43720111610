"""A small linear layer with the batch norm and the activation behind it, as one unit: a launch each way."""

from dataclasses import dataclass

import numpy as np

from fastbn._checks import check_per_channel, check_running_stats, check_same_dtype, check_shape
from fastbn._memory import scratch
from fastbn._tape import call
from fastbn._threads import get_num_threads, launch, max_threads
from fastbn._views import as_flat, dense_c, native
from fastbn.functional.linear import are_small, gradient_room
from fastbn.functional.norm import Statistics, as_parameters, check_parameters, check_statistics, keep_moved
from fastbn.functional.norm_kernels import Parameters
from fastbn.kernels._simd import VECTOR_BYTES
from fastbn.kernels.channels import SCALE
from fastbn.kernels.gemm import packed_elements
from fastbn.kernels.linear_bn import backward_linear_bn, forward_linear_bn
from fastbn.kernels.unit_activation import ACTIVATIONS

MATRIX = 1 << 18  # elements of the output, at most: the second cache holds it with what it is made into
Maybe = np.ndarray | None


@dataclass(slots=True, eq=False)
class LinearSaved:
    """What ``unit_backward`` needs: the layer's operands and output, and the activation's; see ``kernels.channels``."""

    x: np.ndarray
    weight: np.ndarray
    z: np.ndarray
    y: np.ndarray
    activation: int
    stats: np.ndarray
    affine: np.ndarray
    batch_stats: bool
    has_bias: bool
    bn_weight: Maybe
    has_bn_bias: bool


def suits(x: np.ndarray, weight: np.ndarray) -> bool:
    """Whether x (N, in) and weight (out, in) are plain, N more than 1, and all fits the second cache."""
    plain = type(x) is np.ndarray and x.dtype is weight.dtype and x.dtype.char in "fd" and x.dtype.isnative
    if not (plain and x.ndim == weight.ndim == 2 and x.shape[0] > 1 and x.shape[1] == weight.shape[1]):
        return False
    return x.shape[0] * weight.shape[0] <= MATRIX and are_small(len(x), x.shape[1], weight.shape[0])


def unit_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: Maybe,
    bn_weight: Maybe,
    bn_bias: Maybe,
    statistics: Statistics,
    training: bool,
    activation: str | None = None,
) -> tuple[np.ndarray, LinearSaved]:
    """``activation(batch_norm(linear(x)))`` and what its backward pass needs: (y, saved); operands must ``suit``.

    statistics: running mean, running variance, momentum and eps of ``batch_norm``; training: by the batch's.
    activation: a key of ACTIVATIONS. y: (N, out). Raises ShapeError, DtypeError, ArgumentError.
    """
    who, channels = "linear_bn", weight.shape[0]
    mean, var, momentum, eps = statistics
    check_parameters(who, channels, bn_weight, bn_bias, *statistics)
    check_statistics(who, mean, var, training)
    if bias is not None:
        check_same_dtype(who, "bias", bias, "x", x)
        check_per_channel(who, "bias", bias, channels)
    x, weight = dense_c(x), dense_c(weight)
    parameters: Parameters = as_parameters(bn_weight, bn_bias, mean, var)
    z, y = np.empty((len(x), channels), x.dtype), np.empty((len(x), channels), x.dtype)
    stats, affine = np.empty((3, channels)), np.empty((3, channels), x.dtype)
    kind = ACTIVATIONS[activation]
    negative = launch(
        forward_linear_bn,
        as_flat(x),
        as_flat(weight),
        np.empty(0, x.dtype) if bias is None else as_flat(dense_c(bias)),
        z,
        parameters,
        float(momentum),
        float(eps),
        training,
        kind,
        y,
        stats,
        affine,
        _sums(z),
        _room(weight),
        work=z.size * (4 + x.shape[1] // 16),
    )
    if negative >= 0:
        check_running_stats(who, mean, var, channels)
    if training:
        keep_moved(parameters, mean, var)
    constants = stats, affine, training
    return y, LinearSaved(x, weight, z, y, kind, *constants, bias is not None, bn_weight, bn_bias is not None)


def unit_backward(
    dy: np.ndarray, saved: LinearSaved, need_dx: bool = True
) -> tuple[Maybe, np.ndarray, Maybe, Maybe, Maybe]:
    """Gradients of ``unit_forward``: (dx, dweight, dbias, dbn_weight, dbn_bias), None where they do not apply.

    The bias before batch statistics has no effect, and gradient 0. Raises ShapeError, DtypeError.
    """
    who, x, z, weight = "linear_bn_backward", saved.x, saved.z, saved.weight
    check_same_dtype(who, "dy", dy, "x", x)
    check_shape(who, "dy", dy, z.shape, "as the output")
    channels = z.shape[1]
    sizes = len(x), x.shape[1], channels
    dx, dweight = np.empty(x.shape if need_dx else 0, x.dtype), np.empty(weight.shape, x.dtype)
    found = np.empty((2, channels), z.dtype if saved.bn_weight is None else native(saved.bn_weight))
    launch(
        backward_linear_bn,
        sizes,
        as_flat(dense_c(dy)),
        saved.y,
        z,
        as_flat(x),
        as_flat(weight),
        saved.activation,
        saved.batch_stats,
        saved.stats,
        saved.affine,
        np.empty((4, channels), z.dtype),
        found,
        np.empty(z.size, z.dtype),
        dx.reshape(-1),
        dweight.reshape(-1),
        _sums(z),
        *gradient_room(sizes, x.dtype),
        get_num_threads(),
        work=z.size * (4 + x.shape[1] // 8),
    )
    dbias = None
    if saved.has_bias:
        dbias = np.zeros(channels, x.dtype)
        if not saved.batch_stats:
            call(np.multiply, found[1], saved.affine[SCALE], dbias)
    dbn_weight = None if saved.bn_weight is None else found[0]
    return dx if need_dx else None, dweight, dbias, dbn_weight, found[1] if saved.has_bn_bias else None


def _room(weight: np.ndarray) -> np.ndarray:
    panel, room = packed_elements(1, weight.shape[1], False, weight.itemsize)
    return scratch((max_threads(), room + panel), weight.dtype)


def _sums(z: np.ndarray) -> np.ndarray:
    lanes = VECTOR_BYTES // z.itemsize
    return np.empty((3, -(-z.shape[1] // lanes) * lanes))
