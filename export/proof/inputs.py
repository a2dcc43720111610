"""Inputs to try a model with: random ones shaped from the model, and ones that are meant to be difficult."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from export.files import BROKEN, as_model
from export.proof.runtime import Job, as_file, run_jobs
from fastbn.errors import ModelError

Model = str | Path | onnx.ModelProto
Inputs = dict[str, np.ndarray]

SEEDS = (0, 1, 2)
BATCHES = (2, 1, 3)
LENGTHS = (32, 16, 64, 128, 8, 256, 512, 4, 2, 1)  # of an axis that the model leaves open
SIDES = (224, 32, 64, 28, 96, 128, 160, 192, 256, 299, 320, 384, 416, 512, 640, 16, 8, 1)  # ... of an image
LARGE = 1e3  # standard deviations
LARGE_HALF = 16.0  # float16 ends at 65,504


@dataclass(frozen=True)
class Input:
    """An input that has no default; an axis is its length, or the name of an open one, "" where it has none."""

    name: str
    type: ir.DataType
    axes: tuple[int | str, ...]

    @property
    def open(self) -> bool:
        """Whether an axis other than the batch is open."""
        return any(isinstance(axis, str) for axis in self.axes[1:])

    def shape(self, batch: int, length: int, batches: Sequence[str]) -> list[int]:
        """Axes in numbers: ``batch`` for an open first one and those of its name, ``length`` for the others."""
        return [
            axis if isinstance(axis, int) else batch if index == 0 or (axis and axis in batches) else length
            for index, axis in enumerate(self.axes)
        ]


def model_inputs(model: Model) -> list[Input]:
    """Every input that has no default. Raises ModelError for one whose shape or type is unknown or no tensor."""
    return _entries(graph_of(model))


def graph_of(model: Model) -> ir.Graph:
    """The main graph, without the weights in other files, which may be large. Raises ModelError."""
    if isinstance(model, onnx.ModelProto) or not Path(model).is_file():
        return as_model(model).graph
    try:
        return ir.from_proto(onnx.load(model, load_external_data=False)).graph
    except BROKEN as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ModelError(f"verify: {model} must be an ONNX model, got {reason}") from error


def _entries(graph: ir.Graph) -> list[Input]:
    return [input_of(value) for value in graph.inputs if not value.is_initializer()]


def input_of(value: ir.Value, array: np.ndarray | None = None) -> Input:
    """One input of a graph; what the model does not say of it is as in ``array``.

    Raises ModelError where nothing tells its type or its shape, or it is no array of numbers.
    """
    if array is None and (value.dtype is None or value.shape is None):
        raise ModelError(f"verify: input {value.name} must have a type and a shape, got neither; give inputs")
    if value.type is not None and (not isinstance(value.type, ir.TensorType) or value.dtype == ir.DataType.STRING):
        raise ModelError(f"verify: input {value.name} must be an array of numbers, got {value.type}")
    sizes = [None] * (0 if array is None else array.ndim) if value.shape is None else value.shape
    axes = (size if isinstance(size, int) and size >= 0 else str(getattr(size, "value", None) or "") for size in sizes)
    kind = value.dtype
    if kind is None:
        kind = ir.DataType.from_numpy(np.asarray(array).dtype)
    return Input(str(value.name), kind, tuple(axes))


def random_inputs(model: Model, seeds: Sequence[int] = SEEDS, batch: int | None = None) -> list[Inputs]:
    """Standard normal inputs for every seed, integers 0 or 1, which fit token ids and masks.

    batch: the length of an open first axis; 2, 1, 3 in turn unless given. Axes of one name get one length. What else is
    open is 224 in images and 32 elsewhere, or else the first of some usual lengths that onnxruntime takes.
    """
    inputs = model_inputs(model)
    length = _length(model, inputs)
    turns = BATCHES * len(seeds)
    return [_filled(inputs, batch or turn, length, seed) for seed, turn in zip(seeds, turns, strict=False)]


def proof_inputs(model: Model) -> list[Inputs]:
    """``random_inputs``, and with a batch of 1 zeros, ones, and random numbers a thousand times as large."""
    inputs = model_inputs(model)
    length = _length(model, inputs)
    ordinary = [_filled(inputs, batch, length, seed) for batch, seed in zip(BATCHES, SEEDS, strict=True)]
    large = _filled(inputs, 1, length, len(SEEDS))
    for entry in inputs:
        if entry.type.is_floating_point():
            factor = LARGE_HALF if entry.type.bitwidth < 16 or entry.type == ir.DataType.FLOAT16 else LARGE
            large[entry.name] = (large[entry.name] * factor).astype(large[entry.name].dtype)
    zeros = {name: np.zeros_like(array) for name, array in large.items()}
    return [*ordinary, zeros, {name: np.ones_like(array) for name, array in large.items()}, large]


def check_inputs(model: Model, inputs: Sequence[Inputs]) -> None:
    """Raise ModelError unless every set has the model's inputs, by name, dtype and shape."""
    graph = graph_of(model)
    try:
        entries = {entry.name: entry for entry in _entries(graph)}
    except ModelError:  # what the model does not declare cannot be compared
        return
    defaults = {value.name for value in graph.inputs if value.is_initializer()}
    for arrays in inputs:
        if entries.keys() - arrays.keys() or arrays.keys() - entries.keys() - defaults:
            raise ModelError(f"verify: inputs must be {list(entries)}, got {list(arrays)}")
        for name, entry in entries.items():
            check_array(f"verify: input {name}", entry, arrays[name])


def check_array(who: str, entry: Input, array: np.ndarray) -> None:
    """Raise ModelError unless ``array`` has the dtype and the shape of an input."""
    if not isinstance(array, np.ndarray) or array.dtype != entry.type.numpy():
        raise ModelError(f"{who} must be {entry.type.numpy()}, got {getattr(array, 'dtype', type(array).__name__)}")
    fits = [isinstance(axis, str) or axis == size for axis, size in zip(entry.axes, array.shape, strict=False)]
    if array.ndim != len(entry.axes) or not all(fits):
        shape = ", ".join(str(axis) or "?" for axis in entry.axes)
        raise ModelError(f"{who} must have the shape ({shape}), got {array.shape}")


def _filled(inputs: Sequence[Input], batch: int, length: int, seed: int) -> Inputs:
    rng = np.random.default_rng(seed)
    batches = [entry.axes[0] for entry in inputs if entry.axes and isinstance(entry.axes[0], str)]
    arrays = {}
    for entry in inputs:
        sizes = entry.shape(batch, length, batches)
        values = rng.standard_normal(sizes) if entry.type.is_floating_point() else rng.integers(0, 2, sizes)
        arrays[entry.name] = np.asarray(values).astype(entry.type.numpy())
    return arrays


def _length(model: Model, inputs: Sequence[Input]) -> int:
    """The first length that onnxruntime takes for the open axes; the first of all where it takes none."""
    openings = [entry for entry in inputs if entry.open]
    lengths = SIDES if any(len(entry.axes) > 3 for entry in openings) else LENGTHS
    if not openings:
        return lengths[0]
    with as_file(model) as path:
        for length in lengths:
            [[answer]] = run_jobs([Job(path, [_filled(inputs, 1, length, 0)])])
            if not isinstance(answer, ModelError):
                return length
    return lengths[0]
