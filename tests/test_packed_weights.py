"""Folded models keep their packed weights, and never use those of other numbers."""

import copy
import gc

import numpy as np
import pytest

import fastbn
from fastbn import nn
from fastbn.functional import conv2d, conv2d_backward, conv_blocks, conv_point, packed_weights


@pytest.fixture
def packings(monkeypatch):
    """Counts how often weights are packed."""
    count = []
    for engine, name in (conv_blocks, "packed_panels"), (conv_point, "packed_matrix"):
        pack = getattr(engine, name)
        monkeypatch.setattr(engine, name, lambda *operands, pack=pack: count.append(1) or pack(*operands))
    return count


def network():
    fastbn.manual_seed(0)
    layers = nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 48, 1), nn.BatchNorm2d(48)
    return nn.Sequential(*layers).eval()


def image(seed=0):
    return np.random.default_rng(seed).standard_normal((2, 32, 9, 8)).astype(np.float32)


def read_only(weight):
    weight.flags.writeable = False
    return weight


def test_a_folded_model_packs_its_weights_once(packings):
    folded = fastbn.fold(network())
    first = folded(image())
    assert len(packings) == 2
    np.testing.assert_array_equal(folded(image()), first)
    folded(image(1))
    assert len(packings) == 2


def test_writeable_weights_are_packed_at_every_call(packings):
    weight = np.random.default_rng(0).standard_normal((32, 32, 3, 3)).astype(np.float32)
    before = conv2d(image(), weight)
    weight *= 2
    np.testing.assert_allclose(conv2d(image(), weight), 2 * before, rtol=1e-6)
    assert len(packings) == 2


@pytest.mark.parametrize(
    "change", [lambda model: model.train().eval(), lambda model: model.load_state_dict(model.state_dict())]
)
def test_what_changes_weights_makes_them_writeable(change):
    folded = fastbn.fold(network())
    before = folded(image())
    change(folded)
    for parameter in folded.parameters():
        parameter.data *= 2
    assert np.abs(folded(image()) - before).max() > 0.1
    again = copy.deepcopy(folded)
    np.testing.assert_array_equal(again(image()), folded(image()))


def test_loading_other_weights_is_seen():
    one, other = fastbn.fold(network()), fastbn.fold(network())
    for parameter in other.parameters():
        parameter.unlock()
        parameter.data *= -1
    one(image())
    one.load_state_dict(other.state_dict())
    np.testing.assert_array_equal(one(image()), other(image()))


def test_panels_go_with_their_weight():
    weight = read_only(np.random.default_rng(0).standard_normal((32, 32, 3, 3)).astype(np.float32))
    gc.collect()
    before = len(packed_weights._kept)
    conv2d(image(), weight)
    assert len(packed_weights._kept) == before + 1
    del weight
    gc.collect()
    assert len(packed_weights._kept) == before


def test_the_same_numbers_and_gradients_as_of_writeable_weights():
    weight = np.random.default_rng(0).standard_normal((32, 32, 3, 3)).astype(np.float32)
    locked = read_only(weight.copy())
    y = conv2d(image(), weight, padding=1)
    np.testing.assert_array_equal(conv2d(image(), locked, padding=1), y)
    for got, want in zip(
        conv2d_backward(y, image(), locked, padding=1), conv2d_backward(y, image(), weight, padding=1), strict=True
    ):
        np.testing.assert_array_equal(got, want)


def test_views_of_a_read_only_array_are_not_kept():
    many = read_only(np.random.default_rng(0).standard_normal((2, 32, 32, 3, 3)).astype(np.float32))
    before = len(packed_weights._kept)
    first, second = conv2d(image(), many[0]), conv2d(image(), many[1])
    assert len(packed_weights._kept) == before
    assert np.abs(first - second).max() > 0.1
