"""Every tensor of a model and what it must be: as many bytes as its dims say, in a file of the model's folder."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import IO, Any

import numpy as np
import onnx
import onnx_ir as ir

Tensor = Any  # onnx-ir's TensorProtocol
Slot = tuple[Tensor, Callable[[Tensor], None]]


class FileTensor(ir.ExternalTensor):
    """A tensor in another file, mapped while an array of it is in use.

    onnx-ir's own keeps a map, and with it a file descriptor, of every tensor that was ever looked at: a thousand of
    them is more than a process may have.
    """

    @classmethod
    def of(cls, tensor: ir.ExternalTensor, folder: Path) -> "FileTensor":
        """The same tensor, in ``folder``."""
        place = (tensor.location, tensor.offset, tensor.length, tensor.dtype)
        return cls(*place, shape=tensor.shape, base_dir=folder, **described(tensor))

    def numpy(self) -> np.ndarray:
        """A read-only array."""
        if self.size == 0 or self.dtype.bitwidth < 8:
            array = super().numpy().copy()
            self.release()
            return array
        dtype = self.dtype.numpy().newbyteorder("<")
        return np.asarray(np.memmap(self.path, dtype, "r", self.offset or 0, self.shape.numpy()))

    def __array__(self, dtype: Any = None) -> np.ndarray:
        """As NumPy asks for it."""
        return self.numpy().__array__(dtype)

    def tofile(self, file: IO[bytes]) -> None:
        """Copy the bytes to ``file``, large tensors inside the kernel."""
        if self.nbytes < 2**20:
            file.write(self.tobytes())
        else:
            super().tofile(file)

    def tobytes(self) -> bytes:
        """The bytes as they are in the file."""
        with open(self.path, "rb") as file:
            file.seek(self.offset or 0)
            return file.read(self.nbytes)


def described(tensor: Tensor) -> dict[str, Any]:
    """Name, doc string and metadata of ``tensor``, as arguments for another."""
    props = dict(tensor.metadata_props) or None
    return {"name": tensor.name, "doc_string": tensor.doc_string, "metadata_props": props}


def bodies(model: ir.Model) -> list[Any]:
    """The main graph and the functions of ``model``."""
    return [model.graph, *model.functions.values()]


def slots(model: ir.Model) -> Iterator[Slot]:
    """Every tensor and what puts another in its place: initialisers and attributes, subgraphs and functions too."""
    for body in bodies(model):
        if isinstance(body, ir.Function):
            yield from _in_attributes(body)
        for graph in (body, *body.subgraphs()):
            if isinstance(graph, ir.Graph):
                for value in graph.initializers.values():
                    if value.const_value is not None:
                        value.const_value.name = value.const_value.name or value.name
                        yield value.const_value, _putter(value)
            for node in graph:
                yield from _in_attributes(node)


def _putter(value: ir.Value) -> Callable[[Tensor], None]:
    return lambda tensor: setattr(value, "const_value", tensor)


def _in_attributes(owner: ir.Node | ir.Function) -> Iterator[Slot]:
    for attribute in list(owner.attributes.values()):
        if attribute.is_ref() or attribute.value is None:
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            yield attribute.value, _attribute_putter(owner, attribute.name, None)
        elif attribute.type == ir.AttributeType.TENSORS:
            for index, tensor in enumerate(attribute.value):
                yield tensor, _attribute_putter(owner, attribute.name, index)


def _attribute_putter(owner: ir.Node | ir.Function, name: str, index: int | None) -> Callable[[Tensor], None]:
    def put(tensor: Tensor) -> None:
        old = owner.attributes[name]
        value = tensor if index is None else [*old.value[:index], tensor, *old.value[index + 1 :]]
        owner.attributes[name] = ir.Attr(name, old.type, value, doc_string=old.doc_string)

    return put


def paths(model: ir.Model) -> frozenset[Path]:
    """The files that tensors of ``model`` are in."""
    return frozenset(map(Path, {tensor.path for tensor, _ in slots(model) if isinstance(tensor, ir.ExternalTensor)}))


def take_tensors(model: ir.Model, folder: Path) -> None:
    """Raise ValueError for a tensor that is not all there; those in other files become FileTensors of ``folder``."""
    sizes: dict[str, int] = {}
    for tensor, put in slots(model):
        if isinstance(tensor, ir.ExternalTensor):
            location = os.fspath(tensor.location)
            if location not in sizes:
                sizes[location] = _size_of(folder, location)
            _check_range(tensor, sizes[location])
            put(FileTensor.of(tensor, folder))
        elif isinstance(tensor, ir.StringTensor):
            dims = _dims(tensor.name, tensor.shape.numpy())
            _check_count(tensor.name, dims, len(tensor.string_data()), math.prod(dims), "strings")
        else:
            _check_stored(tensor.raw)
            del tensor.raw.metadata_props[:]  # onnx-ir has a copy of its own, and would write both


def _dims(name: str | None, shape: Iterable[int]) -> tuple[int, ...]:
    dims = tuple(shape)
    if dims and min(dims) < 0:
        raise ValueError(f"tensor {name!r} of the shape {dims}")
    return dims


def _check_count(name: str | None, dims: tuple[int, ...], got: int, wanted: int, what: str) -> None:
    if got != wanted:
        raise ValueError(f"tensor {name!r} of the shape {dims}, {wanted:,} {what}, that holds {got:,}")


def _check_stored(proto: onnx.TensorProto) -> None:
    dims, dtype = _dims(proto.name, proto.dims), ir.DataType(proto.data_type)
    if proto.HasField("segment"):
        raise ValueError(f"tensor {proto.name!r} in segments, which are not supported")
    if dtype == ir.DataType.UNDEFINED:
        raise ValueError(f"tensor {proto.name!r} without a type")
    count = math.prod(dims)
    size = math.ceil(count * dtype.itemsize)
    if proto.HasField("raw_data"):
        _check_count(proto.name, dims, len(proto.raw_data), size, "bytes")
        return
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        count *= 2
    elif dtype.bitwidth in (2, 4):  # packed, several in one entry
        count = size
    entries = getattr(proto, onnx.helper.tensor_dtype_to_field(proto.data_type))
    _check_count(proto.name, dims, len(entries), count, "entries")


def _size_of(folder: Path, location: str) -> int:
    """Bytes of the data file ``location``, which must lie in ``folder``; onnx-ir and onnxruntime refuse hard links."""
    parts = PureWindowsPath(location)  # its rules take in those of other systems
    if not location or parts.drive or parts.root or ".." in parts.parts or "\\" in location:
        raise ValueError(f"weights outside its folder: {location!r}")
    path = folder / location
    if not path.exists():
        raise ValueError(f"no file {location!r} beside it, which holds its weights")
    if not path.is_file():
        raise ValueError(f"weights in {location!r}, which is no file")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"weights outside its folder: {location!r} is a link to {path.resolve()}")
    status = path.stat()
    if status.st_nlink > 1:
        raise ValueError(f"weights in {location!r}, a file with {status.st_nlink} hard links; copy it")
    return status.st_size


def _check_range(tensor: ir.ExternalTensor, size: int) -> None:
    dims, offset = _dims(tensor.name, tensor.shape.numpy()), tensor.offset or 0
    if tensor.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        raise ValueError(f"tensor {tensor.name!r} of the type {tensor.dtype.name} in another file")
    if tensor.length is not None:
        _check_count(tensor.name, dims, tensor.length, tensor.nbytes, "bytes")
    if offset < 0 or offset + tensor.nbytes > size:
        where = f"bytes {offset:,} to {offset + tensor.nbytes:,} of {tensor.location}"
        raise ValueError(f"tensor {tensor.name!r} in {where}, which has {size:,}")
