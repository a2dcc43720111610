"""``python -m fastbn doctor``."""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fastbn import data
from fastbn._tables import print_line
from fastbn.data.array_files import read_inputs
from fastbn.diagnosis.doctor import doctor
from fastbn.diagnosis.text import print_diagnosis
from fastbn.errors import ArgumentError, ModelError
from fastbn.training import checkpoint

BATCH_SIZE = 64

DESCRIPTION = """
Examine every batch norm of a checkpoint: statistics that are stale or the initial ones, momentum, dead and exploding
channels, variances near eps, biases without effect, what float16 would lose; with --data, how far the outputs are
apart in training and in eval mode. Exit code 1 where there is an error or a warning, 0 where there are notes at most.
"""


def add_to(commands: Any, positive: Callable[[str], int]) -> None:
    """Add the command to a parser's ``commands``; positive: its type for integers of at least 1."""
    parser = commands.add_parser("doctor", help="say what is wrong with a model's batch norms", description=DESCRIPTION)
    add = parser.add_argument
    add("model", help="a checkpoint; for an .onnx there is python -m export MODEL.onnx --inspect")
    names = " or ".join(data.DATASETS)
    add("--data", metavar="DATA", help=f"{names} (the test samples), an .npy or an .npz: inputs to measure the gap on")
    add("--batch-size", type=positive, metavar="N", help=f"samples of DATA to run together ({BATCH_SIZE})")
    add("--json", action="store_true", help="the diagnosis as JSON")
    parser.set_defaults(action=examine)


def examine(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code. Raises ModelError, ArgumentError."""
    path = Path(options.model)
    if path.suffix.lower() == ".onnx":
        raise ArgumentError(f"doctor: MODEL must be a checkpoint, got {path}; use python -m export {path} --inspect")
    if options.batch_size is not None and options.data is None:
        raise ArgumentError(f"doctor: --batch-size must come with --data, got {options.batch_size} alone")
    model, _, extra = checkpoint.read(path)
    batches = None
    if options.data is not None:
        inputs = _inputs(options.data, checkpoint.input_shape_of(path, extra))
        batches = _batches(options.data, inputs, model.dtype, options.batch_size or BATCH_SIZE)
    diagnosis = doctor(model, batches)
    if options.json:
        print(json.dumps({"source": str(path), "data": options.data, **asdict(diagnosis), "ok": diagnosis.ok}))
    else:
        print_line(f"{'read':<14}{path}")
        if options.data is not None:
            print_line(f"{'data':<14}{options.data}{'' if diagnosis.output else ', not run: see the errors'}")
        print_diagnosis(diagnosis)
    return 0 if diagnosis.ok else 1


def _inputs(source: str, shape: tuple[int, ...] | None) -> np.ndarray:
    """(N, ...), samples of ``shape`` where that is known."""
    inputs = data.load(source).test.images if source in data.DATASETS else read_inputs(source)
    if shape is not None and inputs.shape == shape:
        inputs = inputs[None]
    if inputs.ndim < 2 or not inputs.size or (shape is not None and inputs.shape[1:] != shape):
        wanted = "(N, C, ...)" if shape is None else f"(N, {', '.join(map(str, shape))})"
        raise ModelError(f"doctor: inputs in {source} must have shape {wanted}, got {inputs.shape}")
    return inputs


def _batches(source: str, inputs: np.ndarray, dtype: np.dtype, size: int) -> Iterator[np.ndarray]:
    """In the model's dtype. A last sample by itself goes with the batch before it: it has no batch statistics."""
    starts = list(range(0, len(inputs), size))
    if len(starts) > 1 and len(inputs) - starts[-1] == 1:
        starts.pop()
    for start, stop in zip(starts, [*starts[1:], len(inputs)], strict=True):
        batch = np.asarray(inputs[start:stop], dtype)
        if not np.isfinite(batch).all():
            raise ModelError(f"doctor: inputs in {source} must be finite numbers, got NaN or infinity")
        yield batch
