"""``python -m export``: a network as ONNX, its batch norms folded away, proved with onnxruntime."""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import fastbn
from export.calibration.adapt import BATCH_SIZE, calibrate_file, restore_file
from export.calibration.calibrate import MODES
from export.calibration.measure import measure
from export.choice import Choice
from export.convert import check_opset, export
from export.data_files import read_samples
from export.files import BROKEN, read_model, writing
from export.fold import FoldReport, fold_graph
from export.options import EPOCHS, check_modes, make_parser
from export.proof.inputs import random_inputs
from export.proof.runtime import latencies
from export.report.html import write_html
from export.report.inspection import inspect_model
from export.report.listing import print_inspection
from export.report.text import print_report
from export.verify import VerifyReport, run_any, verify
from fastbn import data, nn
from fastbn._files import check_target
from fastbn.cli.arguments import run as run_action
from fastbn.cli.train import train_lenet
from fastbn.errors import ArgumentError, ModelError
from fastbn.nn.module import Module
from fastbn.training import checkpoint

TRAINING_ONLY = ("epochs", "seed")
SAMPLES = 64  # of --data that the proof runs
MEASURED = 1024  # of --data that --inspect runs: they are in memory together


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # what it warns of comes back as an error, in one line
    parser = make_parser()
    options = parser.parse_args(arguments)
    return run_action(parser.prog, lambda: _main(options))


def _main(options: argparse.Namespace) -> int:
    source = None if options.source is None else Path(options.source)
    suffix = "" if source is None else source.suffix.lower()
    if options.opset is not None:
        check_opset(options.opset)
    if source is not None:
        _check_source(options, source, suffix)
    elif options.input_shape is not None:
        raise ArgumentError("--input-shape must come with a checkpoint, got it without SOURCE")
    elif options.data is not None and options.data not in data.DATASETS:
        names = " or ".join(data.DATASETS)
        raise ArgumentError(f"--data must be {names} without SOURCE, what to train on, got {options.data!r}")
    check_modes(options, suffix)
    if source is not None and options.inspect:
        return _inspect(options, source)
    if source is not None and options.dry_run:
        report = _unwritten(source, _fold(options, read_model(source), source), dry_run=True)
    else:
        report = _write(options, source, suffix)
    if options.json:
        print(json.dumps(report))
    else:
        print_report(report, verbose=options.verbose)
    return 0 if report["ok"] else 1


def _write(options: argparse.Namespace, source: Path | None, suffix: str) -> dict[str, Any]:
    if options.out == "":
        raise ArgumentError("-o OUT.onnx must be a file name, got ''")
    out = Path("lenet.onnx" if options.out is None else options.out)
    check_target(out)
    if out.suffix.lower() != ".onnx":
        raise ArgumentError(f"OUT must end in .onnx, got {str(out)!r}")
    if options.report is not None:
        check_target(options.report)
        if Path(options.report).suffix.lower() not in (".html", ".htm"):
            raise ArgumentError(f"--report must end in .html, got {options.report!r}")
    if source is None:
        report = _train_and_export(options, out)
    elif suffix == ".safetensors":
        report = _export_checkpoint(options, source, out)
    elif options.undo is not None:
        report = restore_file(source, out, Path(options.undo))
    elif options.calibrate is not None:
        report = calibrate_file(
            source,
            out,
            Path(options.calibrate),
            fold=lambda calibrated: _fold_file(options, calibrated, out),
            keep_unfolded=not options.no_fold,
            mode=options.calibration_mode or MODES[0],
            batch_size=options.batch_size or BATCH_SIZE,
            allow_overridable=options.allow_overridable,
        )
    else:
        report = _fold_file(options, source, out)
    if options.report is not None:
        write_html(report, options.report)
    return report


def _check_source(options: argparse.Namespace, source: Path, suffix: str) -> None:
    if suffix not in (".onnx", ".safetensors"):
        raise ArgumentError(f"SOURCE must end in .onnx or .safetensors, got {source}")
    given = [f"--{name}" for name in TRAINING_ONLY if getattr(options, name) is not None]
    if given:
        raise ArgumentError(f"{given[0]} must come without SOURCE, which is not trained, got {source}")
    if options.data is not None and suffix != ".onnx":
        raise ArgumentError(f"--data must come with an .onnx SOURCE, to run it on, or without SOURCE, got {source}")
    if not source.is_file():
        raise ModelError(f"SOURCE must be a file that exists, got {source}")
    if options.out is None and not options.inspect and not options.dry_run:
        raise ArgumentError(f"-o OUT.onnx must be given with a SOURCE, got {source} alone")
    if options.out is not None and Path(options.out).exists() and Path(options.out).samefile(source):
        raise ArgumentError(f"OUT must be another file than SOURCE, which is never written, got {source} twice")
    if suffix == ".onnx" and (options.opset is not None or options.input_shape is not None):
        raise ArgumentError(f"--opset and --input-shape must come with a fastbn model, got {source}")


def _train_and_export(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    saved, unfolded = out.with_suffix(".safetensors"), out.with_suffix(".unfolded.onnx")
    for target in (saved, unfolded):
        check_target(target)
    name = options.data or "digits"
    epochs = options.epochs or EPOCHS[name]
    dataset = data.load(name)
    if options.opset is not None:
        _check_runtime(options.opset)
    print(f"training LeNet with batch norm on {name}, {epochs} epochs", file=sys.stderr, flush=True)
    begun = time.perf_counter()
    model, history = train_lenet(dataset, norm="batch", epochs=epochs, seed=options.seed or 0)
    seconds = time.perf_counter() - begun
    shape = dataset.train.images.shape[1:]
    fastbn.save(model, saved, input_shape=shape)
    report = _export_model(options, model, shape, out, None if options.no_fold else unfolded)
    report["training"] = {"data": name, "epochs": epochs, "seconds": seconds, "test_accuracy": history[-1].val_accuracy}
    report["checkpoint"] = str(saved)
    models = {"fastbn": model, "unfolded": out if options.no_fold else unfolded, "folded": out}
    if options.no_fold:
        del models["folded"]
    report["accuracy"] = {key: _accuracy(value, dataset.test) for key, value in models.items()}
    report["test_samples"] = len(dataset.test.labels)
    return report


def _check_runtime(opset: int) -> None:
    """Raise ModelError, before the training, where onnxruntime is too old for ``opset``."""
    with tempfile.TemporaryDirectory() as folder:
        export(nn.ReLU(), Path(folder, "probe.onnx"), input_shape=(1,), opset=opset)


def _export_checkpoint(options: argparse.Namespace, source: Path, out: Path) -> dict[str, Any]:
    model, _, extra = checkpoint.read(source)
    shape = options.input_shape or checkpoint.input_shape_of(source, extra)
    if shape is None:
        raise ArgumentError(
            f"--input-shape must be given for a checkpoint that does not hold it, got none for {source}"
        )
    report = _export_model(options, model, tuple(shape), out, None)
    report["source"] = str(source)
    return report


def _export_model(
    options: argparse.Namespace, model: Module, shape: tuple[int, ...], out: Path, unfolded: Path | None
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        twin = unfolded or Path(folder, "unfolded.onnx")
        done = export(
            model,
            out,
            input_shape=shape,
            fold=not options.no_fold,
            opset=17 if options.opset is None else options.opset,
            tolerance=options.tolerance,
            unfolded_path=twin,
        )
        return {
            "output": str(out),
            "unfolded": None if unfolded is None else str(unfolded),
            "fold": None if done.fold is None else asdict(done.fold),
            "verify": {
                "fastbn": _figures(done.against_model),
                "unfolded": None if done.against_unfolded is None else _figures(done.against_unfolded),
            },
            **_latencies(options, twin, out, folded=not options.no_fold),
            "ok": done.ok,
        }


def _inspect(options: argparse.Namespace, source: Path) -> int:
    samples, overridable = None, options.allow_overridable
    try:
        model = read_model(source)
        inspection = inspect_model(model, allow_overridable=overridable)
    except BROKEN as error:
        raise ModelError(f"SOURCE must be valid ONNX, got {error} in {source}") from error
    if options.data is not None:
        samples = read_samples(options.data, source, batch_size=BATCH_SIZE, limit=MEASURED)
        measured = measure(model, samples, allow_overridable=overridable)
        inspection = inspect_model(model, allow_overridable=overridable, measured=measured)
    account = None if samples is None else samples.account
    if options.json:
        print(json.dumps({"source": str(source), "data": account, **asdict(inspection), "ok": inspection.ok}))
    else:
        print_inspection(str(source), inspection, account)
    return 0 if inspection.ok else 1


def _fold(options: argparse.Namespace, model: ir.Model, source: Path) -> FoldReport:
    choice = Choice(options.only or (), options.skip or ())
    try:
        fold = fold_graph(
            model,
            chosen=choice,
            allow_overridable=options.allow_overridable,
            merge_branches=options.merge_branches,
        )
    except BROKEN as error:
        raise ModelError(f"SOURCE must be valid ONNX, got {error} in {source}") from error
    choice.check(site.batch_norm for site in fold.sites)
    return fold


def _unwritten(source: Path, fold: FoldReport, *, dry_run: bool) -> dict[str, Any]:
    return {
        "source": str(source),
        "output": None,
        "unfolded": None,
        "dry_run": dry_run,
        "fold": asdict(fold),
        "verify": {"unfolded": None},
        "latency_ms": {},
        "latency_unoptimised_ms": {},
        "ok": True,
    }


def _fold_file(options: argparse.Namespace, source: Path, out: Path) -> dict[str, Any]:
    model = read_model(source)
    fold = None if options.no_fold else _fold(options, model, source)
    if fold is not None and not fold.sites and not options.copy:
        return _unwritten(source, fold, dry_run=False)
    samples = None if options.data is None else read_samples(options.data, source, limit=SAMPLES)
    inputs = None if samples is None else list(samples.batches())
    with writing(model, out) as temporary:
        sites = () if fold is None else fold.sites
        proof = verify(source, temporary, inputs, tolerance=options.tolerance, sites=sites)
    return {
        "source": str(source),
        "output": str(out),
        "unfolded": None,
        "fold": None if fold is None else asdict(fold),
        "inputs": None if samples is None else samples.account,
        "verify": {"unfolded": _figures(proof)},
        **_latencies(options, source, out, folded=fold is not None),
        "ok": proof.ok,
    }


def _figures(report: VerifyReport) -> dict[str, Any]:
    names = ("max_abs", "max_rel", "reference_error", "candidate_error", "ok")
    return {**{name: getattr(report, name) for name in names}, **asdict(report)}


def _latencies(options: argparse.Namespace, before: Path, after: Path, *, folded: bool) -> dict[str, Any]:
    """Milliseconds by model; those without onnxruntime's optimisations only for the HTML report."""
    return {
        "latency_ms": _latency(before, after, folded=folded),
        "latency_unoptimised_ms": _latency(before, after, folded=folded, optimise=False) if options.report else {},
    }


def _latency(before: Path, after: Path, *, folded: bool, **how: bool) -> dict[str, float]:
    """Milliseconds by model; empty where onnxruntime's own optimiser cannot take the model: that is no failure."""
    try:
        inputs = random_inputs(after, seeds=(0,), batch=1)[0]
        figures = latencies([before, after] if folded else [after], inputs, **how)
    except ModelError as error:
        print(f"latency not measured: {error}", file=sys.stderr)
        return {}
    return dict(zip(("unfolded", "folded") if folded else ("unfolded",), figures, strict=True))


def _accuracy(model: Any, split: data.Split) -> float:
    [outputs] = run_any(model, [{"input": split.images}])
    return float((np.asarray(outputs["output"]).argmax(axis=1) == split.labels).mean())
