"""Errors against float64, whatever the data, the memory order and the number of threads; never above PyTorch's."""

import numpy as np
import pytest
from helpers import ORDERS

import fastbn
from bench import numerics

ROUNDING = 1.2e-7  # of the largest value: two roundings to float32


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", numerics.CASES)
def test_every_error_is_that_of_rounding_to_float32(case, order, threads):
    fastbn.set_num_threads(threads)
    for column, error in zip(
        numerics.COLUMNS, numerics.measure(case, ORDERS[order], numerics.answers_fastbn), strict=True
    ):
        assert np.isnan(error) or error <= ROUNDING, column


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", numerics.CASES)
def test_no_error_is_above_pytorchs(case, order):
    pytest.importorskip("torch")
    ours, theirs = (
        numerics.measure(case, ORDERS[order], answers) for answers in (numerics.answers_fastbn, numerics.answers_torch)
    )
    for column, our, their in zip(numerics.COLUMNS, ours, theirs, strict=True):
        assert np.isnan(our) or our <= max(their, ROUNDING), column


def test_a_constant_channel_gives_its_bias_exactly():
    assert numerics.measure("constant channels", np.ascontiguousarray, numerics.answers_fastbn)[:2] == [0.0, 0.0]
