"""Every sentence of the functional doors says who, what, wanted and got; so does every other raise in the library."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

import fastbn.functional as F
from fastbn import errors
from fastbn.errors import ArgumentError, DtypeError, ShapeError
from fastbn.functional.fold import fold_scalar_weights

ROOT = Path(__file__).parents[1]

X = np.ones((2, 3, 4, 4))
V = np.ones(3)
W = np.ones((4, 3, 3, 3))
M = np.ones((5, 3))
ZEROS = np.zeros(5, int)
READ_ONLY = np.broadcast_to(0.0, (3,))
HALF = "float16; cast it with astype"
ARRAY = "a NumPy array, got list; use numpy.asarray"


def norm(x=X, **options):
    return lambda: F.batch_norm(x, **{"training": True} | options)


def norm_backward(dy, **options):
    return lambda: F.batch_norm_backward(dy, F.batch_norm_forward(X)[1], **options)


def conv(x=X, w=W, **options):
    return lambda: F.conv2d(x, w, **options)


def conv_backward(dy, **options):
    return lambda: F.conv2d_backward(dy, X, W, **options)


def pool(x=X, kernel=2, **options):
    return lambda: F.max_pool2d(x, kernel, **options)


def average(x=X, kernel=2, **options):
    return lambda: F.avg_pool2d(x, kernel, **options)


def fold(w=W[:3], b=None, mean=V, var=V, eps=1e-5, gamma=None, beta=None, **options):
    return lambda: F.fold_conv_bn_weights(w, b, mean, var, eps, gamma, beta, **options)


def fold_linear(w=W[:3, :, 0, 0], b=None, mean=V, var=V, eps=1e-5, gamma=None, beta=None):
    return lambda: F.fold_linear_bn_weights(w, b, mean, var, eps, gamma, beta)


def fold_scalar(weight=W[:3], bias=None, scale=None, shift=None):
    return lambda: fold_scalar_weights(weight, bias, scale, shift)


def spectral(weight=M, u=None, v=None, **options):
    return lambda: F.spectral_norm(weight, np.ones(5) if u is None else u, np.ones(3) if v is None else v, **options)


def loss(logits=M, targets=ZEROS):
    return lambda: F.cross_entropy(logits, targets)


def half(array):
    return array.astype(np.float16)


def single(array):
    return array.astype(np.float32)


# fmt: off
SENTENCES = [
    # batch_norm
    (norm([[1.0]]), DtypeError, f"batch_norm: x must be {ARRAY}"),
    (norm(np.ones((2, 3), int)), DtypeError,
     "batch_norm: x must be float32, float64, float16 or bfloat16, got int64; cast it with astype"),
    (norm(V), ShapeError, "batch_norm: x must have 2 or 3 or 4 or 5 axes (N, C, *spatial), got shape (3,)"),
    (norm(np.ones((1,) * 6)), ShapeError,
     "batch_norm: x must have 2 or 3 or 4 or 5 axes (N, C, *spatial), got shape (1, 1, 1, 1, 1, 1)"),
    (norm(X[:1, :, :1, :1]), ShapeError,
     "batch_norm: x must have more than 1 value per channel when training, got input size (1, 3, 1, 1)"),
    *((norm(**{name: [1.0]}), DtypeError, f"batch_norm: {name} must be {ARRAY}") for name in ("weight", "bias")),
    *((norm(**{name: half(V)}), DtypeError, f"batch_norm: {name} must be float32 or float64, got {HALF}")
      for name in ("weight", "bias")),
    *((norm(**{name: np.ones(4)}), ShapeError,
       f"batch_norm: {name} must have shape (3,), one entry per channel, got (4,)") for name in ("weight", "bias")),
    *((norm(**{"running_mean": V, "running_var": V, name: np.ones((3, 1))}), ShapeError,
       f"batch_norm: {name} must have shape (3,), one entry per channel, got (3, 1)")
      for name in ("running_mean", "running_var")),
    *((norm(**{name: V}), ArgumentError,
       f"batch_norm: running_mean and running_var must be given together, got {name} only")
      for name in ("running_mean", "running_var")),
    (norm(training=False), ArgumentError,
     "batch_norm: running_mean must be given when training is False, got None"),
    (norm(running_mean=V, running_var=-V), ArgumentError,
     "batch_norm: running_var must not be negative, got -1.0 in channel 0"),
    (norm(running_mean=READ_ONLY, running_var=V.copy()), ArgumentError,
     "batch_norm: running_mean must be writable, got a read-only array; pass a copy"),
    (norm(running_mean=V.copy(), running_var=READ_ONLY), ArgumentError,
     "batch_norm: running_var must be writable, got a read-only array; pass a copy"),
    (norm(momentum=None), DtypeError, "batch_norm: momentum must be a number, got NoneType"),
    (norm(momentum=1.5), ArgumentError, "batch_norm: momentum must be from 0 to 1, got 1.5"),
    (norm(momentum=-0.1), ArgumentError, "batch_norm: momentum must be from 0 to 1, got -0.1"),
    (norm(eps=-1e-5), ArgumentError, "batch_norm: eps must be at least 0, got -1e-05"),
    (norm(eps=np.nan), ArgumentError, "batch_norm: eps must be at least 0, got nan"),
    (norm(eps=True), DtypeError, "batch_norm: eps must be a number, got bool"),
    (norm(residual=single(X)), DtypeError, "batch_norm: residual must be float64 as x is, got float32"),
    (norm(residual=X[:1]), ShapeError, "batch_norm: residual must have shape (2, 3, 4, 4), got (1, 3, 4, 4)"),
    (norm(out=[0.0]), DtypeError, f"batch_norm: out must be {ARRAY}"),
    (norm(out=single(X)), DtypeError, "batch_norm: out must be float64 as x is, got float32"),
    (norm(out=np.ones((2, 3, 4, 5))), ShapeError,
     "batch_norm: out must have shape (2, 3, 4, 4), got (2, 3, 4, 5)"),
    (norm(out=np.broadcast_to(0.0, X.shape)), ArgumentError,
     "batch_norm: out must be writable, got a read-only array; pass a copy"),
    (norm(out=np.ones((2, 4, 4, 3)).transpose(0, 3, 1, 2)), ArgumentError,
     "batch_norm: out must be dense in the memory order of x, got strides (384, 8, 96, 24)"),
    (lambda: F.batch_norm_forward(V), ShapeError,
     "batch_norm_forward: x must have 2 or 3 or 4 or 5 axes (N, C, *spatial), got shape (3,)"),
    # batch_norm_backward
    (norm_backward([1.0]), DtypeError, f"batch_norm_backward: dy must be {ARRAY}"),
    (norm_backward(single(X)), DtypeError,
     "batch_norm_backward: dy must be float64 as x is, got float32"),
    (norm_backward(X[:1]), ShapeError,
     "batch_norm_backward: dy must have shape (2, 3, 4, 4), got (1, 3, 4, 4)"),
    (norm_backward(X, out=X[:1].copy()), ShapeError,
     "batch_norm_backward: out must have shape (2, 3, 4, 4), got (1, 3, 4, 4)"),
    # conv2d
    (conv([1.0]), DtypeError, f"conv2d: x must be {ARRAY}"),
    (conv(half(X)), DtypeError, f"conv2d: x must be float32 or float64, got {HALF}"),
    (conv(X[0]), ShapeError, "conv2d: x must have 4 axes (N, C, H, W), got shape (3, 4, 4)"),
    (conv(w=single(W)), DtypeError, "conv2d: weight must be float64 as x is, got float32"),
    (conv(w=W[0]), ShapeError,
     "conv2d: weight must have 4 axes (C_out, C_in / groups, kh, kw), got shape (3, 3, 3)"),
    (conv(w=W[:, :2]), ShapeError,
     "conv2d: weight must have shape (a multiple of 1, 3 / 1, kh, kw) for x of shape (2, 3, 4, 4) and groups 1, "
     "got (4, 2, 3, 3)"),
    (conv(w=W[:, :1], groups=3), ShapeError,
     "conv2d: weight must have shape (a multiple of 3, 3 / 3, kh, kw) for x of shape (2, 3, 4, 4) and groups 3, "
     "got (4, 1, 3, 3)"),
    (conv(w=W[:, :, :0]), ShapeError, "conv2d: weight must not be empty, got shape (4, 3, 0, 3)"),
    (conv(bias=single(np.ones(4))), DtypeError, "conv2d: bias must be float64 as x is, got float32"),
    (conv(bias=V), ShapeError, "conv2d: bias must have shape (4,), one entry per channel, got (3,)"),
    (conv(groups=0), ArgumentError, "conv2d: groups must be at least 1, got 0"),
    (conv(groups=1.0), DtypeError, "conv2d: groups must be an integer, got float"),
    (conv(stride=0), ArgumentError, "conv2d: stride must be at least 1, got 0"),
    (conv(stride=(1, 2, 3)), ArgumentError,
     "conv2d: stride must be an integer or a pair of them, got (1, 2, 3)"),
    (conv(stride=1.5), DtypeError, "conv2d: stride must be an integer, got float"),
    (conv(dilation=(1, 0)), ArgumentError, "conv2d: dilation must be at least 1, got 0"),
    (conv(padding=-1), ArgumentError, "conv2d: padding must be at least 0, got -1"),
    (conv(padding=(1, True)), DtypeError, "conv2d: padding must be an integer, got bool"),
    (conv(padding="full"), ArgumentError,
     "conv2d: padding must be an integer, a pair, 'valid' or 'same', got 'full'"),
    (conv(padding="same", stride=2), ArgumentError,
     "conv2d: padding 'same' must come with stride 1 and odd kernels, got stride (2, 2), kernel (3, 3)"),
    (conv(w=W[:, :, :2], padding="same"), ArgumentError,
     "conv2d: padding 'same' must come with stride 1 and odd kernels, got stride (1, 1), kernel (2, 3)"),
    (conv(X[:, :, :2]), ShapeError,
     "conv2d: x must be at least as large as the dilated kernel less the padding, got (2, 4) for a kernel of (3, 3)"),
    (conv(residual=single(X)), DtypeError, "conv2d: residual must be float64 as x is, got float32"),
    (conv(residual=X), ShapeError,
     "conv2d: residual must have shape (2, 4, 2, 2), as the output, got (2, 3, 4, 4)"),
    (conv(out=X), ShapeError, "conv2d: out must have shape (2, 4, 2, 2), got (2, 3, 4, 4)"),
    (conv(w=np.ones((3, 3, 1, 1)), out=X), ArgumentError, "conv2d: out must be apart from x, got an overlap"),
    # conv2d_backward
    (conv_backward(single(np.ones((2, 4, 2, 2)))), DtypeError,
     "conv2d_backward: dy must be float64 as x is, got float32"),
    (conv_backward(X), ShapeError,
     "conv2d_backward: dy must have shape (2, 4, 2, 2), as the output, got (2, 3, 4, 4)"),
    (conv_backward(X, stride=-1), ArgumentError, "conv2d_backward: stride must be at least 1, got -1"),
    # conv1d, conv3d
    (lambda: F.conv1d([1.0], W), DtypeError, f"conv1d: x must be {ARRAY}"),
    (lambda: F.conv1d(X, W), ShapeError, "conv1d: x must have 3 axes (N, C, L), got shape (2, 3, 4, 4)"),
    (lambda: F.conv1d(X[0], W), ShapeError,
     "conv1d: weight must have 3 axes (C_out, C_in / groups, k), got shape (4, 3, 3, 3)"),
    (lambda: F.conv1d(X[0], np.ones((3, 4, 3)), stride=(1, 2)), ArgumentError,
     "conv1d: stride must be an integer or a tuple of one, got (1, 2)"),
    (lambda: F.conv1d(X[0], np.ones((3, 4, 4)), padding="full"), ArgumentError,
     "conv1d: padding must be an integer, a tuple of one, 'valid' or 'same', got 'full'"),
    (lambda: F.conv1d(X[0], np.ones((3, 4, 4)), residual=X), ShapeError,
     "conv1d: residual must have shape (3, 3, 1), as the output, got (2, 3, 4, 4)"),
    (lambda: F.conv1d_backward(X[0], X[0], np.ones((3, 4, 4))), ShapeError,
     "conv1d_backward: dy must have shape (3, 3, 1), as the output, got (3, 4, 4)"),
    (lambda: F.conv3d(X, W), ShapeError, "conv3d: x must have 5 axes (N, C, D, H, W), got shape (2, 3, 4, 4)"),
    (lambda: F.conv3d(X[None], W), ShapeError,
     "conv3d: weight must have 5 axes (C_out, C_in / groups, kd, kh, kw), got shape (4, 3, 3, 3)"),
    (lambda: F.conv3d(X[None], W[None]), ShapeError,
     "conv3d: weight must have shape (a multiple of 1, 2 / 1, kd, kh, kw) for x of shape (1, 2, 3, 4, 4) and groups 1, "
     "got (1, 4, 3, 3, 3)"),
    (lambda: F.conv3d(X[None], W[None, :2], dilation=(1, 1)), ArgumentError,
     "conv3d: dilation must be an integer or a triple of them, got (1, 1)"),
    (lambda: F.conv3d(X[None], W[None, :2], dilation=2), ShapeError,
     "conv3d: x must be at least as large as the dilated kernel less the padding, got (3, 4, 4) for a kernel of "
     "(3, 3, 3)"),
    (lambda: F.conv3d(X[None], W[None, :2], bias=V), ShapeError,
     "conv3d: bias must have shape (1,), one entry per channel, got (3,)"),
    (lambda: F.conv3d_backward(X, X[None], W[None, :2]), ShapeError,
     "conv3d_backward: dy must have shape (1, 1, 1, 2, 2), as the output, got (2, 3, 4, 4)"),
    # linear
    (lambda: F.linear([1.0], M), DtypeError, f"linear: x must be {ARRAY}"),
    (lambda: F.linear(half(M), M), DtypeError, f"linear: x must be float32 or float64, got {HALF}"),
    (lambda: F.linear(M, single(M)), DtypeError, "linear: weight must be float64 as x is, got float32"),
    (lambda: F.linear(M, V), ShapeError, "linear: weight must have 2 axes (out, in), got shape (3,)"),
    (lambda: F.linear(M[:, :2], M), ShapeError, "linear: x must have shape (*, 3) to fit weight, got (5, 2)"),
    (lambda: F.linear(np.array(1.0), M), ShapeError, "linear: x must have shape (*, 3) to fit weight, got ()"),
    (lambda: F.linear(M, M, single(np.ones(5))), DtypeError, "linear: bias must be float64 as x is, got float32"),
    (lambda: F.linear(M, M, V), ShapeError, "linear: bias must have shape (5,), one entry per channel, got (3,)"),
    (lambda: F.linear(M, M, out=M), ShapeError, "linear: out must have shape (5, 5), got (5, 3)"),
    (lambda: F.linear_backward(single(M), M, M), DtypeError,
     "linear_backward: dy must be float64 as x is, got float32"),
    (lambda: F.linear_backward(M, M, M), ShapeError, "linear_backward: dy must have shape (5, 5), got (5, 3)"),
    # pooling
    (pool([1.0]), DtypeError, f"max_pool2d: x must be {ARRAY}"),
    (pool(X[0]), ShapeError, "max_pool2d: x must have 4 axes (N, C, H, W), got shape (3, 4, 4)"),
    (pool(kernel=0), ArgumentError, "max_pool2d: kernel_size must be at least 1, got 0"),
    (pool(stride=(1, 0)), ArgumentError, "max_pool2d: stride must be at least 1, got 0"),
    (pool(dilation=0), ArgumentError, "max_pool2d: dilation must be at least 1, got 0"),
    (pool(padding=-1), ArgumentError, "max_pool2d: padding must be at least 0, got -1"),
    (pool(kernel=3, padding=2), ArgumentError,
     "max_pool2d: padding must be at most half of kernel_size (3, 3), got (2, 2)"),
    (pool(kernel=5), ShapeError, "max_pool2d: x must be at least as large as the window (5, 5), got (4, 4)"),
    (average([1.0]), DtypeError, f"avg_pool2d: x must be {ARRAY}"),
    (average(X[0]), ShapeError, "avg_pool2d: x must have 4 axes (N, C, H, W), got shape (3, 4, 4)"),
    (average(kernel=5), ShapeError, "avg_pool2d: x must be at least as large as the window (5, 5), got (4, 4)"),
    (lambda: F.max_pool2d_backward([1.0], np.zeros((1,) * 4, np.int32), (1, 1, 2, 2)), DtypeError,
     f"max_pool2d_backward: dy must be {ARRAY}"),
    (lambda: F.max_pool2d_backward(X, np.zeros((1,) * 4, np.int32), (1, 1, 2, 2)), ShapeError,
     "max_pool2d_backward: dy must have shape (1, 1, 1, 1), as the output, got (2, 3, 4, 4)"),
    (lambda: F.avg_pool2d_backward(X, X, 2), ShapeError,
     "avg_pool2d_backward: dy must have shape (2, 3, 2, 2), as the output, got (2, 3, 4, 4)"),
    (lambda: F.avg_pool2d_backward(single(X), X, 2), DtypeError,
     "avg_pool2d_backward: dy must be float64 as x is, got float32"),
    # activations
    (lambda: F.relu([1.0]), DtypeError, f"relu: x must be {ARRAY}"),
    (lambda: F.relu6([1.0]), DtypeError, f"relu6: x must be {ARRAY}"),
    (lambda: F.relu6(half(X)), DtypeError, f"relu6: x must be float32 or float64, got {HALF}"),
    (lambda: F.relu6_backward(single(X), X), DtypeError, "relu6_backward: dy must be float64 as y is, got float32"),
    (lambda: F.relu6_backward(X[:1], X), ShapeError,
     "relu6_backward: dy must have shape (2, 3, 4, 4), as y, got (1, 3, 4, 4)"),
    (lambda: F.sigmoid(half(X)), DtypeError, f"sigmoid: x must be float32 or float64, got {HALF}"),
    (lambda: F.relu_backward(X, [1.0]), DtypeError, f"relu_backward: y must be {ARRAY}"),
    (lambda: F.relu_backward(single(X), X), DtypeError, "relu_backward: dy must be float64 as y is, got float32"),
    (lambda: F.sigmoid_backward(X[:1], X), ShapeError,
     "sigmoid_backward: dy must have shape (2, 3, 4, 4), as y, got (1, 3, 4, 4)"),
    # cross_entropy
    (loss([[1.0]]), DtypeError, f"cross_entropy: logits must be {ARRAY}"),
    (loss(V), ShapeError, "cross_entropy: logits must have 2 axes (N, classes), got shape (3,)"),
    (loss(M[:0], np.zeros(0, int)), ShapeError,
     "cross_entropy: logits must hold at least one row and class, got shape (0, 3)"),
    (loss(targets=[0]), DtypeError, "cross_entropy: targets must be a NumPy array of integers, got list"),
    (loss(targets=np.zeros(5)), DtypeError, "cross_entropy: targets must be a NumPy array of integers, got float64"),
    (loss(targets=np.zeros(4, int)), ShapeError,
     "cross_entropy: targets must have shape (5,), one class per row, got (4,)"),
    (loss(targets=np.array([0, 1, 3, 2, 0])), ArgumentError,
     "cross_entropy: targets must lie in [0, 3), got values from 0 to 3"),
    (loss(targets=np.array([0, 1, -1, 2, 0])), ArgumentError,
     "cross_entropy: targets must lie in [0, 3), got values from -1 to 2"),
    (lambda: F.cross_entropy_backward(M, np.zeros(4, int), np.zeros(5)), ShapeError,
     "cross_entropy_backward: targets must have shape (5,), one class per row, got (4,)"),
    # folding
    (fold([1.0]), DtypeError, f"fold_conv_bn_weights: conv_w must be {ARRAY}"),
    (fold(M), ShapeError,
     "fold_conv_bn_weights: conv_w must have at least 3 axes (out, in, *kernel), got shape (5, 3)"),
    (fold(groups=0), ArgumentError, "fold_conv_bn_weights: groups must be at least 1, got 0"),
    (fold(groups=2), ShapeError,
     "fold_conv_bn_weights: conv_w must have a multiple of 2 groups first, got shape (3, 3, 3, 3)"),
    (fold(b=np.ones(2)), ShapeError,
     "fold_conv_bn_weights: conv_b must have shape (3,), one entry per channel, got (2,)"),
    (fold(mean=np.ones(9)), ShapeError,
     r"fold_conv_bn_weights: bn_rm must have shape (3,), one entry per channel, got (9,)"),
    (fold(var=np.ones(9)), ShapeError,
     r"fold_conv_bn_weights: bn_rv must have shape (3,), one entry per channel, got (9,)"),
    (fold(mean=None, var=None), ArgumentError,
     "fold_conv_bn_weights: bn_rm and bn_rv must be running statistics, got None"),
    (fold(gamma=np.ones(2)), ShapeError,
     "fold_conv_bn_weights: bn_w must have shape (3,), one entry per channel, got (2,)"),
    (fold(beta=np.ones(2)), ShapeError,
     "fold_conv_bn_weights: bn_b must have shape (3,), one entry per channel, got (2,)"),
    (fold(eps=-1.0), ArgumentError, "fold_conv_bn_weights: bn_eps must be at least 0, got -1.0"),
    (fold(eps="1"), DtypeError, "fold_conv_bn_weights: bn_eps must be a number, got str"),
    (fold(var=0 * V, eps=0), ArgumentError,
     "fold_conv_bn_weights: bn_rv + bn_eps must be positive, got 0.0 in channel 0"),
    (fold(single(W[:3]) * np.float32(1e38), gamma=100 * V), ArgumentError,
     "fold_conv_bn_weights: folded weights must be finite in float32, got inf"),
    (fold_linear([1.0]), DtypeError, f"fold_linear_bn_weights: linear_w must be {ARRAY}"),
    (fold_linear(X), ShapeError,
     "fold_linear_bn_weights: linear_w must have 2 axes (out, in), got shape (2, 3, 4, 4)"),
    (fold_linear(b=np.ones(2)), ShapeError,
     "fold_linear_bn_weights: linear_b must have shape (3,), one entry per channel, got (2,)"),
    (fold_scalar([1.0]), DtypeError, f"fold_scalar_weights: weight must be {ARRAY}"),
    (fold_scalar(bias=np.ones(2)), ShapeError,
     "fold_scalar_weights: bias must have shape (3,), one entry per channel, got (2,)"),
    *((fold_scalar(**{name: V}), ShapeError,
       f"fold_scalar_weights: {name} must have shape (1,), one entry per channel, got (3,)")
      for name in ("scale", "shift")),
    # norms of weights
    (lambda: F.weight_norm([1.0], V), DtypeError, f"weight_norm: v must be {ARRAY}"),
    (lambda: F.weight_norm(M, single(M[:, :1])), DtypeError, "weight_norm: g must be float64 as v is, got float32"),
    (lambda: F.weight_norm(M, M), ShapeError,
     "weight_norm: g must have shape (5, 1), v's with 1 for every axis but dim, got (5, 3)"),
    (lambda: F.weight_norm(M, M, 2), ArgumentError,
     "weight_norm: dim must be from 0 to 1, or None for the whole, got 2"),
    (lambda: F.weight_norm(M, M, 0.0), DtypeError, "weight_norm: dim must be an integer or None, got float"),
    (lambda: F.weight_norm(M, M[:, :1], out=V), ShapeError, "weight_norm: out must have shape (5, 3), got (3,)"),
    (lambda: F.weight_norm_backward(V, M, M[:, :1]), ShapeError,
     "weight_norm_backward: dw must have shape (5, 3), as v, got (3,)"),
    (lambda: F.weight_norm_backward(single(M), M, M[:, :1]), DtypeError,
     "weight_norm_backward: dw must be float64 as v is, got float32"),
    (lambda: F.norm_except_dim(np.ones(())), ShapeError, "norm_except_dim: v must have at least 1 axis, got shape ()"),
    (spectral(V), ShapeError, "spectral_norm: weight must have at least 2 axes, got shape (3,)"),
    (spectral(half(M)), DtypeError, f"spectral_norm: weight must be float32 or float64, got {HALF}"),
    (spectral(dim=-1), ArgumentError, "spectral_norm: dim must be from 0 to 1, got -1"),
    (spectral(dim=None), DtypeError, "spectral_norm: dim must be an integer, got NoneType"),
    (spectral(u=V), ShapeError, "spectral_norm: u must have shape (5,), got (3,)"),
    (spectral(v=np.ones(5)), ShapeError, "spectral_norm: v must have shape (3,), got (5,)"),
    (spectral(v=READ_ONLY), ArgumentError,
     "spectral_norm: v must be writable, got a read-only array; pass a copy"),
    (spectral(n_power_iterations=-1), ArgumentError, "spectral_norm: n_power_iterations must be at least 0, got -1"),
    (spectral(eps=-1.0), ArgumentError, "spectral_norm: eps must be at least 0, got -1.0"),
    (lambda: F.spectral_norm_backward(V, F.spectral_norm(M, np.ones(5), V.copy())[1]), ShapeError,
     "spectral_norm_backward: dw must have shape (5, 3), as w, got (3,)"),
    (lambda: F.spectral_norm_backward(single(M), F.spectral_norm(M, np.ones(5), V.copy())[1]), DtypeError,
     "spectral_norm_backward: dw must be float64 as w is, got float32"),
    # scalar_affine
    (lambda: F.scalar_affine(V, V), ShapeError,
     "scalar_affine: x must have 2 or 3 or 4 or 5 axes (N, C, *spatial), got shape (3,)"),
    (lambda: F.scalar_affine([1.0]), DtypeError, f"scalar_affine: x must be {ARRAY}"),
    (lambda: F.scalar_affine(M, V), ShapeError, "scalar_affine: weight must have shape (1,), got (3,)"),
    (lambda: F.scalar_affine_forward(M, None, half(V[:1])), DtypeError,
     f"scalar_affine_forward: bias must be float32 or float64, got {HALF}"),
    (lambda: F.scalar_affine(M, single(V[:1]), V[:1]), DtypeError,
     "scalar_affine: weight must be float64 as bias is, got float32"),
    (lambda: F.scalar_affine_backward([1.0], None), DtypeError, f"scalar_affine_backward: dy must be {ARRAY}"),
]
# fmt: on


@pytest.mark.parametrize(("call", "kind", "sentence"), SENTENCES, ids=[sentence for *_, sentence in SENTENCES])
def test_sentence(call, kind, sentence):
    with pytest.raises(kind, match=f"^{re.escape(sentence)}$"):
        call()


def test_errors_are_also_what_callers_expect():
    kinds = {"ShapeError": ValueError, "DtypeError": TypeError, "StateError": RuntimeError}
    kinds |= {"ModelError": ValueError, "ArgumentError": ValueError}
    for name, kind in kinds.items():
        assert issubclass(getattr(errors, name), errors.FastbnError)
        assert issubclass(getattr(errors, name), kind)


def adds_to(call, cause):
    """Whether ``raise X(f"where: {error}") from error`` only says where an inner sentence comes from."""
    last = call.args[0].values[-1] if call.args and isinstance(call.args[0], ast.JoinedStr) else None
    return cause is not None and isinstance(last, ast.FormattedValue) and ast.dump(last.value) == ast.dump(cause)


def raises():
    """Every ``raise SomeFastbnError(...)`` in the library: its place and the call."""
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    for path in sorted(path for folder in ("fastbn", "export") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                function = node.exc.func
                name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
                if name in kinds and not adds_to(node.exc, node.cause):
                    yield pytest.param(node.exc, id=f"{path.relative_to(ROOT)}:{node.lineno}")


@pytest.mark.parametrize("call", list(raises()))
def test_every_raise_is_one_sentence(call):
    assert len(call.args) == 1
    assert not call.keywords
    (sentence,) = call.args
    assert isinstance(sentence, (ast.Constant, ast.JoinedStr))
    words = "".join(
        str(part.value) for part in ast.walk(sentence) if isinstance(part, ast.Constant) and isinstance(part.value, str)
    )
    assert re.search(r"\bmust\b", words)
    assert re.search(r"\bgot\b", words)
