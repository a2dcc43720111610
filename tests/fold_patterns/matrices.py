"""Gemm and MatMul, then a batch norm, and the axis that is the channels' when the shape changes between them."""

import numpy as np

from fold_patterns.pattern import MATRIX, gone, stays

W = {"W": (4, 3)}
TOKENS = {"x": "float[N, 5, 4] x"}
PRODUCT, SUM = "MatMul Add | Gemm", "MatMul Add"


def gemm(name, call, arrays, **more):
    more.setdefault("x", MATRIX)
    return gone(f"gemm {name}", f"c = Gemm{call} y = BN(c)", arrays, "Gemm", **more)


def tokens(name, body, arrays, left, **more):
    return gone(f"tokens, {name}", body, arrays, left, **TOKENS, **more)


GEMMS = [
    gemm("alone", "(x, W)", W),
    gemm("transB", "<transB = 1>(x, W, C)", {"W": (3, 4), "C": (3,)}),
    gemm("square transB", "<transB = 1>(x, W, C)", {"W": (4, 4), "C": (4,)}, channels=4),
    gemm("transA", "<transA = 1>(x, W)", W, x="float[4, N] x"),
    gemm("transA, transB", "<transA = 1, transB = 1>(x, W)", {"W": (3, 4)}, x="float[4, N] x"),
    gemm("alpha", "<alpha = 0.5>(x, W, C)", {**W, "C": (3,)}),
    gemm("beta without C", "<beta = 3.0>(x, W)", W),
    gemm("beta of zero", "<beta = 0.0>(x, W, C)", {**W, "C": (3,)}),
    gemm("of one feature", "(x, W, C)", {"W": (4, 1), "C": (1,)}, channels=1),
    gemm("C named by the empty string", '(x, W, "")', W),
    *(
        gemm(f"alpha, beta, C of shape {shape}", "<alpha = 2.0, beta = -0.75>(x, W, C)", {**W, "C": shape})
        for shape in ((), (1,), (1, 1), (3,), (1, 3))
    ),
    gemm("C a matrix", "<beta = 0.5>(x, W, C)", {**W, "C": (5, 3)}, x="float[5, 4] x"),
    gemm("C a column", "(x, W, C)", {**W, "C": (5, 1)}, x="float[5, 4] x"),
]

PRODUCTS = [
    gone("matmul", "c = MatMul(x, W) y = BN(c)", W, PRODUCT, x=MATRIX),
    gone("matmul + bias", "c = MatMul(x, W) d = Add(c, C) y = BN(d)", {**W, "C": (3,)}, PRODUCT, x=MATRIX),
    gone("bias + matmul", "c = MatMul(x, W) d = Add(C, c) y = BN(d)", {**W, "C": (1, 3)}, PRODUCT, x=MATRIX),
    gone("matmul + scalar", "c = MatMul(x, W) d = Add(c, C) y = BN(d)", {**W, "C": ()}, PRODUCT, x=MATRIX),
    gone(
        "matmul of a constant with x, turned",
        "c = MatMul(W, x) t = Transpose<perm = [1, 0]>(c) y = BN(t)",
        {"W": (3, 4)},
        "MatMul Add Transpose",
        x="float[4, N] x",
    ),
    tokens("transposed", "c = MatMul(x, W) t = Transpose<perm = [0, 2, 1]>(c) y = BN(t)", W, "MatMul Add Transpose"),
    tokens(
        "bias, transposed",
        "c = MatMul(x, W) d = Add(B, c) t = Transpose<perm = [0, 2, 1]>(d) y = BN(t)",
        {**W, "B": (3,)},
        "MatMul Add Transpose",
    ),
    tokens(
        "rows of a matrix by Reshape, and back",
        "c = MatMul(x, W) r = Reshape(c, rows) n = BN(r) y = Reshape(n, back)",
        {**W, "rows": np.int64([-1, 3]), "back": np.int64([-1, 5, 3])},
        "MatMul Add Reshape Reshape",
    ),
    tokens(
        "bias, rows of a matrix by Flatten, and back",
        "c = MatMul(x, W) d = Add(c, B) r = Flatten<axis = 2>(d) n = BN(r) y = Reshape(n, back)",
        {**W, "B": (3,), "back": np.int64([-1, 5, 3])},
        "MatMul Add Flatten Reshape",
    ),
    tokens(
        "back to the shape that the product had",
        "c = MatMul(x, W) k = Shape(c) r = Flatten<axis = 2>(c) n = BN(r) y = Reshape(n, k)",
        W,
        "MatMul Add Shape Flatten Reshape",
    ),
    tokens(
        "sizes computed from the input",
        """k = Shape(x) n = Slice(k, zero, two, zero) r = Concat<axis = 0>(minus, three) c = MatMul(x, W)
        d = Reshape(c, r) e = BN(d) back = Concat<axis = 0>(n, three) y = Reshape(e, back)""",
        {
            **W,
            **{name: np.int64([value]) for name, value in {"zero": 0, "two": 2, "minus": -1, "three": 3}.items()},
        },
        None,
    ),
    gone(
        "gemm, an image whose shape is computed from the batch",
        """c = Gemm(x, W) k = Shape(c) n = Slice(k, zero, one) r = Concat<axis = 0>(n, image) d = Reshape(c, r)
        y = BN(d)""",
        {"W": (4, 12), "zero": np.int64([0]), "one": np.int64([1]), "image": np.int64([3, 2, 2])},
        "Gemm Shape Slice Concat Reshape",
        x=MATRIX,
        rank=4,
        opset=13,
    ),
    gone(
        "image as tokens whose number is computed",
        """c = Conv(x, V) k = Shape(c) n = Slice(k, zero, two) r = Concat<axis = 0>(n, minus) d = Reshape(c, r)
        t = Transpose<perm = [0, 2, 1]>(d) e = MatMul(t, W) l = Shape(e) f = Flatten<axis = 2>(e) g = BN(f)
        y = Reshape(g, l)""",
        {
            "V": (4, 2, 3, 3),
            **W,
            **{name: np.int64([value]) for name, value in {"zero": 0, "two": 2, "minus": -1}.items()},
        },
        "Conv Shape Slice Concat Reshape Transpose MatMul Add Shape Flatten Reshape",
        rank=3,
        opset=13,
    ),
    tokens("as many as channels, transposed", "c = MatMul(x, W) t = Transpose<perm = [0, 2, 1]>(c) y = BN(t)",
           {"W": (4, 5)}, "MatMul Add Transpose", channels=5),
]  # fmt: skip

TRAPS = [
    stays(
        "square product turned: the channels are x's rows",
        "MatMul",
        "c = MatMul(x, W) t = Transpose<perm = [1, 0]>(c) y = BN(t)",
        {"W": (4, 4)},
        x="float[4, 4] x",
        channels=4,
    ),
    stays(
        "square product reshaped: the channels are tokens",
        "MatMul",
        "c = MatMul(x, W) r = Reshape(c, k) y = BN(r)",
        {"W": (4, 5), "k": np.int64([-1, 5, 5])},
        channels=5,
        x="float[N, 5, 4] x",
    ),
    stays(
        "product split into rows: the channels are half rows",
        "axes 1 and 2",
        "c = MatMul(x, W) r = Reshape(c, k) y = BN(r)",
        {"W": (4, 6), "k": np.int64([4, 3, 4])},
        x="float[4, 2, 4] x",
    ),
    stays(
        "tokens are the channels",
        "MatMul",
        "c = MatMul(x, W) y = BN(c)",
        {"W": (4, 5)},
        x="float[N, 5, 4] x",
        channels=5,
    ),
    stays(
        "gemm with the constant on the left",
        "Gemm",
        "c = Gemm(W, x) y = BN(c)",
        {"W": (3, 4)},
        x="float[4, 5] x",
        channels=5,
    ),
    stays(
        "product of two inputs", "MatMul", "c = MatMul(x, u) y = BN(c)", {}, x="float[N, 4] x, float[4, 3] u", rank=2
    ),
    stays(
        "rows of a batch reshaped: as many rows as channels",
        "Reshape|axis",
        "c = Gemm(x, W) r = Reshape(c, k) y = BN(r)",
        {"W": (4, 3), "k": np.int64([1, 3, 3])},
        x="float[3, 4] x",
        rank=3,
    ),
    stays(
        "rows of a product reshaped: as many rows as channels",
        "Reshape|axis",
        "c = MatMul(x, W) r = Reshape(c, k) y = BN(r)",
        {"W": (4, 3), "k": np.int64([1, 3, 3])},
        x="float[3, 4] x",
        rank=3,
    ),
]

PATTERNS = GEMMS + PRODUCTS + TRAPS
