"""Samples in a file, cut into batches as a model takes them."""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fastbn.errors import ModelError


@dataclass(frozen=True)
class Samples:
    """Arrays of a file cut into batches; left_out: samples too few to fill the model's fixed batch."""

    arrays: dict[str, np.ndarray]
    dtypes: dict[str, np.dtype]
    count: int
    size: int
    left_out: int

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Dicts by input name, in the model's dtypes; arrays that are no longer than one sample come whole."""
        for begin in range(0, self.count - self.left_out, self.size):
            rows = slice(begin, begin + self.size)
            yield {
                name: np.asarray(array[rows] if array.shape[:1] == (self.count,) else array, self.dtypes[name])
                for name, array in self.arrays.items()
            }


def read_samples(path: str | Path, model: ir.Model, batch_size: int) -> Samples:
    """The samples in an .npz (by input name; other names are ignored) or .npy file (for a model with one input).

    The longest first axis counts the samples. Where the model has a fixed batch, that is the size and not batch_size.
    Raises ModelError where the file does not fit the model.
    """
    inputs = {str(value.name): value for value in model.graph.inputs}
    required = [name for name, value in inputs.items() if not value.is_initializer()]
    arrays = _named(path, _load(path), list(inputs), required)
    dtypes = {}
    for name, array in arrays.items():
        kind = inputs[name].dtype
        dtypes[name] = array.dtype if kind is None else kind.numpy()
        if array.dtype.kind not in "biuf" or not np.can_cast(array.dtype, dtypes[name], "same_kind"):
            raise ModelError(f"calibrate: {name} in {path} must be {dtypes[name]} as in the model, got {array.dtype}")
    count = max((len(array) for array in arrays.values() if array.ndim), default=0)
    if not count:
        raise ModelError(f"calibrate: {path} must hold at least one sample, got none")
    size = batch_size
    for name, array in arrays.items():
        shape = inputs[name].shape
        if array.shape[:1] == (count,) and shape is not None and len(shape) and isinstance(shape[0], int):
            size = shape[0]
            if not 0 < size <= count:
                raise ModelError(f"calibrate: {path} must hold at least the model's batch of {size}, got {count}")
            return Samples(arrays, dtypes, count, size, count % size)
    return Samples(arrays, dtypes, count, size, 0)


def _load(path: str | Path) -> dict[str, np.ndarray] | np.ndarray:
    if Path(path).suffix.lower() not in (".npz", ".npy"):
        raise ModelError(f"calibrate: the data must be an .npz or .npy file, got {path}")
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: np.asarray(array) for name, array in loaded.items()}
    except (OSError, ValueError, EOFError, LookupError, zipfile.BadZipFile, zlib.error, SyntaxError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise ModelError(f"calibrate: {path} must be a file of arrays, got {what}") from error


def _named(
    path: str | Path, loaded: dict[str, np.ndarray] | np.ndarray, known: list[str], required: list[str]
) -> dict[str, np.ndarray]:
    if not isinstance(loaded, np.ndarray):
        arrays = {name: array for name, array in loaded.items() if name in known}
        if set(required) <= set(arrays):
            return arrays
        if len(loaded) != 1 or len(required) != 1:
            raise ModelError(f"calibrate: {path} must hold the inputs {required}, got {list(loaded)}")
        [loaded] = loaded.values()
    elif len(required) != 1:
        raise ModelError(f"calibrate: {path} must be an .npz of the inputs {required}, got one array")
    return {required[0]: loaded}
