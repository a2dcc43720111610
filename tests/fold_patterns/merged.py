"""Affine maps spelled with Mul, Add, Sub and Div; several maps as one; parallel branches as one convolution."""

import numpy as np

from fold_patterns.pattern import FREE, IMAGE, MATRIX, gone, merged, stays

W3 = {"W": (3, 2, 3, 3)}
ALONE = "BatchNormalization Relu | Mul Add Relu"
BRANCHES = {"options": {"merge_branches": True}}


def positive(*shape):
    return np.linspace(0.5, 2, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def spelled(name, steps, arrays, **more):
    """Conv to c, ``steps`` from c to y: nothing but the conv is left."""
    return gone(f"conv, {name}", f"c = Conv(x, W) {steps}", {**W3, **arrays}, "Conv", **more)


def kept(name, reason, steps, arrays, **more):
    return stays(f"conv, {name}", reason, f"c = Conv(x, W) {steps} y = BN(d)", {**W3, **arrays}, **more)


COLUMN = {"k": positive(3, 1, 1)}
WITH_BN = [
    *(spelled(f"{name}, batch norm", f"d = {step} y = BN(d)", COLUMN)
      for name, step in {
          "Mul": "Mul(c, k)", "Mul from the left": "Mul(k, c)", "Add": "Add(c, k)", "Add from the left": "Add(k, c)",
          "Sub": "Sub(c, k)", "subtracted from a constant": "Sub(k, c)", "Div": "Div(c, k)"}.items()),
    *(spelled(f"batch norm, {name}", f"d = BN(c) y = {step}", COLUMN)
      for name, step in {"Mul": "Mul(d, k)", "Add": "Add(k, d)", "subtracted from a constant": "Sub(k, d)",
                         "Div": "Div(d, k)"}.items()),
    *(spelled(f"batch norm, Mul by {shape}", "d = BN(c) y = Mul(d, k)", {"k": positive(*shape)})
      for shape in ((1, 3, 1, 1), (), (1,), (1, 1, 1, 1), (1, 1, 1))),
    *(spelled(f"Add of {shape}, batch norm", "d = Add(k, c) y = BN(d)", {"k": positive(*shape)})
      for shape in ((3, 1, 1), (1, 3, 1, 1), (), (1, 1))),
    stays("conv, divided into a constant", "Div|divided", "c = Conv(x, W, B) d = Div(k, c) y = BN(d)",
          {"W": np.full((3, 2, 1, 1), 0.1, np.float32), "B": np.float32([3, -4, 5]), **COLUMN}),
    kept("Mul along the width", "Mul", "d = Mul(c, k)", {"k": positive(4)}),
    kept("Mul along the width, as wide as channels", "Mul", "d = Mul(c, k)", {"W": (3, 2, 3, 4), "k": positive(3)}),
    kept("Add along the height", "Add", "d = Add(c, k)", {"k": positive(4, 1)}),
    kept("Add of an image", "Add", "d = Add(c, k)", {"k": positive(3, 4, 4)}),
    kept("Mul by a batch of scales", "Mul", "d = Mul(c, k)", {"k": positive(3, 3, 1, 1)}, x="float[3, 2, 6, 6] x"),
    kept("Mul by more axes", "Mul", "d = Mul(c, k)", {"k": positive(1, 1, 3, 1, 1)}, x="float[3, 2, 6, 6] x", rank=5),
    kept("Mul by an input", "Mul", "d = Mul(c, u)", {}, x=f"{IMAGE}, float[3, 1, 1] u", rank=4),
    kept("Mul with itself", "Mul", "d = Mul(c, c)", {}),
    gone("gemm, Mul, batch norm", "c = Gemm(x, W) d = Mul(c, k) y = BN(d)", {"W": (4, 3), "k": positive(3)}, "Gemm",
         x=MATRIX),
    gone("gemm, batch norm, Div by a row", "c = Gemm(x, W) d = BN(c) y = Div(d, k)",
         {"W": (4, 3), "k": positive(1, 3)}, "Gemm", x=MATRIX),
    gone("conv 1-d, batch norm, Mul", "c = Conv(x, W) d = BN(c) y = Mul(d, k)",
         {"W": (3, 2, 3), "k": positive(3, 1)}, "Conv", x="float[N, 2, 9] x"),
    gone("tokens, Mul, turned, batch norm",
         "c = MatMul(x, W) d = Mul(c, k) t = Transpose<perm = [0, 2, 1]>(d) y = BN(t)",
         {"W": (4, 3), "k": positive(3)}, "MatMul Add Transpose", x="float[N, 5, 4] x"),
    gone("scaled image, batch norm, conv", "c = Div(x, k) d = Sub(c, l) e = BN(d) y = Conv(e, W)",
         {**W3, "k": np.float32(255), "l": positive(2, 1, 1)}, "Conv", channels=2),
]  # fmt: skip

ROOTS = "a = Add(v0, e) r = Sqrt(a)"
STATS = {name: positive(3) for name in ("g", "h", "m0", "v0")} | {"e": np.float32(1e-3)}
COLUMNS = {name: array.reshape(-1, 1, 1) if array.ndim else array for name, array in STATS.items()}
SPELLED = [
    spelled("Sub Mul Mul Add", "d = Sub(c, m0) f = Mul(d, v0) i = Mul(f, g) y = Add(i, h)", COLUMNS),
    spelled("Sub Div Mul Add", "d = Sub(c, m0) f = Div(d, v0) i = Mul(f, g) y = Add(i, h)", COLUMNS),
    spelled("Mul Add", "d = Mul(c, g) y = Add(h, d)", COLUMNS),
    spelled("a root in nodes", f"{ROOTS} d = Sub(c, m0) f = Div(d, r) i = Mul(f, g) y = Add(i, h)", COLUMNS),
    spelled("an inverse root in nodes",
            f"{ROOTS} q = Reciprocal(r) i = Mul(q, g) d = Sub(c, m0) f = Mul(d, i) y = Add(f, h)", COLUMNS),
    spelled("frozen: scale and bias made of statistics",
            f"{ROOTS} q = Reciprocal(r) i = Mul(g, q) j = Mul(m0, i) l = Sub(h, j) i4 = Reshape(i, k) "
            "l4 = Reshape(l, k) d = Mul(c, i4) y = Add(d, l4)", {**STATS, "k": np.int64([1, -1, 1, 1])}),
    spelled("unsqueezed constants",
            "i = Unsqueeze(g, a) l = Unsqueeze(h, a) d = Mul(c, i) y = Add(d, l)",
            {**STATS, "a": np.int64([1, 2])}),
    spelled("a power in nodes", "a = Add(v0, e) r = Pow(a, p) d = Mul(c, r) y = Add(d, h)",
            {**COLUMNS, "p": np.float32(-0.5)}),
    spelled("constants of whole numbers cast", "k = Cast<to = 1>(w) d = Mul(c, k) y = Add(d, h)",
            {**COLUMNS, "w": np.int64([2]).reshape(1, 1, 1)}),
    gone("gemm, Sub Div Mul Add", "c = Gemm(x, W) d = Sub(c, m0) f = Div(d, v0) i = Mul(f, g) y = Add(i, h)",
         {"W": (4, 3), **STATS}, "Gemm", x=MATRIX),
    gone("Sub Div before conv", "d = Sub(x, m0) e = Div(d, v0) y = Conv(e, W)",
         {**W3, "m0": positive(1, 2, 1, 1), "v0": positive(2, 1, 1)}, "Conv"),
    gone("Mul Add before padded conv", "d = Mul(x, m0) e = Add(d, v0) y = Conv<pads = [1, 1, 1, 1]>(e, W)",
         {**W3, "m0": positive(1, 2, 1, 1), "v0": positive(2, 1, 1)}, "Add Conv", x=FREE),
]  # fmt: skip

CHAINS = [
    stays("batch norm of an input", "input|Relu", "d = BN(x) y = Relu(d)", {}, channels=2),
    stays("batch norm between Relus", "Relu", "c = Relu(x) d = BN(c) y = Relu(d)", {}, channels=2),
    merged("two batch norms of an input", "d = BN(x) e = BN2(d) y = Relu(e)", {}, ALONE, channels=2),
    *(merged(f"batch norm of an input, {step}", f"d = BN(x) e = {step} y = Relu(e)", {"k": positive(2, 1, 1)}, ALONE,
             channels=2) for step in ("Mul(d, k)", "Add(k, d)", "Sub(d, k)", "Sub(k, d)", "Div(d, k)")),
    merged("Mul of an input, batch norm", "c = Mul(x, k) d = BN(c) y = Relu(d)", {"k": positive(1, 2, 1, 1)}, ALONE,
           channels=2),
    merged("Sub Mul Mul Add between Relus",
           "r = Relu(x) d = Sub(r, m0) f = Mul(d, v0) i = Mul(f, g) j = Add(i, h) y = Relu(j)",
           {name: positive(2, 1, 1) for name in ("m0", "v0", "g", "h")},
           "Relu BatchNormalization Relu | Relu Mul Add Relu"),
    merged("two batch norms of an input, opset 8", "d = BN(x) e = BN2(d) y = Relu(e)", {}, ALONE, channels=2, opset=8,
           ir_version=3, overridable=tuple(name + suffix for name in "sbmv" for suffix in ("", "2"))),
    merged("batch norm, Mul of one pixel, Relu", "d = BN(x) e = Mul(d, k) y = Relu(e)", {"k": positive(4)}, ALONE,
           x=MATRIX, channels=4),
]  # fmt: skip

THREE, ONE = "Conv<pads = [1, 1, 1, 1]>(x, W)", "Conv(x, V)"
PARALLEL = [
    gone("branches of 3 x 3, 1 x 1 and identity",
         f"a = {THREE} b2_ = {ONE} c = BN(a) d = BN2(b2_) e = BN3(x) f = Add(c, d) g = Add(f, e) y = Relu(g)",
         {"W": (3, 3, 3, 3), "V": (3, 3, 1, 1)}, "Conv Relu", x="float[N, 3, H, W] x", **BRANCHES),
    gone("branches of 3 x 3 and 1 x 1, strided",
         "a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, W) c = BN(a) "
         "h = Conv<strides = [2, 2]>(x, V, B) d = BN2(h) y = Add(c, d)",
         {"W": (4, 3, 3, 3), "V": (4, 3, 1, 1), "B": (4,)}, "Conv", x="float[N, 3, 6, 6] x", channels=4, **BRANCHES),
    gone("branches of depthwise convs and identity",
         "a = Conv<pads = [1, 1, 1, 1], group = 3>(x, W) h = Conv<group = 3>(x, V) c = BN(a) d = BN2(h) e = BN3(x) "
         "f = Add(e, c) y = Add(d, f)",
         {"W": (3, 1, 3, 3), "V": (3, 1, 1, 1)}, "Conv", x="float[N, 3, 6, 6] x", **BRANCHES),
    gone("branches of 3 x 3, 3 x 1, 1 x 3 and identity",
         f"a = {THREE} h = Conv<pads = [1, 0, 1, 0]>(x, V) i = Conv<pads = [0, 1, 0, 1]>(x, U) c = BN(a) d = BN2(h) "
         "e = BN3(i) f = BN4(x) g = Add(c, d) j = Add(g, e) k = Add(j, f) y = Relu(k)",
         {"W": (3, 3, 3, 3), "V": (3, 3, 3, 1), "U": (3, 3, 1, 3)}, "Conv Relu", x="float[N, 3, 6, 6] x", **BRANCHES),
    gone("branches of two 3 x 3", f"a = {THREE} c = BN(a) h = Conv<pads = [1, 1, 1, 1]>(x, V) d = BN2(h) y = Add(c, d)",
         {"W": (3, 3, 3, 3), "V": (3, 3, 3, 3)}, "Conv", x="float[N, 3, 6, 6] x", **BRANCHES),
    gone("branches in groups and identity",
         "a = Conv<pads = [1, 1, 1, 1], group = 2>(x, W) c = BN(a) e = BN2(x) y = Add(c, e)",
         {"W": (4, 2, 3, 3)}, "Conv", x="float[N, 4, 6, 6] x", channels=4, **BRANCHES),
    stays("branches, unmerged unless asked", "input|Add",
          f"a = {THREE} c = BN(a) e = BN2(x) f = Add(c, e) y = Relu(f)", {"W": (3, 3, 3, 3)},
          x="float[N, 3, 6, 6] x"),
    stays("branches, one read elsewhere", "read|output|export",
          f"a = {THREE} c = BN(a) e = BN2(x) f = Add(c, e) y = Relu(f)", {"W": (3, 3, 3, 3)},
          x="float[N, 3, 6, 6] x", exported=("c",), **BRANCHES),
    stays("branches of unlike strides", "strid|identity|shape|Add",
          "a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, W) c = BN(a) e = BN2(x) f = Add(c, e) y = Relu(f)",
          {"W": (3, 3, 3, 3)}, x="float[N, 3, 1, 1] x", **BRANCHES),
]  # fmt: skip

PATTERNS = WITH_BN + SPELLED + CHAINS + PARALLEL
