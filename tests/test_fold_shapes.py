"""Affine maps as algebra, and where their channels are behind a Reshape."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from export.folding.affine import Affine
from export.folding.shapes import carry

SETTINGS = hypothesis.settings(deadline=None, max_examples=200, derandomize=True)


def affine(scale, shift, axis):
    return Affine.of(np.array(scale, float), np.array(shift, float), axis)


def apply(affine, x):
    """``affine`` of an array."""
    shape = [1] * x.ndim
    for axis, size in zip(affine.axes, affine.scale.shape, strict=bool(affine.axes)):
        shape[axis] = size
    return affine.scale.reshape(shape) * x + affine.shift.reshape(shape)


def vectors(rng, channels):
    return rng.integers(-3, 4, channels).astype(float), rng.integers(-3, 4, channels).astype(float)


@st.composite
def reshapes(draw):
    """A shape, another of as many elements, an axis of the first, and a generator of numbers."""
    factors = draw(st.lists(st.sampled_from([1, 2, 2, 3, 5]), min_size=1, max_size=6))

    def grouped():
        cuts = sorted(draw(st.lists(st.integers(0, len(factors)), max_size=3)))
        parts = [factors[a:b] for a, b in zip([0, *cuts], [*cuts, len(factors)], strict=True)]
        return tuple(math.prod(part) for part in parts)

    source, target = grouped(), grouped()
    return source, target, draw(st.integers(0, len(source) - 1)), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))


@SETTINGS
@hypothesis.given(reshapes())
def test_carry_is_the_affine_of_the_reshaped_array(case):
    source, target, axis, rng = case
    one = Affine.of(*vectors(rng, source[axis]), axis)
    x = rng.standard_normal(source)
    moved = carry(one, source, target)
    np.testing.assert_array_equal(apply(moved, x.reshape(target)), apply(one, x).reshape(target))


@SETTINGS
@hypothesis.given(reshapes(), st.data())
def test_carry_with_unknown_lengths_is_right_where_it_answers(case, data):
    source, target, axis, rng = case
    one = Affine.of(*vectors(rng, source[axis]), axis)

    def hidden(shape):
        unknown = data.draw(st.sets(st.integers(0, len(shape) - 1), max_size=2))
        return tuple(None if index in unknown else size for index, size in enumerate(shape))

    moved = carry(one, hidden(source), hidden(target))
    if moved is not None:
        x = rng.standard_normal(source)
        np.testing.assert_array_equal(apply(moved, x.reshape(target)), apply(one, x).reshape(target))


@pytest.mark.parametrize(
    ("source", "target", "axis", "want"),
    [
        (("N", 3, 4, 4), ("N", 48), 1, ((1,), 48)),
        (("N", 3, 4, 4), (None, 48), 1, ((1,), 48)),
        (("B", "T", 3), (None, 3), 2, ((1,), 3)),
        ((None, 3), ("B", "T", 3), 1, ((2,), 3)),
        (("N", 3), ("N", 3, 1, 1), 1, ((1,), 3)),
        (("N", 3, 1, 1), ("N", 3), 1, ((1,), 3)),
        (("N", 3, "H", "W"), ("N", 3, None), 1, ((1,), 3)),
        (("N", 3, "H", "W"), ("N", None), 1, None),
        (("N", 3, 2), (None, 3), 1, None),
        ((3, "N"), ("N", 3), 0, None),
        (("N", "T", 3), ("T", "N", 3), 2, ((2,), 3)),
        (("N", 6), ("N", 2, 3), 1, ((1, 2), 6)),
        ((0, 3), (0, 3), 1, ((1,), 3)),
    ],
)
def test_carry_with_names_of_lengths(source, target, axis, want):
    moved = carry(affine([1, 2, 3, 4, 5, 6][: 6 if 6 in source else 3], 0, axis), source, target)
    assert (None if moved is None else (moved.axes, moved.scale.size)) == want


def test_channels_that_agree_pass_a_split_into_two_axes():
    moved = carry(affine([1, 1, 2, 2, 3, 3], 0, 1), ("N", 6), ("N", 3, 2))
    assert moved is not None
    assert moved.axes == (1,)
    np.testing.assert_array_equal(moved.scale, [1, 2, 3])


@SETTINGS
@hypothesis.given(st.integers(0, 2**32 - 1), st.sampled_from([None, 1]), st.sampled_from([None, 1]))
def test_after_is_composition(seed, first_axis, second_axis):
    rng = np.random.default_rng(seed)
    first, second = (Affine.of(*vectors(rng, 3 if axis else 1), axis) for axis in (first_axis, second_axis))
    x = rng.integers(-5, 5, (2, 3, 4)).astype(float)
    np.testing.assert_array_equal(apply(second.after(first), x), apply(second, apply(first, x)))


def test_after_on_another_axis_is_none():
    assert affine([1, 2], 0, 1).after(affine([1, 2], 0, 2)) is None
    assert affine([1, 2], 0, 1).after(affine([1, 2, 3], 0, 1)) is None
