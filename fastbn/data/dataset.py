"""A data set for training: images and labels, split in two."""

from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """images: (N, C, H, W) float32, about mean 0 and deviation 1. labels: (N,) int64."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """What to train on, and what to judge by."""

    name: str
    train: Split
    test: Split
