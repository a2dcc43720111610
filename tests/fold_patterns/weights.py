"""Constants wherever they are, and who else reads them."""

import numpy as np

from fold_patterns.pattern import MATRIX, gone, stays

W3 = {"W": (3, 2, 3, 3)}
BODY = "c = Conv(x, W) y = BN(c)"


def made(name, steps, arrays, **more):
    """``steps`` make W or the statistics; nothing of them is left."""
    return gone(f"weights, {name}", f"{steps} {BODY}", arrays, "Conv", **more)


def four(values):
    return np.float32(values).reshape(-1, 1, 1, 1)


MADE = [
    made("Constant", "W = Constant<value = float[3, 2, 1, 1] {1, -2, 3, -4, 5, -6}>()", {}),
    made("Constant of the list of a scale", "s = Constant<value_floats = [1.5, -2.0, 0.5]>()", W3),
    made("ConstantOfShape", "W = ConstantOfShape<value = float[1] {0.25}>(k)", {"k": np.int64([3, 2, 3, 3])}),
    made("ConstantOfShape of a Constant", "k = Constant<value_ints = [3, 2, 2, 2]>() "
         "W = ConstantOfShape<value = float[1] {-2.0}>(k)", {}),
    made("ConstantOfShape for every statistic",
         "k = Constant<value_ints = [3]>() s = ConstantOfShape<value = float[1] {2.0}>(k) b = ConstantOfShape(k) "
         "m = ConstantOfShape<value = float[1] {-0.5}>(k) v = ConstantOfShape<value = float[1] {1.0}>(k)", W3),
    made("Identity", "W = Identity(W0)", {"W0": (3, 2, 3, 3)}),
    made("Identity of statistics", "s = Identity(s0) v = Identity(v0)",
         {**W3, "s0": (3,), "v0": np.float32([0.5, 1, 2])}),
    made("Cast from fewer digits", "W = Cast<to = 1>(W0)", {"W0": np.float16(np.arange(6).reshape(3, 2, 1, 1) - 2.5)}),
    made("Cast from more digits", "W = Cast<to = 1>(W0)", {"W0": np.arange(6).reshape(3, 2, 1, 1) / 3 - 1}),
    made("Cast from whole numbers", "W = Cast<to = 1>(W0)", {"W0": np.int8(np.arange(6).reshape(3, 2, 1, 1) - 2)}),
    made("Unsqueeze", "W = Unsqueeze(W0, a)", {"W0": (3, 2, 3), "a": np.int64([3])}),
    made("Transpose", "W = Transpose<perm = [1, 0, 3, 2]>(W0)", {"W0": (2, 3, 3, 2)}),
    made("Reshape", "W = Reshape(W0, k)", {"W0": (18, 2), "k": np.int64([3, 2, 3, 2])}),
    made("weight norm", "n = Mul(g, W0) W = Div(n, l)",
         {"W0": (3, 2, 3, 3), "g": four([1, -2, 0.5]), "l": four([3, 2, 4])}),
    made("weight norm, norm and all",
         "q = Mul(W0, W0) r = ReduceSum<keepdims = 1>(q, a) l = Sqrt(r) n = Div(W0, l) W = Mul(n, g)",
         {"W0": (3, 2, 3, 3), "g": four([1, -2, 0.5]), "a": np.int64([1, 2, 3])}),
    made("Concat of halves", "W = Concat<axis = 0>(U, V)", {"U": (1, 2, 3, 3), "V": (2, 2, 3, 3)}),
    made("Slice of more", "W = Slice(W0, one, four)",
         {"W0": (5, 2, 3, 3), "one": np.int64([1]), "four": np.int64([4])}),
    made("behind two steps", "U = Transpose<perm = [1, 0, 2, 3]>(W0) W = Identity(U)", {"W0": (2, 3, 3, 3)}),
    gone("weights, gemm's turned", "V = Transpose<perm = [1, 0]>(W) c = Gemm(x, V) y = BN(c)", {"W": (3, 4)}, "Gemm",
         x=MATRIX),
    gone("weights, matmul's turned", "V = Transpose<perm = [1, 0]>(W) c = MatMul(x, V) d = Add(B, c) y = BN(d)",
         {"W": (3, 4), "B": (3,)}, "MatMul Add | Gemm", x=MATRIX),
    gone("weights, made for the conv behind the batch norm", "V = Identity(W) d = BN(x) y = Conv(d, V)", W3, "Conv",
         channels=2),
]  # fmt: skip

ALL = ("W", "s", "b", "m", "v")
CALLER = [
    gone("weights, inputs with defaults before IR 4", BODY, W3, "Conv", ir_version=3, opset=8, overridable=ALL),
    gone("weights, bias an input with a default before IR 4", "c = Conv(x, W, B) y = BN(c)", {**W3, "B": (3,)}, "Conv",
         ir_version=3, opset=8, overridable=(*ALL, "B")),
    gone("weights, scale and shift of a map inputs before IR 4", "c = Conv(x, W) d = Mul(c, k) y = Add(d, l)",
         {**W3, "k": (3, 1, 1), "l": (3, 1, 1)}, "Conv", ir_version=3, opset=8, overridable=("W", "k", "l")),
    stays("weights, W can be given", "given|overrid|input", BODY, W3, overridable=("W",)),
    stays("weights, scale can be given", "given|overrid|input", BODY, W3, overridable=("s",)),
    gone("weights, all can be given but need not", BODY, W3, "Conv", overridable=ALL,
         options={"allow_overridable": True}),
]  # fmt: skip

TWICE = "c = Conv(x, W) d = BN(c) e = Conv(x, W) y = Add(d, e)"
SHARED = [
    gone("weights, shared by two convs, one normed", TWICE, W3, "Conv Conv Add"),
    gone("weights, shared by two convs, both normed", TWICE.replace("y =", "f = BN2(e) z =").replace("d, e", "d, f")
         + " y = Neg(z)", W3, "Conv Conv Add Neg"),
    gone("weights, shared and exported", BODY, W3, "Conv", exported=("W",)),
    gone("weights, the same statistics twice", "c = Conv(x, W) d = BN(c) e = Conv(d, V) y = BN(e)",
         {**W3, "V": (3, 3, 1, 1)}, "Conv Conv"),
    gone("weights, statistics of one that stays", "c = Conv(x, W) d = BN(c) e = Relu(d) f = Conv(e, V) y = BN(f)",
         {**W3, "V": (3, 3, 1, 1)}, "Conv Relu Conv"),
    gone("weights, one vector in every role",
         "c = Conv(x, W, p) y = BatchNormalization(c, p, p, p, p)", {**W3, "p": np.float32([0.5, 1, 2])}, "Conv"),
    gone("weights, bias shared with another Add", "c = Conv(x, W, B) d = BN(c) e = Reshape(B, k) y = Add(d, e)",
         {**W3, "B": (3,), "k": np.int64([3, 1, 1])}, None),
    gone("weights, gemm's weight as its bias", "c = Gemm(x, W, W) y = BN(c)", {"W": (1, 3)}, "Gemm",
         x="float[N, 1] x"),
    gone("weights, a name that folding might choose", "c = Conv(x, W) e = Conv(x, W) d = BN(c) z = Add(d, e) "
         "y = Mul(z, W_folded)", {**W3, "W_folded": np.float32(2), "W_folded2": np.float32(3)}, None),
    gone("weights, one constant scales two convs",
         "c = Conv(x, W) d = Mul(c, k) e = Conv(x, V) f = Mul(e, k) y = Sub(d, f)",
         {**W3, "V": (3, 2, 3, 3), "k": (3, 1, 1)}, "Conv Conv Sub"),
    stays("weights, statistics computed from the input", "constant|computed|mean",
          "c = Conv(x, W) n = ReduceMean<axes = [0, 2, 3], keepdims = 0>(c) "
          "y = BatchNormalization(c, s, b, n, v)",
          {**W3, "s": (3,), "b": (3,), "v": np.float32([1, 2, 3])}),
]  # fmt: skip

PATTERNS = MADE + CALLER + SHARED
