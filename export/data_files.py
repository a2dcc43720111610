"""The user's data, for a proof or a calibration: an .npz, an .npy or a folder of images, cut as a model takes it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from export.image_files import Images
from export.proof.inputs import Input, Inputs, check_array, graph_of, input_of
from fastbn.data.array_files import load_npy, member, open_npz, readable
from fastbn.errors import ModelError

BATCH = 8  # samples in one set where the model leaves their number open
Rows = np.ndarray | Images


@dataclass(frozen=True)
class Samples:
    """Arrays for a model's inputs, cut into batches of ``size`` samples.

    cut: the inputs whose arrays hold one entry a sample; the others are the same in every batch. total: samples that
    there are; count: those in the batches, fewer where they were limited or do not fill the model's fixed batch.
    """

    path: Path
    entries: dict[str, Input]
    arrays: dict[str, Rows]
    cut: frozenset[str]
    total: int
    count: int
    size: int

    @property
    def account(self) -> dict[str, Any]:
        """For a report: where the samples are from, how many there are in the batches, how many were left out."""
        return {"data": str(self.path), "samples": self.count, "left_out": self.total - self.count}

    def batches(self) -> Iterator[Inputs]:
        """Dicts by input name, in the model's dtypes. Raises ModelError for numbers or a shape that do not fit."""
        for begin in range(0, self.count, self.size):
            rows = slice(begin, min(begin + self.size, self.count))
            yield {name: self._fitted(name, rows if name in self.cut else slice(None)) for name in self.arrays}

    def _fitted(self, name: str, rows: slice) -> np.ndarray:
        """In the input's type, where that loses no more than precision."""
        who, entry, stored = f"data: {name} in {self.path}", self.entries[name], self.arrays[name]
        array = stored[rows] if stored.ndim else np.asarray(stored)
        cast = array.astype(entry.type.numpy())
        if cast.dtype.kind in "biu" and not np.array_equal(cast, array):
            raise ModelError(f"{who} must fit {cast.dtype}, got {array.min()} to {array.max()}")
        check_array(who, entry, cast)
        if entry.type.is_floating_point() and np.isnan(cast).any():
            raise ModelError(f"{who} must be numbers, got NaN")
        return cast


def load_inputs(path: str | Path, model: str | Path | onnx.ModelProto, limit: int | None = None) -> list[Inputs]:
    """``read_samples`` as sets of arrays by input name, as ``verify`` takes them, at least one."""
    return list(read_samples(path, model, limit=limit).batches())


def read_samples(
    path: str | Path,
    model: str | Path | onnx.ModelProto | ir.Model,
    *,
    batch_size: int = BATCH,
    limit: int | None = None,
) -> Samples:
    """The samples in ``path`` for the inputs of a model.

    path: an .npz with an array for every input by name (other names, labels say, are ignored, and a single array
    needs none); an .npy or a folder of images for a model with one input. Arrays hold samples along their first axis,
    which is cut into batches as the model takes them, ``batch_size`` where it leaves that open; samples that do not
    fill a fixed batch are left out. An array without that axis is one sample; an array for an input whose first axis
    is fixed comes whole where others have samples. Images are resized to the input and scaled to 0 .. 1 unless it is
    of integers, see ``Images``; for any other preprocessing give arrays.
    limit: how many samples to take at most, at least one batch.
    Raises ModelError for what cannot be read or does not fit.
    """
    path, graph = Path(path), model.graph if isinstance(model, ir.Model) else graph_of(model)
    values = {str(value.name): value for value in graph.inputs}
    required = [name for name, value in values.items() if not value.is_initializer()]
    arrays = _load(path, values, required)
    entries = {name: input_of(values[name], array) for name, array in arrays.items()}
    arrays = {name: _with_samples(array, entries[name]) for name, array in arrays.items()}
    for name, array in arrays.items():
        _check_kind(f"data: {name} in {path}", entries[name], array)
    return _cut(path, entries, arrays, batch_size, limit)


def _load(path: Path, values: dict[str, ir.Value], required: list[str]) -> dict[str, Any]:
    """What is in ``path`` for the inputs, by name."""
    if path.is_dir():
        value = values[_only("a folder of images", required)]
        return {str(value.name): Images(path, input_of(value, None))}
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in (".npz", ".npy"):
        what = path.name if path.is_file() else "no such file"
        raise ModelError(f"data: {path} must be an .npz, an .npy or a folder of images, got {what}")
    if suffix == ".npy":
        return {_only("an .npy, which has no names,", required): readable(path, lambda: load_npy(path))}
    return readable(path, lambda: _npz(path, list(values), required))


def _only(what: str, required: list[str]) -> str:
    if len(required) != 1:
        raise ModelError(f"data: {what} must be for a model with one input, got {required}; give an .npz")
    return required[0]


def _npz(path: Path, known: list[str], required: list[str]) -> Inputs:
    with open_npz(path) as archive:
        names = [name for name in archive.files if name in known]
        if len(archive.files) == len(required) == 1:
            return {required[0]: member(archive, archive.files[0])}
        if not set(required) <= set(names):
            raise ModelError(
                f"data: {path} must hold the arrays {required}, the inputs of the model, got {sorted(archive.files)}"
            )
        return {name: member(archive, name) for name in names}


def _with_samples(array: Rows, entry: Input) -> Rows:
    if isinstance(array, Images) or array.ndim != len(entry.axes) - 1:
        return array
    return array[None]


def _check_kind(who: str, entry: Input, array: Rows) -> None:
    floating = entry.type.is_floating_point()
    if not isinstance(array, Images) and array.dtype.kind not in ("biuf" if floating else "biu"):
        raise ModelError(f"{who} must be {np.dtype(entry.type.numpy())}, got {array.dtype}")


def _cut(path: Path, entries: dict[str, Input], arrays: dict[str, Rows], batch_size: int, limit: int | None) -> Samples:
    firsts = {name: entry.axes[0] for name, entry in entries.items() if entry.axes and arrays[name].ndim}
    lengths = {name: len(arrays[name]) for name in firsts}
    free = [name for name, first in firsts.items() if isinstance(first, str)]
    longer = [name for name, first in firsts.items() if not free and lengths[name] != first]
    inner = {axis for entry in entries.values() for axis in entry.axes[1:] if axis}
    if not firsts or inner & {firsts[name] for name in free}:  # samples cannot be told apart: one set
        return Samples(path, entries, arrays, frozenset(), 1, 1, 1)
    main = max(free or longer, key=lengths.__getitem__) if free or longer else next(iter(firsts))
    first, total = firsts[main], lengths[main]
    others = [name for name in free if firsts[name] == first] or longer
    if any(lengths[name] != total for name in others):
        raise ModelError(f"data: {path} must hold one number of samples in all arrays, got {lengths}")
    size = first if isinstance(first, int) else batch_size
    least = first if isinstance(first, int) else 1
    if not 0 < least <= total:
        wanted = "sample" if free else f"batch of {first} samples, as the model takes them"
        raise ModelError(f"data: {path} must hold at least one {wanted}, got {total}")
    count = total if limit is None else min(total, max(limit, 1))
    count = max(count - count % least, least)
    cut = frozenset(name for name in free or longer if lengths[name] == total)
    return Samples(path, entries, arrays, cut, total, count, size)
