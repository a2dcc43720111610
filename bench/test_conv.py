"""Convolutions of fastbn beside PyTorch's, as called, answers checked: ``pytest bench -k test_conv``.

backward: the gradients to the input and to the weights. ``python -m bench.report`` gives GFLOP/s.
"""

import numpy as np
import pytest

import fastbn.functional as F
from bench.test_batch_norm import measure

# (N, C_in, H, W), output channels, kernel, stride: of ResNet at batch 16
CASES = {
    "3x3 64->64 at 56": ((16, 64, 56, 56), 64, 3, 1),
    "3x3 128->128 at 28": ((16, 128, 28, 28), 128, 3, 1),
    "3x3 256->256 at 14": ((16, 256, 14, 14), 256, 3, 1),
    "3x3 512->512 at 7": ((16, 512, 7, 7), 512, 3, 1),
    "3x3 128->128 at 56, stride 2": ((16, 128, 56, 56), 128, 3, 2),
    "1x1 64->256 at 56": ((16, 64, 56, 56), 256, 1, 1),
    "1x1 256->64 at 56": ((16, 256, 56, 56), 64, 1, 1),
    "1x1 512->128 at 28": ((16, 512, 28, 28), 128, 1, 1),
    "1x1 256->512 at 56, stride 2": ((16, 256, 56, 56), 512, 1, 2),
}


def in_order(array, channels_last):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1) if channels_last else array


@pytest.mark.parametrize("rival", ["fastbn", "fastbn channels-last", "PyTorch", "PyTorch channels-last"])
@pytest.mark.parametrize("operation", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES)
def test_conv(benchmark, case, operation, rival):
    torch = pytest.importorskip("torch")
    shape, channels_out, kernel, stride = CASES[case]
    channels_last, padding = rival.endswith("channels-last"), kernel // 2
    rng = np.random.default_rng(0)
    x = in_order(rng.standard_normal(shape, np.float32), channels_last)
    weight = rng.standard_normal((channels_out, shape[1], kernel, kernel), np.float32) / np.sqrt(shape[1] * kernel**2)
    weight = weight.astype(np.float32)
    y = F.conv2d(x, weight, stride=stride, padding=padding)
    dy = in_order(rng.standard_normal(y.shape, np.float32), channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    tx, tdy, tweight = torch.from_numpy(x), torch.from_numpy(dy), torch.from_numpy(weight)
    tweight = tweight.to(memory_format=memory_format)

    def ours():
        if operation == "forward":
            return (F.conv2d(x, weight, stride=stride, padding=padding),)
        return F.conv2d_backward(dy, x, weight, stride, padding, need_dbias=False)[:2]

    def theirs():
        pair, pads, ones = [stride] * 2, [padding] * 2, [1, 1]
        with torch.no_grad():
            if operation == "forward":
                return (torch.nn.functional.conv2d(tx, tweight, stride=stride, padding=padding),)
            backward = torch.ops.aten.convolution_backward
            return backward(tdy, tx, tweight, None, pair, pads, ones, False, [0, 0], 1, [True, True, False])[:2]

    for own, their in zip(ours(), theirs(), strict=True):
        np.testing.assert_allclose(own, their.numpy(), rtol=1e-3, atol=1e-3 * np.abs(own).max())
    benchmark.group = f"{case} {operation}"
    operations = 2 * y.size * weight[0].size * (1 if operation == "forward" else 2)
    benchmark.extra_info |= {"convolution": case, "operation": operation, "rival": rival, "operations": operations}
    measure(benchmark, ours if rival.startswith("fastbn") else theirs)
