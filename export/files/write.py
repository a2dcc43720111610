"""A model under a temporary name until it is proved; then it takes its name, whole and with its weights."""

import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir

from export.files.broken import BROKEN, reason
from export.files.weights import files_of, is_split, save
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
    sources = files_of(model)
    if is_split(model):
        _check_data(target, sources)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise ModelError(f"write: {target} must be in a folder that can be written, got {reason(error)}") from error
    try:
        temporary = folder / target.name
        _save_checked(model, temporary, target)
        yield temporary
        _publish(temporary, target, sources)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _save_checked(model: ir.Model, temporary: Path, target: Path) -> None:
    try:
        save(model, temporary)
        onnx.checker.check_model(str(temporary), full_check=True)
    except FastbnError:
        raise
    except OSError as error:
        raise ModelError(f"write: {target} must be writable to its end, got {reason(error)}") from error
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, *BROKEN) as error:
        raise ModelError(f"write: {target} must be valid ONNX, got {reason(error)}") from error


def _check_data(target: Path, sources: frozenset[Path]) -> None:
    """Raise ModelError where ``<target>.data`` is read by another model than the one that ``target`` is now."""
    data = _data_of(target)
    if not data.exists():
        return
    if any(source.exists() and source.samefile(data) for source in sources):
        raise ModelError(f"write: {target} must not replace {data}, got a source that reads it; choose another name")
    others = [model for model in target.parent.glob("*.onnx") if model != target and _mentions(model, data.name)]
    if others:
        raise ModelError(f"write: {target} must not replace {data}, got {others[0]}, which may read it as well")
    if not _mentions(target, data.name):
        raise ModelError(f"write: {data} must be free for the weights of {target}, got another file; remove it")


def _data_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.data")


def _mentions(model: Path, name: str) -> bool:
    """Whether the bytes of ``model`` have ``name`` in them: where they do not, it cannot refer to such a file."""
    if not model.is_file() or not model.stat().st_size:
        return False
    with open(model, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(os.fsencode(name)) >= 0


def _publish(temporary: Path, target: Path, sources: frozenset[Path]) -> None:
    """Move the model and its weights into place; after an error both are as they were."""
    data, fresh = _data_of(target), _data_of(temporary)
    replaced = temporary.parent / "replaced"
    try:
        if not fresh.exists():
            os.replace(temporary, target)
            return
        _check_data(target, sources)  # it may have appeared while the model was proved
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
