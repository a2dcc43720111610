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
