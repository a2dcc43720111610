"""ONNX: write fastbn models, fold batch norms in any ONNX model, and prove the result with onnxruntime.

``python -m export`` is the command line; ``export``, ``fold_onnx``, ``calibrate`` and ``verify`` are the same from
Python.
"""

from export.calibration.calibrate import CalibrationReport, LayerShift, calibrate, calibrate_graph
from export.calibration.undo import restore
from export.convert import ExportReport, export
from export.data_files import load_inputs
from export.fold import FoldReport, FoldSite, fold_onnx
from export.verify import Comparison, VerifyReport, verify

__all__ = [
    "CalibrationReport",
    "Comparison",
    "ExportReport",
    "FoldReport",
    "FoldSite",
    "LayerShift",
    "VerifyReport",
    "calibrate",
    "calibrate_graph",
    "export",
    "fold_onnx",
    "load_inputs",
    "restore",
    "verify",
]
