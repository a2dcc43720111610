"""Training steps of convolution + batch norm + ReLU beside PyTorch's: ``pytest bench -k test_block``.

"apart": the three layers of fastbn one after the other; "convolution": it alone; "passes": loops that compute nothing
and move what batch norm and ReLU add to the convolution.
``python -m bench.report`` makes a table of it.
"""

import functools

import numpy as np
import pytest

import fastbn
from bench.roof import BLOCK, add, bandwidth, copy_to, matrix_peak, peak, read
from bench.test_batch_norm import measure
from bench.test_conv import in_order
from fastbn import nn
from fastbn._memory import empty
from fastbn._threads import launch
from fastbn.kernels.conv_panels import block_lanes

# channels, output channels, size, kernel, groups, at batch 16
CASES = {
    "1x1 64->256 at 56": (64, 256, 56, 1, 1),
    "1x1 256->64 at 56": (256, 64, 56, 1, 1),
    "1x1 512->128 at 28": (512, 128, 28, 1, 1),
    "depthwise 3x3 192 at 56": (192, 192, 56, 3, 192),
    "3x3 64->64 at 56": (64, 64, 56, 3, 1),
    "3x3 256->256 at 14": (256, 256, 14, 3, 1),
}
FOLDED = ("1x1 64->256 at 56",)  # by its input's covariance
BATCH = 16
RIVALS = (
    "fastbn",
    "fastbn apart",
    "fastbn convolution",
    "passes",
    "PyTorch",
    "PyTorch channels-last",
    "PyTorch compiled",
)


@functools.cache
def roofs():
    return peak(), matrix_peak(), bandwidth()


def limit(case):
    """Seconds: the arithmetic at the peak, and x, y, dx, dy and twice the weights at the speed of the best copy.

    The peak is the higher of those of vectors and of the matrix unit, which cannot multiply channel by channel.
    """
    channels, channels_out, size, kernel, groups = CASES[case]
    vectors, matrices, speed = roofs()
    most = max(vectors, matrices) if groups == 1 else vectors
    pixels, weights = BATCH * size * size, channels_out * (channels // groups) * kernel**2
    return 6 * pixels * weights / most + 4 * (2 * pixels * (channels + channels_out) + 2 * weights) / speed


def ours(case, rival, x, dy):
    channels, channels_out, _, kernel, groups = CASES[case]
    fastbn.manual_seed(0)
    block = nn.ConvBnReLU2d(channels, channels_out, kernel, padding=kernel // 2, groups=groups)
    fastbn.fuse(block, rival == "fastbn")
    model = block.conv if rival == "fastbn convolution" else block

    def step():
        model.zero_grad()
        model(x)
        return model.backward(dy), block.conv.weight.grad

    return step


def passes(case, x, dy):
    """Reads and writes of batch norm and ReLU beyond those of the convolution.

    Its output is read and written once more; backward, it and dy are read for the sums, and it again beside dy for dx.
    Gram folding needs no such output: it reads x for the covariance, what it wrote for the ReLU, and x and dx once more
    for the covariance's gradient, which dx gets.
    """
    x, dy = (np.ascontiguousarray(array.transpose(0, 2, 3, 1)).reshape(-1) for array in (x, dy))
    out, y, dx = dy.copy(), empty(dy.shape, dy.dtype), empty(x.shape, x.dtype)
    totals = np.empty((-(-dy.size // BLOCK), block_lanes(4)), np.float32)

    def read_one(array):
        launch(read, array[: array.size // 2], array[array.size // 2 :], totals, work=array.size)

    def step():
        if case in FOLDED:
            read_one(x)
            read_one(out)
            launch(add, x, dx, dx, work=x.size)
        else:
            copy_to(out, y, True)
            launch(read, out, dy, totals, work=out.size)
            read_one(out)

    return step


def theirs(case, rival, x, dy):
    torch = pytest.importorskip("torch")
    channels, channels_out, _, kernel, groups = CASES[case]
    fastbn.manual_seed(0)
    weight = nn.ConvBnReLU2d(channels, channels_out, kernel, groups=groups).conv.weight.data
    model = torch.nn.Sequential(
        torch.nn.Conv2d(channels, channels_out, kernel, padding=kernel // 2, groups=groups, bias=False),
        torch.nn.BatchNorm2d(channels_out),
        torch.nn.ReLU(),
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(weight))
    order = torch.contiguous_format if rival == "PyTorch" else torch.channels_last
    model = model.to(memory_format=order)
    tx, tdy = (torch.from_numpy(array).contiguous(memory_format=order) for array in (x, dy))
    tx.requires_grad_(True)
    run = torch.compile(model) if rival == "PyTorch compiled" else model

    def step():
        model.zero_grad()
        tx.grad = None
        run(tx).backward(tdy)
        return tx.grad.numpy(), model[0].weight.grad.numpy()

    return step


@pytest.mark.filterwarnings("ignore")  # of the rivals
@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("case", CASES)
def test_block(benchmark, case, rival):
    channels, channels_out, size, *_ = CASES[case]
    rng = np.random.default_rng(0)
    x = in_order(rng.standard_normal((BATCH, channels, size, size), np.float32), True)
    dy = in_order(rng.standard_normal((BATCH, channels_out, size, size), np.float32), True)
    if rival == "passes":
        step = passes(case, x, dy)
    else:
        step = (ours if rival.startswith("fastbn") else theirs)(case, rival, x, dy)
    try:
        found = step()
    except Exception as error:  # torch.compile wants a C++ compiler
        if rival != "PyTorch compiled":
            raise
        pytest.skip(f"torch.compile must work here, got {type(error).__name__}")
    if rival not in ("fastbn convolution", "passes"):
        for own, right in zip(found, ours(case, "fastbn apart", x, dy)(), strict=True):
            assert np.abs(own - right).mean() < 1e-3 * np.abs(right).mean()
    vectors, matrices, speed = roofs()
    benchmark.group = f"{case} training step"
    benchmark.extra_info |= {"block": case, "rival": rival, "limit": limit(case)}
    benchmark.extra_info |= {"peak": vectors, "matrix peak": matrices, "bandwidth": speed}
    measure(benchmark, step)
