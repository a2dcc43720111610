"""FrozenBatchNorm2d, and what folds, fuses, exports, saves and lists batch norms does with its kin."""

import numpy as np
import pytest
import reference
from helpers import ORDERS, assert_close

import export
import fastbn
import fastbn.functional as F
from fastbn import nn
from fastbn.errors import DtypeError, StateError

KIN = {
    "renorm": lambda c: nn.BatchRenorm2d(c, r_max=2.0, warmup=3, r_steps=4, d_steps=5),
    "ghost": lambda c: nn.GhostBatchNorm2d(c, 3),
    "masked": nn.MaskedBatchNorm2d,
    "frozen": nn.FrozenBatchNorm2d,
}


def scramble(norm, rng):
    state = {name: array for name, array in norm.state_dict().items() if array.ndim}
    for name, array in state.items():
        array[...] = rng.uniform(0.5, 2, array.shape) if name == "running_var" else rng.normal(size=array.shape)
    return norm


@pytest.fixture(params=KIN)
def norm(request, rng):
    fastbn.manual_seed(0)
    return scramble(KIN[request.param](6), rng)


@pytest.fixture
def model(norm):
    return nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), norm, nn.ReLU(), nn.Conv2d(6, 2, 1))


@pytest.fixture
def x(rng):
    return rng.standard_normal((5, 3, 8, 8)).astype(np.float32)


def test_folded(model, x):
    want = model.eval()(x)
    folded = fastbn.fold(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert_close(folded(x), want, np.float32)


@pytest.mark.parametrize("fold", [True, False])
def test_exported(tmp_path, rng, fold):
    kin = [scramble(make(3), rng) for make in KIN.values()]
    model = nn.Sequential(*(layer for norm in kin for layer in (nn.Conv2d(3, 3, 1), norm)))
    report = export.export(model, tmp_path / "model.onnx", input_shape=(3, 4, 4), fold=fold)
    assert report.ok
    assert not fold or [site.how for site in report.fold.sites] == ["backward"] * 4


def test_saved_and_loaded(model, tmp_path, x):
    fastbn.save(model, tmp_path / "model.safetensors")
    loaded = fastbn.load(tmp_path / "model.safetensors")
    assert repr(loaded) == repr(model)
    np.testing.assert_array_equal(loaded(x), model.eval()(x))


def test_listed(model):
    rows = {row.kind: row for row in fastbn.summary(model, (1, 3, 8, 8)).rows}
    kind = type(model[1]).__name__
    assert rows[kind].output_shape == (1, 6, 6, 6)
    assert rows[kind].parameters == (0 if kind.startswith("Frozen") else 12)


def test_fused_training_is_the_same(model, x, rng):
    dy = rng.standard_normal((5, 2, 6, 6)).astype(np.float32)
    results = []
    before = {name: array.copy() for name, array in model.state_dict().items()}
    for fused in (False, True):
        model.load_state_dict(before)
        model.zero_grad()
        y = fastbn.fuse(model, fused)(x)
        dx = model.backward(dy)
        buffers = [array.copy() for array in model.buffers()]
        results.append([y, dx, *[parameter.grad for parameter in model.parameters()], *buffers])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


def test_only_what_normalises_as_batch_norm_is_trained_folded(norm):
    conv = nn.Conv2d(3, 6, 3)
    if isinstance(norm, nn.FrozenBatchNorm2d):
        assert nn.ConvBn2d.from_pair(conv, norm).bn is norm
    else:
        with pytest.raises(DtypeError, match="ConvBn2d: bn must normalise as a BatchNorm2d does, got "):
            nn.ConvBn2d.from_pair(conv, norm)


# FrozenBatchNorm2d


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("order", ORDERS)
def test_frozen_is_a_map_with_constants(rng, order, mode):
    norm = getattr(scramble(nn.FrozenBatchNorm2d(6, eps=1e-3), rng), mode)()
    x, dy = (ORDERS[order](a) for a in rng.standard_normal((2, 5, 6, 7, 7)).astype(np.float32))
    state = norm.state_dict()
    assert_close(norm(x), reference.batch_norm(x, **state, eps=1e-3)[0], np.float32)
    if mode == "train":
        dx = norm.backward(dy)
        assert_close(dx, reference.batch_norm_backward(dy, x, **state, eps=1e-3)[0], np.float32)
        assert dx.strides == x.strides
    assert list(norm.parameters()) == []
    assert list(state) == ["weight", "bias", "running_mean", "running_var"]


def test_frozen_takes_the_state_of_a_batch_norm(rng):
    plain = scramble(nn.BatchNorm2d(6), rng)
    model = nn.Sequential({"bn": nn.FrozenBatchNorm2d(6)})
    model.load_state_dict(nn.Sequential({"bn": plain}).state_dict())
    x = rng.standard_normal((2, 6, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(model(x), plain.eval()(x))
    assert repr(model.bn) == "FrozenBatchNorm2d(num_features=6, eps=1e-05)"
    assert model.double().bn.weight.dtype == np.float64


def test_frozen_cannot_be_unfrozen(rng):
    norm = scramble(nn.FrozenBatchNorm2d(6), rng)
    with pytest.raises(StateError, match="the layer must be a BatchNorm2d, got one whose weights are buffers"):
        norm.unfreeze()
    norm.reset_running_stats()
    np.testing.assert_array_equal(norm.running_var, np.ones(6))


@pytest.mark.parametrize("options", [{}, {"relu": True}, {"residual": True}])
@pytest.mark.parametrize("training", [False, True])
def test_dx_only_is_dx(rng, training, options):
    x, dy, residual = rng.standard_normal((3, 4, 6, 5))
    vectors = rng.uniform(0.5, 2, (4, 6))
    options = {**options, "residual": residual} if "residual" in options else options
    _, saved = F.batch_norm_forward(
        x, vectors[0], vectors[1], running_mean=vectors[2], running_var=vectors[3], training=training, **options
    )
    want = F.batch_norm_backward(dy, saved)
    got = F.batch_norm_backward(dy, saved, dx_only=True)
    assert got[1:3] == (None, None)
    assert_close(got[0], want[0], np.float64)
    out = dy.copy()
    assert F.batch_norm_backward(out, saved, dx_only=True, out=out)[0] is out
    np.testing.assert_array_equal(out, got[0])
    assert (got[3] is None) == ("residual" not in options)
