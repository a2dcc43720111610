"""ONNX's light models, published networks that come with the onnx wheel; their weights are all 0.02, here random."""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
# Name: batch norms, and those among them that nothing can absorb. DenseNet's stand between a Concat and a ReLU.
LIGHT = {"densenet121": (121, 62), "inception_v2": (69, 0), "resnet50": (53, 0), "shufflenet": (49, 0)}


def light(name: str) -> onnx.ModelProto:
    """As it comes: every weight behind a ConstantOfShape."""
    return onnx.load(FOLDER / f"light_{name}.onnx")


def reseeded(name: str, seed: int = 0) -> onnx.ModelProto:
    """With Constant nodes of random weights, scaled so that no output vanishes; Softmax, which hides, is left out."""
    model, rng = light(name), np.random.default_rng(seed)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    variances = {node.input[4] for node in model.graph.node if node.op_type == "BatchNormalization"}
    products = {node.input[1] for node in model.graph.node if node.op_type == "Gemm"}
    products |= {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    factors = {node.input[1] for node in model.graph.node if node.op_type in ("BatchNormalization", "Mul")}
    factors |= {node.input[0] for node in model.graph.node if node.op_type == "Unsqueeze" and node.output[0] in factors}
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            continue
        name, shape = node.output[0], shapes[node.input[0]].tolist()
        if name in products:
            array = rng.standard_normal(shape) * np.sqrt(1.5 / np.prod(shape[1:]))
        elif name in variances or name in factors:
            array = rng.uniform(0.5, 1.5, shape)
        else:
            array = 0.1 * rng.standard_normal(shape)
        tensor = numpy_helper.from_array(array.astype(np.float32), name)
        node.CopyFrom(onnx.helper.make_node("Constant", [], [name], value=tensor))
    if model.graph.node[-1].op_type == "Softmax":
        last = model.graph.node.pop()
        model.graph.node[-1].output[0] = last.output[0]
    return model
