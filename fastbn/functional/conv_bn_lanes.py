"""Convolution, batch norm, activation and average pooling of many small images of few channels, as one unit.

Images stay side by side, as ``kernels.lanes`` has them, from the convolution to the pooling and back again: one pass
over memory for the convolution and its statistics, one for all that follows; backward, one for batch norm's sums and
one that takes the gradient through batch norm into both gradients of the convolution, and never writes it.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastbn._checks import check_running_stats, check_same_dtype, check_shape
from fastbn._memory import empty, scratch
from fastbn._tape import call
from fastbn._threads import get_num_threads, launch, max_threads
from fastbn._views import as_flat, dense, dense_c, in_order_of, native
from fastbn.functional import conv_blocks, conv_depthwise, conv_lanes
from fastbn.functional.conv import Pair, engine_for
from fastbn.functional.conv_arguments import check_convolution, check_operands
from fastbn.functional.conv_geometry import Window
from fastbn.functional.norm import Statistics, as_parameters, check_parameters, check_statistics, keep_moved
from fastbn.kernels._simd import VECTOR_BYTES
from fastbn.kernels._simd_lanes import DOT_COLUMNS
from fastbn.kernels.channels import SCALE
from fastbn.kernels.conv import whole_tiles
from fastbn.kernels.conv_bn_lanes import forward_unit_lanes
from fastbn.kernels.conv_bn_lanes_backward import backward_unit_lanes
from fastbn.kernels.unit_activation import ACTIVATIONS

Maybe = np.ndarray | None


class Plan(NamedTuple):
    """What follows from shapes: operands of the kernels, and the elements of their workspaces.

    z_shape, y_shape: of the convolution's output and of the unit's. kept: shape of ``z`` and ``s``. convolution,
    weights, data: see ``kernels.conv_bn_lanes``. panels: what they hold. padded, dense: how the gradient to z lies, for
    that to x or without it. splits: of the gradient to the weights, ``at_once`` blocks each. cuts, spare: see there.
    """

    groups: int
    z_shape: tuple[int, ...]
    y_shape: tuple[int, ...]
    kept: tuple[int, int]
    convolution: tuple[Any, ...]
    panels: np.ndarray
    weights: tuple[Any, ...]
    padded: tuple[Any, ...]
    dense: tuple[Any, ...]
    data: tuple[Any, ...]
    splits: int
    at_once: int
    forward_cuts: tuple[int, ...]
    backward_cuts: tuple[int, ...]
    spare: int
    work: int


@dataclass(slots=True, eq=False)
class LanesSaved:
    """What ``unit_backward`` needs: operands of the convolution, and its output and the activation's side by side.

    z, s: see ``kernels.conv_bn_lanes``. stats, affine: see ``kernels.channels``.
    """

    plan: Plan
    x: np.ndarray
    weight: np.ndarray
    activation: int
    pool: tuple[int, int]
    z: np.ndarray
    s: np.ndarray
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


def suits(x: np.ndarray, weight: np.ndarray, stride: Pair, padding: Pair | str, dilation: Pair, groups: int) -> bool:
    """Whether ``conv_lanes`` is the engine of such a convolution. Raises as ``conv2d``."""
    if not (has_few_channels(weight, groups) and x.flags.c_contiguous):
        return False
    sizes, y_shape = check_convolution("conv2d", 2, x, weight, stride, padding, dilation, groups)
    return _plan(x.shape, weight.shape, y_shape, sizes, int(groups), (1, 1), x.dtype) is not None


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
    x, weight = dense(x), dense_c(weight)
    plan = _plan(x.shape, weight.shape, z_shape, sizes, int(groups), pool, x.dtype) if x.flags.c_contiguous else None
    if plan is None:
        return None
    channels = plan.z_shape[1]
    check_operands(who, x, weight, bias, None, None, plan.z_shape)
    mean, var, momentum, eps = statistics
    check_parameters(who, channels, bn_weight, bn_bias, *statistics)
    check_statistics(who, mean, var, training)
    parameters = as_parameters(bn_weight, bn_bias, mean, var)
    saved = LanesSaved(
        plan=plan,
        x=x,
        weight=weight,
        activation=ACTIVATIONS[activation],
        pool=pool,
        z=empty(plan.kept, x.dtype),
        s=empty(plan.kept, x.dtype),
        stats=np.empty((3, channels)),
        affine=np.empty((3, channels), x.dtype),
        batch_stats=training,
        has_bias=bias is not None,
        bn_weight=bn_weight,
        has_bn_bias=bn_bias is not None,
    )
    y, flat_weight = empty(plan.y_shape, x.dtype), as_flat(weight)
    negative = launch(
        forward_unit_lanes,
        as_flat(x),
        x.shape,
        *plan.convolution,
        flat_weight,
        flat_weight[:0] if bias is None else as_flat(dense_c(bias)),
        plan.panels,
        plan.groups,
        plan.z_shape,
        parameters,
        float(momentum),
        float(eps),
        training,
        saved.activation,
        pool,
        saved.z,
        saved.s,
        y.reshape(-1),
        plan.y_shape,
        saved.stats,
        saved.affine,
        np.empty((2, plan.kept[0], channels)),
        plan.forward_cuts,
        _room(plan.forward_cuts, plan.spare, x.dtype),
        get_num_threads(),
        work=plan.work,
    )
    if negative >= 0:
        check_running_stats(who, mean, var, channels)
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
    x, weight, plan = saved.x, saved.weight, saved.plan
    check_same_dtype(who, "dy", dy, "x", x)
    check_shape(who, "dy", dy, plan.y_shape, "as the output")
    channels = plan.z_shape[1]
    partials = np.empty((plan.splits, weight.size), x.dtype)
    gradients = np.empty((2, channels), x.dtype if saved.bn_weight is None else native(saved.bn_weight))
    dx = empty(x.shape if need_dx else (0,), x.dtype)
    launch(
        backward_unit_lanes,
        as_flat(in_order_of(dy, x)),
        plan.y_shape,
        as_flat(x),
        x.shape,
        plan.z_shape,
        saved.batch_stats,
        saved.activation,
        saved.pool,
        saved.stats,
        saved.affine,
        np.empty((4, channels), x.dtype),
        saved.z,
        saved.s,
        np.empty((2, plan.kept[0], channels)),
        gradients,
        plan.groups,
        plan.weights,
        plan.padded if need_dx else plan.dense,
        plan.at_once,
        partials.reshape(-1),
        plan.data,
        as_flat(weight),
        dx.reshape(-1),
        plan.backward_cuts,
        _room(plan.backward_cuts, plan.spare, x.dtype),
        get_num_threads(),
        work=2 * plan.work,
    )
    dbias = None
    if saved.has_bias:
        dbias = np.zeros(channels, x.dtype)
        if not saved.batch_stats:
            call(np.multiply, gradients[1], saved.affine[SCALE], dbias)
    dweight = np.empty(weight.shape, x.dtype)
    call(np.sum, partials, 0, None, dweight.reshape(-1))
    dbn_weight = None if saved.bn_weight is None else gradients[0]
    return dx if need_dx else None, dweight, dbias, dbn_weight, gradients[1] if saved.has_bn_bias else None


def _room(cuts: tuple[int, ...], spare: int, dtype: np.dtype) -> np.ndarray:
    return scratch((max_threads(), cuts[-1] + spare), dtype)


@lru_cache(maxsize=256)
def _plan(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    z_shape: tuple[int, ...],
    sizes: tuple[Any, ...],
    groups: int,
    pool: tuple[int, int],
    dtype: np.dtype,
) -> Plan | None:
    """None if such operands do not suit; sizes: of the window."""
    x, window = np.empty(x_shape, dtype), Window(*sizes)
    y_shape = (*z_shape[:2], z_shape[2] // pool[0], z_shape[3] // pool[1])
    suits = x.size and engine_for(x, weight_shape, window, groups, z_shape, follows=True) is conv_lanes
    if not (suits and y_shape[2] and y_shape[3]):
        return None
    shapes = weight_shape, groups, x_shape[2:], z_shape[2:], window, dtype.itemsize
    geometry, offsets, tiles, index = conv_lanes.forward_tiles(*shapes)
    back, *data = conv_lanes.backward_tiles(*shapes, spread=True)
    _, products, dense = conv_lanes.product_tiles(weight_shape, groups, z_shape[2:], window, dtype.itemsize)
    lanes, (blocks, at_once) = VECTOR_BYTES // dtype.itemsize, conv_lanes.split(x)
    image, pixels, depth = math.prod(x_shape[1:]), math.prod(z_shape[1:]), math.prod(weight_shape[1:])
    planes = x_shape[1] * geometry.channel_size
    forward = max(image, math.prod(y_shape[1:]) + lanes), planes
    plane = conv_lanes.spread_out(back.channel_size)
    padded = whole_tiles(np.arange(z_shape[1] // groups) * (plane * lanes), DOT_COLUMNS)
    corner = -int(back.starts_h[0]) * back.width - int(back.starts_w[0])
    backward = max(pixels, conv_lanes.whole_panels(x_shape) + lanes), planes, z_shape[1] * plane
    return Plan(
        groups=groups,
        z_shape=z_shape,
        y_shape=y_shape,
        kept=(blocks, conv_lanes.whole_panels(z_shape) * lanes),
        convolution=(geometry.source, offsets, tiles),
        panels=index,
        weights=(*geometry.source, products, depth),
        padded=(corner, back.width, plane, padded),
        dense=(0, z_shape[3], z_shape[2] * z_shape[3], dense),
        data=(*data, back.sparse),
        splits=-(-blocks // at_once),
        at_once=at_once,
        forward_cuts=_ends(forward, lanes),
        backward_cuts=_ends((*backward, groups * products.size * dense.size), lanes),
        spare=lanes * lanes,
        work=len(x) * pixels * depth // 16,
    )


def _ends(vectors: tuple[int, ...], lanes: int) -> tuple[int, ...]:
    """Where runs of so many vectors end, one after the other."""
    return tuple(lanes * int(end) for end in np.cumsum(vectors))
