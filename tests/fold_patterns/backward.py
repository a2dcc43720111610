"""A batch norm that reaches a convolution or a product through operators that keep a per-channel affine map."""

import numpy as np

from fold_patterns.pattern import MATRIX, either, gone, stays

W3 = {"W": (3, 2, 3, 3)}
SPOT = {"W": (3, 2, 6, 6)}  # an image of 6 x 6 becomes one pixel
POINT = {"W": (3, 2, 1, 1)}  # it stays 6 x 6


def through(name, steps, left, arrays=W3, **more):
    """Conv to c, ``steps`` from c to d, a batch norm."""
    return gone(f"conv, {name}", f"c = Conv(x, W) {steps} y = BN(d)", arrays, f"Conv {left}".strip(), **more)


def behind(name, reason, steps, arrays=W3, **more):
    """The same, but the batch norm stays."""
    return stays(f"conv, {name}", reason, f"c = Conv(x, W) {steps} y = BN(d)", arrays, **more)


def ints(**lists):
    return {name: np.int64(values) for name, values in lists.items()}


SHAPES = [
    through("Identity", "d = Identity(c)", "Identity"),
    through("Dropout", "d = Dropout(c)", "Dropout"),
    through("Dropout and its mask", "d, mask = Dropout(c) z = Not(mask)", "Dropout Not"),
    through("Dropout of opset 9", "d = Dropout<ratio = 0.9>(c)", "Dropout", opset=9, ir_version=4),
    through("Dropout told not to train", "d = Dropout(c, r, no)", "Dropout",
            {**W3, "r": np.float32(0.5), "no": np.array(False)}),
    behind("Dropout told to train", "Dropout", "d = Dropout(c, r, yes)",
           {**W3, "r": np.float32(0), "yes": np.array(True)}),
    through("Squeeze", "d = Squeeze(c, a)", "Squeeze", {**SPOT, **ints(a=[2, 3])}, rank=2),
    through("Squeeze of opset 11", "d = Squeeze<axes = [-1, 2]>(c)", "Squeeze", SPOT, rank=2, opset=11),
    through("Unsqueeze", "d = Unsqueeze(c, a)", "Unsqueeze", {**W3, **ints(a=[-1])}, rank=5),
    through("Reshape that names the channels", "d = Reshape(c, k)", "Reshape", {**W3, **ints(k=[-1, 3, 16])}, rank=3),
    through("Reshape that copies the channels", "d = Reshape(c, k)", "Reshape", {**W3, **ints(k=[0, 0, -1])}, rank=3),
    through("Reshape of neighbours into one channel", "d = Reshape(c, k)", "Reshape",
            {"W": (6, 2, 3, 3), **ints(k=[0, 3, 2, -1])}),
    through("channels shuffled", "e = Reshape(c, k) f = Transpose<perm = [0, 2, 1, 3, 4]>(e) d = Reshape(f, back)",
            "Reshape Transpose Reshape", {"W": (6, 2, 3, 3), **ints(k=[-1, 2, 3, 4, 4], back=[-1, 6, 4, 4])},
            channels=6),
    through("turned there and back", "e = Transpose<perm = [0, 2, 3, 1]>(c) d = Transpose<perm = [0, 3, 1, 2]>(e)",
            "Transpose Transpose"),
    through("channels last, rows of a matrix", "e = Transpose<perm = [0, 2, 3, 1]>(c) d = Reshape(e, k)",
            "Transpose Reshape", {**W3, **ints(k=[-1, 3])}, rank=2),
    through("Flatten of one pixel", "d = Flatten(c)", "Flatten", SPOT, rank=2),
    through("pooled and flattened", "e = GlobalAveragePool(c) d = Flatten(e)", "GlobalAveragePool Flatten", rank=2),
    gone("gemm, Unsqueeze", "c = Gemm(x, W) d = Unsqueeze(c, a) y = BN(d)", {"W": (4, 3), **ints(a=[2, 3])},
         "Gemm Unsqueeze", x=MATRIX, rank=4),
    gone("gemm, one channel of all features", "c = Gemm(x, W) d = Unsqueeze(c, a) y = BN(d)",
         {"W": (4, 3), **ints(a=[1])}, "Gemm Unsqueeze", x=MATRIX, rank=3, channels=1),
    gone("gemm, an image of one pixel", "c = Gemm(x, W) d = Reshape(c, k) y = BN(d)",
         {"W": (4, 3), **ints(k=[-1, 3, 1, 1])}, "Gemm Reshape", x=MATRIX, rank=4),
    gone("gemm, an image of four pixels", "c = Gemm(x, W, B) d = Reshape(c, k) y = BN(d)",
         {"W": (4, 12), "B": (12,), **ints(k=[-1, 3, 2, 2])}, "Gemm Reshape", x=MATRIX, rank=4),
    behind("Flatten of many pixels", "Conv|Flatten", "d = Flatten(c)", channels=48, rank=2),
    behind("the height is the channels", "Conv|Transpose|axis", "d = Transpose<perm = [0, 2, 1, 3]>(c)",
           {"W": (3, 2, 4, 3)}),
    behind("the batch is the channels", "Conv|Transpose|axis", "d = Transpose<perm = [1, 0, 2, 3]>(c)",
           x="float[3, 2, 6, 6] x"),
    behind("channels and rows reshaped together", "Conv|Reshape|axis", "d = Reshape(c, k)",
           {"W": (3, 2, 3, 3), **ints(k=[0, 4, 3, 4])}, channels=4),
]  # fmt: skip

PARTS = [
    gone("two convs, Concat", "c = Conv(x, W) d = Conv(x, V) e = Concat<axis = 1>(c, d) y = BN(e)",
         {**W3, "V": (2, 2, 3, 3)}, "Conv Conv Concat", channels=5),
    gone("conv and a deeper conv, Concat",
         "c = Conv(x, W) d = Conv<pads = [1, 1, 1, 1]>(c, V) p = MaxPool<kernel_shape = [1, 1]>(d) f = Conv(x, W) "
         "e = Concat<axis = -3>(p, f) y = BN(e)",
         {**W3, "V": (2, 3, 3, 3)}, "Conv Conv MaxPool Conv Concat", channels=5, positive=True),
    gone("Concat of rows", "c = Conv(x, W) d = Conv(x, V) e = Concat<axis = 2>(c, d) y = BN(e)",
         {**W3, "V": (3, 2, 3, 3)}, "Conv Conv Concat"),
    gone("Concat with a constant", "c = Conv(x, W) e = Concat<axis = 1>(c, K) y = BN(e)",
         {**W3, "K": (1, 2, 4, 4)}, "Conv Concat", x="float[1, 2, 6, 6] x", channels=5),
    gone("Concat of a branch's own batch norm",
         "c = Conv(x, W) d = Conv(x, V) f = BN2(d) e = Concat<axis = 1>(c, f) y = BN(e)",
         {**W3, "V": (2, 2, 3, 3)}, "Conv Conv Concat", channels={"": 5, "2": 2}),
    stays("Concat with Relu", "Relu",
          "c = Conv(x, W) d = Conv(x, V) r = Relu(d) e = Concat<axis = 1>(c, r) y = BN(e)",
          {**W3, "V": (2, 2, 3, 3)}, channels=5),
    stays("Concat of a conv with itself", "Conv|Concat",
          "c = Conv(x, W) e = Concat<axis = 1>(c, c) y = BN(e)", W3, channels=6),
    gone("Split, both halves normed", "c = Conv(x, W) d, e = Split<axis = 1>(c, k) f = BN(d) g = BN2(e) y = Add(f, g)",
         {"W": (6, 2, 3, 3), **ints(k=[3, 3])}, "Conv Split Add"),
    gone("Split, one part normed", "c = Conv(x, W) d, e = Split<axis = 1>(c, k) y = BN(d) z = Relu(e)",
         {"W": (5, 2, 3, 3), **ints(k=[3, 2])}, "Conv Split Relu", exported=("z",)),
    stays("Split of rows, one part normed", "Split|read",
          "c = Conv(x, W) d, e = Split<axis = 2>(c, k) y = BN(d) z = Relu(e)",
          {**W3, **ints(k=[2, 2])}, exported=("z",)),
    through("Slice of rows", "d = Slice(c, one, three, two)", "Slice", {**W3, **ints(one=[1], three=[3], two=[2])}),
    through("Slice of channels", "d = Slice(c, one, four, one)", "Slice",
            {"W": (5, 2, 3, 3), **ints(one=[1], four=[4])}),
    through("Slice of channels backwards", "d = Slice(c, last, first, one, back)", "Slice",
            {**W3, **ints(last=[-1], first=[-100], one=[1], back=[-1])}),
    through("Slice of opset 9", "d = Slice<axes = [1], starts = [1], ends = [4]>(c)", "Slice", {"W": (5, 2, 3, 3)},
            opset=9, ir_version=4),
    gone("sum of two convs", "c = Conv(x, W) d = Conv(x, V) e = Add(c, d) y = BN(e)", {**W3, "V": (3, 2, 3, 3)},
         "Conv Conv Add"),
]  # fmt: skip

SAME = {"m": np.full(3, 0.5, np.float32), "b": np.full(3, 0.25, np.float32)}
PIXELS = ints(p=[0, 0, 1, 2, 0, 0, 0, 1])
BORDER = [
    through("Pad with every channel's mean", "d = Pad(c, p, k)", "Pad", {**W3, **PIXELS, **SAME, "k": np.float32(0.5)}),
    through("Pad of reflections", 'd = Pad<mode = "reflect">(c, p)', "Pad", {**W3, **PIXELS}),
    through("Pad with the edge", 'd = Pad<mode = "edge">(c, p)', "Pad", {**W3, **PIXELS}),
    through("Pad by nothing", "d = Pad(c, p)", "Pad", {**W3, **ints(p=[0] * 8)}),
    behind("Pad with zeros", "Pad", "d = Pad(c, p)", {**W3, **PIXELS}),
    behind("Pad with more channels", "Pad", "d = Pad(c, p)", {**W3, **ints(p=[0, 1, 0, 0, 0, 1, 0, 0])}, channels=5),
]  # fmt: skip

POOLS = [
    through("AveragePool", "d = AveragePool<kernel_shape = [2, 3], strides = [2, 1]>(c)", "AveragePool"),
    through("AveragePool, padding not counted", "d = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(c)",
            "AveragePool"),
    through("AveragePool padded the same",
            'd = AveragePool<kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER">(c)', "AveragePool"),
    through("AveragePool, no padding to count", "d = AveragePool<kernel_shape = [2, 2], count_include_pad = 1>(c)",
            "AveragePool"),
    behind("AveragePool, padding counted", "AveragePool|pad",
           "d = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(c)"),
    behind("AveragePool padded the same, padding counted", "AveragePool|pad",
           'd = AveragePool<kernel_shape = [3, 3], auto_pad = "SAME_UPPER", count_include_pad = 1>(c)'),
    through("GlobalAveragePool", "d = GlobalAveragePool(c)", "GlobalAveragePool"),
    through("ReduceMean", "d = ReduceMean<axes = [2, 3]>(c)", "ReduceMean"),
    through("ReduceMean to a matrix", "d = ReduceMean<axes = [-1, 2], keepdims = 0>(c)", "ReduceMean", rank=2),
    through("ReduceMean of opset 18", "d = ReduceMean(c, a)", "ReduceMean", {**W3, **ints(a=[2, 3])}, opset=18),
    through("ReduceMean of the channels to one", "d = ReduceMean<axes = [1]>(c)", "ReduceMean", channels=1),
    behind("ReduceMean of the channels, rows in their place", "Conv|ReduceMean",
           "d = ReduceMean<axes = [1], keepdims = 0>(c)", {"W": (3, 2, 4, 3)}, rank=3),
    through("MaxPool, positive scales", "d = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c)", "MaxPool",
            positive=True),
    through("MaxPool with padding, positive scales", "d = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(c)",
            "MaxPool", positive=True),
    through("GlobalMaxPool, positive scales", "d = GlobalMaxPool(c)", "GlobalMaxPool", positive=True),
    behind("MaxPool, a negative scale", "MaxPool|negative", "d = MaxPool<kernel_shape = [2, 2]>(c)",
           {**W3, "s": np.float32([1, -1, 2])}),
    behind("GlobalMaxPool, a negative scale", "MaxPool|negative", "d = GlobalMaxPool(c)",
           {**W3, "s": np.float32([1, -1, 2])}),
    *(behind(operator, operator, f"d = {operator}(c)") for operator in ("Relu", "LeakyRelu", "Sigmoid", "HardSwish")),
    behind("Clip", "Clip", "d = Clip(c, k)", {**W3, "k": np.float32(0)}),
]  # fmt: skip


def resized(name, attributes, **more):
    call = f"d = Resize<{attributes}>(c, none, k)"
    arrays = {**POINT, "none": np.float32([]), "k": np.float32([1, 1, 2, 1.5])}
    return through(f"Resize {name}", call, "Resize", arrays, opset=18, **more)


SIZES = [
    resized("nearest", 'mode = "nearest"'),
    resized("nearest, asymmetric", 'mode = "nearest", coordinate_transformation_mode = "asymmetric"'),
    resized("linear", 'mode = "linear"'),
    resized("linear, corners aligned", 'mode = "linear", coordinate_transformation_mode = "align_corners"'),
    resized("cubic", 'mode = "cubic"'),
    resized("cubic without what is outside", 'mode = "cubic", exclude_outside = 1'),
    gone("conv, Resize linear with antialias",
         'c = Conv(x, W) d = Resize<mode = "linear", antialias = 1>(c, none, k) y = BN(d)',
         {**POINT, "none": np.float32([]), "k": np.float32([1, 1, 0.5, 0.5])}, "Conv Resize", opset=18),
    behind("Resize of a crop with a value around it", "Resize",
           'd = Resize<mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize", '
           "extrapolation_value = 3.0>(c, roi, k)",
           {**POINT, "roi": np.float32([0, 0, -0.5, 0, 1, 1, 1.5, 1]), "k": np.float32([1, 1, 1, 1])}, runs=False),
    through("DepthToSpace DCR", "d = DepthToSpace<blocksize = 2>(c)", "DepthToSpace", {"W": (12, 2, 1, 1)}),
    through("DepthToSpace CRD", 'd = DepthToSpace<blocksize = 2, mode = "CRD">(c)', "DepthToSpace",
            {"W": (12, 2, 1, 1)}),
    through("SpaceToDepth, one affine a source channel", "d = SpaceToDepth<blocksize = 2>(c)", "SpaceToDepth",
            {**POINT, "s": np.tile(np.float32([1, -2, 3]), 4), "b": np.tile(np.float32([4, 5, -6]), 4),
             "m": np.tile(np.float32([0.1, 0, 2]), 4), "v": np.tile(np.float32([1, 2, 3]), 4)}, channels=12),
    behind("SpaceToDepth, an affine a place", "SpaceToDepth", "d = SpaceToDepth<blocksize = 2>(c)", POINT, channels=12),
]  # fmt: skip

CASTS = [
    gone("gemm, Cast to more digits", "c = Gemm(x, W) d = Cast<to = 11>(c) y = BN(d)",
         {"W": (4, 3), **{n: np.float64([1.5, -0.5, 2]) for n in "sbm"}, "v": np.float64([1, 2, 0.5])}, "Gemm Cast",
         x=MATRIX, y="double[N, 3] y"),
    either("gemm, Cast to fewer digits", "c = Gemm(x, W) d = Cast<to = 10>(c) y = BN(d)",
          {"W": (4, 3), **{n: np.float16([1.5, -0.5, 2]) for n in "sbm"}, "v": np.float16([1, 2, 0.5])},
          x=MATRIX, y="float16[N, 3] y", tolerance=2e-3),
    behind("Cast to whole numbers", "Cast", "e = Cast<to = 6>(c) d = Cast<to = 1>(e)"),
]  # fmt: skip

PATTERNS = SHAPES + PARTS + BORDER + POOLS + SIZES + CASTS
