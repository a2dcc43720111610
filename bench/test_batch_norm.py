"""Batch norm of fastbn and its rivals, answers checked: ``pytest bench -k "ResNet-50-32"``.

A group is an operation on one shape, as users call it or with the output reused; the last groups are the roof, copies
in as much memory as the operations need. ``python -m bench.report`` makes tables and pictures of ``--benchmark-json``.
"""

import math
import time

import numpy as np
import pytest

from bench import rivals
from bench.operands import ARRAYS, TRAFFIC, check, operands
from bench.roof import copy_to
from bench.shapes import CASES
from fastbn._memory import SMALLEST, empty

SECONDS = 0.15  # spent on a row, about


def measure(benchmark, call):
    """Two calls outside the clock, then enough of them for a median."""
    call()
    begun = time.perf_counter()
    call()
    rounds = int(np.clip(SECONDS / (time.perf_counter() - begun), 7, 200))
    benchmark.pedantic(call, rounds=rounds, warmup_rounds=2)


def label(benchmark, case, operation, reuse, rival, order, moved):
    network, shape = CASES[case]
    mode = "output reused" if reuse else "as called"
    benchmark.group = f"{case} {operation}, {mode}"
    benchmark.extra_info |= {
        "network": network,
        "shape": shape,
        "operation": operation,
        "mode": mode,
        "rival": rival,
        "order": order,
        "bytes": moved,
    }


@pytest.mark.parametrize("rival", rivals.RIVALS)
@pytest.mark.parametrize("reuse", [False, True], ids=["called", "reused"])
@pytest.mark.parametrize("operation", TRAFFIC)
@pytest.mark.parametrize("case", CASES)
def test_batch_norm(benchmark, case, operation, reuse, rival):
    build, order = rivals.RIVALS[rival]
    _, shape = CASES[case]
    if order == "channels-last" and len(shape) == 2:
        pytest.skip("a matrix has one memory order")
    o = operands(shape, order == "channels-last")
    try:
        with rivals.pages_kept(reuse and build is rivals.torch):
            call = build(operation, o, reuse)
            if call is None:
                pytest.skip(f"{rival} has no such operation")
            check(operation, o, rivals.as_array(call()))
            label(benchmark, case, operation, reuse, rival, order, TRAFFIC[operation] * o.x.nbytes)
            measure(benchmark, call)
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("streaming", [False, True], ids=["cached", "streamed"])
@pytest.mark.parametrize("arrays", sorted(set(ARRAYS.values())))
@pytest.mark.parametrize("case", CASES)
def test_roof(benchmark, case, arrays, streaming):
    x, out = (empty((math.prod(CASES[case][1]) * arrays // 2,), np.dtype(np.float32)) for _ in range(2))
    x[...] = 1
    if streaming and out.nbytes < SMALLEST:
        pytest.skip("a small array lies anywhere, streamed vectors only on whole lines")
    copy_to(x, out, streaming)
    label(benchmark, case, "copy", True, f"copy, {'streamed' if streaming else 'cached'}", "NCHW", 2 * x.nbytes)
    benchmark.extra_info["arrays"] = arrays
    measure(benchmark, lambda: copy_to(x, out, streaming))
