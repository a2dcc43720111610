"""ONNX models in float64: onnx's evaluator, with convolutions, pooling and batch norm of our own.

onnx's are wrong for ConvTranspose in groups and for batch norms of old opsets, and slow where a network is large.
"""

import itertools

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


def truth(model, feeds, every=False):
    """Outputs of ``model`` in float64, a list; ``every`` value by name if asked."""
    session = ReferenceEvaluator(in_float64(model), new_ops=OPERATORS)
    exact = {name: array if array.dtype.kind in "iub" else array.astype(np.float64) for name, array in feeds.items()}
    with np.errstate(all="ignore"):
        return session.run(None, exact, intermediate=every)


def in_float64(model):
    """The same model with every floating-point tensor, type and cast as float64."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for named in (*copy.opset_import, *copy.graph.node):
        named.domain = "" if named.domain == "ai.onnx" else named.domain
    _graph(copy.graph)
    for function in copy.functions:
        _nodes(function.node)
    return copy


def _graph(graph):
    for tensor in graph.initializer:
        _tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in FLOATS:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    _nodes(graph.node)


def _nodes(nodes):
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _graph(attribute.g)
            if attribute.HasField("t"):
                _tensor(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in FLOATS:
                attribute.i = TensorProto.DOUBLE
            if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                values = attribute.f if attribute.name == "value_float" else list(attribute.floats)
                attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(np.float64(values))))


def _tensor(tensor):
    if tensor.data_type in FLOATS:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


class Geometry:
    """Where the taps of a window find their inputs, along every spatial axis."""

    def __init__(self, sizes, kernel, strides, pads, dilations, auto_pad, ceil=False):
        axes = len(sizes)
        self.kernel, self.strides = tuple(kernel), tuple(strides or (1,) * axes)
        self.dilations = tuple(dilations or (1,) * axes)
        self.before, self.after, self.out = [], [], []
        for axis, (size, stride) in enumerate(zip(sizes, self.strides, strict=True)):
            reach = (self.kernel[axis] - 1) * self.dilations[axis] + 1
            first, last = (pads[axis], pads[axes + axis]) if pads else (0, 0)
            if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
                total = max((-(-size // stride) - 1) * stride + reach - size, 0)
                first = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
                last = total - first
            steps = size + first + last - reach
            out = (-(-steps // stride) if ceil else steps // stride) + 1
            if ceil and (out - 1) * stride >= size + first:
                out -= 1
            self.before.append(first)
            self.after.append(max(last, (out - 1) * stride + reach - size - first))
            self.out.append(out)

    def padded(self, x, value=0.0):
        return np.pad(x, [(0, 0), (0, 0), *zip(self.before, self.after, strict=True)], constant_values=value)

    def taps(self, padded):
        """(index in the kernel, the inputs that it meets: (N, C, *out)) for every element of the kernel."""
        for index in itertools.product(*map(range, self.kernel)):
            starts = [i * d for i, d in zip(index, self.dilations, strict=True)]
            cuts = [
                slice(start, start + (out - 1) * stride + 1, stride)
                for start, out, stride in zip(starts, self.out, self.strides, strict=True)
            ]
            yield index, padded[(..., *cuts)]


class Conv(OpRun):
    def _run(self, x, w, b=None, auto_pad=None, dilations=None, group=1, kernel_shape=None, pads=None, strides=None):
        geometry = Geometry(x.shape[2:], w.shape[2:], strides, pads, dilations, auto_pad)
        grouped = w.reshape(group, -1, *w.shape[1:])
        y = 0.0
        for index, inputs in geometry.taps(geometry.padded(x)):
            y = y + grouped[(..., *index)] @ inputs.reshape(len(x), group, w.shape[1], -1)
        y = y.reshape(len(x), len(w), *geometry.out)
        return (y if b is None else y + b.reshape(-1, *(1,) * (x.ndim - 2)),)


class ConvTranspose(OpRun):
    def _run(
        self,
        x,
        w,
        b=None,
        auto_pad=None,
        dilations=None,
        group=1,
        kernel_shape=None,
        output_padding=None,
        output_shape=None,
        pads=None,
        strides=None,
    ):
        axes = x.ndim - 2
        strides, dilations, extra = strides or [1] * axes, dilations or [1] * axes, output_padding or [0] * axes
        grouped = w.reshape(group, -1, *w.shape[1:])
        inputs = x.reshape(len(x), group, grouped.shape[1], -1)
        spans = zip(x.shape[2:], strides, dilations, w.shape[2:], extra, strict=True)
        full = [(size - 1) * stride + (taps - 1) * dilation + 1 + more for size, stride, dilation, taps, more in spans]
        y = np.zeros((len(x), group * w.shape[1], *full))
        for index in itertools.product(*map(range, w.shape[2:])):
            starts = [i * d for i, d in zip(index, dilations, strict=True)]
            cuts = [
                slice(start, start + (size - 1) * stride + 1, stride)
                for start, size, stride in zip(starts, x.shape[2:], strides, strict=True)
            ]
            made = np.swapaxes(grouped[(..., *index)], 1, 2) @ inputs
            y[(..., *cuts)] += made.reshape(*y.shape[:2], *x.shape[2:])
        before, after = self._pads(x, strides, full, pads, auto_pad, output_shape)
        y = y[(..., *(slice(first, size - last) for first, size, last in zip(before, full, after, strict=True)))]
        return (y if b is None else y + b.reshape(-1, *(1,) * axes),)

    @staticmethod
    def _pads(x, strides, full, pads, auto_pad, output_shape):
        axes = x.ndim - 2
        if output_shape is None and auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
            return (pads[:axes], pads[axes:]) if pads else ([0] * axes, [0] * axes)
        wanted = output_shape or [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
        totals = [max(size - want, 0) for size, want in zip(full, wanted, strict=True)]
        before = [total // 2 if auto_pad == "SAME_UPPER" else total - total // 2 for total in totals]
        return before, [total - first for total, first in zip(totals, before, strict=True)]


class MaxPool(OpRun):
    """Without the indices."""

    def _run(
        self,
        x,
        auto_pad=None,
        ceil_mode=0,
        dilations=None,
        kernel_shape=None,
        pads=None,
        storage_order=0,
        strides=None,
    ):
        geometry = Geometry(x.shape[2:], kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
        y = -np.inf
        for _, inputs in geometry.taps(geometry.padded(x, -np.inf)):
            y = np.maximum(y, inputs)
        return (y,)


class AveragePool(OpRun):
    def _run(
        self,
        x,
        auto_pad=None,
        ceil_mode=0,
        count_include_pad=0,
        dilations=None,
        kernel_shape=None,
        pads=None,
        strides=None,
    ):
        geometry = Geometry(x.shape[2:], kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
        counted = geometry.padded(np.ones((1, 1, *x.shape[2:])))
        if count_include_pad:
            axes = len(geometry.out)
            # What ceil_mode reaches beyond the padding is not counted.
            ends = pads[axes:] if pads else [0] * axes
            ends = geometry.after if auto_pad in ("SAME_UPPER", "SAME_LOWER") else ends
            inside = zip(x.shape[2:], geometry.before, ends, strict=True)
            counted[(..., *(slice(size + first + last) for size, first, last in inside))] = 1
        y = sum(inputs for _, inputs in geometry.taps(geometry.padded(x)))
        return (y / sum(inputs for _, inputs in geometry.taps(counted)),)


class BatchNormalization(OpRun):
    """Of every opset; in training mode the output is normalised by the batch and the others are running averages."""

    def _run(
        self,
        x,
        scale,
        bias,
        mean,
        var,
        epsilon=1e-5,
        momentum=0.9,
        training_mode=0,
        is_test=0,
        spatial=1,
        consumed_inputs=None,
    ):
        column = (-1, *(1,) * (x.ndim - 2)) if spatial is None or spatial else x.shape[1:]
        opset = self.run_params["opsets"][""]
        training = training_mode or (opset < 7 and not is_test) or (opset < 14 and sum(map(bool, self.output)) > 1)
        running = ()
        if training:
            axes = (0, *range(2, x.ndim))
            batch = x.mean(axes), x.var(axes)
            running = tuple(momentum * old + (1 - momentum) * new for old, new in zip((mean, var), batch, strict=True))
            mean, var = batch
        y = (x - mean.reshape(column)) / np.sqrt(var.reshape(column) + epsilon)
        return (y * scale.reshape(column) + bias.reshape(column), *running)


OPERATORS = [Conv, ConvTranspose, MaxPool, AveragePool, BatchNormalization]
