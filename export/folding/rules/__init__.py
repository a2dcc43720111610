"""What every operator does with an affine map that is pushed to it: one file an operator, or a family of them.

``backward(graph, node, output, affine)``: output number ``output`` must hold ``affine`` of what it holds now.
``forward(graph, node, index, affine)``: input number ``index`` will lack ``affine``.
Both answer with a Step or Refused.
"""

from types import ModuleType

from export.folding.rules import (
    add,
    affine_node,
    average,
    cast,
    concat,
    conv,
    conv_transpose,
    depth_space,
    gemm,
    homogeneous,
    identity,
    matmul,
    maximum,
    pad,
    reshape,
    resize,
    slice,
    split,
    transpose,
)

RULES: dict[str, ModuleType] = {
    "Add": add,
    "AveragePool": average,
    "BatchNormalization": affine_node,
    "Cast": cast,
    "Concat": concat,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DepthToSpace": depth_space,
    "Div": affine_node,
    "Dropout": identity,
    "Flatten": reshape,
    "Gather": slice,
    "Gemm": gemm,
    "GlobalAveragePool": average,
    "GlobalMaxPool": maximum,
    "Identity": identity,
    "LeakyRelu": homogeneous,
    "MatMul": matmul,
    "MaxPool": maximum,
    "Mul": affine_node,
    "PRelu": homogeneous,
    "Pad": pad,
    "ReduceMax": maximum,
    "ReduceMean": average,
    "Relu": homogeneous,
    "Reshape": reshape,
    "Resize": resize,
    "Slice": slice,
    "SpaceToDepth": depth_space,
    "Split": split,
    "Squeeze": reshape,
    "Sub": affine_node,
    "Sum": add,
    "Transpose": transpose,
    "Unsqueeze": reshape,
    "Upsample": resize,
}

SEVERAL_AXES = (cast, identity, reshape, transpose)  # rules for channels that a Reshape has split, too

__all__ = ["RULES", "SEVERAL_AXES"]
