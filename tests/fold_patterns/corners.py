"""What is easily folded wrongly: names that must stay, one node reached by two ways, constants that do not fit."""

import numpy as np
from onnx import helper

from fold_patterns.pattern import FREE, either, gone, merged, stays

W3 = {"W": (3, 2, 3, 3)}
BFLOAT16 = helper.tensor_dtype_to_np_dtype(16)
HALF = "float16[N, 2, 6, 6] x"


def positive(*shape):
    return np.linspace(0.5, 2, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def ints(**lists):
    return {name: np.int64(values) for name, values in lists.items()}


ONE, TWO, HALVED = (np.float32(number) for number in (1, 2, 0.5))

NAMES = [
    gone("a factor of one between input and output", "y = Mul(x, k)", {"k": ONE}, "Identity"),
    gone("a factor of one on the input", "d = Mul(x, k) y = Relu(d)", {"k": ONE}, "Relu"),
    gone("a factor of one behind an output", "c = Conv(x, W) y = Mul(c, k)", {**W3, "k": ONE}, "Conv Identity",
         exported=("c",)),
    gone("factors that cancel around a pooling", "d = Mul(x, k) e = MaxPool<kernel_shape = [2, 2]>(d) y = Mul(e, l)",
         {"k": TWO, "l": HALVED}, "MaxPool"),
]  # fmt: skip

HALVES = "g, h = Split<axis = 1>({}, n)"
SWAPPED = {"n": np.int64([1, 1])}
TWO_WAYS = [
    gone("batch norm, halves, padded conv with a bias",
         f"d = BN(x) {HALVES.format('d')} e = Concat<axis = 1>(g, h) "
         "y = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(e, W, B)",
         {**W3, **SWAPPED, "B": 3}, channels=2),
    merged("batch norm, halves swapped, batch norm",
           f"d = BN(x) {HALVES.format('d')} e = Concat<axis = 1>(h, g) y = BN2(e)", SWAPPED,
           "Split Concat BatchNormalization", channels=2),
    either("Mul, halves swapped, batch norm",
           f"c = Mul(x, k) {HALVES.format('c')} e = Concat<axis = 1>(h, g) y = BN(e)",
           {**SWAPPED, "k": positive(2, 1, 1)}, channels=2),
    stays("a constant part, cut apart, batch norm", "two ways",
          f"c = Conv(x, W) d = Concat<axis = 1>(c, k) {HALVES.format('d')} e = Concat<axis = 1>(h, g) y = BN(e)",
          {"W": (2, 2, 3, 3), "k": (1, 3, 4, 4), **ints(n=[3, 2])}, channels=5, x="float[1, 2, 6, 6] x"),
    gone("padded convs that share what is added to the input",
         "c = BN(x) d = Identity(c) e = Conv<pads = [1, 1, 1, 1]>(d, W) f = Conv<pads = [1, 1, 1, 1]>(c, W) "
         "y = Add(e, f)", W3, x=FREE, channels=2),
]  # fmt: skip

CROP = 'coordinate_transformation_mode = "tf_crop_and_resize"'
RESIZED = [
    stays("batch norm, a crop with a value around it, conv", "cuts",
          f'd = BN(x) e = Resize<mode = "linear", {CROP}, extrapolation_value = 10.0>(d, r, k) y = Conv(e, W)',
          {"W": (3, 2, 1, 1), "r": np.float32([0, 0, -0.5, -0.5, 1, 1, 1.5, 1.5]), "k": np.float32([1, 1, 2, 2])},
          channels=2),
    stays("conv, sizes that keep the aspect ratio", "resizes",
          'c = Conv(x, W) d = Resize<mode = "nearest", keep_aspect_ratio_policy = "not_smaller">(c, , , k) y = BN(d)',
          {**W3, **ints(k=[1, 3, 2, 4])}, x="float[1, 2, 6, 6] x", opset=18, runs=False),
    either("batch norm, a Slice of nothing", "c = BN(x) d = Slice(c, i, j, a) e = Concat<axis = 1>(d, x) "
           "y = Conv(e, W)", {**W3, **ints(i=[0], j=[-(2**63)], a=[1])}, channels=2),
]  # fmt: skip

BIG = {"k": np.float16(300), "l": np.float16(300)}
HALVES_OF_FLOAT = [
    stays("factors whose product float16 cannot hold", "nothing comes before", "c = BN(x) d = Mul(c, k) e = Mul(d, l) "
          "f = Mul(e, u) y = Relu(f)", {**BIG, "u": np.float16(2**-14)}, x=HALF, dtype="float16", channels=2,
          runs=False),
    either("padding that float16 cannot hold", "c = Conv(x, W) d = Pad(c, n, k) y = Mul(d, l)",
           {**W3, **ints(n=[0, 0, 1, 1, 0, 0, 1, 1]), "k": np.float16(1000), "l": np.float16(100)}, x=HALF,
           dtype="float16", runs=False),
    merged("Mul and Add in bfloat16, before batch norm knew it", "c = Mul(x, k) d = Add(c, l) y = Relu(d)",
           {"k": positive(2, 1, 1).astype(BFLOAT16), "l": positive(2, 1, 1).astype(BFLOAT16)}, "Mul Add Relu",
           x="bfloat16[N, 2, 6, 6] x", dtype="bfloat16", opset=13, runs=False),
]  # fmt: skip

QUANTISED = {"q": np.arange(-27, 27).reshape(3, 2, 3, 3).astype(np.int8), "V": (3, 2, 1, 1)}
STORED = [
    gone("gemm of opset 6 with a row", "c = Gemm<broadcast = 0>(x, W, C) "
         "y = BatchNormalization<is_test = 1>(c, s, b, m, v)",
         {"W": (4, 3), "C": (1, 3), "s": 3, "b": 3, "m": 3, "v": positive(3)}, "Gemm", x="float[1, 4] x", opset=6,
         runs=False),
    gone("quantised conv whose weight says its type", "w = DequantizeLinear<axis = 0, output_dtype = 10>(q, k) "
         "c = Conv(x, w) y = BN(c)", {"q": QUANTISED["q"], "k": np.float32([0.1, 0.2, 0.3])},
         "DequantizeLinear Conv", x=HALF, dtype="float16", opset=23, ir_version=11, positive=True, runs=False),
    either("branches, one of them quantised", "w = DequantizeLinear(q, k) c = Conv<pads = [1, 1, 1, 1]>(x, w) "
           "d = Conv(x, V) e = BN(d) y = Add(c, e)", {**QUANTISED, "k": np.float32(0.1)},
           options={"merge_branches": True}, opset=19, ir_version=9),
    stays("conv, Reshape by a default that can be given", "proved", "c = Conv(x, W) d = Reshape(c, k) y = BN(d)",
          {"W": (4, 2, 3, 3), **ints(k=[1, 4, -1])}, x="float[1, 2, 4, 4] x", channels=4, overridable=("k",), rank=3),
]  # fmt: skip

PATTERNS = [*NAMES, *TWO_WAYS, *RESIZED, *HALVES_OF_FLOAT, *STORED]
