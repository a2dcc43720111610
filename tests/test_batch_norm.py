"""Batch norm, forward: against the float64 twin, then memory, then the corners."""

import itertools

import numpy as np
import pytest
import reference
from helpers import ORDERS, assert_close, channels_last
from layouts import LAYOUTS, strided, unaligned

import fastbn.functional as F
from fastbn.errors import ArgumentError, ShapeError

DTYPES = [np.float32, np.float64]
SUBSETS = list(itertools.product([True, False], repeat=4))
SHAPES = {2: (7, 5), 3: (4, 5, 6), 4: (3, 5, 12, 8), 5: (2, 5, 3, 2, 4)}
# Images or positions that do not fill the last of several chunks, and rows that do not fill the last block.
CHUNKED = [(20, 2, 1000), (2, 3, 9000), (40, 3000), (11000, 3), (130, 2, 3, 3)]


def operands(rng, shape, dtype):
    """x, then running_mean, running_var, weight, bias."""
    x = rng.standard_normal(shape).astype(dtype)
    mean, weight, bias = rng.standard_normal((3, shape[1])).astype(dtype)
    return x, mean, rng.uniform(0.5, 2, shape[1]).astype(dtype), weight, bias


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward(rng, dtype, rank, order, training):
    x, mean, var, weight, bias = operands(rng, SHAPES[rank], dtype)
    x = ORDERS[order](x)
    before = x.copy()
    want = reference.batch_norm(x, mean, var, weight, bias, training)
    y = F.batch_norm(x, mean, var, weight, bias, training)
    assert (y.dtype, y.strides) == (dtype, x.strides)
    for got, wanted in zip((y, mean, var), want, strict=True):
        assert_close(got, wanted, dtype)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("given", SUBSETS, ids=lambda g: "".join("01"[b] for b in g))
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("order", ORDERS)
def test_weight_bias_residual_and_relu_are_each_optional(rng, order, training, given):
    x, mean, var, weight, bias = operands(rng, SHAPES[4], np.float32)
    residual = ORDERS[order](rng.standard_normal(x.shape).astype(np.float32))
    weight, bias, residual = (a if g else None for a, g in zip((weight, bias, residual), given[:3], strict=True))
    options = {"weight": weight, "bias": bias, "training": training, "residual": residual, "relu": given[3]}
    want, _, _ = reference.batch_norm(x, mean, var, **options)
    assert_close(F.batch_norm(ORDERS[order](x), mean, var, **options), want, np.float32)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", CHUNKED, ids=str)
def test_statistics_of_many_chunks(rng, shape, order):
    x = ORDERS[order](rng.standard_normal(shape) + rng.standard_normal((1, shape[1]) + (1,) * (len(shape) - 2)))
    mean, var = np.zeros(shape[1]), np.ones(shape[1])
    want = reference.batch_norm(x, mean, var, training=True)
    y = F.batch_norm(x, mean, var, training=True)
    for got, wanted in zip((y, mean, var), want, strict=True):
        assert_close(got, wanted, np.float64)


@pytest.mark.parametrize("momentum", [0, 0.25, 1.0])
def test_momentum_is_the_weight_of_the_new_batch_and_the_variance_is_unbiased(rng, momentum):
    x = rng.standard_normal((6, 3, 5))
    mean, var = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])
    want_mean = (1 - momentum) * mean + momentum * x.mean(axis=(0, 2))
    want_var = (1 - momentum) * var + momentum * x.var(axis=(0, 2), ddof=1)
    F.batch_norm(x, mean, var, training=True, momentum=momentum)
    assert_close(mean, want_mean, np.float64)
    assert_close(var, want_var, np.float64)


def test_evaluation_leaves_the_running_statistics(rng):
    x, mean, var, _, _ = operands(rng, (4, 3), np.float64)
    kept = mean.copy(), var.copy()
    F.batch_norm(x, mean, var)
    np.testing.assert_array_equal((mean, var), kept)


def test_training_does_not_read_the_running_statistics(rng):
    x, mean, var, _, _ = operands(rng, (4, 3), np.float64)
    np.testing.assert_array_equal(F.batch_norm(x, training=True), F.batch_norm(x, mean, var, training=True))


def test_statistics_and_parameters_may_be_wider_than_x(rng):
    x, mean, var, weight, bias = operands(rng, (6, 3, 4), np.float64)
    small = x.astype(np.float32)
    want, want_mean, want_var = reference.batch_norm(small, mean, var, weight, bias, training=True)
    y = F.batch_norm(small, mean, var, weight, bias, training=True)
    assert y.dtype == np.float32
    assert_close(y, want, np.float32)
    np.testing.assert_allclose(mean, want_mean, rtol=1e-7)
    np.testing.assert_allclose(var, want_var, rtol=1e-7)


def test_saved_holds_the_biased_moments(rng):
    x = rng.standard_normal((4, 3, 5))
    _, saved = F.batch_norm_forward(x)
    assert saved.count == 20
    assert_close(saved.mean, x.mean(axis=(0, 2)), np.float64)
    assert_close(saved.var, x.var(axis=(0, 2)), np.float64)


# Memory


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same_values(rng, layout, training):
    x, mean, var, weight, bias = operands(rng, SHAPES[4], np.float32)
    residual = rng.standard_normal(x.shape).astype(np.float32)
    want, _, _ = reference.batch_norm(x, mean, var, weight, bias, training, residual=residual)
    lying = LAYOUTS[layout]
    y = F.batch_norm(lying(x), mean, var, weight, bias, training, residual=lying(residual))
    assert y.dtype.isnative
    assert y.flags.aligned
    assert y.flags.writeable
    assert_close(y, want, np.float32)


@pytest.mark.parametrize("layout", [strided, unaligned])
def test_parameters_and_statistics_of_any_layout(rng, layout):
    x, *vectors = operands(rng, SHAPES[4], np.float32)
    want, want_mean, want_var = reference.batch_norm(x, *vectors, training=True)
    mean, var, weight, bias = map(layout, vectors)
    assert_close(F.batch_norm(x, mean, var, weight, bias, training=True), want, np.float32)
    assert_close(mean, want_mean, np.float32)
    assert_close(var, want_var, np.float32)


@pytest.mark.parametrize("residual_order", ORDERS)
@pytest.mark.parametrize("order", ORDERS)
def test_residual_may_lie_in_the_other_order(rng, order, residual_order):
    x, residual = rng.standard_normal((2, *SHAPES[4]))
    want, _, _ = reference.batch_norm(x, training=True, residual=residual, relu=True)
    y = F.batch_norm(ORDERS[order](x), training=True, residual=ORDERS[residual_order](residual), relu=True)
    assert_close(y, want, np.float64)


@pytest.mark.parametrize("target", ["new", "x", "residual"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rank", SHAPES)
def test_out_is_written_and_returned(rng, rank, order, training, target):
    x, mean, var, weight, bias = operands(rng, SHAPES[rank], np.float64)
    residual = rng.standard_normal(x.shape)
    want, _, _ = reference.batch_norm(x, mean, var, weight, bias, training, residual=residual, relu=True)
    x, residual = ORDERS[order](x), ORDERS[order](residual)
    out = {"new": np.full_like(x, np.nan), "x": x, "residual": residual}[target]
    y = F.batch_norm(x, mean, var, weight, bias, training, residual=residual, relu=True, out=out)
    assert y is out
    assert_close(out, want, np.float64)


def test_out_unaligned_is_written_or_refused(rng):
    x = rng.standard_normal((4, 3, 5))
    out = unaligned(np.zeros_like(x))
    try:
        F.batch_norm(x, training=True, out=out)
    except ArgumentError:
        return
    assert_close(out, reference.batch_norm(x, training=True)[0], np.float64)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: channels_last(np.empty_like(x)),
        lambda x: strided(np.empty_like(x)),
        lambda x: np.asfortranarray(np.empty_like(x)),
        lambda x: np.empty(x.size + 3)[3:].reshape(x.shape)[::-1],
    ],
)
def test_out_in_another_memory_order_is_refused(rng, wrong):
    x = rng.standard_normal((3, 4, 5, 2))
    with pytest.raises(ArgumentError, match="dense in the memory order of x"):
        F.batch_norm(x, training=True, out=wrong(x))


@pytest.mark.parametrize("name", ["x", "residual"])
def test_out_overlapping_an_operand_in_part_is_refused(name):
    memory = np.zeros(70)
    overlapped = {"x": np.ones((4, 3, 5)), "residual": np.ones((4, 3, 5)), name: memory[:60].reshape(4, 3, 5)}
    with pytest.raises(ArgumentError, match=f"out must be {name} itself or apart from it"):
        F.batch_norm(**overlapped, training=True, out=memory[10:].reshape(4, 3, 5))


def test_forward_for_a_backward_pass_refuses_to_overwrite_x(rng):
    """``saved`` refers to x: a gradient from an overwritten one is silently wrong."""
    x = rng.standard_normal((4, 3, 5))
    with pytest.raises(ArgumentError, match="out must be apart from x"):
        F.batch_norm_forward(x, out=x)


# Corners


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (0, 3, 4, 4), (2, 3, 0), (0, 3, 0, 2)], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_an_empty_batch_is_empty_and_leaves_the_statistics(order, shape):
    x = ORDERS[order](np.zeros(shape, np.float32))
    mean, var = np.full(3, 2, np.float32), np.full(3, 3, np.float32)
    for training in (True, False):
        y = F.batch_norm(x, mean, var, training=training, residual=x, relu=True)
        assert (y.shape, y.dtype) == (shape, np.float32)
    np.testing.assert_array_equal(mean, np.full(3, 2))
    np.testing.assert_array_equal(var, np.full(3, 3))


@pytest.mark.parametrize("shape", [(4, 0), (4, 0, 3)], ids=str)
def test_no_channels(shape):
    assert F.batch_norm(np.zeros(shape), training=True).shape == shape


@pytest.mark.parametrize("shape", [(9, 1), (4, 1, 6), (3, 1, 4, 5), (1, 5, 4, 3), (1, 1, 7, 2), (6, 4, 1, 1)], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_one_channel_one_image_one_pixel(rng, order, shape):
    x = ORDERS[order](rng.standard_normal(shape))
    assert_close(F.batch_norm(x, training=True), reference.batch_norm(x, training=True)[0], np.float64)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (1, 3, 1, 1), (1, 3, 1, 1, 1)], ids=str)
def test_one_value_per_channel_has_no_variance(shape):
    mean, var = np.zeros(3), np.ones(3)
    with pytest.raises(ShapeError, match="more than 1 value per channel"):
        F.batch_norm(np.ones(shape), mean, var, training=True)
    np.testing.assert_array_equal((mean, var), (np.zeros(3), np.ones(3)))
    np.testing.assert_array_equal(F.batch_norm(np.ones(shape), np.ones(3), np.ones(3)), np.zeros(shape))


@pytest.mark.parametrize("eps", [1e-5, 0.0])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 3), (3, 3, 5), (2, 3, 9000)], ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_channel_gives_exactly_the_bias(rng, dtype, order, shape, training, eps):
    value, weight, bias = np.array([[0.1, -1e4 / 3, 1e20], [2, -3, 1e-3], [0.3, 1e5, -7]], dtype)
    x = ORDERS[order](np.broadcast_to(value.reshape(3, *(1,) * (len(shape) - 2)), shape).copy())
    y = F.batch_norm(x, value.copy(), np.zeros(3, dtype), weight, bias, training, eps=eps)
    np.testing.assert_array_equal(y, np.broadcast_to(bias.reshape(3, *(1,) * (len(shape) - 2)), shape))


@pytest.mark.parametrize("shape", [(40, 3), (4, 3, 50)], ids=str)
@pytest.mark.parametrize("scale", [1e-18, 1e18, 1e30])
def test_huge_and_tiny_values_neither_overflow_nor_vanish(rng, shape, scale):
    x = (rng.standard_normal(shape) * scale).astype(np.float32)
    assert_close(F.batch_norm(x, training=True, eps=0), reference.batch_norm(x, training=True, eps=0)[0], np.float32)


@pytest.mark.parametrize("shape", [(6, 2), (6, 2, 4)], ids=str)
def test_values_at_both_ends_of_float32(shape):
    x = np.full(shape, 3e38, np.float32)
    x[::2] *= -1
    np.testing.assert_allclose(F.batch_norm(x, training=True), np.sign(x), rtol=1e-6)


@pytest.mark.parametrize(("mean", "std"), [(100, 0.01), (1e4, 1)])
@pytest.mark.parametrize("shape", [(3000, 3), (8, 3, 40, 30)], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_float32_far_from_zero(rng, order, shape, mean, std):
    x = ORDERS[order]((mean + std * rng.standard_normal(shape)).astype(np.float32))
    running = np.zeros(3, np.float32), np.ones(3, np.float32)
    y, want_mean, want_var = reference.batch_norm(x, *running, training=True, momentum=1)
    assert_close(F.batch_norm(x, *running, training=True, momentum=1), y, np.float32)
    np.testing.assert_allclose(running[0], want_mean, rtol=1e-7)
    np.testing.assert_allclose(running[1], want_var, rtol=1e-6)


def test_float32_evaluation_far_from_zero(rng):
    """A running mean that float32 cannot hold is not rounded away."""
    x = (1e4 + rng.standard_normal((50, 3, 4))).astype(np.float32)
    mean, var = np.full(3, 1e4 + 1 / 3), np.full(3, 1e-2)
    assert_close(F.batch_norm(x, mean, var), reference.batch_norm(x, mean, var)[0], np.float32, scale=10)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5), (4, 3, 5, 2)], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_training_nan_and_inf_spoil_their_channel_only(rng, order, shape, place, bad):
    x = rng.standard_normal(shape).astype(np.float32)
    want = F.batch_norm(ORDERS[order](x), training=True, residual=x, relu=True)
    x_bad = x.copy()
    x_bad[(place, 1)] = bad
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
    y = F.batch_norm(ORDERS[order](x_bad), mean, var, training=True, residual=x, relu=True)
    assert np.isnan(y[:, 1]).all()
    np.testing.assert_array_equal(y[:, ::2], want[:, ::2])
    np.testing.assert_array_equal(np.isfinite(mean), [True, False, True])
    np.testing.assert_array_equal(np.isfinite(var), [True, False, True])


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("where", ["x", "residual"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5), (4, 3, 5, 2)], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_evaluation_nan_and_inf_stay_in_their_place(rng, order, shape, bad, where, relu):
    arrays = dict(zip(("x", "residual"), rng.standard_normal((2, *shape)).astype(np.float32), strict=True))

    def forward():
        x, residual = ORDERS[order](arrays["x"]), ORDERS[order](arrays["residual"])
        return F.batch_norm(x, np.zeros(3, np.float32), np.ones(3, np.float32), residual=residual, relu=relu)

    want = forward()
    place = (1, 1, *(2, 1)[: len(shape) - 2])
    arrays[where][place] = want[place] = bad
    np.testing.assert_array_equal(forward(), want)


@pytest.mark.parametrize("bad", ["running_mean", "running_var", "weight", "bias"])
def test_a_nan_parameter_spoils_its_channel_only(rng, bad):
    x, *vectors = operands(rng, SHAPES[4], np.float32)
    named = dict(zip(("running_mean", "running_var", "weight", "bias"), vectors, strict=True))
    named[bad][2] = np.nan
    y = F.batch_norm(x, **named, relu=True)
    np.testing.assert_array_equal(np.isnan(y).all(axis=(0, 2, 3)), [False, False, True, False, False])
    assert np.isfinite(y[:, [0, 1, 3, 4]]).all()


@pytest.mark.parametrize("training", [True, False])
def test_a_negative_running_variance_names_its_channel(rng, training):
    x, mean, var, _, _ = operands(rng, (4, 3), np.float32)
    var[2] = -0.5
    with pytest.raises(ArgumentError, match=r"running_var must not be negative, got -0\.5 in channel 2"):
        F.batch_norm(x, mean, var, training=training)
