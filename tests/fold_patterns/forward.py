"""A batch norm s x + t that the layer after it takes: W' = W s along input channels, b' = b + W t.

Where zeros are padded after it, t is not just another bias: Conv(x + t/s, W s), or Conv(x, W s) + Conv(t 1, W).
"""

import numpy as np

from fold_patterns.pattern import FREE, IMAGE, LINE, VOLUME, either, gone, stays

W3 = {"W": (3, 2, 3, 3)}
V3 = {"V": (4, 3, 3, 3)}


def into(name, layer, arrays, left, **more):
    """A batch norm of x to d, then ``layer``."""
    more.setdefault("channels", 2)
    return gone(f"before {name}", f"d = BN(x) {layer}", arrays, left, **more)


def kept(name, reason, layer, arrays, **more):
    more.setdefault("channels", 2)
    return stays(f"before {name}", reason, f"d = BN(x) {layer}", arrays, **more)


def ints(**lists):
    return {name: np.int64(values) for name, values in lists.items()}


CONVS = [
    into("conv", "y = Conv(d, W)", W3, "Conv"),
    into("conv with bias", "y = Conv(d, W, B)", {**W3, "B": (3,)}, "Conv"),
    into("conv of free height and width", "y = Conv<strides = [2, 1]>(d, W)", W3, "Conv", x=FREE),
    into("conv 1-d", "y = Conv<dilations = [2]>(d, W)", {"W": (3, 2, 4)}, "Conv", x=LINE),
    into("conv 3-d", "y = Conv(d, W)", {"W": (3, 2, 2, 3, 1)}, "Conv", x=VOLUME),
    into("conv in groups", "y = Conv<group = 2>(d, W)", {"W": (6, 2, 3, 3)}, "Conv", x="float[N, 4, 6, 6] x",
         channels=4),
    into("depthwise conv", "y = Conv<group = 2>(d, W, B)", {"W": (4, 1, 3, 3), "B": (4,)}, "Conv"),
    into("conv, auto_pad VALID", 'y = Conv<auto_pad = "VALID">(d, W)', W3, "Conv"),
    into("conv, padded by nothing", "y = Conv<pads = [0, 0, 0, 0]>(d, W)", W3, "Conv"),
    into("1 x 1 conv padded the same", 'y = Conv<auto_pad = "SAME_UPPER">(d, W)', {"W": (3, 2, 1, 1)}, "Conv"),
    into("conv, a scale of zero", "y = Conv(d, W)", {**W3, "s": np.float32([0, 2])}, "Conv"),
    gone("two batch norms before conv", "d = BN(x) e = BN2(d) y = Conv(e, W)", W3, "Conv", channels=2),
    gone("between Relu and conv", "r = Relu(x) d = BN(r) y = Conv(d, W)", W3, "Relu Conv", channels=2),
    gone("between MaxPool and conv, a negative scale",
         "r = MaxPool<kernel_shape = [2, 2]>(x) d = BN(r) y = Conv(d, W)", {**W3, "s": np.float32([1, -1])},
         "MaxPool Conv", channels=2),
    gone("between convs", "c = Conv(x, W) d = BN(c) y = Conv<pads = [1, 1, 1, 1]>(d, V)", {**W3, **V3}, "Conv Conv"),
    gone("between convs, all normed", "d = BN(x) e = Conv(d, W) f = BN2(e) y = Relu(f)", W3, "Conv Relu",
         channels={"": 2, "2": 3}),
]  # fmt: skip

PADDED = [
    into("padded conv", "y = Conv<pads = [1, 1, 1, 1]>(d, W)", W3, "Add Conv"),
    into("padded conv with bias", "y = Conv<pads = [1, 1, 1, 1]>(d, W, B)", {**W3, "B": (3,)}, "Add Conv"),
    into("padded conv of free height and width", "y = Conv<pads = [1, 1, 1, 1]>(d, W)", W3, "Add Conv", x=FREE),
    into("padded conv, more on one side", "y = Conv<pads = [0, 0, 1, 2], strides = [2, 2]>(d, W)", W3, "Add Conv"),
    into("padded conv in groups", "y = Conv<group = 2, pads = [2, 1, 2, 1]>(d, W, B)",
         {"W": (6, 2, 3, 3), "B": (6,)}, "Add Conv", x="float[N, 4, H, W] x", channels=4),
    into("padded depthwise conv", "y = Conv<group = 2, pads = [1, 1, 1, 1]>(d, W)", {"W": (2, 1, 3, 3)}, "Add Conv"),
    into("padded conv 1-d", "y = Conv<pads = [1, 1]>(d, W)", {"W": (3, 2, 3)}, "Add Conv", x=LINE),
    into("conv padded the same", 'y = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(d, W)', W3, "Add Conv"),
    into("conv padded the same, free height and width", 'y = Conv<auto_pad = "SAME_LOWER">(d, W)', W3, "Add Conv",
         x=FREE),
    into("padded conv, nothing is added", "y = Conv<pads = [1, 1, 1, 1]>(d, W)",
         {**W3, "b": np.float32([0, 0]), "m": np.float32([0, 0])}, "Conv"),
    into("padded conv, a scale of zero", "y = Conv<pads = [1, 1, 1, 1]>(d, W)", {**W3, "s": np.float32([0, 2])},
         "Add Conv"),
    kept("padded conv of free height and width, a scale of zero", "scale|zero|0", "y = Conv<pads = [1, 1, 1, 1]>(d, W)",
         {**W3, "s": np.float32([0, 2])}, x=FREE),
    gone("between Relu and padded conv", "r = Relu(x) d = BN(r) y = Conv<pads = [1, 1, 1, 1]>(d, W)", W3,
         "Relu Add Conv", channels=2, x=FREE),
    either("before padding and conv", "d = BN(x) e = Pad(d, p) y = Conv(e, W)",
           {**W3, **ints(p=[0, 0, 1, 1, 0, 0, 1, 1])}, channels=2),
]  # fmt: skip

TRANSPOSED = [
    into("1 x 1 conv transpose", "y = ConvTranspose(d, W, B)", {"W": (2, 3, 1, 1), "B": (3,)}, "ConvTranspose"),
    into("conv transpose", "y = ConvTranspose<strides = [2, 2]>(d, W)", {"W": (2, 3, 3, 3)}, "Add ConvTranspose"),
    into("conv transpose of free height and width", "y = ConvTranspose<strides = [2, 2]>(d, W)", {"W": (2, 3, 2, 2)},
         "Add ConvTranspose", x=FREE),
    into("conv transpose in groups", "y = ConvTranspose<group = 2, pads = [1, 0, 0, 1]>(d, W, B)",
         {"W": (4, 3, 3, 3), "B": (6,)}, "Add ConvTranspose", x="float[N, 4, 5, 5] x", channels=4),
]  # fmt: skip

MATRIX = {"x": "float[N, 4] x", "channels": 4}
PRODUCTS = [
    into("gemm", "y = Gemm(d, W)", {"W": (4, 3)}, "Gemm", **MATRIX),
    into("gemm transB", "y = Gemm<transB = 1>(d, W, C)", {"W": (3, 4), "C": (3,)}, "Gemm", **MATRIX),
    into("gemm, square transB", "y = Gemm<transB = 1>(d, W, C)", {"W": (4, 4), "C": (1, 4)}, "Gemm", **MATRIX),
    *(into(f"gemm, alpha, beta, C of shape {shape}", "y = Gemm<alpha = 0.5, beta = -2.0>(d, W, C)",
           {"W": (4, 3), "C": shape}, "Gemm", **MATRIX) for shape in ((), (1,), (3,), (1, 3))),
    into("gemm, beta of zero", "y = Gemm<beta = 0.0>(d, W, C)", {"W": (4, 3), "C": (3,)}, "Gemm", **MATRIX),
    into("gemm, C a matrix", "y = Gemm<beta = 0.5>(d, W, C)", {"W": (4, 3), "C": (5, 3)}, "Gemm",
         x="float[5, 4] x", channels=4),
    kept("gemm transA", "Gemm|trans", "y = Gemm<transA = 1>(d, W)", {"W": (5, 3)}, x="float[5, 4] x", channels=4),
    into("matmul", "y = MatMul(d, W)", {"W": (4, 3)}, "MatMul Add | Gemm", **MATRIX),
    into("matmul + bias", "e = MatMul(d, W) y = Add(e, C)", {"W": (4, 3), "C": (3,)}, "MatMul Add | Gemm", **MATRIX),
    into("matmul, nothing is added", "y = MatMul(d, W)",
         {"W": (4, 3), "b": np.zeros(4, np.float32), "m": np.zeros(4, np.float32)}, "MatMul", **MATRIX),
    into("matmul of channels last", "e = Transpose<perm = [0, 2, 1]>(d) y = MatMul(e, W)", {"W": (2, 3)},
         "Transpose MatMul Add", x=LINE),
    kept("matmul of the width", "MatMul", "y = MatMul(d, W)", {"W": (9, 5)}, x=LINE),
    kept("matmul of the width, as wide as channels", "MatMul", "y = MatMul(d, W)", {"W": (4, 4)},
         x="float[N, 4, 4] x", channels=4),
    into("Flatten and gemm", "e = Flatten(d) y = Gemm(e, W)", {"W": (72, 3)}, "Flatten Gemm", rank=2),
    into("Reshape and gemm", "e = Reshape(d, k) y = Gemm(e, W, C)", {"W": (72, 3), "C": (3,), **ints(k=[-1, 72])},
         "Reshape Gemm", rank=2),
    into("Squeeze and gemm", "e = Squeeze(d, a) y = Gemm(e, W)", {"W": (4, 3), **ints(a=[2, 3])}, "Squeeze Gemm",
         x="float[N, 4, 1, 1] x", channels=4, rank=2),
    into("pooling and gemm", "e = GlobalAveragePool(d) f = Flatten(e) y = Gemm(f, W)", {"W": (2, 3)},
         "GlobalAveragePool Flatten Gemm", rank=2, x=FREE),
    into("ReduceMean and gemm", "e = ReduceMean<axes = [2, 3], keepdims = 0>(d) y = Gemm(e, W)", {"W": (2, 3)},
         "ReduceMean Gemm", rank=2),
]  # fmt: skip

THROUGH = [
    into("AveragePool and conv", "e = AveragePool<kernel_shape = [2, 2]>(d) y = Conv(e, W)", W3, "AveragePool Conv"),
    either("before AveragePool with padding counted, and conv",
           "d = BN(x) e = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(d) "
           "y = Conv(e, W)", W3, channels=2),
    into("MaxPool and conv, positive scales", "e = MaxPool<kernel_shape = [2, 2]>(d) y = Conv(e, W)", W3,
         "MaxPool Conv", positive=True),
    kept("MaxPool and conv, a negative scale", "MaxPool|negative",
         "e = MaxPool<kernel_shape = [2, 2]>(d) y = Conv(e, W)", {**W3, "s": np.float32([1, -1])}),
    into("Identity, Dropout and conv", "e = Identity(d) f = Dropout(e) y = Conv(f, W)", W3, "Identity Dropout Conv"),
    into("Pad of reflections and conv", 'e = Pad<mode = "reflect">(d, p) y = Conv(e, W)',
         {**W3, **ints(p=[0, 0, 1, 1, 0, 0, 1, 1])}, "Pad Conv"),
    into("Resize and conv", 'e = Resize<mode = "linear">(d, none, k) y = Conv(e, W)',
         {**W3, "none": np.float32([]), "k": np.float32([1, 1, 2, 2])}, "Resize Conv"),
    into("SpaceToDepth and conv", "e = SpaceToDepth<blocksize = 2>(d) y = Conv(e, W)", {"W": (3, 8, 2, 2)},
         "SpaceToDepth Conv"),
    kept("DepthToSpace and conv", "DepthToSpace", "e = DepthToSpace<blocksize = 2>(d) y = Conv(e, W)",
         {"W": (3, 1, 2, 2)}, x="float[N, 4, 6, 6] x", channels=4),
    into("Concat and conv", "e = Concat<axis = 1>(x, d) y = Conv(e, W)", {"W": (3, 4, 2, 2)}, "Concat Conv"),
    into("Split and convs",
         "e, f = Split<axis = 1>(d, k) g = Conv(e, W) h = Conv(f, V) y = Add(g, h)",
         {"W": (3, 1, 2, 2), "V": (3, 1, 2, 2), **ints(k=[1, 1])}, "Split Conv Conv Add"),
    into("Slice and conv", "e = Slice(d, one, two, one) y = Conv(e, W)", {"W": (3, 1, 2, 2), **ints(one=[1], two=[2])},
         "Slice Conv"),
    into("a residual of convs", "e = Conv(d, W) f = Conv(d, V) y = Add(e, f)", {**W3, "V": (3, 2, 3, 3)},
         "Conv Conv Add"),
    into("convs that share a weight", "e = Conv(d, W) f = Conv(x, W) y = Add(e, f)", W3, "Conv Conv Add"),
    into("conv and gemm", "y = Conv(d, W) e = Flatten(d) z = Gemm(e, V)", {**W3, "V": (72, 3)}, "Conv Flatten Gemm",
         exported=("z",)),
    gone("between Relu and two products, one behind an Add",
         "r = Relu(x) d = BN(r) e = Add(k, d) f = MatMul(e, W) g = MatMul(d, V) y = Concat<axis = 1>(f, g)",
         {"W": (4, 3), "V": (4, 2), "k": (4,)}, "Relu MatMul MatMul Add Add Concat", x="float[N, 4] x", channels=4),
    kept("conv and Relu", "Relu", "e = Conv(d, W) f = Relu(d) g = GlobalAveragePool(f) h = GlobalAveragePool(e) "
         "y = Concat<axis = 1>(g, h)", W3),
    kept("conv, exported too", "output|export", "y = Conv(d, W)", W3, exported=("d",)),
    kept("conv whose weight is computed", "W|weight|constant",
         "z = Add(W, u) y = Conv(d, z)", W3, x=f"{IMAGE}, float[1] u", rank=4),
    kept("conv as its weight", "Conv", "y = Conv(u, d)", {}, x="float[3, 2, 3, 3] x, float[N, 2, 6, 6] u", rank=4),
]  # fmt: skip

PATTERNS = CONVS + PADDED + TRANSPOSED + PRODUCTS + THROUGH
