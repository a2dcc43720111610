"""A model under a temporary name until it is proved; then it takes its name, whole and with its weights."""

import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from export.files.broken import BROKEN, reason
from export.files.native import check
from export.files.weights import data_of, is_split, reads, save
from fastbn._files import check_target
from fastbn.errors import FastbnError, ModelError


@contextmanager
def writing(model: ir.Model, path: str | Path) -> Iterator[Path]:
    """A file of ``model`` that onnx's checker has passed, to be proved; at the end it takes the name ``path``.

    Weights go beside it as ``<name>.data`` where they came from such files or are more than protobuf can hold. A
    file of that name is replaced if ``path`` alone reads it; the source's never is. Nothing is written after an error.
    Raises ModelError where the model is not valid ONNX or ``path`` cannot be written.
    """
    target = Path(path)
    check_target(target)
    if is_split(model):
        _check_data(model, target)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise ModelError(f"write: {target} must be in a folder that can be written, got {reason(error)}") from error
    try:
        temporary = folder / target.name
        _save_checked(model, temporary, target)
        yield temporary
        _publish(model, temporary, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _save_checked(model: ir.Model, temporary: Path, target: Path) -> None:
    try:
        save(model, temporary)
        check(temporary)
    except FastbnError:
        raise
    except OSError as error:
        raise ModelError(f"write: {target} must be writable to its end, got {reason(error)}") from error
    except BROKEN as error:
        raise ModelError(f"write: {target} must be valid ONNX, got {reason(error)}") from error


def _check_data(model: ir.Model, target: Path) -> None:
    """Raise ModelError where ``<target>.data`` is read by another model than the one that ``target`` is now."""
    data = data_of(target)
    if not data.exists():
        return
    if reads(model, data):
        raise ModelError(f"write: {target} must not replace {data}, got a source that reads it; choose another name")
    others = [file for file in target.parent.glob("*.onnx") if file != target and _mentions(file, data.name)]
    if others:
        raise ModelError(f"write: {target} must not replace {data}, got {others[0]}, which may read it as well")
    if not _mentions(target, data.name):
        raise ModelError(f"write: {data} must be free for the weights of {target}, got another file; remove it")


def _mentions(path: Path, name: str) -> bool:
    """Whether ``name`` stands in the bytes of ``path`` as a location does: with its length before it, or a slash."""
    if not path.is_file() or not path.stat().st_size:
        return False
    encoded = os.fsencode(name)
    size = len(encoded)
    length = bytes([size] if size < 128 else [size & 127 | 128, size >> 7])  # protobuf's varint
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(before + encoded) >= 0 for before in (length, b"/"))


def _publish(model: ir.Model, temporary: Path, target: Path) -> None:
    """Move the model and its weights into place; after an error both are as they were."""
    data, fresh = data_of(target), data_of(temporary)
    replaced = temporary.parent / "replaced"
    try:
        if not fresh.exists():
            os.replace(temporary, target)
            return
        _check_data(model, target)  # it may have appeared while the model was proved
        if data.exists():
            os.replace(data, replaced)
        try:
            os.replace(fresh, data)
            os.replace(temporary, target)
        except BaseException:
            if replaced.exists():
                os.replace(replaced, data)
            else:
                data.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ModelError(f"write: {target} must be writable, got {reason(error)}") from error
