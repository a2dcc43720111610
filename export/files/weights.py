"""A model written, weights inside or streamed one by one into a file beside it: never two in memory at once."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import onnx
import onnx_ir as ir

from export.files.origin import Origin, restore
from export.files.tensors import Tensor, described, paths, slots
from fastbn.errors import ModelError

INLINE_LIMIT = 2**31 - 2**26  # bytes of weights in one file: protobuf's 2 GB less 64 MB for the graph
SMALL = 1024  # bytes; what is no larger stays in the graph, as onnx.save has it
PAGE = 4096  # offsets that can be mapped; vectors are read from 64


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """``model`` with all its weights inside, those of other files too; ``model`` stays as it is."""
    return _to_proto(model, {id(tensor): _inside(tensor) for tensor, _ in slots(model) if _is_external(tensor)})


def save(model: ir.Model, path: str | Path) -> None:
    """Write ``model`` to ``path``, and weights to ``<path>.data`` where they were in other files or exceed 2 GB.

    Both are overwritten. A tensor is computed or read when its turn comes, written and let go; tensors of up to 1 kB
    stay in the graph. ``model`` stays as it is. Raises ModelError for a weight that is not as large as it said.
    """
    path = Path(path)
    if not is_split(model):
        path.write_bytes(_to_proto(model, {}).SerializeToString())
        return
    data = data_of(path)
    if reads(model, data):
        raise ModelError(f"write: {path} must not replace {data}, got a source that reads it; choose another name")
    with open(data, "wb") as file:
        moved = _moved(model, file, data)
    if data.stat().st_size == 0:
        data.unlink()
    path.write_bytes(_to_proto(model, moved).SerializeToString())


def is_split(model: ir.Model) -> bool:
    """Whether ``save`` puts weights into a file of their own."""
    return bool(files_of(model)) or sum(_stored_bytes(tensor) for tensor, _ in slots(model)) > INLINE_LIMIT


def files_of(model: ir.Model) -> frozenset[Path]:
    """The files that ``model``'s weights come from."""
    return Origin.of(model).files | paths(model)


def data_of(path: Path) -> Path:
    """Where ``save`` puts the weights of ``path``."""
    return path.with_name(f"{path.name}.data")


def reads(model: ir.Model, data: Path) -> bool:
    """Whether ``model``'s weights come from the file ``data``, under whatever name."""
    return data.exists() and any(file.exists() and file.samefile(data) for file in files_of(model))


def _is_external(tensor: Tensor) -> bool:
    return isinstance(tensor, ir.ExternalTensor)


def _stored_bytes(tensor: Tensor) -> int:
    return tensor.raw.ByteSize() if isinstance(tensor, ir.serde.TensorProtoTensor) else tensor.nbytes


def _to_proto(model: ir.Model, others: dict[int, Tensor]) -> onnx.ModelProto:
    """``model`` with ``others`` in the place of tensors, by their id."""
    with ExitStack() as undo:
        for tensor, put in list(slots(model)):
            if id(tensor) in others:
                undo.callback(put, tensor)
                put(others[id(tensor)])
        proto = ir.to_proto(model)
    restore(proto, Origin.of(model))
    return proto


def _moved(model: ir.Model, file: IO[bytes], data: Path) -> dict[int, Tensor]:
    """For tensors of ``model``, by their id: what refers to ``file``, to which they are written, or holds little."""
    moved: dict[int, Tensor] = {}
    offsets: dict[object, int] = {}
    for tensor, _ in slots(model):
        if id(tensor) in moved or isinstance(tensor, ir.StringTensor):
            continue
        size = tensor.nbytes
        if size <= SMALL:
            if _is_external(tensor):
                moved[id(tensor)] = _inside(tensor)
            continue
        same = (tensor.path, tensor.offset, size) if _is_external(tensor) else id(tensor)
        if same not in offsets:
            offsets[same] = _append(tensor, file)
        moved[id(tensor)] = ir.ExternalTensor(
            data.name,
            offsets[same],
            size,
            tensor.dtype,
            shape=tensor.shape,
            base_dir=data.parent,
            **described(tensor),
        )
    return moved


def _append(tensor: Tensor, file: IO[bytes]) -> int:
    """Write ``tensor`` at the end of ``file``; returns where it begins."""
    step = PAGE if tensor.nbytes >= 16 * PAGE else 64
    offset = -(-file.seek(0, os.SEEK_END) // step) * step
    file.seek(offset)
    tensor.tofile(file)
    written = file.tell() - offset
    if written != tensor.nbytes:
        raise ModelError(f"write: weight {tensor.name} must have {tensor.nbytes:,} bytes, got {written:,}")
    return offset


def _inside(tensor: ir.ExternalTensor) -> ir.LazyTensor:
    return ir.LazyTensor(lambda: tensor, tensor.dtype, tensor.shape, **described(tensor))
