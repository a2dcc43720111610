"""What was computed on a tape, computed again: on the same memory, but for the gradients, which are new arrays."""

from typing import Any, NamedTuple

import numpy as np

from fastbn._memory import empty, offset_in, owner_of
from fastbn._tape import Launch, Tape
from fastbn._threads import repeat
from fastbn.nn.parameter import Parameter


class Place(NamedTuple):
    """A view of the new memory number ``memory``."""

    memory: int
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    strides: tuple[int, ...]

    def view(self, new: list[np.ndarray]) -> np.ndarray:
        """This view of ``new[memory]``."""
        return np.ndarray(self.shape, self.dtype, new[self.memory], self.offset, self.strides)


class Repeated:
    """The launches of a tape."""

    def __init__(self, tape: Tape) -> None:
        self.memory: list[tuple[tuple[int, ...], np.dtype]] = []  # shape and dtype of what is new every time
        self.gradients: list[tuple[Parameter, Place | np.ndarray]] = []
        numbers = self._number_gradients(tape)
        self.launches = [_without_memory(launch, numbers) for launch in tape]

    def run(self) -> list[tuple[Parameter, np.ndarray]] | None:
        """The gradients; None where a kernel did nothing, because it did not like what it read."""
        new = [empty(shape, dtype, lasting=True) for shape, dtype in self.memory]
        for launch, places in self.launches:
            if places:
                kernel, operands, work = launch
                arrays = list(operands)
                for number, place in places:
                    arrays[number] = place.view(new)
                launch = Launch(kernel, tuple(arrays), work)
            if _failed(repeat(launch)):
                return None
        return [(p, grad.view(new) if isinstance(grad, Place) else grad.copy()) for p, grad in self.gradients]

    def _number_gradients(self, tape: Tape) -> dict[int, int]:
        """Numbers in ``memory``, by id, of the arrays that own the memory of the gradients that are written here."""
        written = {id(owner_of(array)) for launch in tape for array in _arrays(launch.operands)}
        numbers: dict[int, int] = {}
        for parameter, grad in tape.gradients:
            owner = owner_of(grad)
            if id(owner) not in written:  # a constant
                self.gradients.append((parameter, grad.copy()))
                continue
            if id(owner) not in numbers:
                numbers[id(owner)] = len(self.memory)
                self.memory.append((owner.shape, owner.dtype))
            self.gradients.append((parameter, _place(grad, numbers)))
        return numbers


def _without_memory(launch: Launch, numbers: dict[int, int]) -> tuple[Launch, list[tuple[int, Place]]]:
    """A launch with None where an operand is a view of new memory, and these."""
    places = [
        (number, _place(operand, numbers))
        for number, operand in enumerate(launch.operands)
        if isinstance(operand, np.ndarray) and id(owner_of(operand)) in numbers
    ]
    new = {number for number, _ in places}
    kept = tuple(None if number in new else operand for number, operand in enumerate(launch.operands))
    return launch._replace(operands=kept), places


def _failed(result: Any) -> bool:
    """Whether a kernel says that it did nothing: by False, or by the channel that it did not like."""
    return result is False or (type(result) is int and result >= 0)


def _arrays(operands: Any) -> list[np.ndarray]:
    if isinstance(operands, np.ndarray):
        return [operands]
    return [array for operand in operands for array in _arrays(operand)] if isinstance(operands, tuple) else []


def _place(view: np.ndarray, numbers: dict[int, int]) -> Place:
    owner = owner_of(view)
    return Place(numbers[id(owner)], view.shape, view.dtype, offset_in(owner, view), view.strides)
