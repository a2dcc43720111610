"""ONNX files in and out, through onnx-ir, with one sentence for whatever can be wrong with them."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from fastbn._files import check_target
from fastbn.errors import ModelError

PROTOBUF_LIMIT = 2**31 - 1  # bytes in one protobuf message
OPSETS = range(10, onnx.defs.onnx_opset_version() + 1)


# What onnx, onnx-ir and protobuf raise for files and models that are not right.
BROKEN = (DecodeError, OSError, ValueError, TypeError, LookupError, RuntimeError, AttributeError, AssertionError)


def read_model(path: str | Path) -> ir.Model:
    """The model in an ONNX file, weights kept in other files included. Raises ModelError."""
    if not Path(path).is_file():
        raise ModelError(f"read: {path} must be an ONNX file, got {'a folder' if Path(path).is_dir() else 'no file'}")
    try:
        proto = onnx.load(path, load_external_data=False)
        return _from_proto(proto, Path(path).absolute().parent)
    except BROKEN as error:
        raise ModelError(f"read: {path} must be an ONNX model, got {_first_line(error)}") from error


def as_model(model: str | Path | onnx.ModelProto) -> ir.Model:
    """A model from a file or from a ModelProto, which is copied. Raises ModelError."""
    if not isinstance(model, onnx.ModelProto):
        return read_model(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        return _from_proto(copy, Path.cwd())
    except BROKEN as error:
        raise ModelError(f"read: the model must be valid ONNX, got {_first_line(error)}") from error


def _from_proto(proto: onnx.ModelProto, folder: Path) -> ir.Model:
    if not proto.opset_import or proto.ir_version < 1:
        raise ValueError("a model that names no operator set")
    if proto.graph.sparse_initializer:
        raise ValueError("a sparse initializer, which is not supported")
    for tensor in proto.graph.initializer:
        location = {entry.key: entry.value for entry in tensor.external_data}.get("location")
        if location is not None and (Path(location).is_absolute() or ".." in Path(location).parts):
            raise ValueError(f"weights outside its folder: {location}")
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, folder)
    return ir.external_data.load_to_model(model)


@contextmanager
def writing(model: ir.Model, path: str | Path) -> Iterator[Path]:
    """A file of ``model`` that onnx's checker has passed, to be proved; at the end it takes the name ``path``.

    Weights beyond half of what protobuf can hold go beside it as ``<name>.data``. Nothing is written after an error.
    Raises ModelError where the model is not valid ONNX or ``path`` cannot be written.
    """
    target = Path(path)
    check_target(target)
    data = target.with_name(f"{target.name}.data")
    large = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value) > PROTOBUF_LIMIT // 2
    if large and data.exists():  # some model may read it, the source among others
        raise ModelError(f"write: {data} must be free for the weights of {target}, got a file of that name; remove it")
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise ModelError(f"write: {target} must be in a folder that can be written, got {error.strerror}") from error
    try:
        temporary = folder / target.name
        try:
            ir.save(model, temporary, format="protobuf", external_data=data.name if large else None)
            onnx.checker.check_model(str(temporary), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, *BROKEN) as error:
            raise ModelError(f"write: {target} must be valid ONNX, got {_first_line(error)}") from error
        yield temporary
        for file in sorted(folder.iterdir(), key=lambda file: file.name == target.name):  # the model after its weights
            os.replace(file, target.parent / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
