"""The model's own functions that hold a batch norm, put in the place of their calls."""

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from export.folding.chains import is_batch_norm
from export.folding.graph import is_onnx

UNNAMED = "fastbn, without a name"


def inline_functions(model: ir.Model) -> None:
    """Inline, in place, every function with a batch norm; a node without a name gets that of its output."""

    def holds(function: ir.Function) -> bool:
        nodes = list(ir.traversal.RecursiveGraphIterator(function.graph))
        inner = (model.functions.get(node.op_identifier()) for node in nodes if not is_onnx(node))
        return any(is_batch_norm(node) for node in nodes) or any(holds(called) for called in inner if called)

    found = {function.identifier() for function in model.functions.values() if holds(function)}
    if not found:
        return
    for identifier in found:
        for node in ir.traversal.RecursiveGraphIterator(model.functions[identifier].graph):
            node.name = node.name or UNNAMED  # or the pass would number it
    InlinePass(lambda function: function.identifier() in found)(model)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if (node.name or "").startswith(UNNAMED):
            node.name = next((output.name for output in node.outputs if output.name), None)
