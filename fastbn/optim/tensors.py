"""Arrays of many parameters as one kernel takes them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastbn._checks import FLOAT32, FLOAT64, check_float, check_shape, check_writable
from fastbn._threads import Kernel, launch
from fastbn._views import dense_c
from fastbn.errors import ArgumentError
from fastbn.kernels.tensors import addresses, cut
from fastbn.nn.parameter import Parameter


def launch_over(kernel: Kernel, columns: Sequence[Sequence[np.ndarray]], *arguments: Any) -> None:
    """Run a kernel once over lists of arrays, those of one place of equal size, all C-contiguous and of one dtype."""
    pieces, tasks, work = cut(tuple(array.size for array in columns[0]))
    launch(kernel, addresses(columns), pieces, tasks, *arguments, work=work)


def operands(parameters: Sequence[Parameter]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Values and gradients of parameters that have one. Raises ShapeError, DtypeError, ArgumentError."""
    data: list[np.ndarray] = []
    gradients: list[np.ndarray] = []
    for parameter in parameters:
        array, grad = parameter.data, parameter.grad
        if not (_plain(array) and type(grad) is np.ndarray and _alike(grad, array)):
            array, grad = _prepared(parameter)
        data.append(array)
        gradients.append(grad)
    if len(set(map(id, data))) < len(data):
        raise ArgumentError("step: data of the parameters must be apart, got one array in two of them")
    return data, gradients


def _plain(array: np.ndarray) -> bool:
    return (array.dtype is FLOAT32 or array.dtype is FLOAT64) and array.flags.carray


def _alike(array: np.ndarray, like: np.ndarray) -> bool:
    return array.dtype is like.dtype and array.shape == like.shape and array.flags.carray


def _prepared(parameter: Parameter) -> tuple[np.ndarray, np.ndarray]:
    grad = np.asarray(parameter.grad)
    check_float("step", "data of a parameter", parameter.data)
    check_shape("step", "grad", grad, parameter.shape, "as its parameter")
    check_writable("step", "data of a parameter", parameter.data)
    parameter.data = dense_c(parameter.data)
    return parameter.data, dense_c(grad.astype(parameter.dtype, copy=False))


def moment(state: dict[str, Any], name: str, like: np.ndarray) -> np.ndarray:
    """An array of the state, 0 at first, of the shape and dtype of ``like``."""
    array = state.get(name)
    if array is None:
        array = state[name] = np.zeros(like.shape, like.dtype)
    elif not _alike(array, like):
        check_shape("step", name, array, like.shape, "as its parameter")
        array = state[name] = np.array(array, like.dtype, order="C")
    return array
