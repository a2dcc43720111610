"""Ghost batch norm: every virtual batch by itself, whatever is left over."""

import numpy as np
import pytest
from helpers import ORDERS, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbn
import fastbn.functional as F
from fastbn import nn
from fastbn.errors import ArgumentError, ShapeError
from fastbn.functional import norm_kernels

lightly = settings(deadline=None, max_examples=25, derandomize=True, database=None)


def draw(rng, shape, dtype=np.float32):
    x, dy = (2 * rng.standard_normal((2, *shape)) + 1).astype(dtype)
    weight, bias, mean = rng.standard_normal((3, shape[1])).astype(dtype)
    named = {"weight": weight, "bias": bias, "running_mean": mean}
    return x, dy, {**named, "running_var": rng.uniform(0.5, 9, shape[1]).astype(dtype)}


def by_parts(x, dy, bounds, named, **options):
    """Batch norm of the parts of x that end at ``bounds``: y, dx, dweight, dbias."""
    parts = zip(np.split(x, bounds), np.split(dy, bounds), strict=True)
    results = []
    for part, gradient in parts:
        y, saved = F.batch_norm_forward(part, **named, **options)
        results.append((y, *F.batch_norm_backward(gradient, saved)[:3]))
    y, dx, dweight, dbias = zip(*results, strict=True)
    return np.concatenate(y), np.concatenate(dx), sum(dweight), sum(dbias)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(10, 5, 4, 4), (10, 5, 3), (10, 5), (10, 3, 2, 2, 2)], ids=str)
@pytest.mark.parametrize(("size", "bounds"), [(4, [4, 8]), (5, [5]), (10, []), (99, []), (6, [6])])
def test_it_is_batch_norm_of_every_part(rng, shape, order, size, bounds):
    x, dy, named = draw(rng, shape)
    mine = {name: array.copy() for name, array in named.items()}
    want = by_parts(x, dy, bounds, named, relu=True, momentum=0.3)
    y, saved = F.ghost_batch_norm_forward(ORDERS[order](x), size, **mine, relu=True, momentum=0.3)
    for got, right in zip((y, *F.ghost_batch_norm_backward(ORDERS[order](dy), saved)), want, strict=True):
        assert_close(got, right, np.float32)
    assert y.strides == ORDERS[order](x).strides
    for name in ("running_mean", "running_var"):
        assert_close(mine[name], named[name], np.float32)
    assert_close(saved.mean, x.mean(axis=(0, *range(2, x.ndim))), np.float32)
    assert_close(saved.var, x.var(axis=(0, *range(2, x.ndim))), np.float32)


def test_a_last_value_by_itself_joins_the_virtual_batch_before_it(rng):
    x, dy, named = draw(rng, (9, 4))
    want = by_parts(x, dy, [4], named)
    y, saved = F.ghost_batch_norm_forward(x, 4, **named)
    assert_close(y, want[0], np.float32)
    assert saved.bounds == [0, 4, 9]
    image = F.ghost_batch_norm_forward(np.repeat(x[..., None], 2, axis=2), 4)[1]
    assert image.bounds == [0, 4, 8, 9]  # two values are a batch


@lightly
@given(st.integers(2, 20), st.integers(1, 25), st.integers(1, 3))
def test_virtual_batches_cover_the_batch(samples, size, positions):
    if size * positions == 1:
        size = 2
    x = np.random.default_rng(samples).standard_normal((samples, 2, positions))
    y, saved = F.ghost_batch_norm_forward(x, size, eps=0)
    assert saved.count == samples * positions
    for first, last in zip(saved.bounds, saved.bounds[1:], strict=False):
        assert size <= last - first <= size + 1 or last == samples
        assert np.abs(y[first:last].mean(axis=(0, 2))).max() < 1e-9


def test_what_is_streamed_is_decided_by_the_whole_batch(rng, monkeypatch):
    x, moved = rng.standard_normal((32, 16, 8, 8), np.float32), []
    monkeypatch.setattr(norm_kernels, "beyond_cache", lambda size: bool(moved.append(size)))
    y, saved = F.ghost_batch_norm_forward(x, 8)
    F.ghost_batch_norm_backward(y, saved)
    assert moved == [2 * x.nbytes] * 4 + [3 * x.nbytes] * 4


def test_a_momentum_for_each(rng):
    x, _, named = draw(rng, (6, 3))
    F.ghost_batch_norm(x, 3, **named, training=True, momentum=[1.0, 0.5])
    assert_close(named["running_mean"], (x[:3].mean(0) + x[3:].mean(0)) / 2, np.float32)


def test_out_and_eval_and_nothing(rng):
    x, dy, named = draw(rng, (7, 3, 4))
    want = F.ghost_batch_norm(x, 3, training=True)
    out = x.copy()
    assert F.ghost_batch_norm(out, 3, training=True, out=out) is out
    np.testing.assert_array_equal(out, want)
    _, saved = F.ghost_batch_norm_forward(x, 3)
    dx = dy.copy()
    assert F.ghost_batch_norm_backward(dx, saved, out=dx)[0] is dx
    np.testing.assert_array_equal(dx, F.ghost_batch_norm_backward(dy, saved)[0])
    np.testing.assert_array_equal(F.ghost_batch_norm(x, 3, **named), F.batch_norm(x, **named))
    empty, saved = F.ghost_batch_norm_forward(x[:0], 3, named["weight"])
    assert empty.shape == (0, 3, 4)
    np.testing.assert_array_equal(F.ghost_batch_norm_backward(empty, saved)[1], np.zeros(3))


@pytest.mark.parametrize(
    ("shape", "options", "error", "sentence"),
    [
        ((4, 3), {"virtual_batch_size": 1}, ShapeError,
         "ghost_batch_norm: every virtual batch must have more than 1 value per channel when training, got input size "
         "(4, 3) and virtual_batch_size 1"),
        ((4, 3), {"virtual_batch_size": 0}, ArgumentError,
         "ghost_batch_norm: virtual_batch_size must be at least 1, got 0"),
        ((4, 3), {"momentum": [0.1]}, ArgumentError,
         "ghost_batch_norm: momentum must have an entry for each of 2 virtual batches, got 1"),
    ],
)  # fmt: skip
def test_refusals(shape, options, error, sentence):
    with pytest.raises(error) as caught:
        F.ghost_batch_norm(np.ones(shape), **{"virtual_batch_size": 2, "training": True} | options)
    assert str(caught.value) == sentence


# The layer


KINDS = [
    (nn.GhostBatchNorm1d, nn.BatchNorm1d, (8, 3)),
    (nn.GhostBatchNorm2d, nn.BatchNorm2d, (7, 3, 5, 2)),
    (nn.GhostBatchNorm3d, nn.BatchNorm3d, (7, 3, 2, 3, 2)),
]


@pytest.mark.parametrize("momentum", [0.2, None])
@pytest.mark.parametrize(("ghost", "batch", "shape"), KINDS)
def test_layer(rng, ghost, batch, shape, momentum):
    x, dy, _ = draw(rng, shape)
    norm, plain = ghost(3, 4, momentum=momentum), batch(3, momentum=momentum)
    for _ in range(2):
        y = np.concatenate([plain(part) for part in np.split(x, [4])])
        assert_close(norm(x), y, np.float32)
    norm.backward(dy)
    for name, array in plain.state_dict().items():
        assert_close(norm.state_dict()[name], array, np.float32)
    assert norm.num_batches_tracked == 4
    assert_close(norm.eval()(x), plain.eval()(x), np.float32)
    norm.train().freeze()(x)
    assert norm.backward(dy).shape == shape


def test_default_size_and_statistics_estimated_anew(rng):
    norm, plain = nn.GhostBatchNorm1d(3, 2), nn.BatchNorm1d(3)
    assert nn.GhostBatchNorm1d(3).virtual_batch_size == 128
    batches = [draw(rng, (n, 3))[0] for n in (5, 4)]
    for layer in (norm, plain):
        fastbn.update_bn_stats(layer, batches)
        assert layer.num_batches_tracked == 2
    assert_close(norm.running_mean, plain.running_mean, np.float32)
    assert_close(norm.running_var, plain.running_var, np.float32)
    free = nn.GhostBatchNorm1d(3, 2, track_running_stats=False)
    assert_close(free(batches[1]), F.ghost_batch_norm(batches[1], 2, training=True), np.float32)
