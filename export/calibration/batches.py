"""Batches for a calibration, checked against the inputs of the model."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_ir as ir

from export.proof.inputs import check_array, input_of
from fastbn.errors import ArgumentError, ModelError

Batch = np.ndarray | Mapping[str, np.ndarray]


def store_batches(
    model: ir.Model, batches: Iterable[Batch], store: Callable[[dict[str, np.ndarray]], None]
) -> tuple[str, ...]:
    """Hand every batch to ``store``; returns the names of the inputs that all of them hold.

    Raises ArgumentError where there is none, ModelError where one does not fit the model's inputs.
    """
    if isinstance(batches, (np.ndarray, Mapping)) or not isinstance(batches, Iterable):
        raise ArgumentError(
            f"calibrate: batches must be an iterable of batches, got {type(batches).__name__}; wrap it in a list"
        )
    inputs = {str(value.name): value for value in model.graph.inputs}
    required = [name for name, value in inputs.items() if not value.is_initializer()]
    names: tuple[str, ...] | None = None
    for number, batch in enumerate(batches):
        arrays = _by_name(batch, number, required)
        names = tuple(arrays) if names is None else names
        if set(arrays) != set(names) or not set(required) <= set(arrays) <= set(inputs):
            wanted = list(required if set(arrays) == set(names) else names)
            raise ModelError(f"calibrate: batch {number} must hold the inputs {wanted}, got {list(arrays)}")
        for name, array in arrays.items():
            _check(inputs[name], array, number)
        store(arrays)
    if names is None:
        raise ArgumentError("calibrate: batches must hold at least one batch, got none")
    return names


def _by_name(batch: Batch, number: int, required: list[str]) -> dict[str, np.ndarray]:
    if isinstance(batch, Mapping):
        return dict(batch)
    if not isinstance(batch, np.ndarray):
        raise ModelError(
            f"calibrate: batch {number} must be an array or a dict of arrays by input name, got {type(batch).__name__}"
        )
    if len(required) != 1:
        raise ModelError(f"calibrate: batch {number} must be a dict of the inputs {required}, got one array")
    return {required[0]: batch}


def _check(value: ir.Value, array: np.ndarray, number: int) -> None:
    who = f"calibrate: input {value.name} of batch {number}"
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ModelError(f"{who} must be an array of numbers, got {kind}")
    check_array(who, input_of(value, array), array)
