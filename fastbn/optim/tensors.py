"""Arrays of many parameters as one kernel takes them."""

from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any

import numpy as np

from fastbn._checks import check_float, check_shape, check_writable
from fastbn._threads import Kernel, launch
from fastbn._views import dense_c
from fastbn.errors import ArgumentError
from fastbn.kernels.tensors import addresses, cut
from fastbn.nn.parameter import Parameter

State = dict[str, Any]


def launch_over(kernel: Kernel, arrays: Sequence[np.ndarray], *arguments: Any) -> None:
    """Run a kernel once over arrays, all C-contiguous and of one dtype."""
    pieces, tasks, work = cut(tuple([array.size for array in arrays]))
    launch(kernel, addresses([arrays]), pieces, tasks, *arguments, work=work)


class Batch:
    """Parameters of one dtype with their states, checked once: most steps find the same arrays in the same places.

    names: of the states' arrays. Raises DtypeError, ArgumentError.
    """

    def __init__(
        self, parameters: Sequence[Parameter], indexes: Sequence[int], states: dict[int, State], names: list[str]
    ) -> None:
        self.parameters, self.indexes, self.names = parameters, indexes, names
        self.states = [states.setdefault(index, {}) for index in indexes]
        for parameter in parameters:
            check_float("step", "data of a parameter", parameter.data)
            check_writable("step", "data of a parameter", parameter.data)
            parameter.data = dense_c(parameter.data)
        self.data = [parameter.data for parameter in parameters]
        if len(set(map(id, self.data))) < len(self.data):
            raise ArgumentError("step: data of the parameters must be apart, got one array in two of them")
        self.dtype, self.shapes = self.data[0].dtype, [array.shape for array in self.data]
        self._cut = cut(tuple([array.size for array in self.data]))
        self._moments: list[list[np.ndarray]] = []
        self._objects: np.ndarray | None = None

    def is_of(self, parameters: Sequence[Parameter], states: Mapping[int, State], names: list[str]) -> bool:
        """Whether these are its parameters, with the arrays and states that they had."""
        return (
            self.names == names
            and self.parameters == parameters
            and all(map(is_, self.states, map(states.get, self.indexes)))
            and all(map(is_, self.data, [parameter.data for parameter in parameters]))
            and {array.flags.writeable for array in self.data} == {True}
        )

    def gradients(self) -> list[np.ndarray]:
        """As kernels take them, copied where they lie otherwise. Raises ShapeError."""
        found: list[Any] = [parameter.grad for parameter in self.parameters]
        if (
            set(map(type, found)) == {np.ndarray}
            and [grad.shape for grad in found] == self.shapes
            and {grad.dtype for grad in found} == {self.dtype}
            and {grad.flags.carray for grad in found} == {True}
        ):
            return found
        for grad, shape in zip(found, self.shapes, strict=True):
            check_shape("step", "grad", np.asarray(grad), shape, "as its parameter")
        return [dense_c(np.asarray(grad, self.dtype)) for grad in found]

    def launch(self, kernel: Kernel, gradients: Sequence[np.ndarray], *arguments: Any) -> None:
        """Run a kernel over (values, gradients, the states' arrays in the order of their names)."""
        objects = self._objects
        found = [[state.get(name) for state in self.states] for name in self.names]
        if objects is None or not all(all(map(is_, *pair)) for pair in zip(found, self._moments, strict=True)):
            pairs = list(zip(self.states, self.data, strict=True))
            self._moments = [[_moment(state, name, array) for state, array in pairs] for name in self.names]
            self._objects = objects = addresses([self.data, self.data, *self._moments])
        objects[1] = addresses([gradients])
        pieces, tasks, work = self._cut
        launch(kernel, objects, pieces, tasks, *arguments, work=work)


def _moment(state: State, name: str, like: np.ndarray) -> np.ndarray:
    array = state.get(name)
    if array is None:
        array = np.zeros(like.shape, like.dtype)
    check_shape("step", name, array, like.shape, "as its parameter")
    if not array.flags.carray or array.dtype is not like.dtype:
        array = np.array(array, like.dtype, order="C")
    state[name] = array
    return array
