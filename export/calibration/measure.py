"""The moments of what every batch norm of an ONNX model sees, and what they would change in its output."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.calibration.calibrate import calibrate_graph
from export.calibration.running_stats import RunningStats
from export.files import BROKEN, to_proto
from export.files.broken import reason
from export.folding.chains import is_batch_norm
from export.folding.constants import Constants
from export.folding.inline import inline_functions
from export.proof.inputs import Inputs
from export.proof.runtime import run_model
from fastbn.diagnosis.gap import OutputGap, Total
from fastbn.errors import ModelError


@dataclass(frozen=True)
class Measured:
    """moments: mean and biased variance by the name of a batch norm's output. samples: of how many.

    output: the first output with these statistics beside that with its own; None where it is not of floats.
    """

    moments: dict[str, tuple[np.ndarray, np.ndarray]]
    samples: int
    output: OutputGap | None


def measure(model: ir.Model, batches: Sequence[Inputs], samples: int, *, allow_overridable: bool = False) -> Measured:
    """What a calibration of ``model`` with ``batches`` would write, and change. The model itself is left as it is.

    Raises ModelError where the model cannot be run on them.
    """
    calibrated = model.clone()
    try:
        inline_functions(calibrated)
    except BROKEN as error:
        raise ModelError(f"inspect: the model must be valid ONNX, got {reason(error)}") from error
    report = calibrate_graph(calibrated, batches, allow_overridable=allow_overridable, progress=True)
    moved = {layer.batch_norm for layer in report.layers if layer.reason is None}
    constants = Constants(calibrated, allow_overridable)
    norms = (
        RunningStats.read(constants, node)
        for node in ir.traversal.RecursiveGraphIterator(calibrated.graph)
        if is_batch_norm(node)
    )
    moments = {
        norm.key: (norm.mean.astype(np.float64), norm.var.astype(np.float64))
        for norm in norms
        if isinstance(norm, RunningStats) and norm.name in moved
    }
    return Measured(moments, samples, _output_gap(model, calibrated, batches) if moments else None)


def _output_gap(model: ir.Model, calibrated: ir.Model, batches: Sequence[Inputs]) -> OutputGap | None:
    name = str(model.graph.outputs[0].name)
    total = Total()
    for before, after in zip(*(run_model(to_proto(each), batches) for each in (model, calibrated)), strict=True):
        if before[name].dtype.kind != "f" or not before[name].ndim:
            return None
        total.add(after[name], before[name])
    return total.gap()
