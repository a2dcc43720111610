"""Running statistics of every batch norm in an ONNX graph estimated anew from data.

With the data of another domain this is AdaBN (Li, Wang, Shi, Liu and Hou 2016, arXiv 1603.04779).
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from export.calibration import undo as undo_files
from export.calibration.batches import Batch, store_batches
from export.calibration.running_stats import RunningStats
from export.calibration.stage_runner import Moments, StageRunner
from export.calibration.stages import Stages
from export.files import BROKEN, as_model, to_proto
from export.folding.constants import Constants
from export.folding.graph import name_of
from export.folding.refused import Refused
from fastbn._checks import check_int
from fastbn._progress import Bar
from fastbn.errors import ArgumentError, FastbnError, ModelError
from fastbn.functional.norm import merge_moments

MODES = ("layers", "once")
CACHE_BYTES = 2**30


@dataclass(frozen=True)
class LayerShift:
    """What became of one batch norm's statistics.

    values: how many were seen in every channel. mean_shift: largest |new - old mean| of a channel, in its old standard
    deviations. var_ratio: new / old variance of the channel where that is farthest from 1. Both count eps to the
    variances, and are None where the old statistics were of no use. constant: channels without any variance now.
    recovers: why the statistics were not proper ones before. reason: why they were left as they are.
    """

    batch_norm: str
    channels: int = 0
    values: int = 0
    mean_shift: float | None = None
    var_ratio: float | None = None
    constant: int = 0
    recovers: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class CalibrationReport:
    """Every batch norm of a model, in the order of the graph; over how many batches, and in which mode."""

    layers: tuple[LayerShift, ...]
    batches: int
    mode: str

    @property
    def calibrated(self) -> int:
        """How many batch norms have new statistics."""
        return sum(layer.reason is None for layer in self.layers)


def calibrate(
    model_or_path: str | Path | onnx.ModelProto,
    batches: Iterable[Batch],
    *,
    mode: str = "layers",
    undo: str | Path | None = None,
    allow_overridable: bool = False,
    cache_bytes: int = CACHE_BYTES,
    progress: bool = False,
) -> onnx.ModelProto:
    """A copy of a model whose batch norms have the mean and the population variance of all ``batches`` together.

    batches: dicts of arrays by input name, or arrays for a model with one input; read once, kept on disk meanwhile.
    mode: "layers", every batch norm is estimated with those before it already corrected; "once", in a single pass with
    the old statistics in force. A batch norm in training mode leaves it, if nothing reads its further outputs.
    undo: a file for the old statistics, see ``restore``. allow_overridable: statistics that the caller may override
    are estimated, too, and become the new defaults. cache_bytes: memory for activations between one layer and the next;
    with less, stages are computed again. progress: a bar on stderr, if that is a terminal.
    Moments are taken in float64, merged by their counts (Chan, Golub and LeVeque 1979) and rounded once.
    Raises ArgumentError without batches, ModelError where the model does not run or a value is not finite.
    """
    model = as_model(model_or_path)
    calibrate_graph(
        model,
        batches,
        mode=mode,
        undo=undo,
        allow_overridable=allow_overridable,
        cache_bytes=cache_bytes,
        progress=progress,
    )
    return to_proto(model)


def calibrate_graph(
    model: ir.Model,
    batches: Iterable[Batch],
    *,
    mode: str = "layers",
    undo: str | Path | None = None,
    allow_overridable: bool = False,
    cache_bytes: int = CACHE_BYTES,
    progress: bool = False,
) -> CalibrationReport:
    """``calibrate`` on an onnx-ir model, in place; after an error it is as it was."""
    if mode not in MODES:
        raise ArgumentError(f"calibrate: mode must be {' or '.join(MODES)}, got {mode!r}")
    check_int("calibrate", "cache_bytes", cache_bytes, 0)
    constants = Constants(model, allow_overridable)
    norms = {node: RunningStats.read(constants, node) for node in _batch_norms(model)}
    with StageRunner(cache_bytes) as runner:
        fed = store_batches(model, batches, runner.store)
        known = [norm for norm in norms.values() if isinstance(norm, RunningStats)]
        before = undo_files.capture(known)
        with _undone_after_error(model, before):
            stages = Stages(model, known, fed, once=mode == "once")
            shifts = _run(constants, stages, runner, progress)
            if undo is not None:
                undo_files.write(undo, {norm.key: before[norm.key] for norm in known if norm.node in shifts})
        return CalibrationReport(_layers(norms, shifts), runner.batches, mode)


@contextmanager
def _undone_after_error(model: ir.Model, before: undo_files.Undo) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        undo_files.apply(model, before)
        if isinstance(error, (FastbnError, OSError)) or not isinstance(error, BROKEN):
            raise
        raise ModelError(f"calibrate: the model must be valid ONNX, got {error}") from error


def _batch_norms(model: ir.Model) -> list[ir.Node]:
    graphs: tuple[ir.Graph | ir.Function, ...] = (model.graph, *model.functions.values())
    return [
        node
        for graph in graphs
        for node in ir.traversal.RecursiveGraphIterator(graph)
        if node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx")
    ]


def _run(constants: Constants, stages: Stages, runner: StageRunner, progress: bool) -> dict[ir.Node, LayerShift]:
    """New statistics, stage by stage; those of a stage are in force in the next."""
    shifts = {}
    for norm in stages.all_norms():
        norm.to_inference()
    with Bar("stage", "batches", len(stages) * runner.batches, wanted=progress) as bar:
        for number in range(len(stages)):
            found = stages.norms[number]
            bar.say(f"stage {number + 1}/{len(stages)}, {len(found)} batch norms")
            totals = [Totals(norm.name) for norm in found]
            stage = stages.cut(runner.base, number, runner.types)
            for batch, moments in enumerate(runner.run(stage, number, [str(norm.x.name) for norm in found])):
                for total, one in zip(totals, moments, strict=True):
                    total.add(one, batch)
                bar.advance()
            for norm, total in zip(found, totals, strict=True):
                shifts[norm.node] = _set(constants, norm, total)
    return shifts


class Totals:
    """Moments of the batches so far, for the batch norm ``name``."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.count = 0
        self.mean: np.ndarray = np.zeros(0)
        self.var: np.ndarray = np.zeros(0)

    def add(self, moments: Moments, batch: int) -> None:
        """Merge the moments of one batch. Raises ModelError where they are not finite."""
        count, mean, squares = moments[0], np.array(moments[1]), np.array(moments[2])
        if not count:
            return
        finite = np.isfinite(mean) & np.isfinite(squares)
        if not finite.all():
            raise ModelError(
                f"calibrate: the input of batch norm {self._name} must be finite, got NaN or infinity in channel "
                f"{int(np.argmin(finite))} of batch {batch}; correct that batch or leave it out"
            )
        if self.count:
            counts = np.array([self.count, count])
            both = np.stack([self.mean, mean]), np.stack([self.count * self.var, squares])
            self.mean, self.var = merge_moments(counts, *both)
        else:
            self.mean, self.var = mean, squares / count
        self.count += count


def _set(constants: Constants, norm: RunningStats, total: Totals) -> LayerShift:
    """Write one batch norm's statistics, rounded to the dtype of the old ones."""
    if total.count < 2:
        raise ModelError(
            f"calibrate: batch norm {norm.name} must see more than 1 value in a channel, got {total.count}; "
            "give more data"
        )
    if total.mean.shape != norm.mean.shape:
        raise ModelError(
            f"calibrate: batch norm {norm.name} must have {norm.mean.size} channels, got {total.mean.size} in its input"
        )
    with np.errstate(all="ignore"):
        mean, var = total.mean.astype(norm.mean.dtype), total.var.astype(norm.var.dtype)
    if not (np.isfinite(mean).all() and np.isfinite(var).all()):
        largest = max(np.abs(total.mean).max(), total.var.max())
        raise ModelError(
            f"calibrate: the statistics of batch norm {norm.name} must fit in {norm.var.dtype}, got {largest:.3g}; "
            "keep them in float32"
        )
    norm.write(constants, mean, var)
    return _shift(norm, mean, var, total.count)


def _shift(norm: RunningStats, mean: np.ndarray, var: np.ndarray, values: int) -> LayerShift:
    old_mean, old_var = norm.mean.astype(np.float64), norm.var.astype(np.float64) + norm.eps
    with np.errstate(all="ignore"):
        shift = float(np.max(np.abs(mean - old_mean) / np.sqrt(old_var)))
        ratios = (var.astype(np.float64) + norm.eps) / old_var
        ratio = float(ratios[np.argmax(np.abs(np.log(ratios)))])
    return LayerShift(
        norm.name,
        channels=mean.size,
        values=values,
        mean_shift=shift if math.isfinite(shift) else None,
        var_ratio=ratio if math.isfinite(ratio) else None,
        constant=int((var == 0).sum()),
        recovers=norm.recovers,
    )


def _layers(norms: dict[ir.Node, RunningStats | Refused], shifts: dict[ir.Node, LayerShift]) -> tuple[LayerShift, ...]:
    layers = []
    for node, norm in norms.items():
        if isinstance(norm, Refused):
            layers.append(LayerShift(name_of(node), reason=norm.reason))
        else:
            unseen = LayerShift(norm.name, reason="its input does not depend on the data")
            layers.append(shifts.get(node, unseen))
    return tuple(layers)
