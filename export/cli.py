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

import fastbn
from export.convert import check_opset, export
from export.files import BROKEN, read_model, writing
from export.fold import fold_graph
from export.input_files import load_inputs
from export.inputs import random_inputs
from export.report import render
from export.runtime import latencies
from export.verify import VerifyReport, run_any, verify
from fastbn import data, nn
from fastbn._files import check_target
from fastbn.cli import Parser, integer, number, shape_of, train_lenet
from fastbn.cli import run as run_action
from fastbn.errors import ArgumentError, ModelError
from fastbn.nn.module import Module
from fastbn.training import checkpoint

EPOCHS = {"digits": 20, "mnist": 3}
TRAINING_ONLY = ("epochs", "seed")
SAMPLES = 64  # of --data that the proof runs

DESCRIPTION = """
Write a network as ONNX with its batch norms folded into the layers before them, and prove with onnxruntime
that it is the same network.

SOURCE is
  nothing           trains LeNet with batch norm and writes OUT, OUT's unfolded twin and a checkpoint
  MODEL.safetensors a checkpoint that fastbn.save or fastbn.fit wrote
  MODEL.onnx        any ONNX model; Conv, ConvTranspose and Gemm take the batch norm that follows them
"""

EPILOG = """
exit codes:  0 verified   1 the outputs differ   2 bad arguments or a bad file

examples:
  python -m export
  python -m export --data mnist --epochs 5 -o lenet.onnx
  python -m export model.safetensors -o model.onnx --input-shape 3,224,224
  python -m export model.onnx -o folded.onnx --json > report.json
  python -m export model.onnx -o folded.onnx --data inputs.npz
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # what it warns of comes back as an error, in one line
    parser = _parser()
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
    if options.out == "":
        raise ArgumentError("-o OUT.onnx must be a file name, got ''")
    out = Path("lenet.onnx" if options.out is None else options.out)
    check_target(out)
    if out.suffix.lower() != ".onnx":
        raise ArgumentError(f"OUT must end in .onnx, got {str(out)!r}")
    if source is None:
        report = _train_and_export(options, out)
    elif suffix == ".safetensors":
        report = _export_checkpoint(options, source, out)
    else:
        report = _fold_file(options, source, out)
    print(json.dumps(report) if options.json else render(report))
    return 0 if report["ok"] else 1


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
    if options.out is None:
        raise ArgumentError(f"-o OUT.onnx must be given with a SOURCE, got {source} alone")
    if Path(options.out).exists() and Path(options.out).samefile(source):
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
            "latency_ms": _latency(twin, out, folded=not options.no_fold),
            "ok": done.ok,
        }


def _fold_file(options: argparse.Namespace, source: Path, out: Path) -> dict[str, Any]:
    model = read_model(source)
    try:
        fold = None if options.no_fold else fold_graph(model)
    except BROKEN as error:
        raise ModelError(f"SOURCE must be valid ONNX, got {error} in {source}") from error
    inputs = None if options.data is None else load_inputs(options.data, source, limit=SAMPLES)
    with writing(model, out) as temporary:
        sites: list[Any] = [site for site in ([] if fold is None else fold.sites) if getattr(site, "values", ())]
        proof = verify(source, temporary, inputs, tolerance=options.tolerance, sites=sites)
    return {
        "source": str(source),
        "output": str(out),
        "unfolded": None,
        "fold": None if fold is None else asdict(fold),
        "verify": {"unfolded": _figures(proof)},
        "latency_ms": _latency(source, out, folded=fold is not None),
        "ok": proof.ok,
    }


def _figures(report: VerifyReport) -> dict[str, Any]:
    return {
        "max_abs": report.max_abs,
        "max_rel": report.max_rel,
        "tolerance": report.tolerance,
        "ok": report.ok,
        "source_error": report.reference_error,
        "folded_error": report.candidate_error,
        "inputs": report.inputs,
        "judged": report.judged,
        "outputs": [asdict(output) for output in report.outputs],
        "sites": [asdict(site) for site in report.sites],
        "first_difference": report.first_difference,
        "optimised": [asdict(entry) for entry in report.optimised],
        "notes": list(report.notes),
    }


def _latency(before: Path, after: Path, *, folded: bool) -> dict[str, float]:
    """Milliseconds by model; empty where onnxruntime's own optimiser cannot take the model: that is no failure."""
    try:
        inputs = random_inputs(after, seeds=(0,), batch=1)[0]
        figures = latencies([before, after] if folded else [after], inputs)
    except ModelError as error:
        print(f"latency not measured: {error}", file=sys.stderr)
        return {}
    return dict(zip(("unfolded", "folded") if folded else ("unfolded",), figures, strict=True))


def _accuracy(model: Any, split: data.Split) -> float:
    [outputs] = run_any(model, [{"input": split.images}])
    return float((np.asarray(outputs["output"]).argmax(axis=1) == split.labels).mean())


def _parser() -> Parser:
    parser = Parser(
        prog="python -m export",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE", help="a .safetensors checkpoint or an .onnx model")
    add("-o", "--out", metavar="OUT.onnx", help="the model to write (lenet.onnx without SOURCE)")
    defaults = ", ".join(f"{epochs} for {name}" for name, epochs in EPOCHS.items())
    about = "what to train on: digits, the default, or mnist, read from $FASTBN_DATA/mnist; with an .onnx SOURCE "
    about += "inputs for the proof instead of random ones: .npz by input name, .npy, or a folder of images"
    add("--data", metavar="DATA", help=about)
    add("--epochs", type=integer(1), metavar="N", help=f"epochs to train ({defaults})")
    add("--seed", type=integer(0), metavar="N", help="seed of the training (0)")
    add("--input-shape", type=shape_of, metavar="C,H,W", help="one sample's shape, for a checkpoint without it")
    add("--opset", type=integer(1), metavar="N", help="operator set of a fastbn model (17); an .onnx keeps its own")
    add("--tolerance", type=number(0), default=1e-4, help="largest difference relative to the output (1e-4)")
    add("--no-fold", action="store_true", help="keep the batch norms")
    add("--json", action="store_true", help="the report as JSON on stdout, everything else on stderr")
    return parser
