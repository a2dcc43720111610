"""How far apart two answers are, and which distances make two models the same network."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastbn.errors import ModelError

SLACK = 4.0  # the candidate may be this many times as far from float64 as the reference
FLOOR = 0.03  # of the first set's largest value: what an answer of nearly nothing is measured by

Array = np.ndarray


@dataclass(frozen=True)
class Comparison:
    """One output over all inputs: largest absolute difference, and largest relative to the largest value of its set.

    reference_error, candidate_error: the largest relative distances from the answer in float64, None where there is
    none. ok: every set of inputs passes, see ``compare``.
    """

    output: str
    max_abs: float
    max_rel: float
    ok: bool
    reference_error: float | None = None
    candidate_error: float | None = None


def compare(
    name: str, wanted: Sequence[Array], got: Sequence[Array], truths: Sequence[Array | None], tolerance: float
) -> Comparison:
    """Judge the candidate's answers ``got`` beside the reference's ``wanted``, one of each for every set of inputs.

    Where float64's answer is known, the candidate must be as near to it as the reference, within ``SLACK``, or within
    the tolerance; elsewhere both must agree within the tolerance. Distances are relative to the largest value of the
    set's own answer, at least ``FLOOR`` of the first set's. NaNs and infinities must be the same; integers equal, or
    as seldom unlike float64's as the reference's. Raises ModelError for another shape or for what is no number.
    """
    floor = 0.0
    absolute = [0.0]
    relative = [0.0]
    errors: list[tuple[float, float]] = []
    ok = True
    for index, (a, b, truth) in enumerate(zip(wanted, got, truths, strict=True)):
        _check(name, a, b)
        scale = _largest(a if truth is None else truth)
        if index == 0:
            floor = FLOOR * scale
        scale = max(scale, floor) or 1.0
        absolute.append(_distance(a, b))
        relative.append(absolute[-1] / scale)
        if truth is not None:
            errors.append((_distance(a, truth) / scale, _distance(b, truth) / scale))
        if a.dtype.kind != "f":
            ok &= _same_integers(a, b, truth)
        else:
            ok &= _same_specials(a, b, truth, tolerance * scale)
        if truth is None:
            ok &= relative[-1] <= tolerance
        elif a.dtype.kind == "f":
            ok &= errors[-1][1] <= max(SLACK * errors[-1][0], tolerance)
    of_reference, of_candidate = (max(pair) for pair in zip(*errors, strict=True)) if errors else (None, None)
    return Comparison(name, max(absolute), max(relative), bool(ok), of_reference, of_candidate)


def error(answer: Array, truth: Array) -> float:
    """The largest distance from ``truth``, relative to its largest value; infinite for another shape."""
    if answer.shape != truth.shape:
        return float("inf")
    return _distance(answer, truth) / (_largest(truth) or 1.0)


def _check(name: str, a: Array, b: Array) -> None:
    if a.shape != b.shape:
        raise ModelError(f"verify: output {name} must have shape {a.shape}, got {b.shape}")
    if a.dtype.kind not in "biuf" or b.dtype.kind not in "biuf":
        raise ModelError(f"verify: output {name} must be numbers, got {a.dtype} and {b.dtype}")


def _largest(a: Array) -> float:
    finite = np.abs(a[np.isfinite(a)].astype(np.float64))
    return float(finite.max(initial=0.0))


def _distance(a: Array, b: Array) -> float:
    """The largest absolute difference of what is finite in both."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    with np.errstate(over="ignore"):
        return float(np.abs(a[finite] - b[finite]).max(initial=0.0))


def _same_specials(a: Array, b: Array, truth: Array | None, tolerance: float) -> bool:
    """Whether NaNs and infinities are the same; where the reference overflows, the right number is as good."""
    special = ~(np.isfinite(a) & np.isfinite(b))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if truth is not None:
        with np.errstate(invalid="ignore"):
            same |= ~np.isfinite(a) & np.isfinite(b) & (np.abs(b - truth) <= tolerance)
    return bool(same[special].all())


def _same_integers(a: Array, b: Array, truth: Array | None) -> bool:
    if truth is None or truth.shape != a.shape:
        return bool(np.array_equal(a, b))
    unlike = int(np.count_nonzero(a != truth))
    return bool(np.array_equal(a, b)) or 0 < int(np.count_nonzero(b != truth)) <= SLACK * unlike
