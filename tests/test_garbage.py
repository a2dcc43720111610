"""Python's search for cycles goes on after a fold as it did before."""

import gc

import numpy as np
import pytest
from onnx_models import conv_bn

from export import fold_onnx
from export.fold import fold_graph
from fastbn.errors import ModelError


@pytest.fixture(params=[True, False])
def searching(request):
    """Whether Python searches."""
    (gc.enable if request.param else gc.disable)()
    yield request.param
    gc.enable()


def test_it_is_as_before(searching):
    assert fold_onnx(conv_bn(np.random.default_rng(0))[0])[1].folded == 1
    assert gc.isenabled() is searching


def test_after_an_error(searching, tmp_path):
    (tmp_path / "no.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError):
        fold_onnx(tmp_path / "no.onnx")
    with pytest.raises(AttributeError):
        fold_graph(None)
    assert gc.isenabled() is searching
