"""What is wrong with a batch norm, by its own figures.

Where the lines are drawn, and why there:

- ``LEFT``: an average that starts at 0 and 1 keeps (1 - momentum)^batches of that start; from 5 % on, 28 batches with
  momentum 0.1, it shows in the outputs of a channel whose variance is far from 1.
- ``LARGE_MOMENTUM``: above one half the last batch outweighs all the others together.
- ``GAP``, ``LARGE_GAP``: in deviations of the output. Trained networks have 0.01 to 0.2 on data that they have not
  seen; at 1 the two outputs differ by as much as they vary. ``NOISE`` / sqrt(n) of n samples is chance, twice the
  expected distance of the mean and the variance of n normal values, (3 / 2n)^(1/2).
"""

from collections.abc import Iterator

import numpy as np

from fastbn.diagnosis.channels import channel_complaints, count, dead_complaint, grouped
from fastbn.diagnosis.finding import Complaint
from fastbn.diagnosis.half import half_complaint
from fastbn.diagnosis.vitals import Vitals

LEFT = 0.05
LARGE_MOMENTUM = 0.5
GAP = 0.3
LARGE_GAP = 1.0
NOISE = 2.5


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
        after = "" if vitals.batches is None else f", num_batches_tracked {vitals.batches}"
        what = f"mean 0 and variance 1, the initial values, in {count(untouched)}{after}"
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
    gamma, proper = vitals.gamma, vitals.proper
    if gamma is None:
        return
    if proper is None or vitals.variance is None or vitals.eps is None or gamma.shape != proper.shape:
        yield from dead_complaint(gamma)
        return
    channels = grouped(gamma, vitals.variance, vitals.eps, proper)
    yield from channel_complaints(vitals, channels)
    yield from half_complaint(vitals, channels.others)


def _useless_bias(vitals: Vitals) -> Iterator[Complaint]:
    if vitals.layer_bias and not vitals.frozen:
        what = f"the layer before it has a bias, which the mean takes away again: {vitals.layer_bias:,} parameters"
        yield Complaint("note", "useless-bias", what, float(vitals.layer_bias))
