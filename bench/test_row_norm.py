"""Layer, RMS, group and instance norm of fastbn beside PyTorch and onnxruntime, answers checked: as called, or reused.

``pytest bench -k test_row_norm``. reused: into memory that was written before; PyTorch, which takes no output argument
here, by an allocator that keeps its pages.
"""

import numpy as np
import onnx.parser
import pytest

import fastbn.functional as F
from bench.rivals import pages_kept
from bench.test_batch_norm import measure
from bench.test_conv import in_order
from fastbn._memory import empty

# The norm, the shape of x, its normalized shape or number of groups; rows of a transformer, images of a ResNet.
CASES = {
    "layer 8192 x 768": ("layer", (8192, 768), 768),
    "layer 512 x 768": ("layer", (512, 768), 768),
    "layer 65536 x 64": ("layer", (65536, 64), 64),
    "layer 32 x (64, 56, 56)": ("layer", (32, 64, 56, 56), (64, 56, 56)),
    "rms 2048 x 4096": ("rms", (2048, 4096), 4096),
    "group 32 of 32 x 64 x 56 x 56": ("group", (32, 64, 56, 56), 32),
    "group 32 of 32 x 256 x 14 x 14": ("group", (32, 256, 14, 14), 32),
    "group 32 of 1 x 320 x 64 x 64": ("group", (1, 320, 64, 64), 32),
    "instance 32 x 64 x 56 x 56": ("instance", (32, 64, 56, 56), 64),
}


def fastbn(norm, x, dy, weight, bias, size, operation, reuse):
    out = empty(x.shape, x.dtype) if x.flags.c_contiguous else np.empty_like(x)
    out = out if reuse else None
    forward, backward = {
        "layer": (F.layer_norm, F.layer_norm_backward),
        "rms": (F.rms_norm, F.rms_norm_backward),
        "group": (F.group_norm, F.group_norm_backward),
        "instance": (lambda x, _, w, b, out: F.instance_norm(x, None, None, w, b, out=out), F.group_norm_backward),
    }[norm]
    vectors = (weight,) if norm == "rms" else (weight, bias)
    if operation == "forward":
        return lambda: forward(x, size, *vectors, out=out)
    saving = {"layer": F.layer_norm_forward, "rms": F.rms_norm_forward}.get(norm, F.group_norm_forward)
    saved = saving(x, size, *vectors)[1]
    return lambda: backward(dy, saved, out=out)[0]


def torch(norm, x, dy, weight, bias, size, operation, reuse):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    tx, tdy, tweight, tbias = (torch.from_numpy(a).requires_grad_(a is not dy) for a in (x, dy, weight, bias))
    shape = (size,) if isinstance(size, int) else size
    call = {
        "layer": lambda: f.layer_norm(tx, shape, tweight, tbias),
        "rms": lambda: f.rms_norm(tx, shape, tweight),
        "group": lambda: f.group_norm(tx, size, tweight, tbias),
        "instance": lambda: f.instance_norm(tx, weight=tweight, bias=tbias),
    }[norm]
    if operation == "forward":
        tx, tweight, tbias = (t.detach() for t in (tx, tweight, tbias))
        return lambda: call().numpy()
    y, wanted = call(), (tx, tweight) if norm == "rms" else (tx, tweight, tbias)
    return lambda: torch.autograd.grad(y, wanted, tdy, retain_graph=True)[0].numpy()


def onnxruntime(norm, x, dy, weight, bias, size, operation, reuse):
    import onnxruntime

    if norm != "layer" or operation != "forward" or reuse:
        return None
    sizes, row = (",".join(map(str, shape)) for shape in (x.shape, weight.shape))
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[{sizes}] x, float[{row}] w, float[{row}] b)'
        f" => (float[{sizes}] y) {{ y = LayerNormalization <axis = {-weight.ndim}, epsilon = 0.00001> (x, w, b) }}"
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x, "w": weight, "b": bias})[0]


# Name in a report: function, whether x is channels-last.
RIVALS = {
    "fastbn": (fastbn, False),
    "fastbn channels-last": (fastbn, True),
    "PyTorch": (torch, False),
    "PyTorch channels-last": (torch, True),
    "onnxruntime": (onnxruntime, False),
}


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("reuse", [False, True], ids=["called", "reused"])
@pytest.mark.parametrize("operation", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES)
def test_row_norm(benchmark, case, operation, reuse, rival):
    norm, shape, size = CASES[case]
    build, channels_last = RIVALS[rival]
    if channels_last and norm in ("layer", "rms"):
        pytest.skip("rows have one memory order")
    rng = np.random.default_rng(0)
    x, dy = (in_order(rng.standard_normal(shape, np.float32), channels_last) for _ in range(2))
    rows = (size if isinstance(size, tuple) else (size,)) if norm in ("layer", "rms") else shape[1:2]
    weight, bias = rng.uniform(0.5, 1.5, (2, *rows)).astype(np.float32)
    with pages_kept(reuse and build is torch):
        call = build(norm, x, dy, weight, bias, size, operation, reuse)
        if call is None:
            pytest.skip(f"{rival} has no such operation")
        wanted = fastbn(norm, x, dy, weight, bias, size, operation, False)()
        np.testing.assert_allclose(call(), wanted, rtol=1e-3, atol=1e-4)
        mode = "output reused" if reuse else "as called"
        benchmark.group = f"{case} {operation}, {mode}"
        moved = (2 if operation == "forward" else 3) * x.nbytes
        benchmark.extra_info |= {"norm": case, "operation": operation, "mode": mode, "rival": rival, "bytes": moved}
        measure(benchmark, call)
