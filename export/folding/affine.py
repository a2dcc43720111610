"""A map x -> scale x + shift with a pair of numbers for every index of one axis: a batch norm in inference."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Affine:
    """scale, shift: (C,) float64, C the length of ``axis``; (1,) with axis None: the same numbers everywhere."""

    scale: np.ndarray
    shift: np.ndarray
    axis: int | None

    @classmethod
    def of(cls, scale: np.ndarray, shift: np.ndarray, axis: int | None) -> "Affine":
        """Vectors on ``axis``; an affine that is the same for every index has no axis."""
        scale, shift = np.broadcast_arrays(scale, shift)
        if scale.size > 0 and (scale == scale[0]).all() and (shift == shift[0]).all():
            return cls(scale[:1], shift[:1], None)
        return cls(scale, shift, axis)

    @property
    def uniform(self) -> bool:
        """Whether it is one pair of numbers."""
        return self.axis is None

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
        if not self.uniform and not first.uniform and (self.axis != first.axis or self.scale.size != first.scale.size):
            return None
        axis = self.axis if first.uniform else first.axis
        return Affine.of(self.scale * first.scale, self.scale * first.shift + self.shift, axis)

    def on(self, axis: int) -> "Affine":
        """The same vectors on another axis."""
        return self if self.uniform else Affine(self.scale, self.shift, axis)

    def fits(self, axis: int, channels: int) -> bool:
        """Whether it can act on ``axis`` of length ``channels``."""
        return self.uniform or (self.axis == axis and self.scale.size == channels)

    def wide(self, channels: int) -> "tuple[np.ndarray, np.ndarray]":
        """Scale and shift as vectors of ``channels`` entries."""
        return np.broadcast_to(self.scale, channels), np.broadcast_to(self.shift, channels)

    def only_scale(self) -> "Affine":
        """x -> scale x."""
        return Affine.of(self.scale, np.zeros_like(self.shift), self.axis)

    def __str__(self) -> str:
        return "one number" if self.uniform else f"{self.scale.size} channels on axis {self.axis}"
