"""What can be seen from a batch norm's own figures.

Where the lines are drawn, and why there:

- ``LEFT``: an average that starts at 0 and 1 keeps (1 - momentum)^batches of that start; from 5 % on, 28 batches with
  momentum 0.1, it shows in the outputs of a channel whose variance is far from 1.
- ``LARGE_MOMENTUM``: above one half the last batch outweighs all the others together.
- ``DEAD``: an output of so small a deviation beside neighbours of about 1 is lost in their rounding to float16, and
  nearly always weight decay's doing.
- ``LARGE_GAMMA``, ``LARGE_SCALE``: outputs have gamma for their deviation, and networks that train keep it below 10. With
  eps 1e-5 the scale is at most 316 gamma.
- ``LARGE_VARIANCE``: a deviation of 1e4; values of 7 deviations are beyond float16 then, and what made them was exploding.
- ``eps`` counts more than the variance below it: the output no longer has gamma for its deviation.
- ``GAP``, ``LARGE_GAP``: in deviations of the output. Trained networks have 0.02 to 0.2 on data that they have not seen;
  at 1 the two outputs differ by as much as they vary. Of n samples ``NOISE`` / sqrt(n) is chance, twice the expected
  distance of a mean and a variance of n normal values, (3 / 2n)^(1/2).
- ``LOSS16``: one part in a hundred, twenty times the rounding of a normal number to float16.
- ``HALF``: networks that are in good order have dead channels, and even those with variances below eps compute what
  they were trained to. Fewer than half of a layer's are a note.
"""

from collections.abc import Iterator

import numpy as np

from fastbn.diagnosis.finding import Complaint
from fastbn.diagnosis.vitals import Vitals

LEFT = 0.05
LARGE_MOMENTUM = 0.5
DEAD = 1e-4
LARGE_GAMMA = 100.0
LARGE_SCALE = 1e3
LARGE_VARIANCE = 1e8
GAP = 0.3
LARGE_GAP = 1.0
NOISE = 2.5
LOSS16 = 1e-2
HALF = 0.5
NAMED = 3  # channels that are named, of however many


def complaints(vitals: Vitals) -> list[Complaint]:
    """Everything suspicious about one batch norm."""
    wrong = [*_not_finite(vitals), *_negative_variance(vitals), *_defaults(vitals)]
    found = [*wrong, *_momentum(vitals), *_channels(vitals), *_useless_bias(vitals)]
    return found if wrong else [*found, *_uncounted(vitals), *_gap(vitals)]


def _not_finite(vitals: Vitals) -> Iterator[Complaint]:
    for role, array in vitals.roles.items():
        broken = ~np.isfinite(array)
        if broken.any():
            yield Complaint("error", "not-finite", f"{role} is not finite in {count(broken)}", float(broken.sum()))


def _negative_variance(vitals: Vitals) -> Iterator[Complaint]:
    if vitals.proper is None or vitals.variance is None:
        return
    below = np.isfinite(vitals.variance) & ~vitals.proper
    if below.any():
        least = float(vitals.variance[below].min())
        what = f"the variance is {least:.3g}{'' if least else ', without eps,'} in {count(below)}"
        yield Complaint("error", "negative-variance", what, least)


def _defaults(vitals: Vitals) -> Iterator[Complaint]:
    if vitals.mean is None or vitals.variance is None or vitals.mean.shape != vitals.variance.shape:
        return
    untouched = (vitals.mean == 0) & (vitals.variance == 1)
    if untouched.any():
        after = "" if vitals.batches is None else f" after {_times(vitals.batches, 'batch')}"
        what = f"mean 0 and variance 1, the initial values, in {count(untouched)}{after}: never trained?"
        yield Complaint("error", "default-statistics", what, float(untouched.sum()))


def _uncounted(vitals: Vitals) -> Iterator[Complaint]:
    if vitals.batches == 0 and vitals.mean is not None:
        forgets = vitals.momentum is None and not vitals.frozen
        then = "; the next batch replaces them, because momentum is None" if forgets else ""
        what = f"its statistics are not the initial ones, but num_batches_tracked is 0{then}"
        yield Complaint("warning" if forgets else "note", "uncounted", what, 0.0)


def _momentum(vitals: Vitals) -> Iterator[Complaint]:
    momentum = vitals.momentum
    if vitals.frozen or momentum is None or 0 < momentum <= LARGE_MOMENTUM:
        return
    if momentum == 0:
        what = "momentum 0: its statistics never move"
    elif momentum == 1:
        what = "momentum 1: its statistics are those of the last batch alone"
    else:
        what = (
            f"momentum {momentum:g} is the weight of the new batch: where it was meant for the old value, as in Keras "
            f"and ONNX, it is {1 - momentum:.3g} here"
        )
    yield Complaint("warning", "momentum", what, momentum)


def _gap(vitals: Vitals) -> Iterator[Complaint]:
    """The gap between training and eval mode where it was measured, else what the count of batches makes likely."""
    gap, left = vitals.gap, _left(vitals)
    severity = "warning" if gap is None or gap < LARGE_GAP else "error"
    apart = "" if gap is None else f"batch statistics move its output by {gap:.3g} of its deviation"
    if gap is not None and gap <= max(GAP, NOISE / np.sqrt(vitals.samples)):
        return
    if left > LEFT and vitals.momentum is not None:
        what = f"{left:.0%} of its statistics are the initial values, (1 - {vitals.momentum:g})^{vitals.batches}"
        yield Complaint(severity, "stale-statistics", f"{what}; {apart}" if apart else what, left)
    elif gap is not None:
        yield Complaint(severity, "gap", apart, gap)


def _left(vitals: Vitals) -> float:
    """The share of the initial values; 0 where the variances show that they were set by other means."""
    if vitals.variance is None or not vitals.momentum or not vitals.batches:
        return 0.0
    left = (1 - vitals.momentum) ** vitals.batches
    return float(left) if (vitals.variance >= left * (1 - 1e-6)).all() else 0.0


def _channels(vitals: Vitals) -> Iterator[Complaint]:
    """Channels that are dead, explode, have a variance below eps, or are lost in float16; each is said once."""
    if vitals.gamma is None:
        return
    size = np.abs(vitals.gamma)
    dead = size < DEAD
    if dead.any():
        what = f"gamma is {_at_most(size[dead].max())} in {count(dead)}: nothing of the input passes"
        yield Complaint(_by_share(dead), "dead", what, float(size[dead].max()))
    scale, proper = vitals.scale, vitals.proper
    if scale is None or proper is None or vitals.variance is None or vitals.eps is None or dead.shape != proper.shape:
        return
    spread = np.where(proper, vitals.variance, 1.0)
    constant = ~dead & proper & (np.sqrt(spread / (spread + vitals.eps)) < DEAD)
    if constant.any():
        most, up = spread[constant].max(), np.abs(scale[constant]).max()
        what = f"the variance is {_at_most(most)} in {count(constant)}: a constant input, and {up:.3g} times what is not"
        yield Complaint(_by_share(constant), "dead", what, float(most))
    alive = ~dead & ~constant & np.isfinite(size)
    wild = np.zeros_like(alive)
    figures = (("gamma", size, LARGE_GAMMA), ("gamma / sqrt(variance + eps)", np.abs(scale), LARGE_SCALE))
    for name, values, most in (*figures, ("the variance", spread, LARGE_VARIANCE)):
        large = alive & ~wild & (values > most)
        wild |= large
        if large.any():
            worst = float(values[large].max())
            yield Complaint("warning", "exploding", f"{name} reaches {worst:.3g} in {count(large)}", worst)
    small = alive & ~wild & proper & (spread < vitals.eps)
    if small.any():
        least, up = spread[small].min(), np.abs(scale[small]).max()
        what = (
            f"the variance is down to {least:.3g}, below eps {vitals.eps:.3g}, in {count(small)}: the input hardly varies "
            f"and is scaled up to {up:.3g} times"
        )
        yield Complaint(_by_share(small), "eps", what, float(least))
    yield from _float16(vitals, scale, alive & ~wild & proper)


def _float16(vitals: Vitals, scale: np.ndarray, asked: np.ndarray) -> Iterator[Complaint]:
    """What the channels ``asked`` lose where parameters are cast to float16, before or after folding."""
    losses = {role: np.where(asked, loss, 0) for role, loss in _losses16(vitals, scale)}
    if not losses or not asked.any():
        return
    role = max(losses, key=lambda name: float(losses[name].max()))
    lost = losses[role] > LOSS16
    if lost.any():
        worst = float(losses[role].max())
        what = f"in float16 the {role} loses up to {min(worst, 1):.2g} of its value in {count(lost)}"
        yield Complaint("note", "float16", what, min(worst, 1.0))


def _losses16(vitals: Vitals, scale: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(C,) relative errors by what is cast; that of the shift is relative to gamma, the output's deviation."""
    assert vitals.gamma is not None
    assert vitals.variance is not None
    assert vitals.eps is not None
    with np.errstate(all="ignore"):
        apart = _half(vitals.gamma) / np.sqrt(_half(vitals.variance) + vitals.eps)
        yield "scale", _relative(apart - scale, scale)
        if vitals.mean is not None and vitals.beta is not None:
            shift = vitals.beta - vitals.mean * scale
            yield "folded bias", _relative(_half(shift) - shift, vitals.gamma)
        if vitals.layer_weight is not None:
            folded = vitals.layer_weight * scale[:, None]
            yield "folded weight", _relative(_norm(_half(folded) - folded), _norm(folded))


def _half(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).astype(np.float64)


def _norm(rows: np.ndarray) -> np.ndarray:
    return np.sqrt((rows * rows).sum(axis=1))


def _relative(error: np.ndarray, size: np.ndarray) -> np.ndarray:
    """|error / size|, 0 where there is no error and 1 where it is not finite."""
    return np.where(error == 0, 0.0, np.nan_to_num(np.abs(error / size), nan=1.0, posinf=1.0))


def _useless_bias(vitals: Vitals) -> Iterator[Complaint]:
    if vitals.layer_bias and not vitals.frozen:
        what = f"the layer before it has a bias, which the mean takes away again: {vitals.layer_bias:,} parameters"
        yield Complaint("note", "useless-bias", what, float(vitals.layer_bias))


def _by_share(channels: np.ndarray) -> str:
    return "note" if channels.mean() < HALF else "warning"


def _at_most(value: float) -> str:
    return f"at most {value:.3g}" if value else "0"


def _times(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 'es'}"


def count(channels: np.ndarray) -> str:
    """How many channels of a mask, and which are the first."""
    first = ", ".join(str(index) for index in np.flatnonzero(channels)[:NAMED])
    more = ", ..." if channels.sum() > NAMED else ""
    return f"{int(channels.sum())} of {channels.size} channels ({first}{more})"
