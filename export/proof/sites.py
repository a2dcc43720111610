"""Values inside a model as extra outputs, to find the layer where two models part."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import onnx

from export.proof.compare import compare
from export.proof.runtime import Job

Arrays = dict[str, np.ndarray]


class Site(Protocol):
    """A batch norm, and the values behind it that hold the same numbers in both models."""

    @property
    def batch_norm(self) -> str:
        """Its name."""

    @property
    def values(self) -> tuple[str, ...]:
        """Names of values."""


@dataclass(frozen=True)
class SiteError:
    """How far apart both models are at one value, as in ``Comparison``; layer: the batch norm, or the value's node."""

    layer: str
    value: str
    max_abs: float
    max_rel: float
    ok: bool
    reference_error: float | None = None
    candidate_error: float | None = None


def layers(reference: Path, candidate: Path, sites: Iterable[Site] = ()) -> dict[str, str]:
    """Values of both main graphs in the reference's order, each with its layer: those behind ``sites``, or without
    sites all that have one name in both.
    """
    graphs = [onnx.load(path, load_external_data=False).graph for path in (reference, candidate)]
    produced = [{name: node for node in graph.node for name in node.output if name} for graph in graphs]
    common = {name: node for name, node in produced[0].items() if name in produced[1]}
    named = {value: site.batch_norm for site in sites for value in site.values}
    if named:
        return {value: named[value] for value in common if value in named}
    return {value: f"{node.op_type} {node.name or value}" for value, node in common.items()}


@contextmanager
def exposing(path: Path, values: Iterable[str], inputs: Sequence[Arrays]) -> Iterator[Job]:
    """A run of a copy of the model that gives ``values`` as well; its weights in other files stay where they are."""
    model = onnx.load(path, load_external_data=False)
    outputs = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values if value not in outputs)
    with TemporaryDirectory() as folder:
        copy = Path(folder, "exposed.onnx")
        copy.write_bytes(model.SerializeToString())
        yield Job(copy, inputs, weights=path.absolute().parent)


def site_errors(
    layers: dict[str, str], wanted: Arrays, got: Arrays, truth: Arrays | None, tolerance: float
) -> tuple[SiteError, ...]:
    """Both models compared at every value that is an array of one shape in both, in the order of ``layers``."""
    errors = []
    for value, layer in layers.items():
        a, b, exact = wanted.get(value), got.get(value), (truth or {}).get(value)
        if a is None or b is None or a.dtype.kind != "f" or b.dtype.kind != "f":
            continue
        if a.shape != b.shape:
            errors.append(SiteError(layer, value, 0.0, 0.0, False))
            continue
        if exact is not None and exact.shape != a.shape:
            exact = None
        found = compare(value, [a], [b], [exact], tolerance)
        figures = (found.max_abs, found.max_rel, found.ok, found.reference_error, found.candidate_error)
        errors.append(SiteError(layer, value, *figures))
    return tuple(errors)
