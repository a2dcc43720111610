"""Weight norm of the weights of named layers beside PyTorch's and NumPy's: ``pytest bench -k weight_norm``."""

import numpy as np
import pytest

import fastbn.functional as F
from bench.test_batch_norm import measure

SHAPES = {
    "ResNet-50 3x3 512->512": (512, 512, 3, 3),
    "Linear 4096->4096": (4096, 4096),
    "LeNet 256->120": (120, 256),
}


def by_fastbn(v, g, dw):
    return lambda: (F.weight_norm(v, g), *F.weight_norm_backward(dw, v, g))


def by_torch(v, g, dw):
    torch = pytest.importorskip("torch")
    v, g, dw = (torch.from_numpy(array) for array in (v, g, dw))
    v.requires_grad_(), g.requires_grad_()

    def call():
        w = torch._weight_norm(v, g, 0)
        return (w, *torch.autograd.grad(w, (v, g), dw))

    return call


def by_numpy(v, g, dw):
    axes = tuple(range(1, v.ndim))

    def call():
        length = np.sqrt((v * v).sum(axis=axes, keepdims=True))
        dg = (dw * v).sum(axis=axes, keepdims=True) / length
        return v * (g / length), g / length * (dw - dg / length * v), dg

    return call


RIVALS = {"fastbn": by_fastbn, "PyTorch": by_torch, "NumPy": by_numpy}


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("name", SHAPES)
def test_weight_norm(benchmark, name, rival):
    rng = np.random.default_rng(0)
    v, dw = rng.standard_normal((2, *SHAPES[name]), np.float32)
    g = rng.standard_normal(F.norm_except_dim(v).shape, np.float32)
    call = RIVALS[rival](v, g, dw)
    for got, want in zip(call(), by_numpy(*(array.astype(np.float64) for array in (v, g, dw)))(), strict=True):
        got = got.detach().numpy() if hasattr(got, "detach") else got
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    benchmark.group = f"weight norm, forward and backward, {name}"
    benchmark.extra_info["bytes"] = 5 * v.nbytes
    measure(benchmark, call)
