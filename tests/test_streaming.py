"""Outputs beyond the cache are written past it: the same bits, wherever they begin, whatever they are written over."""

import numpy as np
import pytest
from helpers import ORDERS

import fastbn.functional as F
from fastbn.functional import norm_kernels

# Rows, channels too few to go round, short rows, whole and odd widths.
SHAPES = [(4, 6, 16, 16), (1, 3, 64, 64), (9, 4, 4, 8), (5, 64, 3, 7), (3, 128, 5, 5), (12, 192), (7, 5, 3)]
DTYPES = [np.float32, np.float64, np.float16]


def shifted(array, elements):
    """A copy in the memory order of ``array`` that begins ``elements`` after a multiple of 64 bytes."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    begin = -memory.__array_interface__["data"][0] % 64 + elements * array.itemsize
    run = memory[begin : begin + array.nbytes].view(array.dtype)
    if array.flags.c_contiguous:
        copy = run.reshape(array.shape)
    else:
        last = run.reshape(array.shape[0], *array.shape[2:], array.shape[1])
        copy = np.moveaxis(last, -1, 1)
    copy[...] = array
    return copy


@pytest.fixture(params=[False, True], ids=["alone", "residual and ReLU"])
def fused(request):
    return request.param


def run(x, fused, out, dx):
    """y and every gradient; out and dx: where they are written."""
    c = x.shape[1]
    weight, bias = np.linspace(0.5, 1.5, c, dtype=np.float32), np.linspace(-1, 1, c, dtype=np.float32)
    options = {"residual": x[::-1].copy(order="K"), "relu": True} if fused else {}
    y, saved = F.batch_norm_forward(x, weight, bias, out=out, **options)
    return [y.copy(), *(g for g in F.batch_norm_backward(y, saved, out=dx) if g is not None)]


@pytest.mark.parametrize("lead", [0, 1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_streamed_outputs_are_the_same_bits(rng, monkeypatch, shape, order, dtype, lead, fused):
    x = ORDERS[order](rng.standard_normal(shape).astype(dtype))
    want = run(x, fused, shifted(x, 0), shifted(x, 0))
    monkeypatch.setattr(norm_kernels, "beyond_cache", lambda moved: True)
    for wanted, got in zip(want, run(x, fused, shifted(x, lead), shifted(x, lead)), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_beside_an_output_is_written(rng, monkeypatch, shape, order):
    monkeypatch.setattr(norm_kernels, "beyond_cache", lambda moved: True)
    x = ORDERS[order](rng.standard_normal(shape).astype(np.float32))
    out = shifted(x, 3)
    memory = out
    while memory.base is not None:
        memory = memory.base
    memory[...] = 7
    F.batch_norm(x, training=True, out=out)
    begin = out.__array_interface__["data"][0] - memory.__array_interface__["data"][0]
    assert (memory[:begin] == 7).all()
    assert (memory[begin + out.nbytes :] == 7).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_written_over_an_operand_is_not_streamed(rng, monkeypatch, shape, order):
    monkeypatch.setattr(norm_kernels, "beyond_cache", lambda moved: True)
    x = ORDERS[order](rng.standard_normal(shape).astype(np.float32))
    plan = norm_kernels.plan_for(x)
    apart = shifted(x, 0)
    assert plan.stores(x, 2, False, x) == (0, False)
    assert plan.stores(apart, 2, False, x) == (0, plan.shape[-1] % plan.run == 0)
    want = F.batch_norm(x, training=True)
    np.testing.assert_array_equal(F.batch_norm(x, training=True, out=x), want)
