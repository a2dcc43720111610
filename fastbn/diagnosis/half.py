"""What a batch norm loses where its parameters are cast to float16, before or after folding.

float16 ends at 65,504; below 6e-5 its numbers lose digits, below 3e-8 they are 0.
``LOSS``: one part in a hundred, twenty times the rounding of a normal number.
"""

from collections.abc import Iterator

import numpy as np

from fastbn.diagnosis.channels import count
from fastbn.diagnosis.finding import Complaint
from fastbn.diagnosis.vitals import Vitals

LOSS = 1e-2


def half_complaint(vitals: Vitals, asked: np.ndarray) -> Iterator[Complaint]:
    """One, about the worst of what is cast, in the channels ``asked``."""
    losses = {role: np.where(asked, loss, 0.0) for role, loss in _losses(vitals)}
    role = max(losses, key=lambda name: float(losses[name].max()))
    lost = losses[role] > LOSS
    if lost.any():
        worst = min(float(losses[role].max()), 1.0)
        what = f"in float16 its {role} loses up to {worst:.2g} of its value in {count(lost)}"
        yield Complaint("note", "float16", what, worst)


def _losses(vitals: Vitals) -> Iterator[tuple[str, np.ndarray]]:
    """(C,) relative errors by what is cast; that of the shift is relative to gamma, the output's deviation."""
    gamma, variance, eps, scale = vitals.gamma, vitals.variance, vitals.eps, vitals.scale
    assert gamma is not None
    assert variance is not None
    assert eps is not None
    assert scale is not None
    with np.errstate(all="ignore"):
        yield "scale", _relative(_half(gamma) / np.sqrt(_half(variance) + eps) - scale, scale)
        yield "folded scale", _relative(_half(scale) - scale, scale)
        if vitals.mean is not None and vitals.beta is not None:
            shift = vitals.beta - vitals.mean * scale
            yield "folded bias", np.where(np.isfinite(shift), _relative(_half(shift) - shift, gamma), 0.0)
        if vitals.layer_weight is not None:
            folded = vitals.layer_weight * scale[:, None]
            size = _norm(folded)
            yield "folded weight", np.where(np.isfinite(size), _relative(_norm(_half(folded) - folded), size), 0.0)


def _half(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).astype(np.float64)


def _norm(rows: np.ndarray) -> np.ndarray:
    return np.sqrt((rows * rows).sum(axis=1))


def _relative(error: np.ndarray, size: np.ndarray) -> np.ndarray:
    """|error / size|, 0 where there is no error and 1 where it is not finite."""
    return np.where(error == 0, 0.0, np.nan_to_num(np.abs(error / size), nan=1.0, posinf=1.0))
