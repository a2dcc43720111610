"""Training passes of a fused chain, recorded once and repeated: Python's part in them is done with.

Between the kernels of small layers Python takes as long as some of them: checks, views and new arrays, by code that
every kernel drives out of the caches. After some passes that were alike, one is recorded on a ``fastbn._tape``: its
kernels, and the memory that they computed in, which is kept. The next one is computed both ways, and must be the same
bit for bit, outputs, gradients and statistics. From then on a pass copies its input into that memory, launches the
kernels, and copies the output; the gradients of the parameters lie in a new block, see ``repeated``. A pass that
differs in anything is computed as ever: other modules, options or parameters, another shape or memory order, another
thread or number of threads.
"""

from collections.abc import Callable
from itertools import takewhile
from threading import get_ident
from typing import Any, Self

import numpy as np

from fastbn._memory import Arena
from fastbn._tape import current, recorded
from fastbn._threads import get_num_threads
from fastbn._views import empty_like, is_channels_last
from fastbn.nn import block
from fastbn.nn.activation import ReLU, ReLU6, Sigmoid
from fastbn.nn.block import Block, Step
from fastbn.nn.infer import CHAINS
from fastbn.nn.lanes_unit import LanesUnit
from fastbn.nn.linear_unit import LinearUnit
from fastbn.nn.module import Module, changes
from fastbn.nn.parameter import Parameter
from fastbn.nn.pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from fastbn.nn.repeated import Repeated

ALIKE = 2  # passes, before the one that is recorded
# The forward passes of modules that compute by kernels alone, forward and backward; see ``containers``.
REPEATABLE: list[Any] = [m.forward for m in (AdaptiveAvgPool2d, AvgPool2d, MaxPool2d, ReLU, ReLU6, Sigmoid)]
Gradients = list[tuple[Parameter, np.ndarray]]


class Recording:
    """The forward and the backward pass through ``body``, the steps between ``head`` and ``tail``.

    complete: both are recorded. proved: and were repeated once. useless: they cannot be.
    """

    def __init__(self, key: tuple[Any, ...], head: list[Step], body: list[Step], tail: list[Step]) -> None:
        self.key, self.head, self.body, self.tail = key, head, body, tail
        self.arena = Arena()
        self.complete = self.proved = self.useless = False
        modules = [module for step in body for module in _modules(step)]
        self.parameters = [(p, p.data) for module in modules for p in module._parameters.values() if p is not None]
        self.buffers = [(m._buffers, n, a) for m in modules for n, a in m._buffers.items() if a is not None]
        self.before = [array.copy() for _, _, array in self.buffers]  # the last pass

    @classmethod
    def of(cls, key: tuple[Any, ...], steps: list[Step]) -> Self | None:
        """Room for one, with the longest run of steps that can be repeated; None where there is none."""
        runs = [list(takewhile(_is_repeatable, steps[first:])) for first in range(len(steps))]
        first, body = max(enumerate(runs), key=lambda run: len(run[1]), default=(0, []))
        return cls(key, steps[:first], body, steps[first + len(body) :]) if body else None

    def holds(self) -> bool:
        """Whether parameters and buffers are still the arrays that were recorded."""
        return all(parameter.data is array for parameter, array in self.parameters) and all(
            table.get(name) is array for table, name, array in self.buffers
        )

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The output of all steps."""
        x = block.forward(self.head, x)
        if not self.complete:
            return block.forward(self.tail, self._record_forward(x))
        self._remember()
        if x.shape != self.x.shape or x.dtype != self.x.dtype:
            y = self._give_up(x)
        else:
            y = self._repeat_forward(x) if self.proved else self._prove_forward(x)
        return block.forward(self.tail, y)

    def backward(self, dy: np.ndarray, need_dx: bool) -> np.ndarray | None:
        """dx of all steps; adds to the parameters' gradients."""
        gradient: Any = block.backward(self.tail, dy, True) if self.tail else dy
        needed = need_dx or bool(self.head)
        if self.complete and not (_is_like(gradient, self.y) and needed == (self.dx is not None)):
            self._give_up(self.x)
        if self.useless:
            dx = block.backward(self.body, gradient, needed)
        elif not self.complete:
            dx = self._record_backward(gradient, needed)
        else:
            dx = self._repeat_backward(gradient) if self.proved else self._prove_backward(gradient)
        return block.backward(self.head, dx, need_dx) if self.head and dx is not None else dx

    # Recorded

    def _record_forward(self, x: np.ndarray) -> np.ndarray:
        self.x = _copy(x)
        with recorded(self.arena) as tape:
            y = block.forward(self.body, self.x)
        self.useless = not tape.repeatable
        self.forwards, self.y = Repeated(tape), self.arena.view(y)
        return _copy(y)

    def _record_backward(self, dy: np.ndarray, need_dx: bool) -> np.ndarray | None:
        if not _is_like(dy, self.y):
            self.useless = True
            return block.backward(self.body, dy, need_dx)
        self.dy = empty_like(self.y)
        np.copyto(self.dy, dy)
        with recorded(self.arena) as tape:
            dx = block.backward(self.body, self.dy, need_dx)
        self.useless = not tape.repeatable
        self.complete = tape.repeatable
        self.backwards, self.dx = Repeated(tape), None if dx is None else self.arena.view(dx)
        return None if dx is None else _copy(dx)

    # Repeated

    def _repeat_forward(self, x: np.ndarray) -> np.ndarray:
        np.copyto(self.x, x)
        return self._give_up(x) if self.forwards.run() is None else _copy(self.y)

    def _repeat_backward(self, dy: np.ndarray) -> np.ndarray | None:
        for parameter, gradient in self._gradients(dy):
            parameter.accumulate(gradient)
        return None if self.dx is None else _copy(self.dx)

    def _gradients(self, dy: np.ndarray) -> Gradients:
        np.copyto(self.dy, dy)
        gradients = self.backwards.run()
        assert gradients is not None
        return gradients

    # Proved

    def _prove_forward(self, x: np.ndarray) -> np.ndarray:
        y: np.ndarray = block.forward(self.body, x)
        after = [array.copy() for _, _, array in self.buffers]
        self._recall()
        np.copyto(self.x, x)
        same = self.forwards.run() is not None and _are_same([self.y], [y])
        self.useless = not (same and _are_same([array for _, _, array in self.buffers], after))
        for (_, _, array), moved in zip(self.buffers, after, strict=True):
            np.copyto(array, moved)
        return y

    def _prove_backward(self, dy: np.ndarray) -> np.ndarray | None:
        with recorded() as tape:
            dx = block.backward(self.body, dy, self.dx is not None)
        gradients = self._gradients(dy)
        same = [id(parameter) for parameter, _ in gradients] == [id(parameter) for parameter, _ in tape.gradients]
        same = same and _are_same([grad for _, grad in gradients], [grad for _, grad in tape.gradients])
        self.proved = same and (self.dx is None or dx is None or _are_same([self.dx], [dx]))
        self.useless = not self.proved
        return dx

    # Given up

    def _give_up(self, x: np.ndarray) -> np.ndarray:
        """The output of ``body``, computed as ever from the statistics before; nothing is repeated from now on."""
        self._recall()
        self.useless, self.complete = True, False
        y: np.ndarray = block.forward(self.body, x)
        return y

    def _remember(self) -> None:
        for kept, (_, _, array) in zip(self.before, self.buffers, strict=True):
            np.copyto(kept, array)

    def _recall(self) -> None:
        for kept, (_, _, array) in zip(self.before, self.buffers, strict=True):
            np.copyto(array, kept)


class Replay:
    """The passes of one container in training mode, and the one of them that is repeated."""

    def __init__(self) -> None:
        self.key: tuple[Any, ...] | None = None  # of the last pass
        self.alike = 0
        self.useless_since: int | None = None  # the changes with which a recording was useless
        self.recording: Recording | None = None

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()  # a copy of the model records for itself

    def recording_for(self, x: np.ndarray, parts: Callable[[], list[Step]]) -> Recording | None:
        """What ``x`` is to pass through, or None: a pass as ever. parts: the steps of the container."""
        if current() is not None:  # part of a pass that is being recorded
            return None
        key = changes(), (get_ident(), get_num_threads()), x.shape, x.strides, x.dtype
        self.alike = self.alike + 1 if key == self.key else 0
        self.key = key
        found = self.recording
        if found is not None and found.key == key and found.complete and not found.useless and found.holds():
            return found
        if found is not None and (found.key == key or found.key[:2] != key[:2]):
            self.recording = None
            if found.useless and found.key[0] == key[0]:
                self.useless_since = key[0]
        if self.alike < ALIKE or self.useless_since == key[0] or not _is_dense(x):
            return None
        self.alike = 0
        self.recording = Recording.of(key, parts())
        if self.recording is None:
            self.useless_since = key[0]
        return self.recording


def _is_dense(x: np.ndarray) -> bool:
    return bool(x.flags.aligned and x.dtype.isnative and (x.flags.c_contiguous or is_channels_last(x)))


def _is_like(dy: Any, y: np.ndarray) -> bool:
    return isinstance(dy, np.ndarray) and dy.shape == y.shape and dy.dtype == y.dtype


def _copy(x: np.ndarray) -> np.ndarray:
    copy = empty_like(x)
    np.copyto(copy, x)
    return copy


def _are_same(arrays: list[np.ndarray], others: list[np.ndarray]) -> bool:
    """Bit for bit."""
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(arrays, others, strict=True))


def _modules(step: Step) -> list[Module]:
    """The modules of a step, those below them included."""
    if isinstance(step, Block):
        return [step.conv, step.norm]
    if isinstance(step, LanesUnit):
        return [*_modules(step.block), *step.further]
    if isinstance(step, LinearUnit):
        return list(step.modules)
    return list(step.modules())


def _is_repeatable(step: Step) -> bool:
    """Whether a step may be recorded: if it turns out to copy what is not on the tape, the tape says so."""
    if isinstance(step, (Block, LanesUnit, LinearUnit)):
        return all(_is_constant(module) for module in _modules(step))
    if type(step).forward in CHAINS:
        return step.fused and _is_constant(step) and all(_is_repeatable(part) for part in step.parts())
    return type(step).forward in REPEATABLE and _is_constant(step)


def _is_constant(module: Module) -> bool:
    """Whether what it does follows from its options, plain parameters and buffers, and nobody looks on."""
    plain = all(parameter is None or isinstance(parameter, Parameter) for parameter in module._parameters.values())
    counts = getattr(module, "momentum", 0.0) is None  # a momentum by the number of batches
    return plain and module.training and not (counts or module._forward_hooks or module._parametrized())
