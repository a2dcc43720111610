"""MNIST (LeCun et al. 1998): 60,000 + 10,000 digits of 28 x 28."""

import os
import warnings
from pathlib import Path

import numpy as np

from fastbn.data.dataset import Dataset, Split
from fastbn.data.idx import read_idx
from fastbn.errors import ModelError

MEAN, STD = 0.1307, 0.3081  # of the training pixels in [0, 1]

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def mnist(root: str | Path | None = None) -> Dataset:
    """MNIST from IDX files, gzipped or not, in ``root`` or ``$FASTBN_DATA/mnist``, else from OpenML.

    OpenML is asked through scikit-learn's ``fetch_openml``, which keeps a copy in its own cache.
    Raises ModelError if neither can be had.
    """
    if root is None and "FASTBN_DATA" in os.environ:
        root = Path(os.environ["FASTBN_DATA"]) / "mnist"
    if root is None:
        return _from_openml()
    return Dataset("mnist", *(_split(Path(root), *FILES[part]) for part in ("train", "test")))


def _split(root: Path, images_name: str, labels_name: str) -> Split:
    images, labels = (_read(root, name) for name in (images_name, labels_name))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ModelError(
            f"mnist: {root} must hold one label per image, got images {images.shape} and labels {labels.shape}"
        )
    return _normalised(images, labels)


def _read(root: Path, name: str) -> np.ndarray:
    for candidate in (root / name, root / f"{name}.gz"):
        if candidate.exists():
            return read_idx(candidate)
    raise ModelError(
        f"mnist: {root} must hold {name} or {name}.gz, got neither; set FASTBN_DATA to the folder above mnist/"
    )


def _from_openml() -> Dataset:
    try:
        from sklearn.datasets import fetch_openml
    except ImportError as error:
        raise ModelError(
            "mnist: scikit-learn must be installed to fetch MNIST, got none; pip install fastbn[data]"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its retries: the error below says it once
            pixels, labels = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False, parser="liac-arff")
    except Exception as error:
        raise ModelError(
            "mnist: IDX files must be in $FASTBN_DATA/mnist when OpenML cannot be reached, "
            f"got {type(error).__name__} from OpenML"
        ) from error
    images, labels = pixels.reshape(-1, 28, 28), labels.astype(np.int64)
    return Dataset("mnist", _normalised(images[:60000], labels[:60000]), _normalised(images[60000:], labels[60000:]))


def _normalised(images: np.ndarray, labels: np.ndarray) -> Split:
    scaled = (images[:, None].astype(np.float32) / 255.0 - MEAN) / STD
    return Split(np.ascontiguousarray(scaled, dtype=np.float32), labels.astype(np.int64))
