"""Other libraries' batch norm behind one signature; each function prepares outside the clock and returns the call.

A rival that is not installed is left out by the caller (``pytest.importorskip``).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import fastbn.functional as F


class Operands(NamedTuple):
    """One batch norm: x, per-channel weight and bias, running statistics."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    var: np.ndarray


def operands(shape: tuple[int, ...]) -> Operands:
    rng = np.random.default_rng(0)
    channels = shape[1]
    return Operands(
        rng.standard_normal(shape, np.float32),
        rng.standard_normal(channels, np.float32),
        rng.standard_normal(channels, np.float32),
        rng.standard_normal(channels, np.float32),
        rng.random(channels, np.float32) + 0.5,
    )


def fastbn(o: Operands, training: bool) -> Callable[[], np.ndarray]:
    mean, var = o.mean.copy(), o.var.copy()
    return lambda: F.batch_norm(o.x, mean, var, o.weight, o.bias, training)


def numpy(o: Operands, training: bool) -> Callable[[], np.ndarray]:
    axes = (0, *range(2, o.x.ndim))
    shape = (1, -1, *(1,) * (o.x.ndim - 2))

    def call() -> np.ndarray:
        mean, var = (o.x.mean(axes), o.x.var(axes)) if training else (o.mean, o.var)
        scale = o.weight / np.sqrt(var + 1e-5)
        return (o.x - mean.reshape(shape)) * scale.reshape(shape) + o.bias.reshape(shape)

    return call


def torch(o: Operands, training: bool, channels_last: bool = False) -> Callable[[], np.ndarray]:
    import torch

    x, weight, bias, mean, var = (torch.from_numpy(array.copy()) for array in o)
    if channels_last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)

    def call() -> np.ndarray:
        with torch.no_grad():
            return torch.nn.functional.batch_norm(x, mean, var, weight, bias, training).numpy()

    return call


def onnxruntime(o: Operands, training: bool) -> Callable[[], np.ndarray]:
    import onnx.parser
    import onnxruntime

    if training:
        raise ValueError("onnxruntime: training must be False, got True")
    sizes = ",".join(str(size) for size in o.x.shape)
    vectors = ", ".join(f"float[{o.x.shape[1]}] {name}" for name in ("s", "b", "m", "v"))
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 15]> g (float[{sizes}] x, {vectors}) => (float[{sizes}] y)'
        "{ y = BatchNormalization (x, s, b, m, v) }"
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"x": o.x, "s": o.weight, "b": o.bias, "m": o.mean, "v": o.var}
    return lambda: session.run(None, feed)[0]
