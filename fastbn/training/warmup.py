"""Kernels compiled ahead of the first call."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from fastbn import functional as F
from fastbn._threads import MIN_PARALLEL_WORK, both_versions, get_num_threads
from fastbn.functional.samples import samples
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter
from fastbn.optim import SGD, Adam, RMSprop, clip_grad_norm_

IMAGE = (2, 3, 4, 4)
SHORT_ROWS = (8, 3, 4)
MANY_ROWS = (512, 3)


def warmup(model: Module | None = None, input_shape: tuple[int, ...] | None = None, *, training: bool = True) -> None:
    """Compile, or load from the cache, what ``model`` needs for ``input_shape``.

    Without a model: what the doors of ``fastbn.functional`` need for float32 in C order; not the units of ``fuse``, nor
    convolutions of channels-last images, whose kernels depend on their shapes.
    training: also what the backward pass needs. The model is left as it is.
    """
    if model is None or input_shape is None:
        with both_versions():
            _all_doors()
        return
    probe = copy.deepcopy(model)
    x = np.zeros((max(2, input_shape[0]), *input_shape[1:]), probe.dtype)
    probe.eval()(x)
    if training:
        probe.train()
        probe.backward(probe(x))


def _all_doors() -> None:
    image = np.zeros(IMAGE, np.float32)
    matrix = np.zeros((4, 3), np.float32)
    few_channels = get_num_threads() + 1
    few = np.zeros((1, few_channels, MIN_PARALLEL_WORK // few_channels + 1), np.float32)
    for x in (image, matrix, np.zeros(SHORT_ROWS, np.float32), np.zeros(MANY_ROWS, np.float32), few):
        vector = np.ones(x.shape[1], np.float32)
        for residual, relu in ((None, False), (None, True), (x, True)):  # each has versions of its own
            mean, var = vector.copy(), vector.copy()
            y, saved = F.batch_norm_forward(
                x, vector, vector, running_mean=mean, running_var=var, residual=residual, relu=relu
            )
            F.batch_norm_backward(y, saved)
            F.batch_norm(x, vector, vector, vector, vector, residual=residual, relu=relu)
            F.batch_norm_forward(
                x, vector, vector, running_mean=mean, running_var=var, residual=residual, relu=relu, training=False
            )
        F.batch_renorm(x, mean, var, vector, vector, training=True)
    for x in (image, matrix):
        y, kept = F.masked_batch_norm_forward(x, np.ones((len(x), *x.shape[2:]), bool))
        F.masked_batch_norm_backward(y, kept)
    _row_norms(image)
    for images, channels in (32, 3), (2, 3), (2, 16):
        pixels = np.zeros((images, channels, 4, 4), np.float32)
        kernel = np.zeros((channels, channels, 1, 1), np.float32)
        F.conv2d_backward(F.conv2d(pixels, kernel), pixels, kernel)
        F.conv2d(pixels, kernel, np.zeros(channels, np.float32))
        F.conv2d(pixels, kernel, residual=pixels)  # as conv3d adds up
    each = np.zeros((16, 1, 1, 1), np.float32)
    F.conv2d_backward(F.conv2d(pixels, each, groups=16), pixels, each, groups=16)
    weight = np.zeros((3, 3), np.float32)
    F.linear_backward(F.linear(matrix, weight), matrix, weight)
    few, large = np.zeros((4, 2048), np.float32), np.zeros((300, 2048), np.float32)
    F.linear_backward(F.linear(few, large), few, large)
    F.weight_norm_backward(F.weight_norm(weight, weight[:, :1]), weight, weight[:, :1])
    y, indices = F.max_pool2d_forward(image, 2)
    F.max_pool2d_backward(y, indices, image.shape)
    F.avg_pool2d_backward(F.avg_pool2d(image, 2), image, 2)
    activations: tuple[tuple[Callable[..., Any], Callable[..., Any]], ...] = (
        (F.relu, F.relu_backward),
        (F.relu6, F.relu6_backward),
        (F.sigmoid, F.sigmoid_backward),
    )
    for forward, backward in activations:
        backward(matrix, forward(matrix))
    targets = np.zeros(4, np.int64)
    _, rows = F.cross_entropy_forward(matrix, targets)
    F.cross_entropy_backward(matrix, targets, rows)
    samples(matrix, targets)
    parameter = Parameter(matrix)
    parameter.accumulate(matrix)
    for kind in (SGD, RMSprop, Adam):
        kind([parameter], lr=0.0).step()
    clip_grad_norm_(parameter, 0.0)


def _row_norms(image: np.ndarray) -> None:
    """Layer norm and RMS norm; group norm and instance norm in both memory orders."""
    y, layer = F.layer_norm_forward(image, image.shape[-1])
    F.layer_norm_backward(y, layer)
    for x in (image, np.zeros((2, 4, 4, 3), np.float32).transpose(0, 3, 1, 2)):
        y, group = F.group_norm_forward(x, x.shape[1])
        F.group_norm_backward(y, group)
