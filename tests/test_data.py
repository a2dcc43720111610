"""IDX files, scikit-learn's digits and MNIST: what is read, and what is refused in one sentence."""

import gzip
import struct
import sys

import numpy as np
import pytest

from fastbn import data
from fastbn.data.mnist import MEAN, STD
from fastbn.errors import ArgumentError, FastbnError, ModelError

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array):
    """An array as the bytes of an IDX file."""
    header = bytes([0, 0, CODES[array.dtype.str[1:]], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def assert_refused(read, *args):
    with pytest.raises(ModelError) as caught:
        read(*args)
    text = str(caught.value)
    assert "\n" not in text
    assert " must " in text
    assert " got " in text


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4), (0, 3), (1, 1, 1, 1, 2)])
@pytest.mark.parametrize("dtype", CODES)
def test_idx_files_are_read(dtype, shape, pack, path, rng):
    array = (100 * rng.normal(size=shape)).astype(dtype) if dtype != "u1" else rng.integers(0, 256, shape).astype(dtype)
    path.write_bytes(pack(idx(np.asarray(array))))
    got = data.read_idx(str(path))
    assert got.dtype.newbyteorder("=") == np.dtype(dtype)
    assert got.shape == shape
    np.testing.assert_array_equal(got, array)


PICTURES = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
BAD = {
    "empty": b"",
    "short": b"\0\0",
    "no sizes": PICTURES[:4],
    "half of the sizes": PICTURES[:9],
    "no values": PICTURES[:16],
    "one value short": PICTURES[:-1],
    "one value more": PICTURES + b"x",
    "wrong first bytes": b"\0\1" + PICTURES[2:],
    "wrong type": b"\0\0\x0a" + PICTURES[3:],
    "text": b"label,pixel1,pixel2\n5,0,0\n",
    "line break in the magic": b"\n\n\n\n" + PICTURES,
    "more axes than numpy has": bytes([0, 0, 8, 255]) + b"\0\0\0\1" * 255 + b"x",
    "sizes beyond memory": bytes([0, 0, 8, 3]) + b"\xff" * 12,
    "empty with sizes beyond memory": bytes([0, 0, 8, 4]) + bytes(4) + b"\xff" * 12,
    "gzip of nothing": gzip.compress(b""),
    "gzip of a short file": gzip.compress(PICTURES[:-1]),
    "gzip magic only": b"\x1f\x8b",
    "gzip with garbage": b"\x1f\x8b\x08\0garbage garbage garbage",
    "gzip cut off": gzip.compress(PICTURES)[:-5],
    "gzip with a wrong checksum": gzip.compress(PICTURES)[:-8] + bytes(8),
    "gzip with another method": b"\x1f\x8b\x07\0" + bytes(20),
}


@pytest.mark.parametrize("case", BAD)
def test_other_files_are_refused(case, path):
    path.write_bytes(BAD[case])
    assert_refused(data.read_idx, path)


def test_missing_files_and_folders_are_refused(tmp_path):
    assert_refused(data.read_idx, tmp_path / "none")
    assert_refused(data.read_idx, tmp_path)


# MNIST

NAMES = {
    "train images": "train-images-idx3-ubyte",
    "train labels": "train-labels-idx1-ubyte",
    "test images": "t10k-images-idx3-ubyte",
    "test labels": "t10k-labels-idx1-ubyte",
}


@pytest.fixture
def mnist_folder(tmp_path, rng):
    """$FASTBN_DATA/mnist with 5 + 3 pictures, half of the files gzipped; and the arrays."""
    arrays = {}
    folder = tmp_path / "mnist"
    folder.mkdir()
    for part, count in (("train", 5), ("test", 3)):
        arrays[f"{part} images"] = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        arrays[f"{part} labels"] = rng.integers(0, 10, count).astype(np.uint8)
        (folder / NAMES[f"{part} images"]).write_bytes(idx(arrays[f"{part} images"]))
        (folder / f"{NAMES[f'{part} labels']}.gz").write_bytes(gzip.compress(idx(arrays[f"{part} labels"])))
    return folder, arrays


@pytest.mark.parametrize("how", ["environment", "by name", "root", "root as text"])
def test_mnist_from_a_folder(how, mnist_folder, monkeypatch):
    folder, arrays = mnist_folder
    monkeypatch.delenv("FASTBN_DATA", raising=False)
    if how in ("environment", "by name"):
        monkeypatch.setenv("FASTBN_DATA", str(folder.parent))
        dataset = data.mnist() if how == "environment" else data.load("mnist")
    else:
        dataset = data.mnist(folder if how == "root" else str(folder))
    assert dataset.name == "mnist"
    for part in ("train", "test"):
        split = getattr(dataset, part)
        want = (arrays[f"{part} images"][:, None] / 255 - MEAN) / STD
        assert split.images.dtype == np.float32
        assert split.images.flags.c_contiguous
        assert split.images.flags.writeable
        np.testing.assert_allclose(split.images, want, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(split.labels, arrays[f"{part} labels"].astype(np.int64), strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_mnist_file_names_the_way_out(name, mnist_folder):
    folder, _ = mnist_folder
    for suffix in ("", ".gz"):
        (folder / (NAMES[name] + suffix)).unlink(missing_ok=True)
    with pytest.raises(ModelError, match=rf"must hold {NAMES[name]} or .*\.gz, got neither; set FASTBN_DATA to the"):
        data.mnist(folder)


def test_an_mnist_folder_that_is_not_there(tmp_path, monkeypatch):
    assert_refused(data.mnist, tmp_path / "none")
    monkeypatch.setenv("FASTBN_DATA", str(tmp_path / "none"))
    assert_refused(data.mnist)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("train labels.gz", np.zeros(4, np.uint8)),
        ("test labels.gz", np.zeros((3, 1), np.uint8)),
        ("train images", np.zeros((5, 784), np.uint8)),
        ("train images", np.zeros((5, 1, 28, 28), np.uint8)),
    ],
)
def test_pictures_and_labels_that_do_not_fit(name, array, mnist_folder):
    folder, _ = mnist_folder
    key, _, suffix = name.partition(".")
    content = idx(array)
    (folder / NAMES[key]).write_bytes(content)
    if suffix:
        (folder / f"{NAMES[key]}.gz").unlink()
    with pytest.raises(ModelError, match="must hold one label per image, got images"):
        data.mnist(folder)


def test_a_spoiled_mnist_file_is_refused(mnist_folder):
    folder, _ = mnist_folder
    (folder / f"{NAMES['train labels']}.gz").write_bytes(b"\x1f\x8bgarbage")
    assert_refused(data.mnist, folder)


def test_openml_is_asked_last_and_its_failure_names_the_way_out(monkeypatch):
    datasets = pytest.importorskip("sklearn.datasets")
    monkeypatch.delenv("FASTBN_DATA", raising=False)

    def fail(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "fetch_openml", fail)
    with pytest.raises(ModelError, match=r"must be in \$FASTBN_DATA/mnist .* got ConnectionError from OpenML$"):
        data.mnist()


def test_openmls_rows_become_two_splits(monkeypatch):
    datasets = pytest.importorskip("sklearn.datasets")
    monkeypatch.delenv("FASTBN_DATA", raising=False)
    pixels = np.zeros((60_003, 784), np.uint8)
    pixels[-1] = 255
    labels = np.array(["3"] * 60_000 + ["0", "1", "9"], dtype=object)
    monkeypatch.setattr(datasets, "fetch_openml", lambda *args, **kwargs: (pixels, labels))
    dataset = data.mnist()
    assert dataset.train.images.shape == (60_000, 1, 28, 28)
    assert dataset.test.images.shape == (3, 1, 28, 28)
    np.testing.assert_array_equal(dataset.test.labels, np.array([0, 1, 9]), strict=True)
    np.testing.assert_allclose(dataset.test.images[-1], (1 - MEAN) / STD, rtol=1e-5)


# Digits


def test_digits_are_split_and_normalised():
    pytest.importorskip("sklearn")
    dataset = data.load("digits")
    assert dataset.name == "digits"
    assert dataset.train.images.shape == (1437, 1, 28, 28)
    assert dataset.test.images.shape == (360, 1, 28, 28)
    for split in (dataset.train, dataset.test):
        assert split.images.dtype == np.float32
        assert split.images.flags.c_contiguous
        assert split.labels.shape == split.images.shape[:1]
        assert split.labels.dtype == np.int64
        assert set(split.labels) == set(range(10))
        assert abs(split.images.mean()) < 0.02
        assert abs(split.images.std() - 1) < 0.2  # interpolation smooths


def test_digits_in_their_own_size_are_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = datasets.load_digits(return_X_y=True)
    dataset = data.digits(8)
    want = ((pixels - pixels.mean()) / pixels.std()).reshape(-1, 1, 8, 8)
    test = np.arange(len(labels)) % 5 == 0
    np.testing.assert_allclose(dataset.test.images, want[test], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dataset.train.images, want[~test], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(dataset.test.labels, labels[test])
    np.testing.assert_array_equal(dataset.train.labels, labels[~test])


@pytest.mark.parametrize("size", [1, 10, 27, 32])
def test_digits_in_any_size(size):
    pytest.importorskip("sklearn")
    assert data.digits(size).test.images.shape == (360, 1, size, size)


@pytest.mark.parametrize("size", [0, -1, 2.5, "28"])
def test_sizes_that_make_no_sense(size):
    pytest.importorskip("sklearn")
    with pytest.raises(FastbnError, match="digits: size must be"):
        data.digits(size)


@pytest.mark.parametrize("module", ["sklearn.datasets", "scipy.ndimage"])
def test_without_scikit_learn_the_sentence_names_the_extra(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModelError, match=r"scikit-learn must be installed.* got none; pip install fastbn\[data\]"):
        data.digits()


def test_an_unknown_name():
    with pytest.raises(ArgumentError, match="data: name must be one of digits, mnist, got 'cifar'"):
        data.load("cifar")
