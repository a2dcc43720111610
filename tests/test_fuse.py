"""``fastbn.fuse``: the same network, parameters and names; convolution, batch norm and ReLU trained as one unit."""

import copy

import numpy as np
import pytest

import fastbn
from fastbn import models, nn
from fastbn.errors import DtypeError, ShapeError


def conv(channels_in, channels_out, kernel=3, **options):
    return nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False, **options)


def body():
    modules = {"conv1": conv(16, 32), "bn1": nn.BatchNorm2d(32), "relu": nn.ReLU()}
    return {**modules, "conv2": conv(32, 16, 1), "bn2": nn.BatchNorm2d(16)}


def unit(channels_in, channels_out, activation=nn.ReLU, **options):
    return nn.Sequential(conv(channels_in, channels_out, **options), nn.BatchNorm2d(channels_out), activation())


NETWORKS = {
    "chain": lambda: nn.Sequential(unit(16, 32), unit(32, 32, stride=2), conv(32, 16, 1), nn.BatchNorm2d(16)),
    "few channels, then many": lambda: nn.Sequential(unit(3, 16), nn.MaxPool2d(2), unit(16, 16)),
    "depthwise": lambda: nn.Sequential(unit(16, 32, nn.ReLU6), unit(32, 32, nn.ReLU6, groups=32), unit(32, 16)),
    "few channels cut above": lambda: nn.Sequential(unit(3, 8, nn.ReLU6), unit(8, 16, nn.ReLU6)),
    "few channels, then one a group": lambda: nn.Sequential(unit(3, 16, nn.ReLU6), unit(16, 16, nn.ReLU6, groups=16)),
    "residual": lambda: nn.Residual(body()),
    "residual, ReLU": lambda: nn.Residual(body(), activation=nn.ReLU()),
    "residual, another activation": lambda: nn.Residual(body(), activation=nn.Sigmoid()),
    "residual, projection": lambda: nn.Residual(
        {"conv": conv(16, 32, stride=2), "bn": nn.BatchNorm2d(32)},
        downsample=nn.Sequential(conv(16, 32, 1, stride=2), nn.BatchNorm2d(32)),
        activation=nn.ReLU(),
    ),
    "residual that ends in a ReLU": lambda: nn.Residual(unit(16, 16), activation=nn.ReLU()),
    "residual of one unit": lambda: nn.Residual({"conv": conv(16, 16), "bn": nn.BatchNorm2d(16)}),
    "no batch norm": lambda: nn.Sequential(conv(16, 16), nn.ReLU()),
    "batch norm of other statistics": lambda: nn.Sequential(
        conv(16, 16), nn.BatchNorm2d(16, track_running_stats=False), conv(16, 16), nn.BatchNorm2d(16, affine=False)
    ),
    "frozen": lambda: nn.Sequential(conv(16, 16), nn.BatchNorm2d(16, frozen=True), nn.ReLU(), unit(16, 16)),
    "running means of all batches": lambda: nn.Sequential(conv(16, 16), nn.BatchNorm2d(16, momentum=None)),
    "expansion": lambda: nn.Sequential(unit(16, 32), conv(32, 64, 1), nn.BatchNorm2d(64), nn.ReLU()),
}


def pair(network, size=12):
    fastbn.manual_seed(0)
    plain = NETWORKS[network]().double()
    channels = next(plain.parameters()).shape[1]
    x = np.random.default_rng(0).standard_normal((8, channels, size, size))
    return plain, fastbn.fuse(copy.deepcopy(plain)), x


def step(model, x, **options):
    model.zero_grad()
    y = model(x)
    dx = model.backward(np.random.default_rng(1).standard_normal(y.shape), **options)
    return y, dx


def assert_same_state(one, other):
    for (name, a), (same, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert name == same
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(a.grad, b.grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("need_dx", [True, False])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_is_the_same(network, need_dx):
    plain, fused, x = pair(network)
    for _ in range(2):
        want, want_dx = step(plain, x, need_dx=need_dx)
        y, dx = step(fused, x, need_dx=need_dx)
        np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-9)
        if need_dx:
            np.testing.assert_allclose(dx, want_dx, rtol=1e-8, atol=1e-8)
        assert_same_state(plain, fused)
    np.testing.assert_allclose(fused.eval()(x), plain.eval()(x), rtol=1e-9, atol=1e-9)
    folded = fastbn.fold(plain)
    assert folded.fused
    np.testing.assert_allclose(folded(x), plain(x), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(fastbn.fuse(folded, False)(x), plain(x), rtol=1e-8, atol=1e-8)


def test_a_first_convolution_of_few_channels_defers_to_a_unit():
    model = fastbn.fuse(NETWORKS["few channels, then one a group"]())
    model(np.random.default_rng(0).standard_normal((2, 3, 40, 40)).astype(np.float32))
    first, second = model._saved
    assert first.saved is None
    assert second.saved.x is first.block.saved.norm.x


@pytest.mark.parametrize("build", [models.resnet18, models.resnet50, models.mobilenet_v2])
def test_whole_networks(build):
    fastbn.manual_seed(0)
    plain = build(num_classes=5).double()
    for module in plain.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    fused = fastbn.fuse(copy.deepcopy(plain))
    x = np.random.default_rng(0).standard_normal((2, 3, 64, 64))
    want, _ = step(plain, x, need_dx=False)
    y, _ = step(fused, x, need_dx=False)
    np.testing.assert_allclose(y, want, rtol=1e-7, atol=1e-9)
    largest = max(np.abs(parameter.grad).max() for parameter in plain.parameters())
    for (name, a), (_, b) in zip(plain.named_parameters(), fused.named_parameters(), strict=True):
        assert np.abs(a.grad - b.grad).max() <= 1e-6 * np.abs(a.grad).max() + 1e-9 * largest, name


def kept(value, found):
    """The bytes of the arrays that a module keeps for its backward pass, by the memory that they own."""
    if isinstance(value, np.ndarray):
        found[value.__array_interface__["data"][0]] = value.nbytes
    elif isinstance(value, (list, tuple)):
        for item in value:
            kept(item, found)
    elif hasattr(value, "__slots__"):
        for name in value.__slots__:
            kept(getattr(value, name, None), found)
    elif hasattr(value, "saved"):
        kept(value.saved, found)


def test_a_chain_keeps_one_tensor_a_unit():
    held = []
    for fused in (False, True):
        fastbn.manual_seed(0)
        model = fastbn.fuse(nn.Sequential(*(unit(32, 32) for _ in range(4))), fused)
        x = np.random.default_rng(0).random((16, 32, 16, 16), np.float32)
        y = model(x)
        found = {}
        for module in model.modules():
            kept(module._saved, found)
        held.append(sum(found.values()) / x.nbytes)
    assert y.shape == x.shape
    assert held[0] > 8.9  # the x of every convolution and batch norm, and the y of the last ReLU
    assert held[1] < 5.4  # the x of the first and the z of all, and small things


def test_a_module_with_a_hook_runs_by_itself():
    plain, fused, x = pair("chain")
    seen = []
    norm = fused[1][1]
    remove = norm.register_forward_hook(lambda module, x, y: seen.append((module, x.shape, y.shape)))
    want, _ = step(plain, x)
    y, _ = step(fused, x)
    assert seen == [(norm, (8, 32, 6, 6), (8, 32, 6, 6))]
    np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-9)
    assert_same_state(plain, fused)
    remove()
    step(fused, x)
    assert len(seen) == 1


def test_statistics_can_be_estimated_anew():
    plain, fused, x = pair("residual, projection")
    for model in (plain, fused):
        fastbn.update_bn_stats(model, [x, x[:4] + 1])
    for (_, a), (_, b) in zip(plain.named_buffers(), fused.named_buffers(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_fuse_gives_the_model_itself_and_can_be_undone():
    model = models.resnet18(num_classes=3)
    names = list(model.state_dict())
    assert fastbn.fuse(model) is model
    assert list(model.state_dict()) == names
    assert all(module.fused for module in model.modules() if isinstance(module, (nn.Sequential, nn.Residual)))
    assert not any(getattr(module, "fused", False) for module in fastbn.fuse(model, False).modules())


def test_a_fused_model_is_folded_and_saved_like_any_other(tmp_path):
    _, fused, x = pair("residual, projection")
    step(fused, x)
    folded = fastbn.fold(fused)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    want = fused.eval()(x)
    np.testing.assert_allclose(folded(x), want, rtol=1e-9, atol=1e-9)
    fastbn.save(fused, tmp_path / "fused.safetensors")
    loaded = fastbn.load(tmp_path / "fused.safetensors")
    assert loaded.fused
    np.testing.assert_array_equal(loaded(x), want)


def test_the_layer(tmp_path):
    fastbn.manual_seed(0)
    layer = nn.ConvBnReLU2d(16, 32, 3, stride=2, padding=1)
    assert list(layer.state_dict())[:3] == ["conv.weight", "bn.weight", "bn.bias"]
    assert "relu" not in dict(nn.ConvBnReLU2d(16, 32, 3, relu=False).named_children())
    x = np.random.default_rng(0).standard_normal((4, 16, 9, 9)).astype(np.float32)
    y = layer(x)
    assert (y >= 0).all()
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous
    assert layer.backward(y).shape == x.shape
    assert layer.bn.num_batches_tracked == 1
    fastbn.save(layer, tmp_path / "layer.safetensors")
    loaded = fastbn.load(tmp_path / "layer.safetensors")
    assert isinstance(loaded, nn.ConvBnReLU2d)
    assert loaded.fused
    np.testing.assert_array_equal(loaded(x), layer.eval()(x))


def test_training_learns():
    fastbn.manual_seed(0)
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 4
    images = (0.3 * rng.standard_normal((64, 16, 8, 8)) + labels[:, None, None, None] / 2).astype(np.float32)
    model = nn.Sequential(nn.ConvBnReLU2d(16, 16, 3), nn.Residual(body()), nn.Flatten(), nn.Linear(16 * 36, 4))
    sgd = fastbn.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    history = fastbn.fit(fastbn.fuse(model), (images, labels), epochs=8, optimizer=sgd, batch_size=16, progress=False)
    assert history[-1].accuracy > 0.9


def test_sentences():
    with pytest.raises(DtypeError, match=r"fuse: model must be a fastbn\.nn\.Module, got int"):
        fastbn.fuse(3)
    residual = fastbn.fuse(nn.Residual(unit(16, 32)))
    with pytest.raises(ShapeError, match="Residual: the shortcut must have shape"):
        residual(np.ones((2, 16, 4, 4), np.float32))
    residual = fastbn.fuse(nn.Residual({"conv": conv(16, 32), "bn": nn.BatchNorm2d(32)}))
    with pytest.raises(ShapeError, match=r"residual must have shape \(2, 32, 4, 4\)"):
        residual(np.ones((2, 16, 4, 4), np.float32))
