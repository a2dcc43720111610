"""A map x -> scale x + shift with a pair of numbers for every index of one axis: a batch norm in inference."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Affine:
    """scale, shift: float64, one axis for each of ``axes``, which ascend; (1,) without axes: the same everywhere.

    A batch norm has one axis. More than one appear on the way through a Reshape that splits the channels.
    """

    scale: np.ndarray
    shift: np.ndarray
    axes: tuple[int, ...]

    @classmethod
    def of(cls, scale: np.ndarray, shift: np.ndarray, axis: int | None) -> "Affine":
        """Vectors on ``axis``."""
        return cls.over(scale, shift, () if axis is None else (axis,))

    @classmethod
    def over(cls, scale: np.ndarray, shift: np.ndarray, axes: Sequence[int]) -> "Affine":
        """Arrays over ``axes``, of which those that make no difference are dropped."""
        both = np.stack(np.broadcast_arrays(scale, shift))
        kept: list[int] = []
        for axis in axes:
            place = 1 + len(kept)
            first = both.take(range(min(1, both.shape[place])), place)
            if first.size and (both == first).all():
                both = first.squeeze(place)
            else:
                kept.append(axis)
        if not kept:
            both = both.reshape(2, 1)
        return cls(both[0], both[1], tuple(kept))

    @property
    def axis(self) -> int | None:
        """The axis of an affine that has one, None for none."""
        return self.axes[0] if self.axes else None

    @property
    def uniform(self) -> bool:
        """Whether it is one pair of numbers."""
        return not self.axes

    @property
    def identity(self) -> bool:
        """Whether it changes nothing."""
        return bool((self.scale == 1).all() and (self.shift == 0).all())

    @property
    def linear(self) -> bool:
        """Whether it maps zero to zero."""
        return bool((self.shift == 0).all())

    def after(self, first: "Affine") -> "Affine | None":
        """``first``, then this one; None where they live on different axes."""
        if (
            not self.uniform
            and not first.uniform
            and (self.axes != first.axes or self.scale.shape != first.scale.shape)
        ):
            return None
        axes = self.axes if first.uniform else first.axes
        return Affine.over(self.scale * first.scale, self.scale * first.shift + self.shift, axes)

    def on(self, *axes: int) -> "Affine":
        """The same numbers on other axes, in the order of the old ones."""
        order = sorted(range(len(axes)), key=axes.__getitem__)
        if self.uniform:
            return self
        return Affine(self.scale.transpose(order), self.shift.transpose(order), tuple(axes[place] for place in order))

    def fits(self, axis: int, channels: int) -> bool:
        """Whether it can act on ``axis`` of length ``channels``."""
        return self.uniform or (self.axes == (axis,) and self.scale.size == channels)

    def wide(self, channels: int) -> "tuple[np.ndarray, np.ndarray]":
        """Scale and shift as vectors of ``channels`` entries."""
        return np.broadcast_to(self.scale, channels), np.broadcast_to(self.shift, channels)

    def only_scale(self) -> "Affine":
        """x -> scale x."""
        return Affine.over(self.scale, np.zeros_like(self.shift), self.axes)

    def __str__(self) -> str:
        if self.uniform:
            return "one number"
        where = " and ".join(str(axis) for axis in self.axes)
        return f"{self.scale.size} channels on {'axis' if len(self.axes) == 1 else 'axes'} {where}"
