"""The 1,797 digits that scikit-learn carries: 8 x 8 pixels, no download."""

import numpy as np

from fastbn._checks import check_int
from fastbn.data.dataset import Dataset, Split
from fastbn.errors import ModelError

TEST_SHARE = 5  # every fifth digit is kept for the test


def digits(size: int = 28) -> Dataset:
    """scikit-learn's digits, enlarged to ``size`` x ``size`` by linear interpolation; every fifth one is for testing.

    Raises ModelError where scikit-learn is not installed.
    """
    check_int("digits", "size", size, 1)
    try:
        from scipy.ndimage import zoom
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ModelError("digits: scikit-learn must be installed, got none; pip install fastbn[data]") from error
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8)
    large = zoom(images, (1, size / 8, size / 8), order=1, mode="nearest", grid_mode=True)
    scaled = ((large - images.mean()) / images.std())[:, None].astype(np.float32)
    held_out = np.arange(len(labels)) % TEST_SHARE == 0
    labels = labels.astype(np.int64)
    return Dataset("digits", Split(scaled[~held_out], labels[~held_out]), Split(scaled[held_out], labels[held_out]))
