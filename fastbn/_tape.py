"""What a Python thread computes, in order, so that it can be computed again on the same memory without Python's part.

Kernels are recorded by ``_threads.run``, what else reads or writes arrays by ``call``. Where neither is the case, as
when an operand is copied to another memory order, ``unrepeatable`` says so.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

Kernel = Any


class Launch(NamedTuple):
    """A kernel and its operands; work: see ``_threads.run``, or None for a function that is called by itself."""

    kernel: Kernel
    operands: tuple[Any, ...]
    work: int | None


class Tape(list[Launch]):
    """Launches in order. repeatable: whether they are all that was computed. gradients: who was given which, if any."""

    def __init__(self) -> None:
        super().__init__()
        self.repeatable = True
        self.gradients: list[tuple[Any, Any]] = []


tapes: dict[int, Tape] = {}  # by Python thread


def current() -> Tape | None:
    """The tape of this Python thread, if it is recorded."""
    return tapes.get(threading.get_ident()) if tapes else None


@contextmanager
def recorded() -> Iterator[Tape]:
    """What this Python thread computes meanwhile, on a tape that grows; not to be nested."""
    thread = threading.get_ident()
    tape = tapes[thread] = Tape()
    try:
        yield tape
    finally:
        del tapes[thread]


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
