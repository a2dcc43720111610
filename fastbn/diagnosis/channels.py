"""Channels of a batch norm that are dead, explode or have a variance below eps; each is said once.

Where the lines are drawn, and why there:

- ``DEAD``: an output of so small a deviation beside neighbours of about 1 is lost in their rounding to float16, and is
  nearly always weight decay's doing.
- ``LARGE_GAMMA``, ``LARGE_SCALE``: outputs have gamma for their deviation, and networks that train keep it below 10.
  With eps 1e-5 the scale is at most 316 gamma.
- ``LARGE_VARIANCE``: a deviation of 1e4, whose values are beyond float16 from 7 deviations on.
- eps counts more than a variance below it: the output no longer has gamma for its deviation.
- ``HALF``: networks in good order have dead channels, and even those with a variance below eps compute what they were
  trained to. Fewer than half of a layer's are a note.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fastbn.diagnosis.finding import Complaint
from fastbn.diagnosis.vitals import Vitals

DEAD = 1e-4
LARGE_GAMMA = 100.0
LARGE_SCALE = 1e3
LARGE_VARIANCE = 1e8
HALF = 0.5
NAMED = 3  # channels that are named, of however many


@dataclass(frozen=True, eq=False)
class Channels:
    """Masks (C,) that do not overlap: no gamma, no variance, exploding by what does, variance below eps, all others."""

    dead: np.ndarray
    constant: np.ndarray
    exploding: dict[str, np.ndarray]
    below_eps: np.ndarray
    others: np.ndarray


def grouped(gamma: np.ndarray, variance: np.ndarray, eps: float, proper: np.ndarray) -> Channels:
    """The channels by what is wrong with them; those that are not ``proper`` may be dead at most."""
    spread = np.where(proper, variance, 1.0)
    size = np.abs(gamma)
    dead = size < DEAD
    left = ~dead & proper & np.isfinite(size)
    constant = left & (np.sqrt(spread / (spread + eps)) < DEAD)
    left &= ~constant
    exploding = {}
    for name, values, most in (
        ("gamma", size, LARGE_GAMMA),
        ("gamma / sqrt(variance + eps)", size / np.sqrt(spread + eps), LARGE_SCALE),
        ("the variance", spread, LARGE_VARIANCE),
    ):
        exploding[name] = left & (values > most)
        left &= ~exploding[name]
    below_eps = left & (spread < eps)
    return Channels(dead, constant, exploding, below_eps, left & ~below_eps)


def channel_complaints(vitals: Vitals, channels: Channels) -> Iterator[Complaint]:
    """One complaint for each group with anything in it."""
    gamma, variance, scale = vitals.gamma, vitals.variance, vitals.scale
    assert gamma is not None
    assert variance is not None
    assert scale is not None
    yield from dead_complaint(gamma)
    if channels.constant.any():
        most, up = variance[channels.constant].max(), np.abs(scale[channels.constant]).max()
        what = f"the variance is {_at_most(most)} in {count(channels.constant)}: the input is constant"
        yield Complaint(_by_share(channels.constant), "dead", f"{what}, and else scaled {up:.3g} times", float(most))
    for (name, mask), values in zip(channels.exploding.items(), (gamma, scale, variance), strict=True):
        if mask.any():
            worst = float(values[mask][np.abs(values[mask]).argmax()])
            yield Complaint("warning", "exploding", f"{name} reaches {worst:.3g} in {count(mask)}", worst)
    small = channels.below_eps
    if small.any():
        least, up = float(variance[small].min()), np.abs(scale[small]).max()
        what = f"the variance is down to {least:.3g}, below eps {vitals.eps:.3g}, in {count(small)}"
        yield Complaint(_by_share(small), "eps", f"{what}: the input is scaled up to {up:.3g} times", least)


def dead_complaint(gamma: np.ndarray) -> Iterator[Complaint]:
    """What can be said where nothing but gamma is known."""
    dead = np.abs(gamma) < DEAD
    if dead.any():
        most = float(np.abs(gamma[dead]).max())
        what = f"gamma is {_at_most(most)} in {count(dead)}: nothing of the input passes"
        yield Complaint(_by_share(dead), "dead", what, most)


def _by_share(channels: np.ndarray) -> str:
    return "note" if channels.mean() < HALF else "warning"


def _at_most(value: float) -> str:
    return f"at most {value:.3g}" if value else "0"


def count(channels: np.ndarray) -> str:
    """How many channels of a mask, and which are the first."""
    if channels.all():
        return f"all {channels.size} channels"
    first = ", ".join(str(index) for index in np.flatnonzero(channels)[:NAMED])
    more = ", ..." if channels.sum() > NAMED else ""
    return f"{int(channels.sum())} of {channels.size} channels ({first}{more})"
