"""Inputs of a model from the user's files: .npz, .npy, or a folder of images."""

import importlib.util
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from export.proof.inputs import Input, Inputs, check_array, model_inputs
from fastbn.errors import ModelError

BATCH = 8  # samples in one set where the model leaves their number open
SIDE = 224  # of an image where the model leaves it open
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


def load_inputs(path: str | Path, model: str | Path | onnx.ModelProto, limit: int | None = None) -> list[Inputs]:
    """Sets of arrays by input name, as ``verify`` takes them, at least one.

    path: an .npz with an array for every input of the model by name; an .npy or a folder of images for a model with one
    input. Arrays hold samples along their first axis, which is cut into batches as the model takes them, 8 where it
    leaves that open; an array without that axis is one sample. Images are taken in the order of their names, resized
    to the model's (N, C, H, W) or (N, H, W, C), 224 where H and W are open, and scaled to 0 .. 1 unless the input is of
    integers; for any other preprocessing give arrays. Images need pillow.
    limit: how many samples to take at most, at least one set.
    Raises ModelError for what cannot be read or does not fit.
    """
    path, entries = Path(path), model_inputs(model)
    if path.is_dir():
        images = _only("a folder of images", entries)
        return _batches(path, {images.name: images}, {images.name: _images(path, images, limit)}, limit)
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in (".npz", ".npy"):
        what = path.name if path.is_file() else "no such file"
        raise ModelError(f"data: {path} must be an .npz, an .npy or a folder of images, got {what}")
    if suffix == ".npy":
        names = [_only("an .npy, which has no names,", entries).name]
        arrays = {names[0]: _read(path, lambda: _npy(path))}
    else:
        arrays = _read(path, lambda: _npz(path))
        names = [entry.name for entry in entries]
    if sorted(arrays) != sorted(names):
        raise ModelError(f"data: {path} must hold the arrays {names}, the inputs of the model, got {sorted(arrays)}")
    return _batches(path, {entry.name: entry for entry in entries}, arrays, limit)


def _only(what: str, entries: list[Input]) -> Input:
    if len(entries) != 1:
        names = [entry.name for entry in entries]
        raise ModelError(f"data: {what} must be for a model with one input, got {names}; give an .npz")
    return entries[0]


def _npy(path: Path) -> np.ndarray:
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("an archive of arrays; call it .npz")
    return array


def _npz(path: Path) -> Inputs:
    archive = np.load(path, allow_pickle=False)
    if isinstance(archive, np.ndarray):
        raise ValueError("one array without a name; call it .npy")
    with archive:
        return {name: archive[name] for name in archive.files}


def _read(path: Path, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, KeyError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ModelError(f"data: {path} must be arrays of numbers that NumPy can read, got {reason}") from error


def _batches(path: Path, entries: dict[str, Input], arrays: Inputs, limit: int | None) -> list[Inputs]:
    """Arrays of samples cut into batches; as they are where the inputs' first axes are not the same."""
    arrays = {name: _fitted(f"data: {name} in {path}", entry, arrays[name]) for name, entry in entries.items()}
    firsts = {entry.axes[0] if entry.axes else 0 for entry in entries.values()}
    [first] = firsts if len(firsts) == 1 else [0]
    if first == 0:
        cuts = [arrays]
    else:
        size = first if isinstance(first, int) else BATCH
        counts = sorted({len(array) for array in arrays.values()})
        if len(counts) > 1 or counts[0] == 0 or (size == first and counts[0] % size):
            wanted = f"a multiple of {first} samples" if size == first else "one number of samples in all arrays"
            raise ModelError(f"data: {path} must hold {wanted}, at least one, got {counts}")
        count = counts[0]
        if limit is not None:
            count = min(count, max(limit // size, 1) * size if size == first else max(limit, 1))
        starts = range(0, count, size)
        cuts = [{name: array[start : min(start + size, count)] for name, array in arrays.items()} for start in starts]
    for cut in cuts:
        for name, entry in entries.items():
            check_array(f"data: {name} in {path}", entry, cut[name])
    return cuts


def _fitted(who: str, entry: Input, array: np.ndarray) -> np.ndarray:
    """With an axis of samples and in the input's type, where that loses no more than precision."""
    wanted = np.dtype(entry.type.numpy())
    if array.ndim == len(entry.axes) - 1:
        array = array[None]
    floating = entry.type.is_floating_point()
    if array.dtype.kind not in ("iuf" if floating else "biu"):
        raise ModelError(f"{who} must be {wanted}, got {array.dtype}")
    cast = array.astype(wanted)
    if not floating and not np.array_equal(cast, array):
        raise ModelError(f"{who} must fit {wanted}, got {array.min()} to {array.max()}")
    return cast


def _images(folder: Path, entry: Input, limit: int | None) -> np.ndarray:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGES)[:limit]
    if not files:
        raise ModelError(f"data: {folder} must hold images ({', '.join(sorted(IMAGES))}), got none")
    if importlib.util.find_spec("PIL") is None:
        raise ModelError("data: pillow must be installed to read images, got none; pip install pillow")
    if len(entry.axes) != 4 or not {entry.axes[1], entry.axes[3]} & {1, 3}:
        raise ModelError(f"data: images must be for an input of 4 axes with 1 or 3 channels, got {list(entry.axes)}")
    if not entry.type.is_floating_point() and entry.type != ir.DataType.UINT8:
        raise ModelError(f"data: images must be for an input of floats or uint8, got {entry.type.numpy()}")
    first = entry.axes[1] in (1, 3)
    channels = entry.axes[1] if first else entry.axes[3]
    height, width = (axis if isinstance(axis, int) else SIDE for axis in (entry.axes[2:] if first else entry.axes[1:3]))
    stack = np.stack([_pixels(file, "L" if channels == 1 else "RGB", width, height) for file in files])
    if entry.type.is_floating_point():
        stack = (stack / np.float32(255)).astype(entry.type.numpy())
    return stack.transpose(0, 3, 1, 2) if first else stack


def _pixels(file: Path, mode: str, width: int, height: int) -> np.ndarray:
    """(height, width, channels), bytes."""
    import PIL.Image

    try:
        with warnings.catch_warnings(), PIL.Image.open(file) as image:
            warnings.simplefilter("ignore")
            pixels = np.asarray(image.convert(mode).resize((width, height)))
    except (OSError, ValueError, SyntaxError, MemoryError, PIL.Image.DecompressionBombError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ModelError(f"data: {file} must be an image, got {reason}") from error
    return pixels.reshape(height, width, -1)
