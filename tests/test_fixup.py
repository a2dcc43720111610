"""FixUp: its scalars, its block, its initial values, folding, export, and the depth that nothing else trains at."""

import copy
import itertools

import numpy as np
import onnx
import pytest
import reference
from helpers import ORDERS, assert_close

import export
import fastbn
import fastbn.functional as F
from fastbn import nn, optim
from fastbn.errors import ArgumentError, DtypeError

SHAPES = [(5, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 2, 3), (1, 1), (0, 3), (300, 130)]


@pytest.fixture(autouse=True)
def _seed():
    fastbn.manual_seed(0)


def perturbed(model, rng):
    """Parameters that hide nothing: FixUp's zeros and ones would."""
    for parameter in model.parameters():
        parameter.data[...] += rng.normal(size=parameter.shape) / np.sqrt(max(1, parameter.data[:1].size))
    return model


def scalars(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.ScalarAffine)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("has", list(itertools.product([True, False], repeat=2)), ids=str)
@pytest.mark.parametrize(("shape", "order"), [(s, o) for s in SHAPES for o in ORDERS if len(s) > 2 or o == "nchw"])
def test_scalar_affine(shape, has, dtype, order, rng):
    weight, bias = (np.array([value], dtype) if given else None for value, given in zip((-1.5, 0.7), has, strict=True))
    x, dy = (ORDERS[order](rng.normal(size=shape).astype(dtype)) for _ in range(2))
    y, saved = F.scalar_affine_forward(x, weight, bias)
    np.testing.assert_array_equal(F.scalar_affine(x, weight, bias), y)
    assert y.dtype == dtype
    assert_close(y, x.astype(np.float64) * (-1.5 if has[0] else 1) + (0.7 if has[1] else 0), dtype)
    dx, dweight, dbias = F.scalar_affine_backward(dy, saved)
    assert_close(dx, dy * (-1.5 if has[0] else 1), dtype)
    if has[0]:
        assert_close(dweight, [np.sum(dy.astype(np.float64) * x)], dtype, scale=10)
    assert (dweight is None) == (not has[0])
    if has[1]:
        assert_close(dbias, [np.sum(dy, dtype=np.float64)], dtype, scale=10)


def test_scalar_affine_of_half_precision(rng):
    x = rng.normal(size=(4, 3, 5)).astype(np.float16)
    bias = np.array([0.5], np.float32)
    y, saved = F.scalar_affine_forward(x, None, bias)
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, (x.astype(np.float32) + 0.5).astype(np.float16))
    _, _, dbias = F.scalar_affine_backward(x, saved)
    np.testing.assert_allclose(dbias, [x.sum(dtype=np.float64)], rtol=1e-6)


def block(width=3, kernel=3, shortcut=False):
    conv1 = nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False)
    conv2 = nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False)
    downsample = nn.Conv2d(width, width, 1, bias=False) if shortcut else None
    return nn.FixupResidual(
        {"conv1": conv1, "relu": nn.ReLU(), "conv2": conv2}, downsample=downsample, activation=nn.ReLU()
    )


def test_a_block_has_the_scalars_of_the_paper_under_the_authors_names():
    names = [name for name, _ in block(shortcut=True).named_children()]
    body = ["bias1a", "conv1", "bias1b", "relu", "bias2a", "conv2", "scale"]
    assert names == [*body, "downsample", "activation"]
    bottleneck = nn.FixupResidual(
        nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Conv2d(2, 4, 1), nn.Identity()
    )
    assert scalars(bottleneck) == ["bias1a", "bias1b", "bias2a", "bias2b", "bias3a", "scale"]
    assert [name for name in bottleneck.state_dict() if name.endswith("a.weight")] == []
    assert bottleneck.scale.weight.shape == (1,)


@pytest.mark.parametrize("shortcut", [False, True])
def test_gradients_of_a_block_are_numerical(shortcut, rng):
    model = perturbed(block(2, shortcut=shortcut), rng).double()
    x, dy = rng.normal(size=(2, 2, 2, 3, 3))
    model(x)
    dx = model.backward(dy)
    probe = copy.deepcopy(model).eval()
    np.testing.assert_allclose(dx, reference.numerical_gradient(probe, x, dy), rtol=1e-5, atol=1e-7)
    for (name, parameter), mine in zip(probe.named_parameters(), model.parameters(), strict=True):
        values = parameter.data

        def run(changed, parameter=parameter):
            parameter.data = changed
            return probe(x)

        want = reference.numerical_gradient(run, values, dy)
        parameter.data = values
        np.testing.assert_allclose(mine.grad, want, rtol=1e-5, atol=1e-7, err_msg=name)


def network(kind, depth, width=16):
    """Residual blocks of two linear layers without any norm."""

    def body():
        layers = [nn.Linear(width, width, bias=False) for _ in range(2)]
        return kind(layers[0], nn.ReLU(), layers[1], activation=nn.ReLU())

    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), *(body() for _ in range(depth)), nn.Linear(width, 2))


def test_initial_values_are_the_papers():
    model = nn.fixup_(network(nn.FixupResidual, 16, width=64))
    np.testing.assert_allclose(model[0].weight.data.std(), np.sqrt(2 / 64), rtol=0.1)
    for number in range(2, 18):
        first, _, last = (module for _, module in model[number].chain() if not isinstance(module, nn.ScalarAffine))
        np.testing.assert_allclose(first.weight.data.std(), 16**-0.5 * np.sqrt(2 / 64), rtol=0.1)
        assert not last.weight.data.any()
    assert not model[18].weight.data.any()
    assert not model[0].bias.data.any()
    three = nn.FixupResidual(*(nn.Linear(64, 64) for _ in range(3)), downsample=nn.Linear(64, 64))
    nn.fixup_(nn.Sequential(*(three if i == 0 else block() for i in range(81)), nn.Linear(64, 2)))
    np.testing.assert_allclose(dict(three.chain())["0"].weight.data.std(), 81**-0.25 * np.sqrt(2 / 64), rtol=0.1)
    np.testing.assert_allclose(three.downsample.layer.weight.data.std(), np.sqrt(2 / 64), rtol=0.1)


def test_initial_values_are_set_anew(rng):
    model = perturbed(network(nn.FixupResidual, 2), rng)
    assert nn.fixup_(model, mode="fan_in") is model
    for module in model.modules():
        if isinstance(module, nn.ScalarAffine):
            assert module.weight is None or module.weight.data == 1
            assert module.bias.data == 0


def train(model, steps=40):
    """The losses of learning the sign of one feature in eight."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(128, 8)).astype(np.float32)
    targets = (x[:, 0] > 0).astype(np.int64)
    loss, sgd = nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    with np.errstate(all="ignore"):
        for _ in range(steps):
            model.zero_grad()
            losses.append(loss(model(x), targets))
            model.backward(loss.backward(), need_dx=False)
            sgd.step()
    return losses


def test_fifty_blocks_train_where_kaimings_values_without_a_norm_diverge():
    deep = train(nn.fixup_(network(nn.FixupResidual, 50)))
    assert deep[0] == pytest.approx(np.log(2))
    assert deep[-1] < 0.25
    kaiming = train(nn.init_weights_(network(nn.Residual, 50), nn.init.kaiming_normal_), steps=5)
    assert kaiming[0] > 1e3
    assert not np.isfinite(kaiming[-1]) or kaiming[-1] > 1e3


def test_folding_leaves_no_scalar_but_those_before_padding(rng):
    model = nn.Sequential(
        block(), block(kernel=1), block(shortcut=True), nn.Flatten(), nn.ScalarAffine(), nn.Linear(48, 2)
    )
    perturbed(model, rng).eval()
    folded = fastbn.fold(model)
    assert scalars(folded) == [f"{place}.bias{number}a" for place in (0, 2) for number in (1, 2)]
    x = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
    assert_close(folded(x), model(x), np.float32, scale=10)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"multiplier": False}], ids=str)
def test_scalars_on_either_side_of_a_convolution_fold(options, groups, rng):
    first, second = nn.ScalarAffine(**options), nn.ScalarAffine(**options)
    model = nn.Sequential(first, nn.Conv2d(4, 6, 3, groups=groups, padding=int(first.bias is None)), second).double()
    perturbed(model, rng).eval()
    folded = fastbn.fold(model)
    assert scalars(folded) == []
    x = rng.normal(size=(2, 4, 5, 5))
    assert_close(folded(x), model(x), np.float64)


def test_a_scalar_that_is_used_twice_or_beside_no_layer_stays(rng):
    twice = nn.ScalarAffine()
    model = nn.Sequential(
        nn.Linear(3, 3), twice, nn.ReLU(), nn.Linear(3, 3), twice, nn.ReLU(), nn.ScalarAffine(), nn.ReLU()
    )
    perturbed(model, rng).eval()
    folded = fastbn.fold(model)
    assert [type(module) for module in folded].count(nn.ScalarAffine) == 3
    x = rng.normal(size=(2, 3)).astype(np.float32)
    assert_close(folded(x), model(x), np.float32)


@pytest.mark.parametrize("fold", [True, False])
def test_export(fold, tmp_path, rng):
    model = nn.Sequential(
        block(), block(kernel=1, shortcut=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    )
    report = export.export(perturbed(model, rng), tmp_path / "model.onnx", input_shape=(3, 4, 4), fold=fold)
    assert report.ok
    written = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert written.count("Mul") == (0 if fold else 2)
    assert written.count("Add") == 2 + (2 if fold else 9)  # of which 2 are the sums of the blocks


def test_checkpoints_and_fused_training(tmp_path, rng):
    model = perturbed(nn.Sequential(block(shortcut=True), block()), rng)
    fastbn.save(model, tmp_path / "model.safetensors")
    loaded = fastbn.load(tmp_path / "model.safetensors").train()
    assert scalars(loaded) == scalars(model)
    x = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
    y = model(x)
    np.testing.assert_array_equal(loaded(x), y)
    assert_close(fastbn.fuse(loaded)(x), y, np.float32)
    assert_close(loaded.backward(y), model.backward(y), np.float32, scale=10)


def residual(*body):
    return nn.Sequential(nn.Residual(*body))


def test_zero_gamma_makes_every_block_its_shortcut(rng):
    pair = nn.ConvBn2d(3, 3, 1)
    model = nn.Sequential(
        nn.Residual(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
        nn.Residual(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.BatchNorm2d(3), nn.Dropout()))),
        nn.Residual(nn.ReLU(), pair),
    )
    assert nn.zero_gamma_(model) is model
    x = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(model.eval()(x), x)
    other = nn.Residual({"bn": nn.BatchNorm2d(3), "conv": nn.Conv2d(3, 3, 1)})
    nn.zero_gamma_(nn.Sequential(model, other))
    assert (other.bn.weight.data == 1).all()


REFUSED = [
    (
        lambda: nn.zero_gamma_(residual(nn.BatchNorm2d(3, affine=False))),
        ArgumentError,
        "ends in a norm, got none in Seq",
    ),
    (lambda: nn.zero_gamma_(residual(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))), ArgumentError, "got none in Sequential"),
    (lambda: nn.zero_gamma_(residual(nn.Conv2d(3, 3, 1), nn.ScalarAffine())), ArgumentError, "got none in Sequential"),
    (
        lambda: nn.zero_gamma_(nn.Linear(2, 2)),
        ArgumentError,
        "must have a Residual block that ends in a norm, got none",
    ),
    (lambda: nn.zero_gamma_("x"), DtypeError, "zero_gamma_: model must be a fastbn.nn.Module, got str"),
    (lambda: nn.fixup_(None), DtypeError, "fixup_: model must be a fastbn.nn.Module, got NoneType"),
    (lambda: nn.fixup_(block(), mode="fan"), ArgumentError, "mode must be 'fan_in' or 'fan_out', got 'fan'"),
    (lambda: nn.FixupResidual(nn.ReLU()), ArgumentError, r"the body must have a layer with weights, got \['0'\]"),
    (lambda: nn.FixupResidual(5), DtypeError, "FixupResidual: 0 must be a Module, got int"),
    (
        lambda: nn.FixupResidual({"scale": nn.Linear(2, 2)}),
        ArgumentError,
        "FixupResidual: the body's names must not be those of its scalars, got scale",
    ),
]


@pytest.mark.parametrize(("call", "error", "sentence"), REFUSED, ids=[sentence for *_, sentence in REFUSED])
def test_refusals(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
