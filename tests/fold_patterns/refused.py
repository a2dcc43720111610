"""What folding must leave alone: training, outputs in use, old attributes, other readers; and ranks from 2 to 5."""

import numpy as np

from fold_patterns.pattern import IMAGE, MATRIX, either, gone, stays

W3 = {"W": (3, 2, 3, 3)}
NORM = "BatchNormalization{}(c, s, b, m, v)"
# No two alike: in training mode onnxruntime takes equal initialisers for one and writes to it.
ARRAYS = {
    **W3,
    "s": np.float32([1.5, -0.5, 2]),
    "b": np.float32([-1, 0.25, 3]),
    "m": np.float32([0.5, -2, 1]),
    "v": np.float32([0.5, 1, 2]),
}


def normed(attributes="", outputs="y"):
    return f"c = Conv(x, W) {outputs} = {NORM.format(f'<{attributes}>' if attributes else '')}"


TRAINING = [
    stays("training mode", "training", normed("training_mode = 1", "y, rm, rv"), ARRAYS, opset=15),
    gone("training mode of zero", normed("training_mode = 0"), ARRAYS, "Conv", opset=14),
    stays("running mean in use, opset 9", "training|output", normed(outputs="y, rm, rv, sm, sv"), ARRAYS, opset=9,
          ir_version=4, y="float[N, 3, 4, 4] y, float[3] rm", runs=False),
    stays("opset 6, not told to test", "training|is_test|opset", normed("is_test = 0"), ARRAYS, opset=6, ir_version=3,
          overridable=tuple(ARRAYS), runs=False),
    gone("opset 6, told to test", normed("is_test = 1"), ARRAYS, "Conv", opset=6, ir_version=3,
         overridable=tuple(ARRAYS), runs=False),
    gone("opset 7, spatial", normed("spatial = 1"), ARRAYS, "Conv", opset=7, ir_version=3, overridable=tuple(ARRAYS)),
    gone("opset 8", normed(), ARRAYS, "Conv", opset=8, ir_version=3, overridable=tuple(ARRAYS)),
    stays("opset 7, statistics for every pixel", "spatial", normed("spatial = 0"),
          {**W3, **dict.fromkeys("sbm", (3, 4, 4)), "v": np.ones((3, 4, 4), np.float32)}, opset=7, ir_version=3,
          overridable=("W", "s", "b", "m", "v"), runs=False),
    *(gone(f"opset {opset}", normed(), ARRAYS, "Conv", opset=opset, ir_version=4) for opset in (9, 10, 11, 13)),
    *(gone(f"opset {opset}", normed(), ARRAYS, "Conv", opset=opset) for opset in (14, 15, 18)),
    gone("opset 21", normed(), ARRAYS, "Conv", opset=21, ir_version=10),
    stays("dropout in training between", "Dropout|training", "c = Conv(x, W) d = Dropout(c, r, t) y = BN(d)",
          {**W3, "r": np.float32(0)}, x=f"{IMAGE}, bool t", rank=4),
]  # fmt: skip

READERS = [
    stays("conv read elsewhere", "read|elsewhere|Relu", "c = Conv(x, W) d = BN(c) e = Relu(c) y = Add(d, e)", W3),
    stays("conv exported", "output|export", "c = Conv(x, W) y = BN(c)", W3, exported=("c",)),
    stays("conv added to its batch norm", "read|elsewhere|Add", "c = Conv(x, W) d = BN(c) y = Add(c, d)", W3),
    stays("conv read by two batch norms", "read|elsewhere|BatchNormalization",
          "c = Conv(x, W) d = BN(c) e = BN2(c) y = Mul(d, e)", W3),
    stays("batch norms in a row, the second read elsewhere", "read|elsewhere|MatMul",
          "c = MatMul(x, W) d = BN(c) e = BN2(d) f = BN3(e) g = BN4(f) y = Add(e, g) z = Relu(c)", {"W": (4, 3)},
          x=MATRIX, exported=("z",)),
    stays("batch norms in a row, the second joined with what came before", "read|elsewhere|MatMul",
          "c = MatMul(x, W) d = BN(c) e = BN2(d) f = BN3(e) y = BN4(f) z = Concat<axis = 1>(e, c)", {"W": (4, 3)},
          x=MATRIX, exported=("z",)),
    stays("a step in between read elsewhere", "read|elsewhere|Relu",
          "c = Conv(x, W) d = Identity(c) e = Relu(d) f = BN(d) y = Add(e, f)", W3),
    stays("bias added, and read elsewhere", "read|elsewhere|output|export",
          "c = MatMul(x, W) d = Add(c, B) y = BN(d)", {"W": (4, 3), "B": (3,)}, x=MATRIX, exported=("d",)),
    either("first of two batch norms exported", "c = Conv(x, W) d = BN(c) y = BN2(d)", W3,
           "Conv BatchNormalization | Conv Mul Add", exported=("d",)),
    stays("weight given by the caller", "constant|input|given|computed", "c = Conv(x, u) y = BN(c)", {},
          x=f"{IMAGE}, float[3, 2, 3, 3] u", rank=4),
    stays("weight computed from the input", "constant|computed|input",
          "w = Slice(x, zero, one) c = Conv(x, w) y = BN(c)",
          {"zero": np.int64([0]), "one": np.int64([1])}, channels=1),
    stays("scale computed from the input", "constant|computed|Mul",
          "c = Conv(x, W) k = ReduceMean<axes = [0, 2, 3], keepdims = 1>(c) d = Mul(c, k) y = BN(d)", W3),
]  # fmt: skip

RANKS = [
    stays(f"rank {len(shape.split(','))}, nothing to fold into", "input", "d = BN(x) y = Relu(d)", {},
          x=f"float[N, {shape}] x")
    for shape in ("3", "3, 5", "3, 5, 4", "3, 5, 4, 2")
]  # fmt: skip

PATTERNS = TRAINING + READERS + RANKS
