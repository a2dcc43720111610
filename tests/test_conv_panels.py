"""Weights as panels, and back: every element in its place, zeros behind them, whatever is ragged."""

import numpy as np
import pytest

import fastbn
from fastbn._memory import aligned
from fastbn.functional import weight_panels
from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_portions import backward_portions
from fastbn.functional.weight_panels import Packing, packed_panels, places_of, unpacked
from fastbn.kernels.conv_panels import block_lanes, panel_columns

# groups, outputs, channels, taps: of a group
CASES = {
    "whole blocks": (1, 64, 32, 1),
    "whole blocks of windows": (1, 64, 32, 9),
    "ragged": (1, 40, 21, 1),
    "ragged windows": (1, 24, 19, 9),
    "groups": (3, 17, 16, 4),
    "single taps in groups": (2, 20, 33, 1),
    "taps beyond a vector": (1, 33, 17, 25),
    "many": (1, 160, 144, 9),
}


def whole(count, unit):
    return -(-count // unit) * unit


def laid_out(weight):
    """(groups, outputs, channels, taps) as panels (groups, panels, taps, channels, columns)."""
    groups, outputs, channels, taps = weight.shape
    columns = panel_columns(weight.itemsize)
    padded = np.zeros(
        (groups, whole(outputs, columns), whole(channels, block_lanes(weight.itemsize)), taps), weight.dtype
    )
    padded[:, :outputs, :channels] = weight
    return padded.reshape(groups, -1, columns, *padded.shape[2:]).transpose(0, 1, 4, 3, 2)


def strides_of(weight, turned):
    """Of groups, outputs and channels, in elements; turned: a gradient's, whose outputs are the channels."""
    _, outputs, channels, taps = weight.shape
    return (outputs * channels * taps, *((taps, channels * taps) if turned else (channels * taps, taps)))


@pytest.fixture(params=[1, 2])
def threads(request, monkeypatch):
    monkeypatch.setattr("fastbn._threads.MIN_PARALLEL_WORK", 0)
    monkeypatch.setattr("fastbn._threads._count", min(request.param, fastbn.get_num_threads()))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_every_weight_has_its_place(rng, threads, case, dtype, turned):
    weight = rng.standard_normal(CASES[case]).astype(dtype)
    want = laid_out(weight.swapaxes(1, 2) if turned else weight)[:, :, ::-1]
    groups, outputs, channels, taps = weight.swapaxes(1, 2).shape if turned else weight.shape
    places = places_of(np.arange(taps)[::-1], taps, channels, weight.itemsize)
    packing = Packing(strides_of(weight, turned), places, groups, outputs, channels)
    np.testing.assert_array_equal(packed_panels(weight, packing, want.size), want.reshape(-1))


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_back_again_as_the_sum_of_splits(rng, threads, case, dtype, splits):
    groups, outputs, channels, taps = CASES[case]
    parts = rng.integers(-9, 9, (splits, *CASES[case])).astype(dtype)
    panels = np.stack([laid_out(part) for part in parts])
    want = parts.sum(axis=0).reshape(groups * outputs, channels, taps)
    np.testing.assert_array_equal(unpacked(aligned(panels), splits, want.shape, groups, taps), want)


@pytest.mark.parametrize("taps", [1, 9])
def test_what_is_streamed_has_the_same_bits(rng, monkeypatch, taps):
    panels = rng.standard_normal((2, *laid_out(np.empty((1, 256, 160, taps), np.float32)).shape), np.float32)
    found = []
    for least in (0, 1 << 40):
        monkeypatch.setattr(weight_panels, "STREAMED_DWEIGHT", least)
        found.append(unpacked(panels, 2, (256, 160, taps), 1, taps))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("size", [(9, 8), (1, 8), (1, 1)], ids=str)
@pytest.mark.parametrize("window", [Window((3, 3), (2, 2), (1, 1), (1, 1)), Window((2, 3), (3, 2), (0, 1), (1, 1))])
def test_parts_of_a_strided_gradient_share_one_packing(rng, window, size):
    """Each part's panels hold its own taps, and all taps have a place of their own, those of no part too."""
    weight = rng.standard_normal((33, 18, *window.kernel), np.float32)
    (height, width), _, (pad_h, pad_w), _ = window
    rows, columns = ((n - 1) * step for n, step in zip(size, window.stride, strict=True))
    x_size = (max(1, rows + height - 2 * pad_h), max(1, columns + width - 2 * pad_w))
    packing, count, parts = backward_portions((2, 33, *size), (2, 18, *x_size), weight.shape, window, 1, 4, False)
    panels = packed_panels(weight, packing, count)
    assert np.unique(packing.places[0]).size == height * width
    want = laid_out(weight.reshape(1, 33, 18, -1).swapaxes(1, 2))
    for part in parts:
        begin, end = part.panels, part.panels + part.portions.panels
        taps = np.nonzero((begin <= packing.places[0]) & (packing.places[0] < end))[0]
        taps = taps[np.argsort(packing.places[0][taps])]
        np.testing.assert_array_equal(panels[begin:end], want[:, :, taps].reshape(-1))
