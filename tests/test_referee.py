"""The referee's operators beside onnxruntime's, and its cast copies of models of every age."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import run_onnxruntime, statistics, text_model

from export.proof.referee import Referee, UnjudgedError


def referee(model, tmp_path, exact=True):
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return Referee(path, exact)


def answers(model, tmp_path, **feeds):
    return list(referee(model, tmp_path).run(feeds).values())


def agree(model, tmp_path, **feeds):
    """With onnxruntime, to its float32."""
    found = answers(model, tmp_path, **feeds)
    for got, want in zip(found, run_onnxruntime(model, feeds), strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    return found


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def agree_on_image(model, tmp_path, rng):
    """On an input of (2, 4, 9, 8)."""
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    for axis, size in ((1, 4), (2, 9), (3, 8)):
        sizes[axis].dim_value = size
    return agree(model, tmp_path, x=floats(rng, 2, 4, 9, 8))


CONV = ["", "group=2", "strides=[2,3]", "dilations=[2,1]", "pads=[1,0,2,1]", 'auto_pad="SAME_UPPER", strides=[2,2]']
CONV += ['auto_pad="SAME_LOWER"', 'auto_pad="VALID", strides=[2,1]', "group=4, pads=[1,1,1,1], strides=[2,2]"]


@pytest.mark.parametrize("attributes", CONV)
def test_conv(tmp_path, attributes):
    rng = np.random.default_rng(0)
    groups = 4 if "group=4" in attributes else 2 if "group=2" in attributes else 1
    arrays = {"W": floats(rng, 8, 4 // groups, 3, 2), "b": floats(rng, 8)}
    model = text_model(f"y = Conv<{attributes}>(x, W, b)" if attributes else "y = Conv(x, W, b)", arrays)
    [y] = agree_on_image(model, tmp_path, rng)
    assert y.dtype == np.float64


@pytest.mark.parametrize(("axes", "kernel"), [(1, (3,)), (3, (3, 1, 2))])
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_one_and_three_axes(tmp_path, operator, axes, kernel):
    rng = np.random.default_rng(0)
    sizes = (7, 6, 5)[:axes]
    arrays = {"W": floats(rng, 4, 2, *kernel)}
    declared = ", ".join(map(str, sizes))
    model = text_model(f"y = {operator}<group=2>(x, W)", arrays, x=f"float[N, 4, {declared}] x")
    agree(model, tmp_path, x=floats(rng, 2, 4, *sizes))


CONV_TRANSPOSE = ["group=1", "group=2", "strides=[2,3]", "dilations=[2,1], strides=[2,2]", "pads=[1,0,2,1], group=2"]
CONV_TRANSPOSE += [
    "strides=[3,2], output_padding=[2,1]",
    "strides=[2,2], output_shape=[17,16]",
    "strides=[2,2], group=2",
]
CONV_TRANSPOSE += ['auto_pad="SAME_UPPER", strides=[2,2]', 'auto_pad="SAME_LOWER", strides=[2,2]', 'auto_pad="VALID"']


@pytest.mark.parametrize("attributes", CONV_TRANSPOSE)
def test_conv_transpose(tmp_path, attributes):
    rng = np.random.default_rng(0)
    groups = 2 if "group=2" in attributes else 1
    arrays = {"W": floats(rng, 4, 3, 3, 2), "b": floats(rng, 3 * groups)}
    agree_on_image(text_model(f"y = ConvTranspose<{attributes}>(x, W, b)", arrays), tmp_path, rng)


POOL = ["", ", strides=[2,3]", ", pads=[1,0,1,1]", ", strides=[2,2], ceil_mode=1", ", strides=[3,3], pads=[1,1,1,1]"]
POOL += [", strides=[2,2], ceil_mode=1, pads=[1,1,0,1]", ', auto_pad="SAME_LOWER", strides=[2,2]', ", dilations=[2,2]"]


@pytest.mark.parametrize("attributes", POOL)
@pytest.mark.parametrize("order", [0, 1])
def test_max_pool_and_where(tmp_path, attributes, order):
    body = f"y, i = MaxPool<kernel_shape=[3,2], storage_order={order}{attributes}>(x)"
    model = text_model(body, {}, x="float[N, 4, 9, 8] x", y="float[a, b, c, d] y, int64[a, b, c, d] i")
    agree_on_image(model, tmp_path, np.random.default_rng(0))


@pytest.mark.parametrize("attributes", POOL)
@pytest.mark.parametrize("include", [0, 1])
def test_average_pool(tmp_path, attributes, include):
    body = f"y = AveragePool<kernel_shape=[3,2], count_include_pad={include}{attributes}>(x)"
    agree_on_image(text_model(body, {}, opset=19), tmp_path, np.random.default_rng(0))


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 17])
def test_batch_norm_at_inference(tmp_path, opset):
    rng = np.random.default_rng(0)
    model = text_model("y = BatchNormalization<epsilon=0.01>(x, s, b, m, v)", statistics(rng, 4), opset=opset)
    agree_on_image(model, tmp_path, rng)


@pytest.mark.parametrize("spatial", [0, 1])
@pytest.mark.parametrize(("opset", "testing"), [(1, 1), (6, 1), (6, 0), (7, 1)])
def test_batch_norm_of_old(tmp_path, opset, testing, spatial):
    """``is_test`` before opset 7, ``spatial`` before 9; onnx's first opset has ``consumed_inputs`` as well."""
    rng = np.random.default_rng(0)
    shape = (4,) if spatial else (4, 3, 2)
    s, b, m = (floats(rng, *shape) for _ in range(3))
    v = rng.uniform(0.5, 2, shape).astype(np.float32)
    attributes = f"spatial={spatial}" + (f", is_test={testing}" if opset < 7 else "")
    attributes += ", consumed_inputs=[0,0,0,1,1]" if opset == 1 else ""
    model = text_model(
        f"y = BatchNormalization<{attributes}>(x, s, b, m, v)",
        {"s": s, "b": b, "m": m, "v": v},
        x="float[N, 4, 3, 2] x",
        opset=opset,
    )
    x = floats(rng, 5, 4, 3, 2).astype(np.float64)
    [y] = answers(model, tmp_path, x=x)
    if not testing:
        axes = (0, 2, 3) if spatial else (0,)
        m, v = x.mean(axis=axes), x.var(axis=axes)
    s, b, m, v = (array.astype(np.float64).reshape(4, -1, 2 if not spatial else 1) for array in (s, b, m, v))
    np.testing.assert_allclose(y, s * (x - m) / np.sqrt(v + np.float32(1e-5)) + b, rtol=1e-12)


def test_batch_norm_in_training(tmp_path):
    """Statistics of the batch, population variance; ONNX's momentum is the weight of the old value."""
    rng = np.random.default_rng(0)
    arrays = statistics(rng, 4)
    body = "y, p, q = BatchNormalization<training_mode=1, momentum=0.75>(x, s, b, m, v)"
    model = text_model(body, arrays, x="float[N, 4, 3, 2] x", y="float[a, b, c, d] y, float[4] p, float[4] q")
    x = floats(rng, 5, 4, 3, 2)
    y, p, q = answers(model, tmp_path, x=x)
    mean, var = x.astype(np.float64).mean((0, 2, 3)), x.astype(np.float64).var((0, 2, 3))
    np.testing.assert_allclose(y.mean((0, 2, 3)), arrays["b"], rtol=1e-6)
    np.testing.assert_allclose(p, 0.75 * arrays["m"] + 0.25 * mean)
    np.testing.assert_allclose(q, 0.75 * arrays["v"] + 0.25 * var)


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_lrn(tmp_path, size):
    agree_on_image(text_model(f"y = LRN<size={size}, alpha=0.3, bias=2.0>(x)", {}), tmp_path, np.random.default_rng(0))


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("attributes", ["", "<axis=1>", "<axis=2>", "<axis=-1>"])
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_of_both_readings(tmp_path, operator, attributes, opset):
    agree_on_image(text_model(f"y = {operator}{attributes}(x)", {}, opset=opset), tmp_path, np.random.default_rng(0))


def test_broadcast_of_old(tmp_path):
    k = np.arange(3, dtype=np.float32)
    model = text_model("y = Mul<broadcast=1, axis=1>(x, k)", {"k": k}, x="float[N, 3, 3] x", opset=6)
    x = np.ones((2, 3, 3), np.float32)
    np.testing.assert_array_equal(answers(model, tmp_path, x=x)[0], x * k[:, None])


def test_reshape_of_old(tmp_path):
    model = text_model("y = Reshape<shape=[0,-1]>(x)", {}, x="float[N, 3, 4] x", y="float[a, b] y", opset=4)
    assert answers(model, tmp_path, x=np.ones((2, 3, 4), np.float32))[0].shape == (2, 12)


@pytest.mark.parametrize("opset", [10, 13, 19])
@pytest.mark.parametrize("channels", [1, 4])
def test_quantised(tmp_path, opset, channels):
    if opset == 10 and channels > 1:
        pytest.skip("per channel since opset 13")
    rng = np.random.default_rng(0)
    shape = (channels,) if channels > 1 else ()
    arrays = {
        "s": rng.uniform(0.05, 0.1, shape).astype(np.float32),
        "z": rng.integers(100, 150, shape).astype(np.uint8),
    }
    model = text_model("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", arrays, opset=opset)
    agree_on_image(model, tmp_path, rng)


# The copy in float64

TENTH = "h = Constant<value_float=0.1>() t = Constant<value_floats=[0.1,0.1]>() k = Add(h, t) y = Add(x, k)"
CASTS = "d = Cast<to=10>(x) e = Cast<to=1>(d) y = Mul(e, e)"
SHAPED = "n = Shape(x) o = ConstantOfShape<value=float[1]{0.1}>(n) z = ConstantOfShape(n) h = Add(o, z) y = Add(x, h)"


@pytest.mark.parametrize("body", [TENTH, CASTS, SHAPED])
def test_everything_is_float64(tmp_path, body):
    x = np.float32([[0.1, 1 / 3]])
    [y] = answers(text_model(body, {}, x="float[N, 2] x"), tmp_path, x=x)
    assert y.dtype == np.float64
    tenth = np.float64(np.float32(0.1))
    exact = {TENTH: x.astype(np.float64) + 2 * tenth, CASTS: x.astype(np.float64) ** 2, SHAPED: x + tenth}[body]
    np.testing.assert_allclose(y, exact, rtol=1e-15)


def test_subgraphs_and_functions_have_the_same_operators(tmp_path):
    """A grouped ConvTranspose, which onnx's own evaluator gets wrong, in a branch and in a function."""
    rng = np.random.default_rng(0)
    weight = floats(rng, 4, 2, 3, 3)
    plain = text_model("y = ConvTranspose<group=2>(x, W)", {"W": weight}, x="float[N, 4, 5, 5] x")
    x = floats(rng, 2, 4, 5, 5)
    want = answers(plain, tmp_path, x=x)[0]
    np.testing.assert_allclose(want, run_onnxruntime(plain, {"x": x})[0], rtol=1e-4, atol=1e-4)

    inner = helper.make_node("ConvTranspose", ["x", "W"], ["z"], group=2)
    output = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    branch = helper.make_graph([inner], "branch", [], [output], [numpy_helper.from_array(weight, "W")])
    branched = onnx.ModelProto()
    branched.CopyFrom(plain)
    del branched.graph.node[:], branched.graph.initializer[:]
    branched.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    branched.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))
    np.testing.assert_array_equal(answers(branched, tmp_path, x=x)[0], want)

    called = onnx.ModelProto()
    called.CopyFrom(plain)
    called.opset_import.append(helper.make_opsetid("mine", 1))
    called.functions.append(
        helper.make_function("mine", "Up", ["x", "W"], ["z"], [inner], [helper.make_opsetid("", 17)])
    )
    called.graph.node[0].CopyFrom(helper.make_node("Up", ["x", "W"], ["y"], domain="mine"))
    np.testing.assert_array_equal(answers(called, tmp_path, x=x)[0], want)


def test_values_inside_and_outputs(tmp_path):
    model = text_model("h = Neg(x) g = Exp(h) y = Relu(g)", {}, x="float[N, 2] x")
    found = referee(model, tmp_path).run({"x": np.float32([[1, -1]])}, ["h"])
    assert list(found) == ["y", "h"]
    np.testing.assert_array_equal(found["h"], [[-1, 1]])


def test_rounding_alone_is_in_the_models_own_type(tmp_path):
    model = text_model("y = Add(x, x)", {}, x="float16[N, 2] x", y="float16[N, 2] y")
    found = referee(model, tmp_path, exact=False).run({"x": np.float16([[0.1, 0.2]])})
    assert found["y"].dtype == np.float16


@pytest.mark.parametrize(
    "body",
    [
        "y = Nonsense(x)",
        "y, k = Dropout<ratio=0.5>(x, r, t)",
        "y = Reshape(x, s)",
        "y = Identity(nowhere)",
        "y = RandomNormalLike(x)",
    ],
)
def test_what_it_cannot_do_is_a_reason(tmp_path, body):
    arrays = {"r": np.float32(0.5), "t": np.array(True), "s": np.array([7, 7])}
    with pytest.raises(UnjudgedError) as caught:
        answers(text_model(body, arrays, x="float[N, 2] x"), tmp_path, x=np.ones((1, 2), np.float32))
    assert str(caught.value).strip()
    assert "\n" not in str(caught.value)
