"""Convolution, batch norm, residual and ReLU as one unit for training.

The convolution sums its own output for the statistics. Its batch norm need not be applied: a ``Deferred`` output is
normalised by the next convolution as it reads it, so that one tensor is kept where others keep two or three. Backward,
batch norm's formula is applied while the operands of the two gradients are read, and its sums are made while the
gradient to the next convolution's input is still in cache.
"""

import math
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fastbn._checks import check_same_dtype, check_shape
from fastbn._memory import empty
from fastbn._tape import call, unrepeatable
from fastbn._views import channels_last, channels_second, dense, dense_c, in_order_of, native
from fastbn.functional import conv_blocks, conv_gram, conv_patches, conv_planes, conv_point, norm_parts
from fastbn.functional.conv import Pair, channel_sums, engine_for
from fastbn.functional.conv_arguments import check_convolution, check_operands
from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_gram import GramSaved, Maybe
from fastbn.functional.conv_prologue import PLAIN, Prologue
from fastbn.functional.norm import BatchNormSaved, batch_norm_backward, batch_norm_summed
from fastbn.functional.norm_kernels import plan_for
from fastbn.functional.norm_sums import Sums, relu_operand
from fastbn.kernels.channels import SCALE


@dataclass(slots=True, eq=False)
class Deferred:
    """A convolution's channels-last output ``z``, whose batch norm, and ReLU if ``relu``, whoever reads it applies.

    stats, affine: as ``kernels.channels`` has them. ceiling: what the ReLU cuts above.
    """

    z: np.ndarray
    stats: np.ndarray
    affine: np.ndarray
    relu: bool
    ceiling: float = math.inf

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return self.z.shape

    def array(self) -> np.ndarray:
        """The array that it stands for."""
        y = norm_parts.normalize(plan_for(self.z), self.z, self.stats, self.affine, None, self.relu)[0]
        return _cut(y, self.ceiling) if self.relu else y


def _cut(y: np.ndarray, ceiling: float) -> np.ndarray:
    """``y``, in place at most ``ceiling``."""
    if ceiling < math.inf:
        call(_lower, y, ceiling)
    return y


def _lower(y: np.ndarray, ceiling: float) -> None:
    np.minimum(y, ceiling, out=y)


def _passed(dy: np.ndarray, y: np.ndarray, ceiling: float) -> np.ndarray:
    """``dy`` where ``y`` is below the ceiling, else 0."""
    unrepeatable()
    return np.where(y < ceiling, dy, 0).astype(dy.dtype, copy=False)


class Gradient(NamedTuple):
    """The gradient to what a ``Deferred`` stands for, and its sums for that batch norm where they are known."""

    dy: np.ndarray
    sums: Sums | None


Gradients = tuple[np.ndarray | Gradient | None, np.ndarray, Maybe, Maybe, Maybe, Maybe]


@dataclass(slots=True, eq=False)
class ConvBnSaved:
    """What ``conv_bn_backward`` needs: x, as an array or before its batch norm ``normed``, and what batch norm kept.

    y: the output, where a ReLU's ceiling is not part of the unit.
    """

    x: np.ndarray
    normed: Prologue | None
    weight: np.ndarray
    has_bias: bool
    window: Window
    groups: int
    engine: ModuleType
    norm: BatchNormSaved
    ceiling: float = math.inf
    y: np.ndarray | None = None


def conv_bn_forward(
    x: np.ndarray | Deferred,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    bn_weight: np.ndarray | None = None,
    bn_bias: np.ndarray | None = None,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    training: bool = True,
    residual: np.ndarray | None = None,
    relu: bool = False,
    ceiling: float = math.inf,
    defer: bool = False,
    gram: bool | None = None,
) -> tuple[np.ndarray | Deferred, ConvBnSaved | GramSaved]:
    """``batch_norm(conv2d(x), residual, relu)`` and what its backward pass needs: (y, saved).

    The convolution's arguments are those of ``conv2d``, the others those of ``batch_norm_forward``; training=False
    normalises with the running statistics as constants. y is channels-last, whatever the order of x. ceiling: of the
    ReLU, 6 for ReLU6. defer: return a ``Deferred`` instead, if there is no residual and the
    convolution has the channels for it. gram: take the statistics from those of x, see ``conv_gram``, where that is
    possible; None: where it is faster.
    Raises ShapeError, DtypeError, ArgumentError.
    """
    who = "conv_bn"
    normed = Prologue(x.affine, x.relu, x.ceiling) if isinstance(x, Deferred) else None
    source = x.z if isinstance(x, Deferred) else dense(x)
    sizes, shape = check_convolution(who, 2, source, weight, stride, padding, dilation, groups)
    if bias is not None or residual is not None:
        check_operands(who, source, weight, bias, residual, None, shape)
    window, groups = Window(*sizes), int(groups)
    engine = engine_for(source, weight.shape, window, groups, shape)
    if isinstance(x, Deferred) and engine in (conv_planes, conv_patches):
        source, normed = x.array(), None
    statistics = running_mean, running_var, momentum, eps
    pixels = shape[0] * shape[2] * shape[3]
    if gram is None:
        gram = conv_gram.pays(weight.shape, window, groups, pixels)
    uncut = ceiling == math.inf and (normed is None or normed.ceiling == math.inf)
    if gram and training and pixels > 1 and uncut and engine in (conv_blocks, conv_point):
        point, parameters = in_channels_last(source), (bn_weight, bn_bias)
        unit = conv_gram.forward(who, point, normed, dense_c(weight), bias, *parameters, statistics, residual, relu)
        if unit is not None:
            return unit
    z = channels_second(empty((shape[0], *shape[2:], shape[1]), source.dtype))
    sums, known = None, engine is not conv_planes and z.size > 0 and _sums_output(weight, groups)
    if engine is conv_planes and z.size:
        engine.forward(source, dense_c(weight), bias, window, groups, None, False, z)
    elif z.size:
        sums = engine.forward(
            source, dense_c(weight), bias, window, groups, None, False, z, normed or PLAIN, known and training
        )
    defer = defer and known and residual is None
    y, norm = batch_norm_summed(who, z, sums, bn_weight, bn_bias, statistics, residual, relu, training, defer)
    saved = ConvBnSaved(source, normed, weight, bias is not None, window, groups, engine, norm, ceiling)
    if defer:
        return Deferred(z, norm.stats, norm.affine, relu, ceiling), saved
    if relu and ceiling < math.inf:
        y = _cut(y, ceiling)
        saved.y = None if known and residual is None else y
    return y, saved


def in_channels_last(x: np.ndarray) -> np.ndarray:
    """A dense ``x``, copied unless it is channels-last."""
    return channels_second(dense_c(channels_last(x)))


def _sums_output(weight: np.ndarray, groups: int) -> bool:
    """Whether the convolution can sum its output: one group, or one a channel."""
    return groups == 1 or weight.shape[:2] == (groups, 1)


def conv_bn_backward(
    dy: np.ndarray | Gradient,
    saved: ConvBnSaved | GramSaved,
    *,
    need_dx: bool = True,
    residual: np.ndarray | None = None,
) -> Gradients:
    """Gradients of ``conv_bn_forward``, None where they do not apply.

    (dx, dweight, dbias, dbn_weight, dbn_bias, dresidual).
    dy may be a ``Gradient``, and dx is one if x was ``Deferred``. residual: added to dx, that of another branch.
    The bias of a convolution before batch statistics has no effect, and gradient 0.
    Raises ShapeError, DtypeError.
    """
    who = "conv_bn_backward"
    grad, sums = dy if isinstance(dy, Gradient) else (dy, None)
    if isinstance(saved, GramSaved):
        check_same_dtype(who, "dy", grad, "x", saved.x)
        check_shape(who, "dy", grad, saved.y_shape, "as the output")
        if residual is not None:
            check_shape(who, "residual", residual, saved.x.shape, "as x")
        gradients = conv_gram.backward(in_channels_last(grad), saved, need_dx, residual)
        if saved.deferred and gradients[0] is not None:
            return Gradient(gradients[0], None), *gradients[1:]
        return gradients
    norm = saved.norm
    z = norm.x
    check_same_dtype(who, "dy", grad, "x", z)
    check_shape(who, "dy", grad, z.shape, "as the output")
    if residual is not None:
        check_shape(who, "residual", residual, saved.x.shape, "as x")
    grad = in_order_of(grad, z)
    if saved.y is not None:
        grad = _passed(grad, saved.y, saved.ceiling)
    if norm.plan is None or saved.engine is conv_planes or (saved.engine is conv_patches and need_dx):
        return _backward_apart(grad, saved, need_dx, residual)
    dtype = grad.dtype if norm.weight is None else native(norm.weight)
    masked = norm.has_residual and norm.relu
    relu = relu_operand(norm.relu, saved.ceiling)
    slopes, cut, vectors = norm_parts.slopes_of(
        norm.plan, grad, z, relu, norm.signs, norm.stats, norm.affine, norm.batch_stats, masked, dtype, sums
    )
    dresidual = None
    if norm.has_residual:
        grad = dresidual = grad if cut is None else cut
    gradient = Prologue(norm.affine, norm.relu and cut is None, saved.ceiling, slopes, z)
    operands = grad, saved.x, dense_c(saved.weight), saved.window, saved.groups
    dweight, dx, dx_sums = saved.engine.backward(*operands, gradient, saved.normed, residual, need_dx)
    if dx is not None and saved.normed is not None:
        dx = Gradient(dx, dx_sums)
    dbias = None
    if saved.has_bias:
        dbias = np.zeros(vectors.shape[1:], z.dtype)
        if not norm.batch_stats:
            call(np.multiply, vectors[1], norm.affine[SCALE], dbias)
    dgamma, dbeta = None if norm.weight is None else vectors[0], vectors[1] if norm.has_bias else None
    return dx, dweight, dbias, dgamma, dbeta, dresidual


def _backward_apart(
    dy: np.ndarray, saved: ConvBnSaved, need_dx: bool, residual: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """``conv_bn_backward``, one layer after the other."""
    unrepeatable()
    if saved.ceiling < math.inf and saved.y is None:
        norm = saved.norm
        assert norm.plan is not None
        dy = _passed(dy, norm_parts.normalize(norm.plan, norm.x, norm.stats, norm.affine)[0], saved.ceiling)
    dz, dgamma, dbeta, dresidual = batch_norm_backward(dy, saved.norm)
    x, weight = saved.x, saved.weight
    dx: np.ndarray | None
    if not dz.size:
        dx, dweight = np.zeros_like(x), np.zeros_like(weight)
    else:
        dweight, dx, _ = saved.engine.backward(dz, x, dense_c(weight), saved.window, saved.groups, need_dx=need_dx)
    if dx is not None and residual is not None:
        dx += residual
    return dx, dweight, channel_sums(dz) if saved.has_bias else None, dgamma, dbeta, dresidual
