"""The same batch norm on 1, 2, 4, ... threads, up to those of the machine."""

import pytest

import fastbn
from bench import rivals
from bench.operands import TRAFFIC, operands
from bench.test_batch_norm import label, measure
from fastbn._threads import max_threads

CASE = "ResNet-50-32x256x56x56"
SHAPE = (32, 256, 56, 56)
THREADS = [count for count in (1, 2, 4, 8, 16, 32, 64) if count <= max_threads()]


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("operation", TRAFFIC)
@pytest.mark.parametrize("rival", ["fastbn", "fastbn channels-last", "PyTorch", "PyTorch channels-last"])
def test_scaling(benchmark, rival, operation, threads):
    build, order = rivals.RIVALS[rival]
    o = operands(SHAPE, order == "channels-last")
    if rival.startswith("PyTorch"):
        set_threads = pytest.importorskip("torch").set_num_threads
    else:
        set_threads = fastbn.set_num_threads
    with rivals.pages_kept(build is rivals.torch):
        call = build(operation, o, True)
        label(benchmark, CASE, operation, True, rival, order, TRAFFIC[operation] * o.x.nbytes)
        benchmark.group = f"scaling {operation}"
        benchmark.extra_info["threads"] = threads
        set_threads(threads)
        try:
            measure(benchmark, call)
        finally:
            set_threads(max_threads())
