"""ONNX files read: the graph at once, weights in other files when they are asked for."""

import os
import warnings
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from export.files.broken import BROKEN, reason
from export.files.check import check_proto
from export.files.origin import remember
from export.files.tensors import bodies, paths, take_tensors
from export.garbage import collected_later
from fastbn.errors import DtypeError, ModelError

PROTOBUF_LIMIT = 2**31 - 1  # bytes in one protobuf message

# First bytes of what is taken for a model; the way out is part of the sentence.
FORMATS = {
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"PK\x03\x04": "a zip file, perhaps a PyTorch checkpoint; unpack or export it first",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with git lfs pull",
    b"\x89HDF": "an HDF5 file; export it as ONNX first",
}


def read_model(path: str | Path) -> ir.Model:
    """The model in an ONNX file; weights in other files are checked, mapped when used, never loaded as a whole.

    Raises ModelError for what is no model: unreadable, invalid, newer than the onnx installed, or with weights that
    are missing, too few or outside its folder.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"read: {path} must be an ONNX file, got {'a folder' if path.is_dir() else 'no file'}")
    try:
        return _from_proto(_parse(path), path.absolute().parent)
    except BROKEN as error:
        raise ModelError(f"read: {path} must be an ONNX model, got {reason(error)}") from error


def as_model(model: str | Path | onnx.ModelProto) -> ir.Model:
    """A model from a file, or from a ModelProto, which is copied; its weights in other files: from the current folder.

    Raises ModelError as ``read_model`` does.
    """
    if not isinstance(model, (onnx.ModelProto, str, os.PathLike)):
        raise DtypeError(f"read: model must be a path or an onnx.ModelProto, got {type(model).__name__}")
    if not isinstance(model, onnx.ModelProto):
        return read_model(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        return _from_proto(copy, Path.cwd())
    except BROKEN as error:
        raise ModelError(f"read: the model must be valid ONNX, got {reason(error)}") from error


def _parse(path: Path) -> onnx.ModelProto:
    size = path.stat().st_size
    if size > PROTOBUF_LIMIT:
        raise ValueError(f"{size:,} bytes, more than the 2 GB of one protobuf message; keep weights in another file")
    content = path.read_bytes()
    if not content:
        raise ValueError("an empty file")
    try:
        return onnx.ModelProto.FromString(content)
    except DecodeError:
        head = content[:64]
        known = (text for start, text in FORMATS.items() if head.startswith(start))
        other = "text" if head.isascii() and min(head) > 8 else "what protobuf cannot parse, perhaps cut off"
        raise ValueError(next(known, other)) from None


@collected_later()
def _from_proto(proto: onnx.ModelProto, folder: Path) -> ir.Model:
    ordered = check_proto(proto)
    with warnings.catch_warnings():  # of keys of external data that onnx does not know
        warnings.simplefilter("ignore")
        model = ir.from_proto(proto)
    take_tensors(model, folder)
    if not ordered:
        for body in bodies(model):
            try:
                body.sort()
            except ValueError:
                raise ValueError("a cycle: nodes that read what is made from their own outputs") from None
    remember(model, proto, paths(model))
    return model
