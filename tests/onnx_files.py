"""What the tests of ONNX files share: models to damage, weights in another file, what a folder holds."""

import hashlib

import numpy as np
import onnx
from onnx_models import BN, conv_bn, text_model


def good():
    return conv_bn(np.random.default_rng(0))[0]


def snapshot(folder):
    """Every file below ``folder`` and what it holds."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def assert_one_sentence(caught):
    assert "must" in str(caught.value)
    assert "got" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def external(folder, name="model.onnx", data="model.data"):
    """A model whose weights lie in another file; all but one batch norm fold."""
    rng = np.random.default_rng(0)
    _, arrays = conv_bn(rng)
    more = {name + "2": array for name, array in arrays.items()}
    more["W2"] = rng.standard_normal((3, 3, 1, 1)).astype(np.float32)
    body = """
        c = Conv(x, W) h = BatchNormalization(c, s, b, m, v)
        d = Conv(h, W2) e = Relu(d) y = BatchNormalization(e, s2, b2, m2, v2)
    """
    model = text_model(body, {**arrays, **more})
    saved = onnx.ModelProto()
    saved.CopyFrom(model)
    onnx.save(saved, folder / name, save_as_external_data=True, size_threshold=0, location=data)
    return model, folder / name


def large(factor=1.0):
    rng = np.random.default_rng(0)
    _, arrays = conv_bn(rng, channels=40)
    arrays["W"] *= np.float32(factor)
    return text_model(f"c = Conv(x, W) {BN}", arrays)
