"""What a model should answer: float64's answers, those that are needed, affordable and to be trusted."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from export.proof.compare import error
from export.proof.referee import Referee, UnjudgedError

Answers = dict[str, np.ndarray]

PATIENCE = 5.0  # seconds of work after which the answers are worked out no more unless they decide
EXPLAINED = 10.0  # a runtime may be this many times as far from float64 as rounding alone


class Truth:
    """Float64's answers for one model and sets of inputs, beside ``answers``, those of the runtime.

    A runtime much further away than rounding explains computes something else than the referee, an operator that one
    of them reads differently: then there is no truth. notes: why there is none.
    """

    def __init__(self, path: Path, inputs: Sequence[Answers], answers: Sequence[Answers], tolerance: float) -> None:
        self.path, self.inputs, self.answers, self.tolerance = path, inputs, answers, tolerance
        self.notes: list[str] = []
        self._known: dict[int, Answers] = {}
        self._spent = self._explained = 0.0
        self._referee: Referee | None = None
        self._rounding: Referee | None = None
        try:
            self._referee = Referee(path)
        except UnjudgedError as reason:
            self._resign(str(reason))

    @property
    def trusted(self) -> bool:
        """Whether there is a truth to go by."""
        return self._referee is not None

    def of(self, index: int, *, needed: bool, values: Iterable[str] = ()) -> Answers | None:
        """Outputs, and ``values`` inside, for one set; None where there is no truth, or it is late and not needed."""
        if self._referee is None or (self._spent > PATIENCE and not needed):
            return None
        begun = time.monotonic()
        try:
            if index not in self._known:
                found = self._referee.run(self.inputs[index], list(values))
                self._check(index, found)
                self._known[index] = found
        except UnjudgedError as reason:
            self._resign(str(reason))
            return None
        self._spent += time.monotonic() - begun
        return self._known[index]

    def _check(self, index: int, exact: Answers) -> None:
        """Raise UnjudgedError where rounding does not explain how far the runtime is from ``exact``."""
        far = _furthest(self.answers[index], exact)
        if far <= self.tolerance:
            return
        self._rounding = self._rounding or Referee(self.path, exact=False)
        own = _furthest(self._rounding.run(self.inputs[index]), exact)
        self._explained = max(self._explained, own)
        if not far <= EXPLAINED * self._explained + self.tolerance:
            raise UnjudgedError(f"onnxruntime is {far:.1e} from it, of which rounding explains {own:.1e}")

    def _resign(self, reason: str) -> None:
        self._referee = None
        self._known.clear()
        self.notes.append(f"no judgement in float64, both are compared directly: {reason}")


def _furthest(answers: Answers, exact: Answers) -> float:
    floats = [name for name, answer in answers.items() if answer.dtype.kind == "f"]
    return max((error(answers[name], exact[name]) for name in floats), default=0.0)
