"""What was computed on a tape, computed again: on the same memory, but for the gradients, which lie in a new block.

One block for all of them: to take and to free each by itself takes Python as long as a layer. Who keeps one of them
keeps them all.
"""

from typing import Any, NamedTuple

import numpy as np

from fastbn._memory import ALIGNMENT, BYTE, empty, offset_in, owner_of
from fastbn._tape import Launch, Tape
from fastbn._threads import repeat
from fastbn.nn.parameter import Parameter


class Place(NamedTuple):
    """An array in the new block."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    strides: tuple[int, ...]

    def view(self, block: np.ndarray) -> np.ndarray:
        """This array in ``block``."""
        return np.ndarray(self.shape, self.dtype, block, self.offset, self.strides)


class Repeated:
    """The launches of a tape."""

    def __init__(self, tape: Tape) -> None:
        self.size = 0  # bytes of the new block
        self.gradients: list[tuple[Parameter, Place | np.ndarray]] = []
        offsets = self._place_gradients(tape)
        self.launches = [_without_memory(launch, offsets) for launch in tape]

    def run(self) -> list[tuple[Parameter, np.ndarray]] | None:
        """The gradients; None where a kernel did nothing, because it did not like what it read."""
        block = empty((self.size,), BYTE, lasting=True)
        for launch, places in self.launches:
            if places:
                kernel, operands, work = launch
                arrays = list(operands)
                for number, place in places:
                    arrays[number] = place.view(block)
                launch = Launch(kernel, tuple(arrays), work)
            if _failed(repeat(launch)):
                return None
        return [(p, grad.view(block) if isinstance(grad, Place) else grad.copy()) for p, grad in self.gradients]

    def _place_gradients(self, tape: Tape) -> dict[int, int]:
        """Offsets in the block, by id, of the arrays that own the memory of the gradients that are written here."""
        written = {id(owner_of(array)) for launch in tape for array in _arrays(launch.operands)}
        offsets: dict[int, int] = {}
        for parameter, grad in tape.gradients:
            owner = owner_of(grad)
            if id(owner) not in written:  # a constant
                self.gradients.append((parameter, grad.copy()))
                continue
            if id(owner) not in offsets:
                offsets[id(owner)] = self.size
                self.size += -(-owner.nbytes // ALIGNMENT) * ALIGNMENT
            self.gradients.append((parameter, _place(grad, offsets)))
        return offsets


def _without_memory(launch: Launch, offsets: dict[int, int]) -> tuple[Launch, list[tuple[int, Place]]]:
    """A launch with None where an operand lies in the new block, and these by number."""
    places = [
        (number, _place(operand, offsets))
        for number, operand in enumerate(launch.operands)
        if isinstance(operand, np.ndarray) and id(owner_of(operand)) in offsets
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


def _place(view: np.ndarray, offsets: dict[int, int]) -> Place:
    owner = owner_of(view)
    return Place(view.shape, view.dtype, offsets[id(owner)] + offset_in(owner, view), view.strides)
