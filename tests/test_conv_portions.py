"""The lists of pixels of the direct engine: every product that meets the image, once."""

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastbn.functional.conv_arguments import window_extent
from fastbn.functional.conv_geometry import Window, forward_planes
from fastbn.functional.conv_portions import WORTH, forward_portions, weight_portions
from fastbn.kernels.conv_panels import block_lanes

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
sizes = st.tuples(st.integers(1, 7), st.integers(1, 7))


def met(size, out, window, tap, count):
    """(rows, columns) of a task of ``count`` rows: whether a tap meets the image; above, below only if all."""
    places = [np.arange(out[i]) * window.stride[i] - window.padding[i] + tap[i] * window.dilation[i] for i in range(2)]
    rows, columns = ((place >= 0) & (place < length) for place, length in zip(places, size, strict=True))
    return (rows if count == out[0] else np.ones(count, bool))[:, None] & columns


@given(sizes, pairs, pairs, st.tuples(st.integers(0, 3), st.integers(0, 3)), pairs, st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_a_list_has_the_pixels_that_a_tap_brings_more_than_padding(size, kernel, stride, more, dilation, count):
    padding = tuple(d * (k - 1) // 2 + extra for d, k, extra in zip(dilation, kernel, more, strict=True))
    window = Window(kernel, stride, padding, dilation)
    out = tuple(window_extent(*axis) for axis in zip(size, kernel, stride, padding, dilation, strict=True))
    assume(min(out) >= 1)  # an even kernel may be larger than the image
    place = weight_portions((count, 64, *out), size, (64, 64, *kernel), window, 1, 4).place
    taps = [met(size, out, window, tap, place.rows) for tap in np.ndindex(kernel)]
    if np.mean(taps) > WORTH:
        taps = [np.ones((place.rows, out[1]), bool)]
    assert list(place.counts) == [pixels.sum() for pixels in taps]
    for which, pixels in enumerate(taps):
        number = place.images * place.counts[which]
        targets = place.targets.reshape(len(taps), -1)[which]
        wanted = np.flatnonzero(np.tile(pixels.reshape(-1), place.images))
        np.testing.assert_array_equal(targets[:number], wanted)
        assert (targets[number:] == place.images * pixels.size).all()


def test_places_are_those_of_the_planes(rng):
    window = Window((3, 3), (2, 1), (1, 2), (1, 1))
    x_shape, out = (4, 64, 5, 4), (3, 6)
    place = forward_portions(x_shape, (128, 64, 3, 3), out, window, 1, 4, None).place
    planes, lanes = forward_planes(1, (place.rows, out[1]), window), block_lanes(4)
    plane = planes.height * planes.width
    for targets, places in zip(place.targets.reshape(9, -1), place.places.reshape(9, -1), strict=True):
        image, pixel = np.divmod(targets[targets < place.images * place.rows * out[1]], place.rows * out[1])
        row, column = np.divmod(pixel, out[1])
        np.testing.assert_array_equal(places[: image.size], (image * plane + row * planes.width + column) * lanes)
