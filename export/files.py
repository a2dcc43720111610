"""ONNX files in and out, through onnx-ir, with one sentence for whatever can be wrong with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from fastbn._files import replacing
from fastbn.errors import ModelError

PROTOBUF_LIMIT = 2**31 - 1  # bytes in one protobuf message
OPSETS = range(10, onnx.defs.onnx_opset_version() + 1)


def read_model(path: str | Path) -> ir.Model:
    """The model in an ONNX file; its weights are read when they are asked for. Raises ModelError."""
    if not Path(path).is_file():
        raise ModelError(f"read: {path} must be an ONNX file, got {'a folder' if Path(path).is_dir() else 'no file'}")
    try:
        model = ir.load(path)
    except (DecodeError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelError(f"read: {path} must be an ONNX model, got {_first_line(error)}") from error
    if not model.graph.opset_imports or model.ir_version < 1:
        raise ModelError(f"read: {path} must be an ONNX model, got a file that names no operator set")
    return model


def as_model(model: str | Path | onnx.ModelProto) -> ir.Model:
    """A model from a file or from a ModelProto, which is copied. Raises ModelError."""
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return ir.from_proto(copy)
    return read_model(model)


@contextmanager
def writing(model: ir.Model, path: str | Path) -> Iterator[Path]:
    """A file of ``model`` that onnx's checker has passed, to be proved; at the end it takes the name ``path``.

    Weights beyond 2 GB go beside it as ``<name>.data``. Nothing is written after an error.
    Raises ModelError where the model is not valid ONNX or ``path`` cannot be written.
    """
    target = Path(path)
    large = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value) > PROTOBUF_LIMIT // 2
    with replacing(target) as temporary:
        ir.save(model, temporary, format="protobuf", external_data=f"{target.name}.data" if large else None)
        try:
            onnx.checker.check_model(str(temporary), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ModelError(f"write: {target} must be valid ONNX, got {_first_line(error)}") from error
        yield temporary


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
