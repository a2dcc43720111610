"""The moments of what every batch norm of an ONNX model sees, and what they would change in its output."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir

from export.calibration.calibrate import calibrate_graph
from export.calibration.running_stats import RunningStats
from export.data_files import Samples
from export.files import save
from export.folding.chains import is_batch_norm
from export.folding.constants import Constants
from export.folding.inline import inline_functions
from export.proof.inputs import Inputs
from export.proof.runtime import run_model
from fastbn.diagnosis.gap import OutputGap, Total


@dataclass(frozen=True)
class Measured:
    """moments: mean and biased variance by the name of a batch norm's output. samples: of how many.

    output: the first output with these statistics beside that with its own; None where it is not of floats.
    """

    moments: dict[str, tuple[np.ndarray, np.ndarray]]
    samples: int
    output: OutputGap | None


def measure(model: ir.Model, samples: Samples, *, allow_overridable: bool = False) -> Measured:
    """What a calibration of ``model`` with ``samples`` would write, and change. The model itself is left as it is.

    Raises ModelError where the model cannot be run on them.
    """
    batches, calibrated = list(samples.batches()), model.clone()
    inline_functions(calibrated)
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
    return Measured(moments, samples.count, _output_gap(model, calibrated, batches) if moments else None)


def _output_gap(model: ir.Model, calibrated: ir.Model, batches: Sequence[Inputs]) -> OutputGap | None:
    name = str(model.graph.outputs[0].name)
    total = Total()
    with TemporaryDirectory() as folder:
        paths = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        for each, path in zip((model, calibrated), paths, strict=True):
            save(each, path)
        outputs = [run_model(path, batches) for path in paths]
    for before, after in zip(*outputs, strict=True):
        if before[name].dtype.kind != "f" or not before[name].ndim:
            return None
        total.add(after[name], before[name])
    return total.gap()
