"""ONNX files in and out, through onnx-ir, with one sentence for whatever can be wrong with them."""

import onnx

from export.files.broken import BROKEN
from export.files.read import as_model, read_model
from export.files.weights import save, to_proto
from export.files.write import writing

OPSETS = range(10, onnx.defs.onnx_opset_version() + 1)

__all__ = ["BROKEN", "OPSETS", "as_model", "read_model", "save", "to_proto", "writing"]
