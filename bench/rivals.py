"""Batch norm of fastbn and its rivals behind one signature.

Each function prepares outside the clock and returns the call, for ``as_array`` to read its result; None where the rival
has no such operation. ``reuse``: the output's memory was written before, by an ``out`` argument or an allocator that
keeps its pages. A rival that is not installed raises ImportError.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import fastbn.functional as F
from bench.operands import EPS, Operands

Call = Callable[[], Any]
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


@contextmanager
def pages_kept(reuse: bool) -> Iterator[None]:
    """glibc's malloc keeps the pages of what is freed, for rivals that take no ``out``."""
    libc = ctypes.CDLL(None)
    if not reuse or not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_MAX, 65536)
        libc.mallopt(M_TRIM_THRESHOLD, 128 * 1024)
        libc.malloc_trim(0)


def fastbn(operation: str, o: Operands, reuse: bool) -> Call:
    mean, var = o.mean.copy(), o.var.copy()
    out = F.batch_norm(o.x, mean, var) if reuse else None
    if operation == "backward":
        _, saved = F.batch_norm_forward(o.x, o.weight, o.bias)
        return lambda: F.batch_norm_backward(o.dy, saved, out=out)[0]
    if operation == "inference":
        return lambda: F.batch_norm(o.x, mean, var, o.weight, o.bias, out=out)
    fused = {"residual": o.residual, "relu": True} if operation.endswith("ReLU") else {}
    return lambda: F.batch_norm(o.x, mean, var, o.weight, o.bias, True, out=out, **fused)


def torch(operation: str, o: Operands, reuse: bool) -> Call:
    import torch

    x, dy, residual, weight, bias, mean, var = (torch.from_numpy(array) for array in vars(o).values())
    mean, var = mean.clone(), var.clone()
    native = torch.ops.aten.native_batch_norm
    training = operation != "inference"
    with torch.no_grad():
        out, save_mean, save_inv_std = native(x, weight, bias, mean, var, True, 0.1, EPS)
        mean.copy_(torch.from_numpy(o.mean))
        var.copy_(torch.from_numpy(o.var))
    outs = {"out": out, "save_mean": torch.empty_like(save_mean), "save_invstd": torch.empty_like(save_inv_std)}

    def call() -> np.ndarray:
        with torch.no_grad():
            if operation == "backward":
                y = torch.ops.aten.native_batch_norm_backward(
                    dy, x, weight, mean, var, save_mean, save_inv_std, True, EPS, [True, True, True]
                )[0]
            elif reuse:
                y = native.out(x, weight, bias, mean, var, training, 0.1, EPS, **outs)[0]
            else:
                y = torch.nn.functional.batch_norm(x, mean, var, weight, bias, training)
            if operation.endswith("ReLU"):
                y = y.add_(residual).relu_() if reuse else torch.relu(y + residual)
            return y.numpy()

    return call


def torch_mkldnn(operation: str, o: Operands, reuse: bool) -> Call | None:
    import torch

    if operation == "backward" or operation.endswith("ReLU") or reuse or o.x.ndim != 4:
        return None  # no entry of its own; no sum with a tensor in another layout; no output argument
    x = torch.from_numpy(np.ascontiguousarray(o.x)).to_mkldnn()
    weight, bias, mean, var = (torch.from_numpy(v.copy()) for v in (o.weight, o.bias, o.mean, o.var))

    def call() -> Any:
        with torch.no_grad():
            return torch.nn.functional.batch_norm(x, mean, var, weight, bias, operation == "training")

    return call


def as_array(result: Any) -> np.ndarray:
    """What a call gave, as NumPy has it."""
    return result if isinstance(result, np.ndarray) else result.to_dense().numpy()


def onnxruntime(operation: str, o: Operands, reuse: bool) -> Call | None:
    import onnx.parser
    import onnxruntime

    if operation != "inference":
        return None
    sizes = ",".join(map(str, o.x.shape))
    vectors = ", ".join(f"float[{o.x.shape[1]}] {name}" for name in ("s", "b", "m", "v"))
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 15]> g (float[{sizes}] x, {vectors}) => (float[{sizes}] y)'
        "{ y = BatchNormalization (x, s, b, m, v) }"
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"x": o.x, "s": o.weight, "b": o.bias, "m": o.mean, "v": o.var}
    if not reuse:
        return lambda: session.run(None, feed)[0]
    binding, out = session.io_binding(), np.empty_like(o.x)
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("y", "cpu", 0, np.float32, out.shape, out.ctypes.data)

    def call() -> np.ndarray:
        session.run_with_iobinding(binding)
        return out

    return call


def numpy(operation: str, o: Operands, reuse: bool) -> Call | None:
    if reuse:
        return None
    axes = (0, *range(2, o.x.ndim))
    column = (1, -1, *(1,) * (o.x.ndim - 2))
    weight, bias, mean, var = (v.reshape(column) for v in (o.weight, o.bias, o.mean, o.var))

    def call() -> np.ndarray:
        if operation == "inference":
            return (o.x - mean) * (weight / np.sqrt(var + EPS)) + bias
        about = o.x - o.x.mean(axes, keepdims=True)
        inv_std = 1 / np.sqrt(np.square(about).mean(axes, keepdims=True) + EPS)
        if operation == "backward":
            xhat = about * inv_std
            mean_g, product = o.dy.mean(axes, keepdims=True), (o.dy * xhat).mean(axes, keepdims=True)
            return weight * inv_std * (o.dy - mean_g - xhat * product)
        y = about * (weight * inv_std) + bias
        return np.maximum(y + o.residual, 0) if operation.endswith("ReLU") else y

    return call


# Name in a report: function, memory order that it is given.
RIVALS = {
    "fastbn": (fastbn, "NCHW"),
    "fastbn channels-last": (fastbn, "channels-last"),
    "PyTorch": (torch, "NCHW"),
    "PyTorch channels-last": (torch, "channels-last"),
    "PyTorch mkldnn": (torch_mkldnn, "NCHW"),
    "onnxruntime": (onnxruntime, "NCHW"),
    "NumPy": (numpy, "NCHW"),
}
