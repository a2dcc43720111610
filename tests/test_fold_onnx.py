"""Which ONNX batch norms fold into the node before them, which stay and why, and that the numbers are right."""

import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
import reference
from onnx import TensorProto, helper, numpy_helper
from onnx_models import (
    BN,
    assert_relative,
    conv_bn,
    in_constants,
    initializers,
    operators,
    random_feeds,
    run_onnxruntime,
    statistics,
    text_model,
    truth,
)

from export import FoldSite, fold_onnx
from fastbn.errors import ModelError

IMAGE, LINE, VOLUME, MATRIX = ({"x": f"float[N, {sizes}] x"} for sizes in ("2, 6, 6", "2, 9", "2, 4, 5, 3", "4"))

# name: (the layer, shapes of its constants, number of channels, the input)
FOLDS = {
    "conv": ("c = Conv(x, W)", {"W": (3, 2, 3, 3)}, 3, IMAGE),
    "conv with bias": ("c = Conv(x, W, B)", {"W": (3, 2, 3, 3), "B": (3,)}, 3, IMAGE),
    "conv with options": (
        "c = Conv<strides = [2, 1], pads = [1, 0, 2, 1], dilations = [1, 2]>(x, W)",
        {"W": (3, 2, 3, 2)},
        3,
        IMAGE,
    ),
    "conv in groups": ("c = Conv<group = 2>(x, W, B)", {"W": (4, 1, 3, 3), "B": (4,)}, 4, IMAGE),
    "depthwise conv": ("c = Conv<group = 2, kernel_shape = [3, 3]>(x, W)", {"W": (2, 1, 3, 3)}, 2, IMAGE),
    "conv with one channel": ("c = Conv(x, W)", {"W": (1, 2, 1, 1)}, 1, IMAGE),
    "conv 1-d": ("c = Conv(x, W)", {"W": (3, 2, 4)}, 3, LINE),
    "conv 3-d": ("c = Conv(x, W, B)", {"W": (3, 2, 2, 3, 1), "B": (3,)}, 3, VOLUME),
    "conv with auto_pad": ('c = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, W)', {"W": (3, 2, 3, 3)}, 3, IMAGE),
    "transpose": ("c = ConvTranspose<strides = [2, 2], output_padding = [1, 0]>(x, W)", {"W": (2, 3, 3, 3)}, 3, IMAGE),
    "transpose with bias": (
        "c = ConvTranspose<pads = [1, 1, 1, 1]>(x, W, B)",
        {"W": (2, 3, 3, 3), "B": (3,)},
        3,
        IMAGE,
    ),
    "transpose 1-d": ("c = ConvTranspose(x, W)", {"W": (2, 3, 3)}, 3, LINE),
    "gemm": ("c = Gemm(x, W)", {"W": (4, 3)}, 3, MATRIX),
    "gemm with C": ("c = Gemm(x, W, C)", {"W": (4, 3), "C": (3,)}, 3, MATRIX),
    "gemm transB": ("c = Gemm<transB = 1>(x, W, C)", {"W": (3, 4), "C": (3,)}, 3, MATRIX),
    "gemm transA": ("c = Gemm<transA = 1>(x, W)", {"W": (4, 3)}, 3, {"x": "float[4, N] x"}),
    "gemm transA, transB": ("c = Gemm<transA = 1, transB = 1>(x, W)", {"W": (3, 4)}, 3, {"x": "float[4, N] x"}),
    "gemm square": ("c = Gemm(x, W, C)", {"W": (4, 4), "C": (4,)}, 4, MATRIX),
    "gemm square transB": ("c = Gemm<transB = 1>(x, W, C)", {"W": (4, 4), "C": (4,)}, 4, MATRIX),
    "gemm alpha": ("c = Gemm<alpha = 0.5>(x, W, C)", {"W": (4, 3), "C": (3,)}, 3, MATRIX),
    "gemm beta without C": ("c = Gemm<beta = 3.0>(x, W)", {"W": (4, 3)}, 3, MATRIX),
    "gemm beta of zero": ("c = Gemm<beta = 0.0>(x, W, C)", {"W": (4, 3), "C": (3,)}, 3, MATRIX),
    "gemm to one feature": ("c = Gemm(x, W, C)", {"W": (4, 1), "C": (1,)}, 1, MATRIX),
    "gemm of one feature": ("c = Gemm(x, W, W)", {"W": (1, 3)}, 3, {"x": "float[N, 1] x"}),
    **{
        f"gemm alpha, beta, C of shape {shape}": (
            "c = Gemm<alpha = 2.0, beta = -0.75>(x, W, C)",
            {"W": (4, 3), "C": shape},
            3,
            MATRIX,
        )
        for shape in ((), (1,), (1, 1), (3,), (1, 3))
    },
}


def layer_model(rng, layer, shapes, channels, options, **more):
    arrays = {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in shapes.items()}
    return text_model(f"{layer} {BN}", {**arrays, **statistics(rng, channels)}, **options, **more)


def assert_same_network(folded, original, rng, tolerance=2e-6):
    """Both in float64, where only the rounding of the folded weights is left; and onnxruntime takes it."""
    onnx.checker.check_model(folded, full_check=True)
    feeds = random_feeds(original, rng)
    want = truth(original, feeds)
    for got, expected in zip(truth(folded, feeds), want, strict=True):
        assert_relative(got, expected, tolerance)
    for got, expected in zip(run_onnxruntime(folded, feeds), want, strict=True):
        assert_relative(got, expected, 1e-5)


@pytest.mark.parametrize("constants", ["initialisers", "constant nodes"])
@pytest.mark.parametrize("case", FOLDS)
def test_folds(rng, case, constants):
    model = layer_model(rng, *FOLDS[case])
    if constants == "constant nodes":
        model = in_constants(model)
    folded, report = fold_onnx(model)
    operator = case.split()[0].replace("conv", "Conv").replace("transpose", "ConvTranspose").replace("gemm", "Gemm")
    operator = "Conv" if case == "depthwise conv" else operator
    assert report.sites == (FoldSite("y", into=f"{operator} c", how="backward", values=("y",)),)
    assert report.folded == 1
    assert operators(folded) == [operator]
    assert len(folded.graph.initializer) == 2
    assert_same_network(folded, model, rng)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_folds_transposed_convolution_in_groups(rng, groups, bias):
    """onnx's own evaluator is wrong for groups, so the referee is ours."""
    weight = rng.standard_normal((4, 6 // groups, 3, 3)).astype(np.float32)
    arrays = {"W": weight, **statistics(rng, 6)}
    if bias:
        arrays["B"] = rng.standard_normal(6).astype(np.float32)
    layer = f"c = ConvTranspose<group = {groups}, strides = [2, 2]>(x, W{', B' if bias else ''})"
    folded, report = fold_onnx(text_model(f"{layer} {BN}", arrays, x="float[N, 4, 5, 5] x"))
    assert report.folded == 1
    onnx.checker.check_model(folded, full_check=True)
    x = rng.standard_normal((2, 4, 5, 5)).astype(np.float32)

    def transposed(constants):
        return reference.conv_transpose2d(x, constants["W"], constants.get("B"), stride=2, groups=groups)

    want = reference.batch_norm(transposed(arrays), arrays["m"], arrays["v"], arrays["s"], arrays["b"])[0]
    stored = initializers(folded)
    names = folded.graph.node[0].input
    assert_relative(transposed({"W": stored[names[1]], "B": stored[names[2]]}), want, 2e-6)
    assert_relative(run_onnxruntime(folded, {"x": x})[0], want, 1e-5)


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3, 0.5])
def test_epsilon_is_the_attribute(rng, epsilon):
    model, _ = conv_bn(rng)
    model.graph.node[1].attribute.append(helper.make_attribute("epsilon", epsilon))
    folded, report = fold_onnx(model)
    assert report.folded == 1
    assert_same_network(folded, model, rng)


def test_bias_named_by_the_empty_string_is_none(rng):
    model, _ = conv_bn(rng)
    model.graph.node[0].input.append("")
    folded, report = fold_onnx(model)
    assert report.folded == 1
    assert_same_network(folded, model, rng)


def test_nodes_without_names(rng):
    model, _ = conv_bn(rng)
    for node in model.graph.node:
        node.name = ""
    folded, report = fold_onnx(model)
    assert report.sites == (FoldSite("y", into="Conv", how="backward", values=("y",)),)
    assert_same_network(folded, model, rng)


@pytest.mark.parametrize("opset", [9, 10, 11, 13, 14, 15, 17, 21])
def test_every_opset_from_9(rng, opset):
    _, arrays = conv_bn(rng)
    model = text_model(f"c = Conv(x, W) {BN}", arrays, opset=opset)
    folded, report = fold_onnx(model)
    assert report.folded == 1
    assert folded.opset_import == model.opset_import
    assert folded.ir_version == model.ir_version
    assert_same_network(folded, model, rng)


@pytest.mark.parametrize("where", ["node", "import", "both"])
def test_domain_written_in_full(rng, where):
    """ "ai.onnx" is the other name of the standard domain."""
    model, _ = conv_bn(rng)
    if where in ("node", "both"):
        for node in model.graph.node:
            node.domain = "ai.onnx"
    if where in ("import", "both"):
        model.opset_import[0].domain = "ai.onnx"
    folded, report = fold_onnx(model)
    assert [site.reason for site in report.sites] == [None]
    assert_same_network(folded, model, rng)


def test_two_batch_norms_in_a_row_both_fold(rng):
    arrays = {
        "W": rng.standard_normal((3, 2, 3, 3)).astype(np.float32),
        **statistics(rng, 3),
        **statistics(rng, 3, "2"),
    }
    body = "c = Conv(x, W) d = BatchNormalization(c, s, b, m, v) y = BatchNormalization(d, s2, b2, m2, v2)"
    model = text_model(body, arrays)
    folded, report = fold_onnx(model)
    assert report.sites == tuple(FoldSite(name, "Conv c", how="backward", values=("y",)) for name in ("d", "y"))
    assert operators(folded) == ["Conv"]
    assert len(folded.graph.initializer) == 2
    assert_same_network(folded, model, rng)


def test_folding_again_changes_nothing(rng):
    once, _ = fold_onnx(conv_bn(rng)[0])
    twice, report = fold_onnx(once)
    assert report.sites == ()
    assert report.before == report.after
    assert twice == once


def test_weight_shared_by_two_convolutions_is_copied(rng):
    arrays = {"W": rng.standard_normal((2, 2, 3, 3)).astype(np.float32), **statistics(rng, 2)}
    model = text_model("h = Conv(x, W) c = Conv(h, W) y = BatchNormalization(c, s, b, m, v)", arrays)
    folded, report = fold_onnx(model)
    assert report.folded == 1
    assert list(folded.graph.node[0].input) == ["x", "W"]
    np.testing.assert_array_equal(initializers(folded)["W"], arrays["W"])
    assert folded.graph.node[1].input[1] != "W"
    assert_same_network(folded, model, rng)


@pytest.mark.parametrize("both", [False, True])
def test_weight_and_bias_shared_by_two_batch_normed_convolutions(rng, both):
    arrays = {"W": rng.standard_normal((2, 2, 1, 1)).astype(np.float32), "B": np.float32([1, -2]), **statistics(rng, 2)}
    first = "d = Conv(x, W, B) h = BatchNormalization(d, s, b, m, v)" if both else "h = Conv(x, W, B)"
    model = text_model(f"{first} c = Conv(h, W, B) {BN}", arrays)
    folded, report = fold_onnx(model)
    assert report.folded == 1 + both
    assert operators(folded) == ["Conv", "Conv"]
    assert not {"s", "b", "m", "v"} & initializers(folded).keys()
    assert_same_network(folded, model, rng)


def test_constants_shared_by_a_batch_norm_that_stays(rng):
    model = text_model(
        "c = Conv(x, W) d = BatchNormalization(c, s, b, m, v) e = Relu(d) y = BatchNormalization(e, s, b, m, v)",
        {"W": rng.standard_normal((3, 2, 3, 3)).astype(np.float32), **statistics(rng, 3)},
    )
    folded, report = fold_onnx(model)
    assert [site.into for site in report.sites] == ["Conv c", None]
    assert {"s", "b", "m", "v"} < initializers(folded).keys()
    assert_same_network(folded, model, rng)


def test_one_constant_in_several_roles(rng):
    arrays = {"W": rng.standard_normal((3, 2, 3, 3)).astype(np.float32), "p": rng.uniform(0.5, 2, 3).astype(np.float32)}
    model = text_model("c = Conv(x, W, p) y = BatchNormalization(c, p, p, p, p)", arrays)
    folded, report = fold_onnx(model)
    assert report.folded == 1
    assert_same_network(folded, model, rng)


def test_weight_that_is_an_output_too_keeps_its_values(rng):
    _, arrays = conv_bn(rng)
    model = text_model(f"c = Conv(x, W) {BN}", arrays)
    model.graph.output.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, arrays["W"].shape))
    folded, report = fold_onnx(model)
    assert report.folded == 1
    np.testing.assert_array_equal(initializers(folded)["W"], arrays["W"])
    assert_same_network(folded, model, rng)


@pytest.mark.parametrize("taken", ["W.bias", "W_folded", "W.bias_folded"])
@pytest.mark.parametrize("kind", ["initialiser", "node", "input"])
def test_new_names_avoid_those_in_use(rng, taken, kind):
    """The weight is shared, so that it needs a new name as well."""
    _, arrays = conv_bn(rng, channels=2)
    body = "g = Conv(x, W) c = Conv(x, W) d = BatchNormalization(c, s, b, m, v) h = Add(d, g) y = Add(h, {})"
    x = "float[N, 2, 6, 6] x"
    if kind == "initialiser":
        model = text_model(body.format("k"), {**arrays, "k": np.float32([2])}, x=x)
    elif kind == "node":
        model = text_model("k = Sigmoid(x) " + body.format("one"), {**arrays, "one": np.float32([1])}, x=x)
    else:
        model = text_model(body.format("k"), arrays, x=f"{x}, float[1] k", y="float[N, 2, a, b] y")
    _rename(model, "k", taken)
    onnx.checker.check_model(model, full_check=True)
    folded, report = fold_onnx(model)
    assert report.folded == 1
    assert_same_network(folded, model, rng)


def _rename(model, old, new):
    graph = model.graph
    for named in (*graph.initializer, *graph.input):
        named.name = new if named.name == old else named.name
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def with_branches(rng):
    """Conv, batch norm, then an If of which both branches read the result."""
    _, arrays = conv_bn(rng)
    return text_model(
        "c = Conv(x, W) d = BatchNormalization(c, s, b, m, v) "
        "y = If (cond) <then_branch = t () => (float[N, 3, 4, 4] T) { T = Relu(d) }, "
        "else_branch = e () => (float[N, 3, 4, 4] E) { E = Neg(d) }>",
        {**arrays, "cond": np.array(True)},
    )


def named_as_a_node(rng):
    model = with_branches(rng)
    branch = model.graph.node[2].attribute[0].g
    branch.node[0].output[0] = branch.output[0].name = "W.bias"
    return model


def named_as_an_initialiser(rng):
    model = with_branches(rng)
    branch = model.graph.node[2].attribute[0].g
    branch.node.append(helper.make_node("Mul", ["r", "W.bias"], ["T"]))
    branch.node[0].output[0] = "r"
    branch.initializer.append(numpy_helper.from_array(np.float32([3]), "W.bias"))
    return model


def named_as_an_input(rng):
    """A Loop's body, run twice: y = 3 d."""
    model = with_branches(rng)
    image = ["N", 3, 4, 4]
    nodes = [helper.make_node("Identity", ["going"], ["on"]), helper.make_node("Add", ["W.bias", "d"], ["sum"])]
    inputs = [
        helper.make_tensor_value_info("turn", TensorProto.INT64, []),
        helper.make_tensor_value_info("going", TensorProto.BOOL, []),
        helper.make_tensor_value_info("W.bias", TensorProto.FLOAT, image),
    ]
    outputs = [
        helper.make_tensor_value_info("on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("sum", TensorProto.FLOAT, image),
    ]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    model.graph.node[2].CopyFrom(helper.make_node("Loop", ["twice", "cond", "d"], ["y"], name="y", body=body))
    model.graph.initializer.append(numpy_helper.from_array(np.int64(2), "twice"))
    return model


@pytest.mark.parametrize("make", [named_as_a_node, named_as_an_initialiser, named_as_an_input])
def test_new_names_avoid_those_in_subgraphs(rng, make):
    """A name in a subgraph that is new outside as well would be no longer the only one: ONNX forbids it."""
    model = make(rng)
    onnx.checker.check_model(model, full_check=True)
    folded, report = fold_onnx(model)
    assert report.folded == 1
    assert "W.bias" not in initializers(folded)
    assert_same_network(folded, model, rng)


def test_output_of_the_graph_keeps_its_name_and_shape(rng):
    model, _ = conv_bn(rng)
    model.graph.output[0].doc_string = "what the user asked for"
    folded, _ = fold_onnx(model)
    assert list(folded.graph.node[0].output) == ["y"]
    assert folded.graph.output[0].name == "y"
    assert folded.graph.output[0].type == model.graph.output[0].type


def test_output_that_is_read_inside_too(rng):
    model = text_model(
        "c = Conv(x, W) d = BatchNormalization(c, s, b, m, v) e = Relu(d) y = Add(d, e)",
        {"W": rng.standard_normal((3, 2, 3, 3)).astype(np.float32), **statistics(rng, 3)},
    )
    model.graph.output.append(helper.make_tensor_value_info("d", TensorProto.FLOAT, ["N", 3, 4, 4]))
    folded, report = fold_onnx(model)
    assert report.folded == 1
    assert [value.name for value in folded.graph.output] == ["y", "d"]
    assert_same_network(folded, model, rng)


def test_output_that_a_subgraph_reads(rng):
    model = with_branches(rng)
    folded, report = fold_onnx(model)
    assert report.folded == 1
    assert operators(folded) == ["Conv", "If"]
    assert_same_network(folded, model, rng)


# Refusals


def plain(rng, body, channels=3, **options):
    arrays = {"W": rng.standard_normal((3, 2, 3, 3)).astype(np.float32), **statistics(rng, channels)}
    return text_model(body, arrays, **options)


def overridable(rng, name):
    model, arrays = conv_bn(rng)
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, arrays[name].shape))
    return model


def with_attribute(rng, name, value, opset=17):
    model = plain(rng, f"c = Conv(x, W) {BN}", opset=opset)
    model.graph.node[1].attribute.append(helper.make_attribute(name, value))
    return model


def with_variance(rng, value, eps=1e-5):
    model, arrays = conv_bn(rng)
    arrays["v"][1] = value
    [tensor] = [tensor for tensor in model.graph.initializer if tensor.name == "v"]
    tensor.CopyFrom(numpy_helper.from_array(arrays["v"], "v"))
    model.graph.node[1].attribute.append(helper.make_attribute("epsilon", eps))
    return model


def extra_outputs(rng):
    """Opset 9's four further outputs; the running mean is asked for."""
    model = plain(rng, f"c = Conv(x, W) {BN}", opset=9)
    model.graph.node[1].output.extend(["mean", "var", "saved_mean", "saved_var"])
    model.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, [3]))
    return model


def conv_is_output(rng):
    model, _ = conv_bn(rng)
    model.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, ["N", 3, 4, 4]))
    return model


BRANCHES = (
    "c = Conv(x, W) y = If (cond) <then_branch = t () => (float[N, 3, 4, 4] T) { T = %s }, "
    "else_branch = e () => (float[N, 3, 4, 4] E) { E = Neg(c) }>"
)


def in_branch(rng):
    _, arrays = conv_bn(rng)
    body = BRANCHES % "BatchNormalization(c, s, b, m, v)"
    return text_model(body, {**arrays, "cond": np.array(True)})


def read_by_branch(rng):
    _, arrays = conv_bn(rng)
    body = BRANCHES % "Relu(c)"
    model = text_model(f"{body} z = BatchNormalization(c, s, b, m, v)", {**arrays, "cond": np.array(True)})
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 3, 4, 4]))
    return model


REFUSALS = {
    "conv read elsewhere": (
        lambda rng: plain(rng, "c = Conv(x, W) d = BatchNormalization(c, s, b, m, v) y = Add(c, d)"),
        "output of Conv c is read by 2 nodes",
    ),
    "conv read in a branch": (read_by_branch, "output of Conv c is read inside a subgraph"),
    "conv is an output of the graph": (conv_is_output, "output of Conv c is an output of the graph"),
    "reads an input": (
        lambda rng: plain(rng, "y = BatchNormalization(x, s, b, m, v)", channels=2),
        "an input of the graph",
    ),
    "after Relu": (lambda rng: plain(rng, f"d = Conv(x, W) c = Relu(d) {BN}"), "Relu c is not affine"),
    "training mode": (lambda rng: with_attribute(rng, "training_mode", 1), "training mode"),
    "further outputs": (extra_outputs, "further outputs are used"),
    "not spatial": (lambda rng: with_attribute(rng, "spatial", 0, opset=7), "not spatial"),
    "in a branch": (in_branch, "outside its graph"),
    "variance that is negative": (
        lambda rng: with_variance(rng, -1.0),
        "plus epsilon is -0.99999 in channel 1, not positive",
    ),
    "variance that is NaN": (lambda rng: with_variance(rng, np.nan), "plus epsilon is nan in channel 1, not positive"),
    "variance and epsilon of zero": (
        lambda rng: with_variance(rng, 0.0, 0.0),
        "plus epsilon is 0 in channel 1, not positive",
    ),
    "epsilon that is negative": (lambda rng: with_attribute(rng, "epsilon", -5.0), "not positive"),
    "weight given by the caller": (lambda rng: overridable(rng, "W"), "c: its weight can be given by the caller"),
    "scale given by the caller": (lambda rng: overridable(rng, "s"), "its scale can be given by the caller"),
    "variance given by the caller": (lambda rng: overridable(rng, "v"), "its variance can be given by the caller"),
    "scale that is computed": (
        lambda rng: plain(rng, "c = Conv(x, W) t = RandomNormal<shape = [3]>() y = BatchNormalization(c, t, b, m, v)"),
        "its scale is computed",
    ),
    "weight that is computed": (
        lambda rng: plain(rng, f"n = RandomNormal<shape = [3, 2, 3, 3]>() c = Conv(x, n) {BN}"),
        "c: its weight is computed",
    ),
    "bias that is computed": (
        lambda rng: plain(rng, f"a = RandomNormal<shape = [3]>() c = Conv(x, W, a) {BN}"),
        "c: its bias is computed",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses_with_a_reason_and_changes_nothing(rng, case):
    make, reason = REFUSALS[case]
    model = make(rng)
    onnx.checker.check_model(model)
    folded, report = fold_onnx(model)
    [site] = report.sites
    assert site.into is None
    assert report.folded == 0
    assert report.before == report.after
    assert re.search(reason, site.reason), site.reason
    assert list(folded.graph.node) == list(model.graph.node)
    assert list(folded.graph.initializer) == list(model.graph.initializer)
    assert folded.graph.input == model.graph.input
    assert folded.graph.output == model.graph.output


MALFORMED = {
    "batch norm without variance": lambda model: model.graph.node[1].input.pop(),
    "batch norm without inputs": lambda model: model.graph.node[1].ClearField("input"),
    "conv without weight": lambda model: model.graph.node[0].input.pop(),
    "epsilon that is an integer": lambda model: model.graph.node[1].attribute.append(
        helper.make_attribute("epsilon", 1)
    ),
    "training_mode that is a string": lambda model: model.graph.node[1].attribute.append(
        helper.make_attribute("training_mode", "yes")
    ),
    "scale of another size": lambda model: model.graph.initializer[1].CopyFrom(
        numpy_helper.from_array(np.ones(2, np.float32), "s")
    ),
    "bias of another size": lambda model: model.graph.initializer[2].CopyFrom(
        numpy_helper.from_array(np.ones(4, np.float32), "b")
    ),
    "mean of another size": lambda model: model.graph.initializer[3].CopyFrom(
        numpy_helper.from_array(np.ones(1, np.float32), "m")
    ),
    "weight of too few bytes": lambda model: setattr(model.graph.initializer[0], "raw_data", b"1234"),
    "weight of an unknown type": lambda model: setattr(model.graph.initializer[0], "data_type", 99),
    "mean of too many bytes": lambda model: setattr(model.graph.initializer[3], "raw_data", bytes(24)),
}


def assert_refused_in_one_way_or_another(model):
    try:
        _, report = fold_onnx(model)
    except ModelError as error:
        sentence = str(error)
    else:
        assert report.folded == 0
        sentence = "must, got"
    assert "must" in sentence
    assert "got" in sentence


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_model_is_a_model_error_or_a_refusal(rng, case):
    """What onnx's checker would not pass must not end in a traceback from inside."""
    model, _ = conv_bn(rng)
    MALFORMED[case](model)
    assert_refused_in_one_way_or_another(model)


def test_transpose_with_zero_groups_is_a_model_error_or_a_refusal(rng):
    arrays = {"W": np.ones((2, 3, 3, 3), np.float32), **statistics(rng, 3)}
    model = text_model(f"c = ConvTranspose<group = 0>(x, W) {BN}", arrays)
    assert_refused_in_one_way_or_another(model)


def test_batch_norms_in_functions_are_folded_in_the_place_of_the_call(rng):
    _, arrays = conv_bn(rng)
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"]),
    ]
    names = ["x", "W", "s", "b", "m", "v"]
    function = helper.make_function("my", "ConvBn", names, ["y"], nodes, [helper.make_opsetid("", 17)])
    model = text_model("y = my.ConvBn(x, W, s, b, m, v)", arrays)
    model.opset_import.append(helper.make_opsetid("my", 1))
    model.functions.append(function)
    onnx.checker.check_model(model, full_check=True)
    folded, report = fold_onnx(model)
    assert report.folded == 1
    assert operators(folded) == ["Conv"]
    assert not folded.functions
    feeds = random_feeds(model, rng)
    assert_relative(run_onnxruntime(folded, feeds)[0], run_onnxruntime(model, feeds)[0], 1e-5)


# IR version 3, where every initialiser must be an input as well


@pytest.mark.parametrize("layer", ["c = Conv(x, W)", "c = Conv(x, W, B)"])
def test_ir_version_3(rng, layer):
    model, arrays = conv_bn(rng)
    if "B" in layer:
        arrays["B"] = rng.standard_normal(3).astype(np.float32)
    model = text_model(f"{layer} {BN}", arrays, opset=9, ir_version=3)
    for name, array in arrays.items():
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
    onnx.checker.check_model(model, full_check=True)
    folded, report = fold_onnx(model)
    assert report.folded == 1
    assert folded.ir_version == 3
    assert folded.graph.input[0] == model.graph.input[0]
    assert_same_network(folded, model, rng)


# float16


def half(rng, weight, **changes):
    """A float16 model, and its batch norm's (scale, shift) in float64."""
    channels = len(weight)
    arrays = {"W": weight.astype(np.float16), **statistics(rng, channels, dtype=np.float16)}
    arrays |= {name: np.full(channels, value, np.float16) for name, value in changes.items()}
    model = text_model(f"c = Conv(x, W) {BN}", arrays, x="float16[N, 2, 6, 6] x", y="float16[N, c, d, e] y")
    exact = {name: array.astype(np.float64) for name, array in arrays.items()}
    scale = exact["s"] / np.sqrt(exact["v"] + float(np.float32(1e-5)))
    return model, arrays["W"].astype(np.float64) * scale[:, None, None, None], exact["b"] - exact["m"] * scale


def test_float16_is_computed_in_float64_and_rounded_once(rng):
    model, weight, bias = half(rng, rng.standard_normal((24, 2, 3, 3)), v=1e-6)
    folded, report = fold_onnx(model)
    assert report.folded == 1
    stored = initializers(folded)
    names = folded.graph.node[0].input
    for got, want in ((stored[names[1]], weight), (stored[names[2]], bias)):
        assert got.dtype == np.float16
        rounded = want.astype(np.float16)
        rounded[np.abs(rounded) < np.finfo(np.float16).tiny] = 0
        np.testing.assert_array_equal(got, rounded)
    onnx.checker.check_model(folded, full_check=True)
    feeds = random_feeds(model, rng)
    assert_relative(truth(folded, feeds)[0], truth(model, feeds)[0], 1e-3)


def test_float16_overflow_is_refused_and_changes_nothing(rng):
    model, _, _ = half(rng, rng.standard_normal((3, 2, 3, 3)), s=60000, v=1e-6)
    folded, report = fold_onnx(model)
    [site] = report.sites
    assert re.search(r"folded weights must be finite in float16, got -?inf", site.reason)
    assert folded.graph == model.graph or list(folded.graph.initializer) == list(model.graph.initializer)
    assert operators(folded) == ["Conv", "BatchNormalization"]


@pytest.mark.parametrize("operator", ["Conv", "Gemm"])
def test_float32_overflow_of_the_bias_alone_changes_nothing(rng, operator):
    shape, x = ((3, 2, 3, 3), IMAGE) if operator == "Conv" else ((4, 3), MATRIX)
    arrays = {"W": np.ones(shape, np.float32), "B": np.ones(3, np.float32), **statistics(rng, 3)}
    arrays |= {"s": np.full(3, 1e3, np.float32), "m": np.full(3, 1e38, np.float32), "v": np.full(3, 1e-4, np.float32)}
    beta = "<beta = 0.5>" if operator == "Gemm" else ""
    model = text_model(f"c = {operator}{beta}(x, W, B) {BN}", arrays, **x)
    folded, report = fold_onnx(model)
    assert "must be finite in float32" in report.sites[0].reason
    assert list(folded.graph.node) == list(model.graph.node)
    assert list(folded.graph.initializer) == list(model.graph.initializer)


def test_mixed_types_follow_the_weight(rng):
    """From opset 15 on the statistics may be float32 beside float16 data."""
    arrays = {"W": rng.standard_normal((3, 2, 3, 3)).astype(np.float16), **statistics(rng, 3)}
    model = text_model(f"c = Conv(x, W) {BN}", arrays, x="float16[N, 2, 6, 6] x", y="float16[N, c, d, e] y")
    onnx.checker.check_model(model, full_check=True)
    folded, report = fold_onnx(model)
    assert report.folded == 1
    assert {array.dtype for array in initializers(folded).values()} == {np.dtype(np.float16)}
    onnx.checker.check_model(folded, full_check=True)
    feeds = random_feeds(model, rng)
    assert_relative(truth(folded, feeds)[0], truth(model, feeds)[0], 2e-3)


def test_float64_model(rng):
    arrays = {"W": rng.standard_normal((4, 3)), **statistics(rng, 3, dtype=np.float64)}
    model = text_model(f"c = Gemm(x, W) {BN}", arrays, x="double[N, 4] x", y="double[N, 3] y")
    model.graph.node[1].attribute.append(helper.make_attribute("epsilon", 0.25))
    folded, report = fold_onnx(model)
    assert report.folded == 1
    assert_same_network(folded, model, rng, 1e-14)


def test_cast_of_opset_5_names_its_type(rng):
    arrays = {"W": rng.standard_normal((3, 2, 3, 3)).astype(np.float32), **statistics(rng, 3)}
    body = 'c = Conv(x, W) d = Cast<to = "FLOAT">(c) y = BatchNormalization<is_test = 1>(d, s, b, m, v)'
    folded, _ = fold_onnx(text_model(body, arrays, opset=5))
    assert operators(folded) == ["Conv", "Cast"]


OUT_OF_RANGE = ("DepthToSpace<blocksize = 0>", "SpaceToDepth<blocksize = 0>", "ReduceMean<axes = [9]>")
AROUND = (
    "c = Conv(x, W) d = {}(c) y = BatchNormalization(d, s, b, m, v)",
    "c = BatchNormalization(x, s, b, m, v) d = {}(c) y = Conv(d, W)",
)


@pytest.mark.parametrize("node", OUT_OF_RANGE)
@pytest.mark.parametrize("body", AROUND)
def test_attributes_out_of_range_are_refused(rng, body, node):
    arrays = {"W": rng.standard_normal((2, 2, 3, 3)).astype(np.float32), **statistics(rng, 2)}
    assert_refused_in_one_way_or_another(text_model(body.format(node), arrays))


def test_default_epsilon_is_the_float32_nearest_to_1e_5(rng):
    """Attributes are float32: 9.99999974e-06, which shows in float64 where the variance is zero."""
    arrays = {"W": rng.standard_normal((4, 3)), **statistics(rng, 3, dtype=np.float64), "v": np.zeros(3)}
    model = text_model(f"c = Gemm(x, W) {BN}", arrays, x="double[N, 4] x", y="double[N, 3] y")
    folded, report = fold_onnx(model)
    assert report.folded == 1
    feeds = random_feeds(model, rng)
    assert_relative(run_onnxruntime(folded, feeds)[0], run_onnxruntime(model, feeds)[0], 1e-12)


def test_bfloat16_is_computed_in_float64_and_rounded_once(rng):
    model, _ = conv_bn(rng)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.BFLOAT16, array.shape, array.ravel()))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    stored = {name: array.astype(np.float64) for name, array in initializers(model).items()}
    folded, report = fold_onnx(model)
    assert report.folded == 1
    weight = initializers(folded)["W"]
    scale = stored["s"] / np.sqrt(stored["v"] + np.float32(1e-5))
    np.testing.assert_array_equal(weight, (stored["W"] * scale.reshape(3, 1, 1, 1)).astype(weight.dtype))


def test_subnormal_weights_become_zero(rng):
    _, arrays = conv_bn(rng)
    arrays["W"][0] = 1e-20
    arrays["s"][0] = 1e-22
    folded, report = fold_onnx(text_model(f"c = Conv(x, W) {BN}", arrays))
    assert report.folded == 1
    weight = initializers(folded)["W"]
    assert (weight[0] == 0).all()
    assert (weight[1:] != 0).all()
    assert 1e-20 * 1e-22 / np.sqrt(3.0) > float(np.nextafter(np.float32(0), np.float32(1)))  # it was not zero before


# What is kept


def test_the_rest_of_the_model_is_kept(rng):
    _, arrays = conv_bn(rng)
    model = text_model("c = Conv(x, W) d = BatchNormalization(c, s, b, m, v) y = Relu(d)", arrays, opset=17)
    model.graph.initializer.append(numpy_helper.from_array(np.float32([1, 2]), "unused"))
    model.producer_name, model.producer_version, model.domain = "someone", "1.2", "their.domain"
    model.model_version, model.doc_string = 7, "about the model"
    model.graph.doc_string, model.graph.node[0].doc_string = "about the graph", "about the convolution"
    model.graph.input[0].doc_string, model.graph.output[0].doc_string = "about x", "about y"
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    helper.set_model_props(model, {"author": "someone", "licence": "theirs"})
    folded, report = fold_onnx(model)
    assert report.folded == 1
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "ir_version"):
        assert getattr(folded, name) == getattr(model, name), name
    assert list(folded.opset_import) == list(model.opset_import)
    assert list(folded.metadata_props) == list(model.metadata_props)
    assert folded.graph.name == model.graph.name
    assert folded.graph.doc_string == "about the graph"
    assert folded.graph.node[0].doc_string == "about the convolution"
    assert folded.graph.node[0].name == "c"
    assert folded.graph.node[1] == model.graph.node[2]
    assert list(folded.graph.input) == list(model.graph.input)
    assert list(folded.graph.output) == list(model.graph.output)
    np.testing.assert_array_equal(initializers(folded)["unused"], [1, 2])


def test_sparse_initializers_are_kept_or_refused(rng):
    """The matrix is [[2, 0, 0], [0, 0, 3], [0, 0, 0], [0, 0, 0]]."""
    values = numpy_helper.from_array(np.float32([2, 3]), "S")
    indices = numpy_helper.from_array(np.int64([0, 5]), "indices")
    model = text_model("y = MatMul(x, S)", {}, **MATRIX)
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 3]))
    onnx.checker.check_model(model)
    x = rng.standard_normal((2, 4)).astype(np.float32)
    want = run_onnxruntime(model, {"x": x})[0]
    try:
        folded, _ = fold_onnx(model)
    except ModelError:
        return
    np.testing.assert_array_equal(run_onnxruntime(folded, {"x": x})[0], want)


def test_source_proto_is_untouched(rng):
    model, _ = conv_bn(rng)
    before = model.SerializeToString(deterministic=True)
    _, report = fold_onnx(model)
    assert report.folded == 1
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_path_and_proto_agree_and_the_file_is_untouched(rng, tmp_path, kind):
    model, _ = conv_bn(rng)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    before = path.read_bytes()
    from_path, from_proto = fold_onnx(kind(path)), fold_onnx(model)
    assert from_path == from_proto
    assert from_path[1].folded == 1
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("body", [f"c = Conv(x, W) {BN}", f"d = Conv(x, W) c = Relu(d) {BN}"])
def test_weights_kept_in_another_file(rng, tmp_path, body):
    """The returned model stands on its own, whatever was folded."""
    model = plain(rng, body)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="model.data")
    model = onnx.load(path)
    folded, report = fold_onnx(path)
    assert report.before.parameters == 66
    assert_same_network(folded, model, rng)


def test_sizes(rng):
    _, report = fold_onnx(conv_bn(rng)[0])
    assert (report.before.nodes, report.before.parameters, report.before.bytes) == (2, 54 + 12, 4 * 66)
    assert (report.after.nodes, report.after.parameters, report.after.bytes) == (1, 54 + 3, 4 * 57)


def test_sizes_count_constant_nodes(rng):
    model = conv_bn(rng)[0]
    nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer]
    del model.graph.initializer[:]
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    before = fold_onnx(model)[1].before
    assert (before.nodes, before.parameters, before.bytes) == (2 + 5, 54 + 12, 4 * 66)


def test_nothing_to_fold(rng):
    model = text_model("y = Relu(x)", {})
    folded, report = fold_onnx(model)
    assert folded == model
    assert report.sites == ()
    assert report.folded == 0


# Chains at random


@st.composite
def chains(draw):
    """Text, arrays and input of a chain, and for each batch norm whether it must fold."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    channels = inputs = draw(st.integers(1, 4))
    lines, arrays, fates, takes_norm = [], {}, [], False
    value, steps = "x", draw(st.lists(st.sampled_from(["Conv", "BatchNormalization", "Relu"]), min_size=1, max_size=6))
    for index, step in enumerate(steps):
        output = "y" if index == len(steps) - 1 else f"t{index}"
        if step == "Conv":
            groups = draw(st.sampled_from([g for g in (1, 2, 3) if channels % g == 0]))
            kernel = draw(st.sampled_from([1, 2, 3]))
            made = groups * draw(st.integers(1, 3))
            arrays[f"w{index}"] = rng.standard_normal((made, channels // groups, kernel, kernel)).astype(np.float32)
            names = f"{value}, w{index}"
            if draw(st.booleans()):
                arrays[f"a{index}"] = rng.standard_normal(made).astype(np.float32)
                names += f", a{index}"
            lines.append(f'{output} = Conv<group = {groups}, auto_pad = "SAME_UPPER">({names})')
            channels, takes_norm = made, True
        elif step == "BatchNormalization":
            arrays |= statistics(rng, channels, str(index))
            if draw(st.booleans()):
                arrays[f"s{index}"][0] = 0
            lines.append(f"{output} = BatchNormalization({value}, " + ", ".join(f"{n}{index}" for n in "sbmv") + ")")
            fates.append(takes_norm)
        else:
            lines.append(f"{output} = Relu({value})")
            takes_norm = False
        value = output
    height, width = draw(st.integers(3, 7)), draw(st.integers(3, 7))
    model = text_model(" ".join(lines), arrays, x=f"float[N, {inputs}, {height}, {width}] x")
    return model, fates, rng


@hypothesis.settings(deadline=None, max_examples=60, derandomize=True)
@hypothesis.given(chains())
def test_chains(case):
    model, fates, rng = case
    folded, report = fold_onnx(model)
    onnx.checker.check_model(folded, full_check=True)
    assert all(site.into for site, fate in zip(report.sites, fates, strict=True) if fate)
    assert operators(folded).count("BatchNormalization") <= fates.count(False)
    assert fold_onnx(folded)[0] == folded
    feeds = random_feeds(model, rng, batch=2)
    [want], [got] = run_onnxruntime(model, feeds), run_onnxruntime(folded, feeds)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * max(np.abs(want).max(), 1e-30))
