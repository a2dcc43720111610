"""ONNX models from a few lines of text; run in float64, the referee, and by onnxruntime without its optimiser."""

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import onnxruntime
from onnx import TensorProto, numpy_helper

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
BN = "y = BatchNormalization(c, s, b, m, v)"


def text_model(body, arrays, *, x="float[N, 2, 6, 6] x", y=None, opset=17, ir_version=8):
    """A model of the nodes in ``body``, each named by its first output, and initialisers by name.

    The output is called y and has as many axes as x, of unknown lengths, unless given.
    """
    y = y or f"float[{', '.join(f'y{axis}' for axis in range(x.count(',') + 1))}] y"
    head = f'<ir_version: {ir_version}, opset_import: ["": {opset}]>'
    model = onnx.parser.parse_model(f"{head} main ({x}) => ({y}) {{ {body} }}")
    for node in model.graph.node:
        node.name = node.output[0]
        for inner in (node, *(inner for attribute in node.attribute for inner in attribute.g.node)):
            if not inner.domain:
                inner.ClearField("domain")  # the parser sets it to the empty string
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items())
    return model


def statistics(rng, channels, suffix="", dtype=np.float32):
    """Scale (negative ones among them), bias, mean and variance of a batch norm."""
    values = {name: rng.standard_normal(channels) for name in "sbm"}
    values["v"] = rng.uniform(0.2, 3.0, channels)
    return {name + suffix: array.astype(dtype) for name, array in values.items()}


def conv_bn(rng, channels=3, inputs=2):
    """Conv without bias, then a batch norm; and the arrays."""
    arrays = {"W": rng.standard_normal((channels, inputs, 3, 3)).astype(np.float32), **statistics(rng, channels)}
    return text_model(f"c = Conv(x, W) {BN}", arrays), arrays


def initializers(model):
    """Arrays by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def operators(model):
    """The operators of the main graph, in order."""
    return [node.op_type for node in model.graph.node]


def in_constants(model):
    """The same model with Constant nodes for initialisers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.initializer[:], copy.graph.node[:]
    for tensor in model.graph.initializer:
        copy.graph.node.append(onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
    copy.graph.node.extend(model.graph.node)
    return copy


def in_float64(model):
    """The same model with every floating-point tensor as float64, in an opset where onnx's evaluator is right."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.opset_import[0].version = max(copy.opset_import[0].version, 15)
    for named in (copy.opset_import[0], *copy.graph.node):
        named.domain = "" if named.domain == "ai.onnx" else named.domain
    _in_float64(copy.graph)
    return copy


def _in_float64(graph):
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    for tensor in (*graph.initializer, *(attribute.t for attribute in attributes if attribute.HasField("t"))):
        if tensor.data_type in FLOATS:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in FLOATS:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for attribute in attributes:
        if attribute.HasField("g"):
            _in_float64(attribute.g)


def truth(model, feeds):
    """Outputs of ``model`` computed by onnx's own evaluator in float64."""
    session = onnx.reference.ReferenceEvaluator(in_float64(model))
    return session.run(None, {name: array.astype(np.float64) for name, array in feeds.items()})


def run_onnxruntime(model, feeds):
    """Outputs by onnxruntime, optimisations off, in this process."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = model if isinstance(model, (bytes, str)) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def random_feeds(model, rng, batch=3):
    """Standard normal arrays for the inputs that have no default; ``batch`` for every free axis."""
    stored = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name not in stored:
            shape = [dim.dim_value or batch for dim in value.type.tensor_type.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def assert_relative(got, want, tolerance):
    """The largest difference is within ``tolerance`` of the largest value, which is not zero."""
    assert got.shape == want.shape
    largest = np.abs(want).max()
    assert largest > 0
    assert np.abs(got.astype(np.float64) - want).max() <= tolerance * largest
