"""Convolution, batch norm, activation and average pooling of many small images of few channels, as one unit.

Images stay side by side, as ``kernels.lanes`` has them, from the convolution to the pooling and back again: one pass
over memory for the convolution and its statistics, one for all that follows; backward, one for batch norm's sums and
one that takes the gradient through batch norm into both gradients of the convolution, and never writes it.
"""

import math
from dataclasses import dataclass

import numpy as np

from fastbn._checks import check_running_stats, check_same_dtype, check_shape
from fastbn._memory import empty
from fastbn._threads import launch
from fastbn._views import as_flat, dense, dense_c, in_order_of, native
from fastbn.functional import conv_blocks, conv_depthwise, conv_lanes
from fastbn.functional.conv import Pair, engine_for
from fastbn.functional.conv_arguments import check_convolution, check_operands
from fastbn.functional.conv_geometry import Window
from fastbn.functional.norm import Statistics, as_parameters, check_parameters, check_statistics, keep_moved
from fastbn.kernels._simd import VECTOR_BYTES
from fastbn.kernels.channels import SCALE
from fastbn.kernels.conv_bn_lanes import NOTHING, RELU, RELU6, SIGMOID, backward_unit_lanes, forward_unit_lanes

ACTIVATIONS = {None: NOTHING, "relu": RELU, "relu6": RELU6, "sigmoid": SIGMOID}
Maybe = np.ndarray | None


@dataclass(slots=True, eq=False)
class LanesSaved:
    """What ``unit_backward`` needs: operands of the convolution, and its output and the activation's side by side.

    z, s: see ``kernels.conv_bn_lanes``. stats, affine: see ``kernels.channels``.
    """

    x: np.ndarray
    weight: np.ndarray
    window: Window
    groups: int
    activation: int
    pool: tuple[int, int]
    z: np.ndarray
    s: np.ndarray
    z_shape: tuple[int, ...]
    y_shape: tuple[int, ...]
    stats: np.ndarray
    affine: np.ndarray
    batch_stats: bool
    has_bias: bool
    bn_weight: Maybe
    has_bn_bias: bool


def has_few_channels(weight: np.ndarray, groups: int) -> bool:
    """Whether images of some size and number may suit."""
    many = conv_blocks.suits(weight.shape, groups, weight.itemsize)
    return not (many or conv_depthwise.suits(weight.shape, groups, weight.itemsize))


def unit_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: Maybe,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
    bn_weight: Maybe,
    bn_bias: Maybe,
    statistics: Statistics,
    training: bool,
    activation: str | None = None,
    pool: tuple[int, int] = (1, 1),
) -> tuple[np.ndarray, LanesSaved] | None:
    """``avg_pool2d(activation(batch_norm(conv2d(x))), pool)`` and what its backward pass needs: (y, saved).

    None if ``conv_lanes`` is not the engine for it, or the window is larger than the image. The convolution's arguments
    are those of ``conv2d``. statistics: running mean, running variance, momentum and eps of ``batch_norm``; training:
    by the batch's. activation: a key of ACTIVATIONS. pool: height and width of windows that meet.
    y: (N, C, H // pool[0], W // pool[1]), C-contiguous. Raises ShapeError, DtypeError, ArgumentError.
    """
    who = "conv_bn"
    sizes, z_shape = check_convolution(who, 2, x, weight, stride, padding, dilation, groups)
    window, groups, x = Window(*sizes), int(groups), dense(x)
    y_shape = (*z_shape[:2], z_shape[2] // pool[0], z_shape[3] // pool[1])
    lanes = x.size and engine_for(x, weight.shape, window, groups, z_shape, follows=True) is conv_lanes
    if not (lanes and y_shape[2] and y_shape[3]):
        return None
    check_operands(who, x, weight, bias, None, None, z_shape)
    mean, var, momentum, eps = statistics
    check_parameters(who, z_shape[1], bn_weight, bn_bias, *statistics)
    check_statistics(who, mean, var, training)
    weight = dense_c(weight)
    parameters = as_parameters(bn_weight, bn_bias, mean, var)
    blocks, vector = conv_lanes.split(x)[0], VECTOR_BYTES // x.itemsize
    elements = conv_lanes.whole_panels(z_shape) * vector
    saved = LanesSaved(
        x=x,
        weight=weight,
        window=window,
        groups=groups,
        activation=ACTIVATIONS[activation],
        pool=pool,
        z=empty((blocks, elements), x.dtype),
        s=empty((blocks, elements), x.dtype),
        z_shape=z_shape,
        y_shape=y_shape,
        stats=np.empty((3, z_shape[1])),
        affine=np.empty((3, z_shape[1]), x.dtype),
        batch_stats=training,
        has_bias=bias is not None,
        bn_weight=bn_weight,
        has_bn_bias=bn_bias is not None,
    )
    geometry, offsets, tiles = conv_lanes.forward_tiles(weight.shape, x.shape[2:], z_shape[2:], window, x.itemsize)
    y = empty(y_shape, x.dtype)
    negative = launch(
        forward_unit_lanes,
        as_flat(x),
        x.shape,
        geometry.source,
        offsets,
        tiles,
        conv_lanes.forward_panels(weight, bias, groups),
        groups,
        z_shape,
        parameters,
        float(momentum),
        float(eps),
        training,
        saved.activation,
        pool,
        saved.z,
        saved.s,
        as_flat(y),
        y_shape,
        saved.stats,
        saved.affine,
        np.empty((2, blocks, z_shape[1])),
        conv_lanes.workspace(max(x[0].size, y[0].size + vector), x),
        conv_lanes.workspace(x.shape[1] * geometry.channel_size, x),
        conv_lanes.workspace(vector, x),
        work=math.prod(z_shape) * weight[0].size // 16,
    )
    if negative >= 0:
        check_running_stats(who, mean, var, z_shape[1])
    if training:
        keep_moved(parameters, mean, var)
    return y, saved


def unit_backward(
    dy: np.ndarray, saved: LanesSaved, need_dx: bool = True
) -> tuple[Maybe, np.ndarray, Maybe, Maybe, Maybe]:
    """Gradients of ``unit_forward``: (dx, dweight, dbias, dbn_weight, dbn_bias), None where they do not apply.

    The bias of a convolution before batch statistics has no effect, and gradient 0. Raises ShapeError, DtypeError.
    """
    who = "conv_bn_backward"
    x, weight, groups, shape = saved.x, saved.weight, saved.groups, saved.z_shape
    check_same_dtype(who, "dy", dy, "x", x)
    check_shape(who, "dy", dy, saved.y_shape, "as the output")
    geometry, offsets, dz_offsets = conv_lanes.product_tiles(weight.shape, groups, shape[2:], saved.window, x.itemsize)
    sizes = x.shape[2:], shape[2:]
    back, distances, tiles = conv_lanes.backward_tiles(weight.shape, groups, *sizes, saved.window, x.itemsize)
    panels = conv_lanes.backward_panels(weight, back, groups) if need_dx else np.empty(0, x.dtype)
    blocks, blocks_at_once = conv_lanes.split(x)
    channels, vector = shape[1], VECTOR_BYTES // x.itemsize
    partials = np.empty((-(-blocks // blocks_at_once), *weight.shape), x.dtype)
    gradients = np.empty((2, channels), x.dtype if saved.bn_weight is None else native(saved.bn_weight))
    dx = empty(x.shape if need_dx else (0,), x.dtype)
    image, pixels = x[0].size, shape[2] * shape[3]
    launch(
        backward_unit_lanes,
        as_flat(in_order_of(dy, x)),
        saved.y_shape,
        as_flat(x),
        x.shape,
        shape,
        saved.batch_stats,
        saved.activation,
        saved.pool,
        saved.stats,
        saved.affine,
        np.empty((4, channels), x.dtype),
        saved.z,
        saved.s,
        np.empty((2, blocks, channels)),
        gradients,
        groups,
        (*geometry.source, offsets, weight[0].size, dz_offsets),
        blocks_at_once,
        as_flat(partials),
        (*back.source, distances, tiles, panels, back.sparse),
        as_flat(dx),
        conv_lanes.workspace(max(image, channels * pixels, conv_lanes.whole_panels(x.shape) + vector), x),
        conv_lanes.workspace(x.shape[1] * geometry.channel_size, x),
        conv_lanes.workspace(channels * pixels, x),
        conv_lanes.workspace(channels * back.channel_size if need_dx else 0, x),
        conv_lanes.workspace(groups * offsets.size * dz_offsets.size, x),
        conv_lanes.workspace(vector, x),
        work=channels * pixels * len(x) * weight[0].size // 8,
    )
    dbias = None
    if saved.has_bias:
        constant = np.zeros_like(gradients[1]) if saved.batch_stats else gradients[1] * saved.affine[SCALE]
        dbias = constant.astype(x.dtype)
    dbn_weight = None if saved.bn_weight is None else gradients[0]
    return dx if need_dx else None, partials.sum(axis=0), dbias, dbn_weight, gradients[1] if saved.has_bn_bias else None
