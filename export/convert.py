"""A fastbn model as ONNX, folded and verified."""

import copy
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

import fastbn
from export.emit import emit
from export.emitter import Emitter
from export.files import OPSETS, writing
from export.fold import FoldReport, fold_graph
from export.verify import VerifyReport, verify
from fastbn._checks import check_running_stats
from fastbn.errors import ArgumentError, DtypeError, ModelError, ShapeError
from fastbn.nn.batchnorm import BatchNorm
from fastbn.nn.fold import fold_scalars
from fastbn.nn.instancenorm import InstanceNorm
from fastbn.nn.module import Module


@dataclass(frozen=True)
class ExportReport:
    """What ``export`` did.

    path: the model written. fold: what became of every batch norm, None with fold=False. against_model: ``path``
    beside the fastbn model. against_unfolded: ``path`` beside the ONNX before folding, None with fold=False.
    """

    path: str
    fold: FoldReport | None
    against_model: VerifyReport
    against_unfolded: VerifyReport | None

    @property
    def ok(self) -> bool:
        """Whether every comparison is within its tolerance."""
        return self.against_model.ok and (self.against_unfolded is None or self.against_unfolded.ok)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {**asdict(self), "ok": self.ok}


def export(
    model: Module,
    path: str | Path,
    *,
    input_shape: tuple[int, ...],
    fold: bool = True,
    opset: int = 17,
    tolerance: float = 1e-4,
    unfolded_path: str | Path | None = None,
) -> ExportReport:
    """Write ``model`` in eval mode to an ONNX file, batch norms folded away, and prove it with onnxruntime.

    Norms of weights are written as plain weights, and FixUp's scalars go into the layers beside them before all else.

    input_shape: one sample's shape or one with the batch, e.g. (1, 28, 28) or (1, 1, 28, 28); the batch stays dynamic.
    fold: False keeps the batch norms. tolerance: as in ``verify``. unfolded_path: where to keep the ONNX before
    folding as well. A model whose outputs differ is written all the same, to be looked at: see ``ExportReport.ok``;
    one that onnxruntime cannot run is not.
    Raises ModelError for a layer or file that cannot be written, ArgumentError for opset, and what the model raises
    for such an input.
    """
    if not isinstance(model, Module):
        raise DtypeError(f"export: model must be a fastbn.nn.Module, got {type(model).__name__}")
    if unfolded_path is not None and Path(unfolded_path).resolve() == Path(path).resolve():
        raise ArgumentError(f"export: unfolded_path must be another file than path, got {path} twice")
    check_opset(opset)
    probe = copy.deepcopy(model).eval()
    _check_statistics(probe)
    shape = _one_sample(probe, input_shape)
    written = to_onnx(fold_scalars(probe) if fold else probe, shape, opset)
    inputs = _random_batches(probe, shape)
    with ExitStack() as stack:
        if unfolded_path is None:
            unfolded_path = Path(stack.enter_context(tempfile.TemporaryDirectory()), "unfolded.onnx")
        twin = stack.enter_context(writing(written, unfolded_path))
        report = fold_graph(written) if fold else None
        final = stack.enter_context(writing(written, path))
        return ExportReport(
            path=str(path),
            fold=report,
            against_model=verify(probe, final, inputs, tolerance=tolerance),
            against_unfolded=verify(twin, final, inputs, tolerance=tolerance, sites=report.sites)
            if report is not None
            else None,
        )


def check_opset(opset: int) -> None:
    """Raise ArgumentError unless ``opset`` is one that this package writes."""
    if isinstance(opset, bool) or not isinstance(opset, int) or opset not in OPSETS:
        raise ArgumentError(f"export: opset must be an integer from {OPSETS[0]} to {OPSETS[-1]}, got {opset!r}")


def _check_statistics(model: Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, (BatchNorm, InstanceNorm)):
            who = f"export: {'batch' if isinstance(module, BatchNorm) else 'instance'} norm {name}"
            if isinstance(module, BatchNorm) and not module.track_running_stats:
                raise ModelError(f"{who} must have running statistics, got track_running_stats=False")
            check_running_stats(who, module.running_mean, module.running_var, module.num_features)


def to_onnx(model: Module, sample_shape: tuple[int, ...], opset: int) -> ir.Model:
    """``model`` as an ONNX graph "input" (N, *sample_shape) -> "output", batch norms and all."""
    x = np.zeros((1, *sample_shape), model.dtype)
    y = model(x)
    kind = ir.TensorType(ir.DataType.from_numpy(x.dtype))
    value = ir.Value(name="input", shape=ir.Shape(["N", *sample_shape]), type=kind)
    emitter = Emitter(opset)
    output, _ = emit(emitter, model, "", value, x.ndim)
    if output is value:
        output = emitter.node("identity", "Identity", [value])
    output.name, output.type, output.shape = "output", kind, ir.Shape(["N", *y.shape[1:]])
    graph = ir.Graph(
        [value],
        [output],
        nodes=emitter.nodes,
        initializers=list(emitter.initializers.values()),
        opset_imports={"": opset},
        name=type(model).__name__.lower(),
    )
    ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    return ir.Model(graph, ir_version=max(ir_version, 4), producer_name="fastbn", producer_version=fastbn.__version__)


def _one_sample(model: Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """``input_shape`` without its batch, whichever of the two the first layer with a fixed rank takes."""
    shape = tuple(input_shape) if isinstance(input_shape, (tuple, list)) else ()
    if not shape or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in shape):
        raise ArgumentError(f"export: input_shape must be positive integers, got {input_shape!r}")
    try:
        model(np.zeros((1, *shape), model.dtype))
    except ShapeError as error:
        try:
            model(np.zeros(shape, model.dtype))
        except ShapeError:
            raise error from None
        return shape[1:]
    return shape


def _random_batches(model: Module, sample_shape: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    return [
        {"input": np.random.default_rng(seed).standard_normal((batch, *sample_shape)).astype(model.dtype)}
        for seed, batch in enumerate((1, 4, 3))
    ]
