"""Operators that onnx's reference evaluator computes wrongly or slowly, again: from the ONNX operator specification.

``onnx.reference`` is wrong for ConvTranspose with groups, LRN, Softmax before opset 13, BatchNormalization of opsets 9
to 13 and every operator with ``broadcast`` before opset 7; its Conv and its pools take minutes for an image; it has no
DequantizeLinear before opset 19.
float16 and bfloat16 are computed in float32 and rounded once.
"""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from onnx.reference.op_run import OpRun
from onnx.reference.ops._op_list import load_op

from export.proof.windows import average_pool, convolve, convolve_transpose, max_pool


def _opset(operator: OpRun) -> int:
    return operator.run_params["opsets"].get("", 1)


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


class Conv(OpRun):
    """Convolution over any number of axes."""

    op_domain = ""

    def _run(self, x: np.ndarray, w: np.ndarray, b: Any = None, group: int = 1, **window: Any) -> tuple[np.ndarray]:
        y = convolve(_wide(x), _wide(w), group, **window)
        return ((y if b is None else y + _channels(b, y)).astype(x.dtype),)


class ConvTranspose(OpRun):
    """Transposed convolution over any number of axes."""

    op_domain = ""

    def _run(self, x: np.ndarray, w: np.ndarray, b: Any = None, group: int = 1, **window: Any) -> tuple[np.ndarray]:
        y = convolve_transpose(_wide(x), _wide(w), group, **window)
        return ((y if b is None else y + _channels(b, y)).astype(x.dtype),)


class MaxPool(OpRun):
    """Maximum of every window, and where it was."""

    op_domain = ""

    def _run(self, x: np.ndarray, storage_order: int = 0, **window: Any) -> tuple[np.ndarray, ...]:
        return max_pool(x, bool(storage_order), **window)[: len(self.onnx_node.output)]


class AveragePool(OpRun):
    """Mean of every window, of its part that is no padding unless ``count_include_pad``."""

    op_domain = ""

    def _run(self, x: np.ndarray, count_include_pad: int = 0, **window: Any) -> tuple[np.ndarray]:
        return (average_pool(_wide(x), bool(count_include_pad), **window).astype(x.dtype),)


class GlobalAveragePool(OpRun):
    """Float32 summed one by one as runtimes do, who lose 1e-4 of a constant image; NumPy's pairs lose nothing."""

    op_domain = ""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        flat = _wide(x).reshape(*x.shape[:2], -1)
        total = flat.sum(axis=-1) if x.dtype == np.float64 else np.cumsum(flat, axis=-1)[..., -1]
        return ((total / flat.shape[-1]).astype(x.dtype).reshape(*x.shape[:2], *(1,) * (x.ndim - 2)),)


class BatchNormalization(OpRun):
    """Every opset's: ``is_test`` and ``spatial`` of the first, extra outputs that mean training, ``training_mode``."""

    op_domain = ""

    def _run(self, x: np.ndarray, *statistics: np.ndarray, **attributes: Any) -> tuple[np.ndarray, ...]:
        opset = _opset(self)
        if opset >= 14:
            training = bool(attributes.get("training_mode"))
        elif opset >= 7:
            training = any(self.onnx_node.output[1:])
        else:
            training = not attributes.get("is_test")
        spatial = opset >= 9 or attributes.get("spatial") != 0
        eps, momentum = float(attributes["epsilon"]), float(attributes["momentum"])
        wide, scale, bias, mean, var = map(_wide, (x, *statistics))
        shape = (-1, *(1,) * (x.ndim - 2)) if spatial else x.shape[1:]
        outputs: tuple[np.ndarray, ...] = ()
        if training:
            axes = (0, *range(2, x.ndim)) if spatial else (0,)
            of_batch = wide.mean(axis=axes).reshape(mean.shape), wide.var(axis=axes).reshape(var.shape)
            running = [old * momentum + new * (1 - momentum) for old, new in zip((mean, var), of_batch, strict=True)]
            mean, var = of_batch
            outputs = (*running,) if opset >= 14 else (*running, mean, var)
        if x.dtype == np.float64:
            y = (wide - mean.reshape(shape)) / np.sqrt(var + eps).reshape(shape) * scale.reshape(shape)
            y += bias.reshape(shape)
        else:  # as runtimes do it, who lose more: what rounding does to them is to be known
            slope = scale / np.sqrt(var + eps)
            y = wide * slope.reshape(shape) + (bias - mean * slope).reshape(shape)
        outputs = (y, *outputs)
        dtypes = (x.dtype, *(statistics[-1].dtype for _ in outputs[1:]))
        return tuple(output.astype(dtype) for output, dtype in zip(outputs, dtypes, strict=True))


class LRN(OpRun):
    """x / (bias + alpha / size * the sum of squares over ``size`` channels) ** beta."""

    op_domain = ""

    def _run(self, x: np.ndarray, alpha: float, beta: float, bias: float, size: int) -> tuple[np.ndarray]:
        widths = [(0, 0), ((size - 1) // 2, size // 2), *[(0, 0)] * (x.ndim - 2)]
        square = sliding_window_view(np.pad(x * x, widths), size, axis=1).sum(axis=-1)
        return ((x / (bias + alpha / size * square) ** beta).astype(x.dtype),)


class Dropout(OpRun):
    """The input: what it does while training is random and has no right answer."""

    op_domain = ""

    def _run(self, x: np.ndarray, ratio: Any = None, training: Any = None, **attributes: Any) -> tuple[np.ndarray, ...]:
        if (training is not None and np.any(training)) or (_opset(self) < 7 and not attributes.get("is_test")):
            raise NotImplementedError("Dropout in training mode, which is random")
        return (x, np.ones(x.shape, bool))[: len(self.onnx_node.output)]


class Reshape(OpRun):
    """With the shape as an input, or before opset 5 as an attribute."""

    op_domain = ""

    def _run(self, x: np.ndarray, shape: Any = None, allowzero: int = 0, **_: Any) -> tuple[np.ndarray]:
        sizes = [int(size) for size in shape]
        return (x.reshape([x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(sizes)]),)


class DequantizeLinear(OpRun):
    """(x - zero point) * scale, for all of x, along ``axis`` or in blocks of it: onnx's begins at opset 19."""

    op_domain = ""

    def _run(
        self, x: np.ndarray, scale: np.ndarray, zero: Any = None, axis: int = 1, block_size: int = 0, **_: Any
    ) -> tuple[np.ndarray]:
        def spread(parameter: np.ndarray) -> np.ndarray:
            if block_size:
                return np.repeat(parameter, block_size, axis).take(range(x.shape[axis]), axis)
            along = [1] * x.ndim
            along[axis if parameter.size > 1 else 0] = -1
            return parameter.reshape(along) if x.ndim else parameter.reshape(())

        wide = x.astype(np.float64)
        if zero is not None:
            wide -= spread(zero.astype(np.float64))
        return ((wide * spread(scale.astype(np.float64))).astype(scale.dtype),)


class _AlongAxis(OpRun):
    """Before opset 13 the axes from ``axis`` on, 1 by default, are one."""

    def run(self, x: np.ndarray, **options: Any) -> Any:  # type: ignore[override]
        if _opset(self) >= 13:
            return super().run(x, **options)
        axis = next((attribute.i for attribute in self.onnx_node.attribute if attribute.name == "axis"), 1)
        self.axis = 1
        rows = x.reshape(int(np.prod(x.shape[: axis % max(x.ndim, 1)])), -1)
        return tuple(y.reshape(x.shape) for y in super().run(rows, **options))


class _Broadcast(OpRun):
    """Before opset 7 the second operand is aligned to ``axis`` of the first, to its last axes by default."""

    def run(self, a: np.ndarray, b: np.ndarray, **options: Any) -> Any:  # type: ignore[override]
        given = {attribute.name: attribute.i for attribute in self.onnx_node.attribute}
        if _opset(self) < 7 and given.get("broadcast") and "axis" in given:
            b = b.reshape(*b.shape, *(1,) * (a.ndim - b.ndim - given["axis"] % a.ndim))
        return super().run(a, b, **options)


def _channels(bias: np.ndarray, y: np.ndarray) -> np.ndarray:
    return bias.astype(y.dtype).reshape(-1, *(1,) * (y.ndim - 2))


OPERATORS: list[type[OpRun]] = [
    *(
        Conv,
        ConvTranspose,
        MaxPool,
        AveragePool,
        GlobalAveragePool,
        BatchNormalization,
        LRN,
        Dropout,
        Reshape,
        DequantizeLinear,
    ),
    *(type(name, (_AlongAxis, load_op("", name)), {}) for name in ("Softmax", "LogSoftmax", "Hardmax")),
    *(type(name, (_Broadcast, load_op("", name)), {}) for name in ("Add", "Sub", "Mul", "Div")),
]
