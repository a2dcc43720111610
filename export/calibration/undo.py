"""The statistics that a calibration replaced, kept in a file that brings them back bit for bit."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from export.calibration.running_stats import RunningStats, write_statistics
from export.files import as_model, to_proto
from export.folding.constants import Constants
from export.folding.refused import Refused
from fastbn._files import replacing
from fastbn.errors import ModelError

FORMAT = "fastbn.undo.v1"


@dataclass(frozen=True)
class OldStatistics:
    """One batch norm as it was: mean and var (C,), whether it was in training mode, the names of all its outputs."""

    mean: np.ndarray
    var: np.ndarray
    training_mode: bool
    outputs: tuple[str, ...]


Undo = dict[str, OldStatistics]  # by the name of the batch norm's output


def capture(norms: Iterable[RunningStats]) -> Undo:
    """What ``apply`` needs to bring ``norms`` back to what they are now."""
    undo = {}
    for norm in norms:
        mode = norm.node.attributes.get("training_mode")
        training = mode is not None and bool(mode.as_int())
        outputs = tuple(output.name or "" for output in norm.node.outputs)
        undo[norm.key] = OldStatistics(norm.mean, norm.var, training, outputs)
    return undo


def write(path: str | Path, undo: Undo) -> None:
    """Write a safetensors file. Raises ModelError where ``path`` cannot be written."""
    tensors: dict[str, np.ndarray] = {}
    for name, old in undo.items():
        tensors |= {f"{name}.mean": np.ascontiguousarray(old.mean), f"{name}.var": np.ascontiguousarray(old.var)}
    layers = {name: {"training_mode": old.training_mode, "outputs": old.outputs} for name, old in undo.items()}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": FORMAT, "layers": json.dumps(layers)})
        except SafetensorError as error:
            raise ModelError(f"calibrate: {path} must be writable, got {error}") from error


def read(path: str | Path) -> Undo:
    """What ``write`` wrote. Raises ModelError for any other file."""
    if not Path(path).is_file():
        raise ModelError(f"restore: {path} must be a file, got {'a folder' if Path(path).is_dir() else 'no file'}")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError("a safetensors file without its header")
            layers = json.loads(header["layers"])
            return {
                name: OldStatistics(
                    file.get_tensor(f"{name}.mean"),
                    file.get_tensor(f"{name}.var"),
                    bool(layer["training_mode"]),
                    tuple(str(output) for output in layer["outputs"]),
                )
                for name, layer in layers.items()
            }
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"restore: {path} must be an undo file that calibrate wrote, got {error}") from error


def apply(model: ir.Model, undo: Undo) -> None:
    """Bring the statistics of ``undo`` back, in place. Raises ModelError, before any change, where they do not fit."""
    constants = Constants(model, overridable=True)
    nodes = {node.outputs[0].name: node for node in model.graph if node.op_type == "BatchNormalization"}
    for name, old in undo.items():
        now = None if name not in nodes else RunningStats.read(constants, nodes[name])
        if now is None:
            raise ModelError(
                f"restore: the model must have the batch norm {name} of the undo file, got none of that output; "
                "a folded model cannot be restored, give the unfolded one"
            )
        if isinstance(now, Refused):
            raise ModelError(f"restore: batch norm {name} must have constant statistics, got one of which {now.reason}")
        for role, here, there in (("mean", now.mean, old.mean), ("variance", now.var, old.var)):
            if (here.shape, here.dtype) != (there.shape, there.dtype):
                raise ModelError(
                    f"restore: the {role} of batch norm {name} must be {here.dtype} of shape {here.shape}, "
                    f"got {there.dtype} of shape {there.shape} in the undo file"
                )
    for name, old in undo.items():
        _put_back(constants, nodes[name], old)


def _put_back(constants: Constants, node: ir.Node, old: OldStatistics) -> None:
    write_statistics(constants, node, old.mean, old.var)
    if old.training_mode:
        node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    if len(old.outputs) > len(node.outputs):
        node.resize_outputs(len(old.outputs))
        for output, name in zip(node.outputs, old.outputs, strict=True):
            output.name = name


def restore(model_or_path: str | Path | onnx.ModelProto, undo: str | Path) -> onnx.ModelProto:
    """The model with the statistics that it had before ``calibrate(..., undo=...)``, bit for bit.

    model_or_path: the calibrated model, not folded; it is not changed. undo: the file.
    Raises ModelError where the two do not belong together.
    """
    model = as_model(model_or_path)
    apply(model, read(undo))
    return to_proto(model)
