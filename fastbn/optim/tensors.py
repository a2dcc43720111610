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


def launch_over(kernel: Kernel, columns: Sequence[Sequence[np.ndarray]], *arguments: Any) -> None:
    """Run a kernel once over lists of arrays, those of one place of equal size, all C-contiguous and of one dtype."""
    pieces, tasks, work = cut(tuple([array.size for array in columns[0]]))
    launch(kernel, addresses(columns), pieces, tasks, *arguments, work=work)


def gradients_of(who: str, parameters: Sequence[Parameter], dtype: np.dtype) -> list[np.ndarray]:
    """Gradients of parameters that have one, C-contiguous and of ``dtype``, copied where they are not. ShapeError."""
    found: list[Any] = [parameter.grad for parameter in parameters]
    if (
        set(map(type, found)) == {np.ndarray}
        and [grad.shape for grad in found] == [parameter.data.shape for parameter in parameters]
        and all(grad.dtype is dtype and grad.flags.carray for grad in found)
    ):
        return found
    for parameter in parameters:
        check_shape(who, "grad", np.asarray(parameter.grad), parameter.shape, "as its parameter")
    return [dense_c(np.asarray(grad, dtype)) for grad in found]


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
        self.dtype = self.data[0].dtype
        self._known: list[list[Any]] = [[] for _ in names]

    def is_of(self, parameters: Sequence[Parameter], states: Mapping[int, State], names: list[str]) -> bool:
        """Whether these are its parameters, with the arrays and states that they had."""
        return (
            self.names == names
            and self.parameters == parameters
            and all(map(is_, self.states, map(states.get, self.indexes)))
            and all(map(is_, self.data, [parameter.data for parameter in parameters]))
            and all(array.flags.writeable for array in self.data)
        )

    def moments(self) -> list[list[np.ndarray]]:
        """The states' arrays by name, as kernels take them: of zeros where there were none. Raises ShapeError."""
        for column, name in enumerate(self.names):
            found = [state.get(name) for state in self.states]
            if not self._known[column] or not all(map(is_, found, self._known[column])):
                self._known[column] = [
                    _moment(state, name, array) for state, array in zip(self.states, self.data, strict=True)
                ]
        return self._known


def _moment(state: State, name: str, like: np.ndarray) -> np.ndarray:
    array = state.get(name)
    if array is None:
        array = np.zeros(like.shape, like.dtype)
    check_shape("step", name, array, like.shape, "as its parameter")
    if not array.flags.carray or array.dtype is not like.dtype:
        array = np.array(array, like.dtype, order="C")
    state[name] = array
    return array
