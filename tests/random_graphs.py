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
        self.nodes, self.constants, self.read = [], [], set()
        sizes = draw(st.sampled_from([(2, 4, 4), (3, 3, 3), (4, 6, 4), (3, 4), (4, 4), (4,), (3,)]))
        self.values = [("x", 1, sizes)]

    def one_of(self, *choices):
        return self.draw(st.sampled_from(choices))

    def constant(self, array):
        name = f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def normal(self, *shape):
        return self.constant(self.rng.standard_normal(shape))

    def factors(self, *shape):
        """Not too near zero, of both signs or of one; now and then one of them is zero."""
        array = self.rng.uniform(0.3, 2, shape)
        if self.draw(st.booleans()):
            array *= self.rng.choice([-1, 1], shape)
        if self.one_of(*range(8)) == 0:
            array.flat[0] = 0
        return self.constant(array)

    def add(self, operator, inputs, k, sizes, **attributes):
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        self.read.update(inputs)
        self.values.append((name, k, tuple(sizes)))
        return name

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
        graph = helper.make_graph(self.nodes, "random", declared[:1], declared[1:], self.constants)
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
    g.add(g.one_of("Relu", "Relu", "Identity", "Dropout", "Neg"), [name], k, sizes)


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


def reduce_mean(g, name, k, sizes):
    axis = g.draw(st.integers(1, len(sizes)))
    kept = [1 if number == axis else size for number, size in enumerate(sizes, 1)]
    g.add("ReduceMean", [name], k, kept, axes=[axis])


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
        g.add("Add", [name, other[0]], k, sizes)
        return
    axis = g.one_of(1, 1, len(sizes))
    shape = [2 * size if number == axis else size for number, size in enumerate(sizes, 1)]
    g.add("Concat", [name, other[0]], k, shape, axis=axis)


def largest(sizes):
    return int(np.prod(sizes)) <= 600


ANY = (batch_norm, affine, simple, join, reshape, cut, batch_norm)
DEEP = (transpose, reduce_mean)
SPATIAL = (conv, conv, conv, conv_transpose, pool)


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
        g.draw(st.sampled_from(steps))(g, name, k, sizes)
    if not any(node.op_type == "BatchNormalization" for node in g.nodes):
        batch_norm(g, *g.values[-1])
    model = g.model()
    onnx.checker.check_model(model, full_check=True)
    return model
