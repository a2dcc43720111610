"""The same networks in PyTorch: names, weights both ways, outputs, and training step by step."""

import numpy as np
import pytest
from helpers import assert_close

from fastbn import manual_seed, models, nn, optim

torch = pytest.importorskip("torch")


def torch_lenet(norm="batch"):
    def norms(layer):
        return [layer] if norm == "batch" else []

    t = torch.nn
    return t.Sequential(
        t.Conv2d(1, 6, 5),
        *norms(t.BatchNorm2d(6)),
        t.Sigmoid(),
        t.AvgPool2d(2),
        t.Conv2d(6, 16, 5),
        *norms(t.BatchNorm2d(16)),
        t.Sigmoid(),
        t.AvgPool2d(2),
        t.Flatten(),
        t.Linear(256, 120),
        *norms(t.BatchNorm1d(120)),
        t.Sigmoid(),
        t.Linear(120, 84),
        *norms(t.BatchNorm1d(84)),
        t.Sigmoid(),
        t.Linear(84, 10),
    )


class TorchBlock(torch.nn.Module):
    """torchvision's BasicBlock with a projection, written out."""

    def __init__(self):
        super().__init__()
        t = torch.nn
        self.conv1 = t.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.bn1 = t.BatchNorm2d(6)
        self.relu = t.ReLU(inplace=True)
        self.conv2 = t.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn2 = t.BatchNorm2d(6)
        self.downsample = t.Sequential(t.Conv2d(4, 6, 1, stride=2, bias=False), t.BatchNorm2d(6))

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.downsample(x))


def block():
    body = {
        "conv1": nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        "bn1": nn.BatchNorm2d(6),
        "relu": nn.ReLU(),
        "conv2": nn.Conv2d(6, 6, 3, padding=1, bias=False),
        "bn2": nn.BatchNorm2d(6),
    }
    shortcut = nn.Sequential(nn.Conv2d(4, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6))
    residual = nn.Residual(body, downsample=shortcut, activation=nn.ReLU())
    return nn.Sequential(residual, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def torch_block():
    return torch.nn.Sequential(TorchBlock(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


NETWORKS = {
    "lenet": (models.lenet, torch_lenet, (8, 1, 28, 28)),
    "lenet without norms": (lambda: models.lenet(norm="none"), lambda: torch_lenet("none"), (8, 1, 28, 28)),
    "basic block": (block, torch_block, (4, 4, 6, 6)),
}


@pytest.fixture(params=NETWORKS)
def networks(request, rng):
    """Ours with random statistics and gammas, theirs with other values, and an input."""
    manual_seed(0)
    torch.manual_seed(1)
    ours, theirs, shape = NETWORKS[request.param]
    model = ours()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            for array in (module.weight.data, module.bias.data, module.running_mean):
                array[...] = rng.normal(size=array.shape)
            module.running_var[...] = rng.uniform(0.5, 2, module.running_var.shape)
    return model, theirs(), rng.normal(size=shape).astype(np.float32)


def to_torch(model, target):
    target.load_state_dict({name: torch.tensor(array) for name, array in model.state_dict().items()})


def test_state_dicts_have_the_same_names_shapes_and_order(networks):
    ours, theirs, _ = networks
    want = [(name, tuple(tensor.shape)) for name, tensor in theirs.state_dict().items()]
    assert [(name, array.shape) for name, array in ours.state_dict().items()] == want
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]


def test_dtypes_are_the_same(networks):
    ours, theirs, _ = networks
    for name, tensor in theirs.state_dict().items():
        assert ours.state_dict()[name].dtype == tensor.numpy().dtype, name


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_weights_move_to_pytorch(networks, mode):
    ours, theirs, x = networks
    to_torch(ours, theirs)
    with torch.no_grad():
        want = getattr(theirs, mode)()(torch.tensor(x)).numpy()
    assert_close(getattr(ours, mode)()(x), want, np.float32)


def test_weights_move_from_pytorch(networks):
    ours, theirs, x = networks
    ours.load_state_dict({name: tensor.numpy() for name, tensor in theirs.state_dict().items()})
    with torch.no_grad():
        want = theirs.eval()(torch.tensor(x)).numpy()
    assert_close(ours.eval()(x), want, np.float32)


def test_tensors_are_taken_as_they_are(networks):
    ours, theirs, _ = networks
    ours.load_state_dict(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[name], tensor.numpy())


SGD = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}
OPTIMIZERS = {
    "sgd": ("SGD", SGD),
    "sgd dampening": ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}),
    "adam": ("Adam", {"lr": 1e-3, "weight_decay": 1e-2, "eps": 1e-4}),
    "adamw": ("AdamW", {"lr": 1e-3, "weight_decay": 0.1, "eps": 1e-4}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_steps_are_pytorchs(networks, name, rng):
    """Adam's eps is large: a gradient that is 0 but for rounding would be scaled up to a whole step."""
    ours, theirs, x = networks
    to_torch(ours, theirs)
    kind, options = OPTIMIZERS[name]
    optimizer = getattr(optim, kind)(ours.parameters(), **options)
    optimizer_torch = getattr(torch.optim, kind)(theirs.parameters(), **options)
    criterion, criterion_torch = nn.CrossEntropyLoss(), torch.nn.CrossEntropyLoss()
    targets = rng.integers(0, 6, len(x))
    for _ in range(4):
        optimizer.zero_grad()
        optimizer_torch.zero_grad()
        loss = criterion(ours(x), targets)
        loss_torch = criterion_torch(theirs(torch.tensor(x)), torch.tensor(targets))
        np.testing.assert_allclose(loss, loss_torch.item(), rtol=1e-5)
        loss_torch.backward()
        ours.backward(criterion.backward(), need_dx=False)
        optimizer.step()
        optimizer_torch.step()
        for key, tensor in theirs.state_dict().items():
            got = ours.state_dict()[key]
            np.testing.assert_allclose(got, tensor.numpy(), rtol=1e-5, atol=1e-5, err_msg=key)


# MobileNetV2, in float64: 53 layers of random statistics leave few digits of float32


class TorchInvertedResidual(torch.nn.Module):
    """torchvision's InvertedResidual, written out."""

    def __init__(self, channels, width, expansion, stride):
        super().__init__()
        hidden = channels * expansion
        expand = [torch_conv_norm(channels, hidden, 1)] if expansion != 1 else []
        self.conv = torch.nn.Sequential(
            *expand,
            torch_conv_norm(hidden, hidden, 3, stride, hidden),
            torch.nn.Conv2d(hidden, width, 1, bias=False),
            torch.nn.BatchNorm2d(width),
        )
        self.adds = stride == 1 and channels == width

    def forward(self, x):
        return x + self.conv(x) if self.adds else self.conv(x)


class TorchMobileNet(torch.nn.Module):
    """torchvision's MobileNetV2 of a quarter of the width, without the dropout."""

    def __init__(self):
        super().__init__()
        t, channels = torch.nn, 8
        features = [torch_conv_norm(3, channels, 3, 2)]
        stages = (1, 8, 1, 1), (6, 8, 2, 2), (6, 8, 3, 2), (6, 16, 4, 2), (6, 24, 3, 1), (6, 40, 3, 2), (6, 80, 1, 1)
        for expansion, width, depth, stride in stages:
            for position in range(depth):
                features.append(TorchInvertedResidual(channels, width, expansion, 1 if position else stride))
                channels = width
        self.features = t.Sequential(*features, torch_conv_norm(channels, 1280, 1))
        self.classifier = t.Sequential(t.Dropout(0.0), t.Linear(1280, 7))

    def forward(self, x):
        return self.classifier(torch.nn.functional.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def torch_conv_norm(channels, width, kernel, stride=1, groups=1):
    conv = torch.nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return torch.nn.Sequential(conv, torch.nn.BatchNorm2d(width), torch.nn.ReLU6())


@pytest.fixture
def mobilenets(rng):
    """Ours and theirs with the same weights, and pictures large enough that ReLU6 cuts at both ends."""
    manual_seed(0)
    ours = models.mobilenet_v2(7, width_mult=0.25, dropout=0.0).double()
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data[...] = rng.uniform(0.5, 4, module.num_features)
            module.bias.data[...] = rng.normal(size=module.num_features)
            module.running_mean[...] = rng.normal(size=module.num_features)
            module.running_var[...] = rng.uniform(0.5, 2, module.num_features)
    theirs = TorchMobileNet().double()
    to_torch(ours, theirs)
    return ours, theirs, rng.normal(size=(8, 3, 32, 32))


def test_mobilenet_v2_has_the_names_shapes_and_order(mobilenets):
    ours, theirs, _ = mobilenets
    want = [(name, tuple(tensor.shape)) for name, tensor in theirs.state_dict().items()]
    assert [(name, array.shape) for name, array in ours.state_dict().items()] == want
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]


def test_mobilenet_v2_gives_the_outputs(mobilenets):
    ours, theirs, x = mobilenets
    with torch.no_grad():
        want = theirs.eval()(torch.tensor(x)).numpy()
    np.testing.assert_allclose(ours.eval()(x), want, rtol=1e-10, atol=1e-10 * np.abs(want).max())


def test_a_training_step_of_mobilenet_v2(mobilenets, rng):
    ours, theirs, x = mobilenets
    dy = rng.normal(size=(8, 7))
    x_torch = torch.tensor(x, requires_grad=True)
    y_torch = theirs(x_torch)
    y_torch.backward(torch.tensor(dy))
    y = ours(x)
    dx = ours.backward(dy)
    want = y_torch.detach().numpy()
    np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-9 * np.abs(want).max())
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()} | {"x": dx}
    gradients_torch = {name: p.grad.numpy() for name, p in theirs.named_parameters()} | {"x": x_torch.grad.numpy()}
    # Of a bias before a convolution and its batch norm the gradient is 0 but for rounding.
    atol = 1e-12 * max(np.abs(want).max() for want in gradients_torch.values())
    for name, want in gradients_torch.items():
        np.testing.assert_allclose(gradients[name], want, rtol=1e-7, atol=atol, err_msg=name)
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[name], tensor.numpy(), rtol=1e-9, atol=1e-9, err_msg=name)
