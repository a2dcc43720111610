"""Batch norm of fastbn, NumPy, PyTorch and onnxruntime, as users call it; answers checked, bytes beside the times."""

import numpy as np
import pytest

from bench import rivals
from bench.shapes import SHAPES


def _torch_channels_last(o, training):
    return rivals.torch(o, training, channels_last=True)


def _measure(benchmark, shape_name, training, call):
    o = rivals.operands(SHAPES[shape_name])
    run = call(o, training)
    np.testing.assert_allclose(run(), rivals.numpy(o, training)(), rtol=1e-4, atol=1e-4)
    benchmark.group = f"batch_norm {'training' if training else 'inference'} {shape_name} {SHAPES[shape_name]}"
    # Read twice and written once in training, read and written once in inference.
    benchmark.extra_info["bytes"] = (3 if training else 2) * o.x.nbytes
    benchmark(run)


@pytest.mark.parametrize("shape_name", SHAPES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", ["fastbn", "numpy", "torch", "torch_channels_last", "onnxruntime"])
def test_batch_norm(benchmark, shape_name, training, name):
    if name.startswith("torch"):
        pytest.importorskip("torch")
    if name == "onnxruntime" and training:
        pytest.skip("onnxruntime's inference build has no training mode")
    call = _torch_channels_last if name == "torch_channels_last" else getattr(rivals, name)
    _measure(benchmark, shape_name, training, call)
