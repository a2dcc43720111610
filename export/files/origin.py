"""What a model has that onnx-ir does not keep, remembered when it is read and put back when it is written."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from export.files.check import subgraphs


@dataclass(frozen=True)
class Origin:
    """files: those that hold weights. training: graphs for training. described: initialisers with a ValueInfoProto."""

    files: frozenset[Path] = frozenset()
    training: tuple[bytes, ...] = ()
    described: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: ir.Model) -> "Origin":
        """What ``remember`` stored; nothing for a model made in memory."""
        known: Origin = model.meta.get("origin", cls())
        return known


def remember(model: ir.Model, proto: onnx.ModelProto, files: frozenset[Path]) -> None:
    """Store with ``model`` where it comes from."""
    training = tuple(entry.SerializeToString() for entry in proto.training_info)
    described = frozenset(name for graph in _graphs(proto.graph) for name in _described(graph))
    model.meta["origin"] = Origin(files, training, described)


def restore(proto: onnx.ModelProto, origin: Origin) -> None:
    """Make ``proto``, which onnx-ir wrote, as its source was: it describes every initialiser, and trains nothing."""
    for graph in _graphs(proto.graph):
        unwanted = _described(graph) - origin.described
        kept = [value for value in graph.value_info if value.name not in unwanted]
        del graph.value_info[:]
        graph.value_info.extend(kept)
    for entry in origin.training:
        proto.training_info.add().ParseFromString(entry)


def _described(graph: onnx.GraphProto) -> set[str]:
    return {tensor.name for tensor in graph.initializer}.intersection(value.name for value in graph.value_info)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _graphs(inner)
