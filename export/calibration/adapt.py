"""Calibration and its undoing as commands: files in, files out, and the report."""

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from export.calibration import undo as undo_files
from export.calibration.calibrate import calibrate_graph
from export.data_files import read_samples
from export.files import read_model, writing
from fastbn._files import check_target, replacing
from fastbn.errors import ArgumentError

BATCH_SIZE = 64


def calibrate_file(
    source: Path,
    out: Path,
    data: Path,
    *,
    fold: Callable[[Path], dict[str, Any]],
    keep_unfolded: bool,
    mode: str = "layers",
    batch_size: int = BATCH_SIZE,
    allow_overridable: bool = False,
) -> dict[str, Any]:
    """Calibrate the model in ``source`` with ``data``, and ``fold`` the calibrated one; returns the report.

    fold: writes ``out`` from the file that it is given, and reports. Beside ``out`` go the old statistics,
    ``.undo.safetensors``, and with ``keep_unfolded`` the model to which they belong, ``.unfolded.onnx``: calibrated,
    not folded; neither where no batch norm could be calibrated. Nothing is written after an error.
    Raises ModelError, ArgumentError.
    """
    twin, undo = out.with_suffix(".unfolded.onnx"), out.with_suffix(".undo.safetensors")
    for target in (twin, undo):
        check_target(target)
    if keep_unfolded and twin.exists() and twin.samefile(source):
        raise ArgumentError(f"OUT must not have SOURCE for its unfolded twin, which is written, got {out}")
    model = read_model(source)
    samples = read_samples(data, model, batch_size=batch_size)
    with TemporaryDirectory() as folder:
        old = Path(folder, undo.name)
        done = calibrate_graph(
            model, samples.batches(), mode=mode, undo=old, allow_overridable=allow_overridable, progress=True
        )
        kept = keep_unfolded and bool(done.calibrated)
        if done.calibrated:
            with writing(model, twin if kept else Path(folder, twin.name)) as calibrated:
                report = fold(calibrated)
                with replacing(undo) as file:
                    shutil.copyfile(old, file)
        else:
            report = fold(source)
    return {
        **report,
        "source": str(source),
        "unfolded": str(twin) if kept else None,
        "undo": str(undo) if done.calibrated else None,
        "calibration": {**samples.account, **asdict(done)},
    }


def restore_file(source: Path, out: Path, undo: Path) -> dict[str, Any]:
    """Write ``source`` with the statistics of the file ``undo`` to ``out``. Raises ModelError."""
    model = read_model(source)
    old = undo_files.read(undo)
    undo_files.apply(model, old)
    with writing(model, out):
        pass
    return {"source": str(source), "output": str(out), "undo": str(undo), "restored": len(old), "ok": True}


def render_calibration(calibration: dict[str, Any], worst: int = 5) -> list[tuple[str, str]]:
    """Lines of the report: what was estimated from what, the ``worst`` batch norms, and those of which to know more."""
    layers = calibration["layers"]
    done = [layer for layer in layers if layer["reason"] is None]
    how = "layer by layer" if calibration["mode"] == "layers" else "in one pass"
    lines = [
        ("calibrated", f"{len(done)} of {len(layers)} batch norms, {how}"),
        ("", f"{calibration['samples']:,} samples of {calibration['data']} in {calibration['batches']:,} batches"),
    ]
    if calibration["left_out"]:
        lines.append(("", f"{calibration['left_out']} samples left out: too few for the model's fixed batch"))
    lines += [("moved most" if not i else "", text) for i, text in enumerate(_moved(done)[:worst])]
    lines += [("", f"  recovered: {text}") for text in _grouped(layers, "recovers")]
    lines += [("", f"  left as it is: {text}") for text in _grouped(layers, "reason")]
    constant = [layer for layer in layers if layer["constant"]]
    if constant:
        count = sum(layer["constant"] for layer in constant)
        lines.append(("", f"  without variance: {count} channels of {_names(constant)}"))
    return lines


def _grouped(layers: list[dict[str, Any]], key: str) -> list[str]:
    """A line for every text under ``key``, with the batch norms that it is said of."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for layer in layers:
        if layer[key]:
            groups.setdefault(layer[key], []).append(layer)
    return [f"{_names(group)}: {text}" for text, group in groups.items()]


def _names(layers: list[dict[str, Any]], most: int = 3) -> str:
    names = ", ".join(layer["batch_norm"] for layer in layers[:most])
    return names if len(layers) <= most else f"{names} and {len(layers) - most} more"


def _moved(layers: list[dict[str, Any]]) -> list[str]:
    """A line for every batch norm, the one that moved most first: by deviations of its mean, or log of its variance."""
    texts = []
    for layer in layers:
        shift, ratio = layer["mean_shift"], layer["var_ratio"]
        moved = math.inf if shift is None or not ratio else max(shift, abs(math.log(ratio)))
        mean = "unknown" if shift is None else f"{shift:.3g} old deviations"
        variance = "unknown" if ratio is None else f"x {ratio:.3g}"
        texts.append((moved, f"  {layer['batch_norm']}: mean by {mean}, variance {variance}"))
    return [text for _, text in sorted(texts, key=lambda entry: entry[0], reverse=True)]
