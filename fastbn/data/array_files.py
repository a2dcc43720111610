"""Arrays in NumPy's files, read without executing anything, with one sentence for whatever can be wrong with them."""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fastbn.errors import ModelError

INPUT_NAMES = ("input", "x", "images")  # of an .npz with several arrays

T = TypeVar("T")


def read_inputs(path: str | Path) -> np.ndarray:
    """The array in an .npy, or in an .npz that holds one array or names it "input", "x" or "images".

    Raises ModelError for any other file, and for an array that is not of numbers.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in (".npz", ".npy"):
        what = path.name if path.is_file() else "no such file"
        raise ModelError(f"data: {path} must be an .npz or an .npy, got {what}")
    array = readable(path, lambda: load_npy(path) if suffix == ".npy" else _only_member(path))
    if array.dtype.kind not in "biuf":
        raise ModelError(f"data: {path} must hold numbers, got {array.dtype}")
    return array


def readable(path: Path, action: Callable[[], T]) -> T:
    """What ``action`` reads from ``path``. Raises ModelError for whatever NumPy and zipfile raise."""
    try:
        return action()
    except ModelError:
        raise
    except (OSError, ValueError, EOFError, MemoryError, LookupError, AttributeError, SyntaxError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip()
        reason = (reason or type(error).__name__).splitlines()[0][:200]
        raise ModelError(f"data: {path} must be arrays of numbers that NumPy can read, got {reason}") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ModelError(f"data: {path} must be arrays of numbers that NumPy can read, got {error}") from error


def load_npy(path: Path) -> np.ndarray:
    """The array of an .npy, mapped; inside ``readable``."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("an archive of arrays; call it .npz")
    return array


@contextmanager
def open_npz(path: Path) -> Iterator[Any]:
    """The archive of an .npz, none of it read yet; inside ``readable``."""
    archive = np.load(path, allow_pickle=False)
    if isinstance(archive, np.ndarray):
        raise ValueError("one array without a name; call it .npy")
    with archive:
        yield archive


def member(archive: Any, name: str) -> np.ndarray:
    """One array of an archive; inside ``readable``."""
    array = archive[name]
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name}, which is no array")
    return array


def _only_member(path: Path) -> np.ndarray:
    with open_npz(path) as archive:
        named = archive.files if len(archive.files) == 1 else [name for name in INPUT_NAMES if name in archive.files]
        if not named:
            wanted = ", ".join(INPUT_NAMES)
            raise ModelError(f"data: {path} must hold one array, or one of {wanted}, got {sorted(archive.files)}")
        return member(archive, named[0])
