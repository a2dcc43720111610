"""Random ONNX graphs around batch norms, in float64: what is read, how often, and by whom is drawn too."""

import hypothesis.strategies as st
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """Values are (name, k, sizes): a tensor of shape (k N, *sizes)."""

    def __init__(self, draw):
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.nodes, self.constants, self.read, self.made = [], [], set(), 0
        self.shared, self.branches = {}, False
        sizes = draw(st.sampled_from([(2, 4, 4), (3, 3, 3), (4, 6, 4), (3, 4), (4, 4), (4,), (3,)]))
        self.values = [("x", 1, sizes)]

    def one_of(self, *choices):
        return self.draw(st.sampled_from(choices))

    def constant(self, array):
        name = f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def normal(self, *shape):
        """Standard normal; now and then a constant that others read, too."""
        if shape not in self.shared or self.one_of(0, 0, 1) == 0:
            self.shared[shape] = self.constant(self.rng.standard_normal(shape))
        return self.shared[shape]

    def integers(self, *values):
        return self.constant(np.int64(values))

    def factors(self, *shape):
        """Not too near zero, of both signs or of one; now and then one of them is zero."""
        array = self.rng.uniform(0.3, 2, shape)
        if self.draw(st.booleans()):
            array *= self.rng.choice([-1, 1], shape)
        if self.one_of(*range(8)) == 0:
            array.flat[0] = 0
        return self.constant(array)

    def add(self, operator, inputs, k, sizes, **attributes):
        return self.add_several(operator, inputs, k, [sizes], **attributes)[0]

    def add_several(self, operator, inputs, k, sizes, **attributes):
        """A node with one output for every element of ``sizes``."""
        names = [f"v{self.made + number}" for number in range(len(sizes))]
        self.made += len(sizes)
        self.nodes.append(helper.make_node(operator, inputs, names, name=names[0], **attributes))
        self.read.update(inputs)
        self.values += [(name, k, tuple(shape)) for name, shape in zip(names, sizes, strict=True)]
        return names

    def branch(self, name, k, sizes):
        """A graph of nodes that keep the shape, on a value from outside."""
        outer = self.nodes, self.values
        self.nodes, self.values = [], [(name, k, sizes)]
        for _ in range(self.one_of(1, 2, 3)):
            self.draw(st.sampled_from(KEEPING))(self, *self.values[-1])
        inner, output = self.nodes, self.values[-1][0]
        self.nodes, self.values = outer
        declared = helper.make_tensor_value_info(output, TensorProto.DOUBLE, None)
        return helper.make_graph(inner, f"of_{output}", [], [declared])

    def source(self):
        """A value: mostly the newest, so that chains grow."""
        return self.values[-1] if self.one_of(0, 0, 1) == 0 else self.draw(st.sampled_from(self.values))

    def model(self):
        outputs = [value for value in self.values if value[0] not in self.read and value[0] != "x"]
        if self.one_of(0, 0, 0, 1):
            inner = [value for value in self.values if value[0] in self.read and value[0] != "x"]
            outputs += [self.draw(st.sampled_from(inner))] if inner else []
        declared = [
            helper.make_tensor_value_info(name, TensorProto.DOUBLE, [f"N{k}" if k > 1 else "N", *sizes])
            for name, k, sizes in [*self.values[:1], *outputs]
        ]
        if self.branches:
            declared.insert(1, helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
        count = 1 + self.branches
        graph = helper.make_graph(self.nodes, "random", declared[:count], declared[count:], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def batch_norm(g, name, k, sizes):
    channels = sizes[0]
    constants = g.factors(channels), g.normal(channels), g.normal(channels), g.constant(g.rng.uniform(0.5, 2, channels))
    g.add("BatchNormalization", [name, *constants], k, sizes)


def affine(g, name, k, sizes):
    """Mul, Add, Sub or Div by a constant: per channel, one for all, or along another axis."""
    column = (sizes[0], *(1,) * (len(sizes) - 1))
    shape = g.one_of(column, column, (1, *column), (), sizes[-1:])
    operator = g.one_of("Mul", "Add", "Sub", "Div")
    constant = g.normal(*shape) if operator in ("Add", "Sub") else g.constant(g.rng.uniform(0.5, 2, shape))
    g.add(operator, [name, constant] if operator == "Div" or g.one_of(0, 1) else [constant, name], k, sizes)


def conv(g, name, k, sizes):
    channels, *space = sizes
    groups = g.one_of(*(n for n in (1, 2, 3) if channels % n == 0))
    made, kernel, pad = groups * g.one_of(1, 2), g.one_of(1, min(2, *space), min(3, *space)), g.one_of(0, 1)
    weight = g.normal(made, channels // groups, *[kernel] * len(space))
    inputs = [name, weight, *([g.normal(made)] if g.one_of(0, 1) else [])]
    out = [size + 2 * pad - kernel + 1 for size in space]
    g.add("Conv", inputs, k, (made, *out), group=groups, pads=[pad] * 2 * len(space))


def conv_transpose(g, name, k, sizes):
    channels, *space = sizes
    groups = g.one_of(*(n for n in (1, 2) if channels % n == 0))
    weight = g.normal(channels, 2, *[2] * len(space))
    inputs = [name, weight, *([g.normal(2 * groups)] if g.one_of(0, 1) else [])]
    g.add("ConvTranspose", inputs, k, (2 * groups, *(size + 1 for size in space)), group=groups)


def pool(g, name, k, sizes):
    space = sizes[1:]
    if g.one_of(0, 1):
        g.add("GlobalAveragePool", [name], k, (sizes[0], *(1 for _ in space)))
        return
    operator, pad = g.one_of("MaxPool", "AveragePool"), g.one_of(0, 1)
    kernel = min(2, *space)
    options = {"count_include_pad": g.one_of(0, 1)} if operator == "AveragePool" else {}
    pad = min(pad, kernel - 1)
    out = [size + 2 * pad - kernel + 1 for size in space]
    options |= {"kernel_shape": [kernel] * len(space), "pads": [pad] * 2 * len(space)}
    g.add(operator, [name], k, (sizes[0], *out), **options)


def simple(g, name, k, sizes):
    operator = g.one_of("Relu", "Relu", "Identity", "Dropout", "Neg", "LeakyRelu", "PRelu")
    slopes = [g.normal(sizes[0], *(1,) * (len(sizes) - 1))] if operator == "PRelu" else []
    g.add(operator, [name, *slopes], k, sizes, **({"alpha": g.one_of(-0.5, 2.0)} if operator == "LeakyRelu" else {}))


def product(g, name, k, sizes):
    made = g.one_of(2, 3, sizes[-1])
    if len(sizes) == 1 and g.one_of(0, 1):
        turned = g.one_of(0, 1)
        weight = g.normal(made, sizes[-1]) if turned else g.normal(sizes[-1], made)
        bias = g.one_of([], [g.normal(made)], [g.normal()])
        options = {"alpha": g.one_of(1.0, 0.5), "beta": g.one_of(1.0, 2.0)}
        g.add("Gemm", [name, weight, *bias], k, (made,), transB=turned, **options)
        return
    g.add("MatMul", [name, g.normal(sizes[-1], made)], k, (*sizes[:-1], made))
    if g.one_of(0, 1):
        g.add("Add", [g.values[-1][0], g.normal(made)], k, (*sizes[:-1], made))


def transpose(g, name, k, sizes):
    axes = g.draw(st.permutations(range(1, len(sizes) + 1)))
    g.add("Transpose", [name], k, [sizes[axis - 1] for axis in axes], perm=[0, *axes])


def reshape(g, name, k, sizes):
    """Neighbouring axes as one, one axis as two, or tokens as rows of the batch."""
    if len(sizes) == 2 and g.one_of(0, 1):
        shape, k = (sizes[1],), k * sizes[0]
    elif len(sizes) > 1:
        first = g.draw(st.integers(0, len(sizes) - 2))
        shape = (*sizes[:first], sizes[first] * sizes[first + 1], *sizes[first + 2 :])
    else:
        parts = g.one_of(*(n for n in (1, 2, 3) if sizes[0] % n == 0))
        shape = g.one_of((parts, sizes[0] // parts), (sizes[0] // parts, parts), (sizes[0], 1, 1))
    g.add("Reshape", [name, g.constant(np.int64([-1, *shape]))], k, shape)


def reduce(g, name, k, sizes):
    axis, keepdims = g.draw(st.integers(1, len(sizes))), g.one_of(0, 1)
    kept = [1 if number == axis else size for number, size in enumerate(sizes, 1) if number != axis or keepdims]
    signed = axis - g.one_of(0, len(sizes) + 1)
    g.add(g.one_of("ReduceMean", "ReduceMean", "ReduceMax"), [name], k, kept, axes=[signed], keepdims=keepdims)


def pad(g, name, k, sizes):
    """Around any axis, with a number or with what is there."""
    axis = g.draw(st.integers(1, len(sizes)))
    before, after = g.one_of((1, 0), (0, 1), (1, 1), (2, 0))
    mode = g.one_of("constant", "constant", "edge")
    if sizes[axis - 1] < 2:
        return
    shape = [size + (before + after) * (number == axis) for number, size in enumerate(sizes, 1)]
    pads = np.zeros((2, len(sizes) + 1), np.int64)
    pads[:, axis] = before, after
    value = [g.constant(np.float64(g.one_of(0.0, 0.0, 1.5)))] if mode == "constant" else []
    g.add("Pad", [name, g.integers(*pads.flat), *value], k, shape, mode=mode)


def resize(g, name, k, sizes):
    scales = g.one_of((1, 1, *[2] * (len(sizes) - 1)), (1, 2, *[1] * (len(sizes) - 1)))
    shape = [size * scale for size, scale in zip(sizes, scales[1:], strict=True)]
    g.add("Resize", [name, "", g.constant(np.float32(scales))], k, shape, mode=g.one_of("nearest", "linear"))


def depth_space(g, name, k, sizes):
    channels, height, width = sizes
    if channels % 4 == 0 and g.one_of(0, 1):
        shape = (channels // 4, 2 * height, 2 * width)
        g.add("DepthToSpace", [name], k, shape, blocksize=2, mode=g.one_of("DCR", "CRD"))
    elif height % 2 == 0 and width % 2 == 0:
        g.add("SpaceToDepth", [name], k, (4 * channels, height // 2, width // 2), blocksize=2)


def split(g, name, k, sizes):
    axis = g.one_of(1, 1, len(sizes))
    length = sizes[axis - 1]
    if length < 2:
        return
    first = g.draw(st.integers(1, length - 1))
    shapes = [(*sizes[: axis - 1], part, *sizes[axis:]) for part in (first, length - first)]
    made = g.add_several("Split", [name, g.integers(first, length - first)], k, shapes, axis=axis)
    if g.one_of(0, 1):
        g.add("Concat", made[::-1], k, sizes, axis=axis)


def gather(g, name, k, sizes):
    axis = g.one_of(1, 1, len(sizes))
    length = sizes[axis - 1]
    chosen = g.one_of(range(length)[::-1], range(0, length, 2), range(-length, 0), [0, *range(length)])
    shape = [len(chosen) if number == axis else size for number, size in enumerate(sizes, 1)]
    g.add("Gather", [name, g.integers(*chosen)], k, shape, axis=axis)


def lone_axis(g, name, k, sizes):
    """An axis of length one put in or taken out."""
    lone = [number for number, size in enumerate(sizes, 1) if size == 1]
    if lone and len(sizes) > 1 and g.one_of(0, 1):
        axis = g.draw(st.sampled_from(lone))
        g.add("Squeeze", [name, g.integers(axis)], k, (*sizes[: axis - 1], *sizes[axis:]))
    elif len(sizes) < 4:
        axis = g.draw(st.integers(1, len(sizes) + 1))
        g.add("Unsqueeze", [name, g.integers(axis)], k, (*sizes[: axis - 1], 1, *sizes[axis - 1 :]))


def condition(g, name, k, sizes):
    """An If whose branches read ``name`` and constants of the graph around them."""
    g.branches = True
    branches = {f"{which}_branch": g.branch(name, k, sizes) for which in ("then", "else")}
    g.add("If", ["flag"], k, sizes, **branches)
    g.read.add(name)


def pointwise(g, name, k, sizes):
    """A convolution that keeps the shape."""
    if len(sizes) in (2, 3):
        g.add("Conv", [name, g.normal(sizes[0], sizes[0], *(1,) * (len(sizes) - 1))], k, sizes)


def cut(g, name, k, sizes):
    axis = g.draw(st.integers(1, len(sizes)))
    length = sizes[axis - 1]
    start = g.draw(st.integers(0, length - 1))
    end = g.draw(st.integers(start + 1, length))
    shape = [end - start if number == axis else size for number, size in enumerate(sizes, 1)]
    g.add("Slice", [name, *(g.constant(np.int64([value])) for value in (start, end, axis))], k, shape)


def join(g, name, k, sizes):
    """Add or Concat of two values, which may be one value twice."""
    alike = [value for value in g.values if value[1:] == (k, sizes)]
    other = g.draw(st.sampled_from(alike))
    if g.one_of(0, 1):
        third = [g.draw(st.sampled_from(alike))[0]] if g.one_of(0, 0, 1) else []
        g.add("Sum" if third else "Add", [name, other[0], *third], k, sizes)
        return
    axis = g.one_of(1, 1, len(sizes))
    shape = [2 * size if number == axis else size for number, size in enumerate(sizes, 1)]
    g.add("Concat", [name, other[0]], k, shape, axis=axis)


def largest(sizes):
    return int(np.prod(sizes)) <= 600


ANY = (batch_norm, affine, simple, join, reshape, cut, split, gather, lone_axis, batch_norm)
DEEP = (transpose, reduce)
SPATIAL = (conv, conv, conv, conv, conv_transpose, pool, pad, resize, condition)
KEEPING = (batch_norm, affine, simple, pointwise, pointwise)


@st.composite
def graphs(draw):
    """A model of up to fourteen nodes with at least one batch norm."""
    g = Graph(draw)
    for _ in range(draw(st.integers(2, 12))):
        name, k, sizes = g.source()
        if not largest(sizes):
            continue
        steps = [product, *ANY]
        steps += DEEP if len(sizes) > 1 else ()
        steps += SPATIAL if len(sizes) in (2, 3) else (product,)
        steps += (depth_space,) if len(sizes) == 3 else ()
        g.draw(st.sampled_from(steps))(g, name, k, sizes)
    if not any(node.op_type == "BatchNormalization" for node in g.nodes):
        batch_norm(g, *g.values[-1])
    model = g.model()
    onnx.checker.check_model(model, full_check=True)
    return model
