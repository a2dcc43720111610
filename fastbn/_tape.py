"""What a Python thread computes, in order, so that it can be computed again on the same memory without Python's part.

Kernels are recorded by ``_threads.run``, what else reads or writes arrays by ``call``. Where neither is the case, as
when an operand is copied to another memory order, ``unrepeatable`` says so.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np

from fastbn._memory import Arena

Kernel = Any


class Launch(NamedTuple):
    """A kernel and its operands; work: see ``_threads.run``, or None for a function that is called by itself."""

    kernel: Kernel
    operands: tuple[Any, ...]
    work: int | None


class Tape(list[Launch]):
    """Launches in order. repeatable: whether they are all that was computed. gradients: who was given which, if any.

    arena: where the thread's arrays are meanwhile; the tape keeps none of them from being used again.
    """

    def __init__(self, arena: Arena | None) -> None:
        super().__init__()
        self.arena = arena
        self.repeatable = True
        self.gradients: list[tuple[Any, np.ndarray]] = []

    def append(self, launch: Launch) -> None:
        """Add what is launched next."""
        super().append(launch if self.arena is None else launch._replace(operands=self._views(launch.operands)))

    def add_gradient(self, parameter: Any, grad: np.ndarray) -> None:
        """It outlives the arena."""
        self.repeatable &= self.arena is None or self.arena.view(grad) is grad
        self.gradients.append((parameter, grad))

    def _views(self, operands: Any) -> Any:
        assert self.arena is not None
        if isinstance(operands, np.ndarray):
            return self.arena.view(operands)
        return tuple(map(self._views, operands)) if type(operands) is tuple else operands


tapes: dict[int, Tape] = {}  # by Python thread


def current() -> Tape | None:
    """The tape of this Python thread, if it is recorded."""
    return tapes.get(threading.get_ident()) if tapes else None


@contextmanager
def recorded(arena: Arena | None = None) -> Iterator[Tape]:
    """What this Python thread computes meanwhile, in ``arena`` if given, on a tape that grows.

    A tape around it is not complete without it.
    """
    thread = threading.get_ident()
    unrepeatable()
    outer = tapes.get(thread)
    tape = tapes[thread] = Tape(arena)
    try:
        with arena.used() if arena is not None else nullcontext():
            yield tape
    finally:
        if outer is None:
            del tapes[thread]
        else:
            tapes[thread] = outer


def call(function: Callable[..., Any], *operands: Any) -> Any:
    """``function(*operands)``, recorded: it reads and writes the arrays among its operands and nothing else."""
    tape = current()
    if tape is not None:
        tape.append(Launch(function, operands, None))
    return function(*operands)


def unrepeatable() -> None:
    """What comes next reads arrays, and is not recorded."""
    tape = current()
    if tape is not None:
        tape.repeatable = False
