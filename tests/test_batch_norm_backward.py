"""Batch norm, backward: against the float64 twin, finite differences and torch, then memory and corners."""

import itertools

import numpy as np
import pytest
import reference
from helpers import ORDERS, assert_close, channels_last
from layouts import LAYOUTS, strided, unaligned

import fastbn.functional as F
from fastbn.errors import ArgumentError

DTYPES = [np.float32, np.float64]
SUBSETS = list(itertools.product([True, False], repeat=4))
SHAPES = {2: (7, 5), 3: (4, 5, 6), 4: (3, 5, 12, 8), 5: (2, 5, 3, 2, 4)}
NAMES = ("weight", "bias", "residual")


def operands(rng, shape, dtype):
    """dy, x, and by name: weight, bias, residual, running_mean, running_var."""
    dy, x, residual = rng.standard_normal((3, *shape)).astype(dtype)
    weight, bias, mean = rng.standard_normal((3, shape[1])).astype(dtype)
    var = rng.uniform(0.5, 2, shape[1]).astype(dtype)
    return dy, x, {"weight": weight, "bias": bias, "residual": residual, "running_mean": mean, "running_var": var}


def frozen_or_not(named, frozen):
    """Operands for the library, for which running statistics are used in place of the batch's where it is frozen."""
    statistics = {name: named[name].copy() for name in ("running_mean", "running_var")} if frozen else {}
    return {**{name: named[name] for name in NAMES}, **statistics}


def check(got, want, dtype, given=(True, True, True)):
    np.testing.assert_equal([a is not None for a in got], [True, *given])
    for a, b in zip(got, want, strict=True):
        if a is not None:
            assert a.dtype == dtype
            assert_close(a, b, dtype)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward(rng, dtype, rank, order, frozen):
    dy, x, named = operands(rng, SHAPES[rank], dtype)
    dy, x = ORDERS[order](dy), ORDERS[order](x)
    kept = dy.copy(), x.copy()
    options = frozen_or_not(named, frozen)
    want = reference.batch_norm_backward(dy, x, **options, relu=True)
    _, saved = F.batch_norm_forward(x, **options, relu=True, training=not frozen)
    got = F.batch_norm_backward(dy, saved)
    check(got, want, dtype)
    assert got[0].strides == got[3].strides == x.strides
    np.testing.assert_array_equal((dy, x), kept)


@pytest.mark.parametrize("given", SUBSETS, ids=lambda g: "".join("01"[b] for b in g))
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_what_was_not_given_has_no_gradient(rng, order, frozen, given):
    dy, x, named = operands(rng, SHAPES[4], np.float32)
    *given, relu = given
    options = frozen_or_not(named, frozen) | {n: None for n, g in zip(NAMES, given, strict=True) if not g}
    want = reference.batch_norm_backward(dy, x, **options, relu=relu)
    _, saved = F.batch_norm_forward(ORDERS[order](x), **options, relu=relu, training=not frozen)
    check(F.batch_norm_backward(ORDERS[order](dy), saved), want, np.float32, given)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(20, 2, 1000), (2, 3, 9000), (40, 3000), (11000, 3), (130, 2, 3, 3)], ids=str)
def test_sums_over_many_chunks(rng, shape, order):
    dy, x, named = operands(rng, shape, np.float64)
    weight, bias = named["weight"], named["bias"]
    want = reference.batch_norm_backward(dy, x, weight, bias, relu=True)
    _, saved = F.batch_norm_forward(ORDERS[order](x), weight, bias, relu=True)
    check(F.batch_norm_backward(ORDERS[order](dy), saved), want, np.float64, (True, True, False))


@pytest.mark.parametrize("shape", [(5, 2), (3, 2, 4), (2, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("frozen", [False, True])
def test_finite_differences(rng, frozen, shape):
    dy, x, named = operands(rng, shape, np.float64)
    options = frozen_or_not(named, frozen)

    def forward(**changed):
        statistics = {k: v.copy() for k, v in options.items() if k.startswith("running")}
        return F.batch_norm_forward(**{"x": x} | options | statistics | changed, relu=True, training=not frozen)

    gradients = F.batch_norm_backward(dy, forward()[1])
    for name, gradient in zip(("x", *NAMES), gradients, strict=True):
        point = x if name == "x" else options[name]
        numerical = reference.numerical_gradient(lambda value, name=name: forward(**{name: value})[0], point, dy)
        np.testing.assert_allclose(gradient, numerical, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("rank", SHAPES)
def test_torch_agrees(rng, rank, frozen):
    torch = pytest.importorskip("torch")
    dy, x, named = operands(rng, SHAPES[rank], np.float64)
    tensors = {name: torch.tensor(named[name]) for name in named} | {"x": torch.tensor(x)}
    wanted = [tensors[name].requires_grad_() for name in ("x", *NAMES)]
    statistics = tensors["running_mean"], tensors["running_var"]
    y = torch.nn.functional.batch_norm(
        tensors["x"], *statistics, tensors["weight"], tensors["bias"], training=not frozen, momentum=0.3
    )
    y = torch.relu(y + tensors["residual"])
    y.backward(torch.tensor(dy))
    got, saved = F.batch_norm_forward(x, **named, relu=True, training=not frozen, momentum=0.3)
    assert_close(got, y.detach().numpy(), np.float64)
    for statistic, tensor in zip((named["running_mean"], named["running_var"]), statistics, strict=True):
        assert_close(statistic, tensor.numpy(), np.float64)
    check(F.batch_norm_backward(dy, saved), [tensor.grad.numpy() for tensor in wanted], np.float64)


def test_gradients_of_wider_parameters_are_as_wide(rng):
    dy, x, named = operands(rng, (4, 3, 5), np.float64)
    dy, x = dy.astype(np.float32), x.astype(np.float32)
    _, saved = F.batch_norm_forward(x, named["weight"], named["bias"])
    dx, dweight, dbias, _ = F.batch_norm_backward(dy, saved)
    want = reference.batch_norm_backward(dy, x, named["weight"], named["bias"])
    assert [a.dtype for a in (dx, dweight, dbias)] == [np.float32, np.float64, np.float64]
    assert_close(dx, want[0], np.float32)
    np.testing.assert_allclose(dweight, want[1], rtol=1e-6)
    np.testing.assert_allclose(dbias, want[2], rtol=1e-12)


# Memory


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same_values(rng, layout):
    dy, x, named = operands(rng, SHAPES[4], np.float32)
    options = frozen_or_not(named, frozen=False)
    want = reference.batch_norm_backward(dy, x, **options, relu=True)
    lying = LAYOUTS[layout]
    options["residual"] = lying(options["residual"])
    _, saved = F.batch_norm_forward(lying(x), **options, relu=True)
    check(F.batch_norm_backward(lying(dy), saved), want, np.float32)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("order", ORDERS)
def test_dy_may_lie_in_the_other_order(rng, order, relu):
    dy, x, named = operands(rng, SHAPES[4], np.float64)
    want = reference.batch_norm_backward(dy, x, residual=named["residual"], relu=relu)
    _, saved = F.batch_norm_forward(x, residual=named["residual"], relu=relu)
    dx, _, _, dresidual = F.batch_norm_backward(ORDERS[order](dy), saved)
    assert_close(dx, want[0], np.float64)
    assert_close(dresidual, want[3], np.float64)


@pytest.mark.parametrize("target", [np.empty_like, lambda dy: dy, lambda dy: dy[:]], ids=["new", "dy", "view of dy"])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("order", ORDERS)
def test_out_is_dx_and_may_be_dy(rng, order, relu, target):
    dy, x, named = operands(rng, SHAPES[4], np.float64)
    options = frozen_or_not(named, frozen=False)
    want = reference.batch_norm_backward(dy, x, **options, relu=relu)
    _, saved = F.batch_norm_forward(ORDERS[order](x), **options, relu=relu)
    dy = ORDERS[order](dy)
    out = target(dy)
    got = F.batch_norm_backward(dy, saved, out=out)
    assert got[0] is out
    check(got, want, np.float64)


@pytest.mark.parametrize("wrong", [channels_last, strided, np.asfortranarray])
def test_out_in_another_memory_order_is_refused(rng, wrong):
    dy, x, _ = operands(rng, SHAPES[4], np.float64)
    _, saved = F.batch_norm_forward(x)
    with pytest.raises(ArgumentError, match="dense in the memory order of x"):
        F.batch_norm_backward(dy, saved, out=wrong(np.empty_like(x)))


def test_out_overlapping_dy_in_part_is_refused(rng):
    memory = np.zeros(70)
    _, saved = F.batch_norm_forward(rng.standard_normal((4, 3, 5)))
    with pytest.raises(ArgumentError, match="out must be dy itself or apart from it"):
        F.batch_norm_backward(memory[:60].reshape(4, 3, 5), saved, out=memory[10:].reshape(4, 3, 5))


def test_out_unaligned_is_written_or_refused(rng):
    dy, x, _ = operands(rng, (4, 3, 5), np.float64)
    out = unaligned(np.zeros_like(x))
    _, saved = F.batch_norm_forward(x)
    try:
        F.batch_norm_backward(dy, saved, out=out)
    except ArgumentError:
        return
    assert_close(out, reference.batch_norm_backward(dy, x)[0], np.float64)


# Corners


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0, 4)], ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_an_empty_batch_has_zero_gradients(eps, order, shape):
    x = ORDERS[order](np.zeros(shape, np.float32))
    ones = np.ones(3, np.float32)
    _, saved = F.batch_norm_forward(x, ones, ones, residual=x, relu=True, eps=eps)
    dx, dweight, dbias, dresidual = F.batch_norm_backward(x, saved)
    assert dx.shape == dresidual.shape == shape
    np.testing.assert_array_equal(dweight, np.zeros(3))
    np.testing.assert_array_equal(dbias, np.zeros(3))


@pytest.mark.parametrize("shape", [(9, 1), (4, 1, 6), (1, 5, 4, 3), (6, 4, 1, 1)], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_one_channel_one_image_one_pixel(rng, order, shape):
    dy, x, named = operands(rng, shape, np.float64)
    want = reference.batch_norm_backward(dy, x, named["weight"], named["bias"])
    _, saved = F.batch_norm_forward(ORDERS[order](x), named["weight"], named["bias"])
    check(F.batch_norm_backward(ORDERS[order](dy), saved), want, np.float64, (True, True, False))


def test_a_relu_that_cuts_everything_leaves_zero(rng):
    dy, x, named = operands(rng, (4, 3, 5), np.float64)
    _, saved = F.batch_norm_forward(x, named["weight"], np.full(3, -100.0), relu=True)
    for gradient in F.batch_norm_backward(dy, saved)[:3]:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize("eps", [1e-5, 0.0])
@pytest.mark.parametrize("shape", [(6, 2), (3, 2, 5)], ids=str)
def test_a_constant_channel_has_finite_gradients(rng, shape, eps):
    dy, x, named = operands(rng, shape, np.float32)
    x[:, 1] = 0.1
    _, saved = F.batch_norm_forward(x, named["weight"], named["bias"], eps=eps)
    dx, dweight, dbias, _ = F.batch_norm_backward(dy, saved)
    assert np.isfinite(dx).all()
    assert dweight[1] == 0
    assert_close(dbias, dy.sum(axis=(0, *range(2, dy.ndim))), np.float32)


@pytest.mark.parametrize(("mean", "std"), [(100, 0.01), (1e4, 1)])
@pytest.mark.parametrize("shape", [(3000, 3), (8, 3, 20, 10)], ids=str)
def test_float32_far_from_zero(rng, shape, mean, std):
    dy, x, named = operands(rng, shape, np.float32)
    x = mean + np.float32(std) * x
    want = reference.batch_norm_backward(dy, x, named["weight"], named["bias"])
    _, saved = F.batch_norm_forward(x, named["weight"], named["bias"])
    for a, b in zip(F.batch_norm_backward(dy, saved)[:3], want[:3], strict=True):
        assert_close(a / np.abs(b).max(), b / np.abs(b).max(), np.float32)


@pytest.mark.parametrize("shape", [(40, 3), (4, 3, 50)], ids=str)
@pytest.mark.parametrize("scale", [1e-18, 1e18, 1e25, 1e30])
def test_huge_and_tiny_values_neither_overflow_nor_vanish(rng, shape, scale):
    dy, x, named = operands(rng, shape, np.float32)
    x *= np.float32(scale)
    want = reference.batch_norm_backward(dy, x, named["weight"], eps=0)
    _, saved = F.batch_norm_forward(x, named["weight"], eps=0)
    for a, b in zip(F.batch_norm_backward(dy, saved)[:2], want[:2], strict=True):
        assert_close(a.astype(np.float64) / np.abs(b).max(), b / np.abs(b).max(), np.float32)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["dy", "x"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5), (4, 3, 5, 2)], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_nan_and_inf_spoil_their_channel_only(rng, order, shape, frozen, where, bad):
    dy, x, named = operands(rng, shape, np.float32)
    options = frozen_or_not(named, frozen)

    def gradients(dy, x):
        _, saved = F.batch_norm_forward(ORDERS[order](x), **options, training=not frozen)
        return F.batch_norm_backward(ORDERS[order](dy), saved)

    want = gradients(dy, x)
    (dy if where == "dy" else x)[1, 1] = bad
    dx, dweight, dbias, _ = gradients(dy, x)
    np.testing.assert_array_equal(dx[:, ::2], want[0][:, ::2])
    np.testing.assert_array_equal(dweight[::2], want[1][::2])
    np.testing.assert_array_equal(dbias[::2], want[2][::2])
    assert not np.isfinite(dweight[1])
    if where == "dy" or not frozen:  # a frozen layer's dx does not depend on x
        assert not np.isfinite(dx[1, 1]).any()
