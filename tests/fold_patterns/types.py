"""float16, bfloat16, float64, types side by side, quantised weights; what overflows or vanishes."""

import numpy as np

from fold_patterns.pattern import either, gone, stays

W3 = {"W": (3, 2, 3, 3)}
BODY = "c = Conv(x, W) y = BN(c)"
HALF = {"x": "float16[N, 2, 6, 6] x", "dtype": "float16"}
BRAIN = {"x": "bfloat16[N, 2, 6, 6] x", "dtype": "bfloat16", "runs": False, "opset": 22, "ir_version": 10}
DEQUANTISED = "DequantizeLinear Conv | DequantizeLinear Conv BatchNormalization | DequantizeLinear Conv Mul Add"
QUANTISED = {"opset": 19, "ir_version": 9}
DOUBLE = {"dtype": "float64", "x": "double[N, 4] x"}
ONES = np.ones(3, np.float32)


def int8(*shape):
    return np.arange(int(np.prod(shape)), dtype=np.int8).reshape(shape) % 7 - 3


def stats(dtype=np.float32, **given):
    """One in every place that is not given."""
    return {name: np.asarray(given.get(name, np.ones(3)), dtype) * np.ones(3, dtype) for name in "sbmv"}


PATTERNS = [
    gone("float16 conv", BODY, W3, "Conv", **HALF),
    gone("float16 gemm", "c = Gemm(x, W, B) y = BN(c)", {"W": (4, 3), "B": (3,)}, "Gemm", x="float16[N, 4] x",
         dtype="float16"),
    gone("float16 before conv", "d = BN(x) y = Conv(d, W)", W3, "Conv", channels=2, **HALF),
    gone("bfloat16 conv", BODY, W3, "Conv", **BRAIN),
    gone("bfloat16 before conv", "d = BN(x) y = Conv(d, W)", W3, "Conv", channels=2, **BRAIN),
    gone("float64 gemm", "c = Gemm(x, W) y = BN(c)", {"W": (4, 3)}, "Gemm", **DOUBLE),
    gone("float64 before gemm", "d = BN(x) y = Gemm(d, W)", {"W": (4, 3)}, "Gemm", channels=4, **DOUBLE),
    gone("float64 conv", BODY, W3, "Conv", x="double[N, 2, 6, 6] x", dtype="float64", runs=False),
    gone("float64 matmul, spelled", "c = MatMul(x, W) d = Sub(c, m0) e = Div(d, r) f = Mul(e, g) y = Add(f, h)",
         {"W": (4, 3), "m0": (3,), "r": np.float64([0.5, 2, 3]), "g": (3,), "h": (3,)}, "MatMul Add | Gemm", **DOUBLE),
    gone("float16 data, float32 batch norm", BODY, {**W3, **stats(s=[1, -2, 0.5], v=[0.5, 1, 2])}, "Conv", opset=15,
         **HALF),
    gone("float16 data and scale, float32 statistics", BODY,
         {**W3, **stats(np.float16, s=[1, -2, 0.5]), "m": ONES, "v": 2 * ONES}, "Conv", opset=15, **HALF, runs=False),
    stays("float16 weights that overflow", "float16|finite|overflow|large", BODY,
          {**W3, **stats(np.float16, s=60000, v=1e-6)}, **HALF, runs=False),
    stays("float32 bias that overflows", "finite|overflow|large", BODY,
          {**W3, **stats(s=1e3, m=1e38, v=1e-4)}, runs=False),
    gone("subnormal weights", BODY,
         {"W": np.float32(np.r_[np.full(6, 1e-20), np.arange(12) - 5]).reshape(3, 2, 3, 1), **stats(s=[1e-22, 1, -2])},
         "Conv"),
    stays("variance below zero", "variance|var", BODY, {**W3, **stats(v=[1, -1, 2])}),
    stays("variance + epsilon of zero", "variance|var", "c = Conv(x, W) y = BN<epsilon = 0.0>(c)",
          {**W3, **stats(v=[1, 0, 2])}),
    stays("mean of NaN", "finite|NaN|nan", BODY, {**W3, **stats(m=[1, np.nan, 2])}),
    stays("infinite scale", "finite|inf", BODY, {**W3, **stats(s=[1, np.inf, 2])}),
    stays("Div by zero, batch norm", "finite|inf|zero|Div", "c = Conv(x, W) d = Div(c, k) y = BN(d)",
          {**W3, "k": np.float32([1, 0, 2]).reshape(3, 1, 1)}),
    gone("small variance, zero variance", BODY, {**W3, **stats(v=[1e-12, 0, 1])}, "Conv"),
    gone("far mean, small variance", BODY, {**W3, **stats(m=1000, b=1000, v=1e-5)}, "Conv"),
    gone("scale of zero", BODY, {**W3, **stats(s=[0, 1, -1])}, "Conv"),
    either("quantised weight", "W = DequantizeLinear<axis = 0>(q, k, z) c = Conv(x, W) y = BN(c)",
           {"q": int8(3, 2, 3, 3), "k": np.float32([0.1, 0.2, 0.5]), "z": np.int8([0, 0, 0])},
           DEQUANTISED, **QUANTISED),
    either("quantised weight, one scale", "W = DequantizeLinear(q, k) c = Conv(x, W, B) y = BN(c)",
           {"q": int8(3, 2, 3, 3), "k": np.float32(0.1), "B": (3,)},
           DEQUANTISED, **QUANTISED),
    stays("quantised between conv and batch norm", "uantizeLinear",
          "c = Conv(x, W) e = QuantizeLinear(c, k, z) d = DequantizeLinear(e, k, z) y = BN(d)",
          {**W3, "k": np.float32(0.05), "z": np.uint8(128)}, **QUANTISED),
    gone("quantised input", "e = QuantizeLinear(x, k, z) d = DequantizeLinear(e, k, z) c = Conv(d, W) y = BN(c)",
         {**W3, "k": np.float32(0.05), "z": np.uint8(128)}, "QuantizeLinear DequantizeLinear Conv",
         **QUANTISED),
]  # fmt: skip
