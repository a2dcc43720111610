"""update_bn_stats: the statistics of all batches together, and nothing else changed."""

import numpy as np
import pytest

import fastbn
from fastbn import nn
from fastbn.errors import ArgumentError, ShapeError

SIZES = [5, 1, 17, 2, 8]  # images of 6 pixels: a batch of one is enough

LAYERS = {
    "1d": (nn.BatchNorm1d, (3, 6)),
    "2d": (nn.BatchNorm2d, (3, 2, 3)),
    "3d": (nn.BatchNorm3d, (3, 1, 2, 3)),
}


@pytest.fixture(autouse=True)
def _seed():
    fastbn.manual_seed(0)


def draw(rng, shape, sizes=SIZES, dtype=np.float32):
    """Batches of unequal sizes, means and deviations."""
    return [((1 + i) * rng.normal(size=(n, *shape)) + 3 * i).astype(dtype) for i, n in enumerate(sizes)]


def over_all(batches):
    together = np.concatenate(batches).astype(np.float64)
    axes = (0, *range(2, together.ndim))
    return together.mean(axis=axes), together.var(axis=axes, ddof=1)


def state(model):
    return {name: array.copy() for name, array in model.state_dict().items()}


def assert_state(model, want):
    for name, array in want.items():
        np.testing.assert_array_equal(model.state_dict()[name], array, err_msg=name)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("momentum", [0.1, None, 0.0])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_statistics_are_those_of_all_data(name, momentum, dtype, tolerance, rng):
    cls, shape = LAYERS[name]
    norm = cls(3, momentum=momentum)
    norm = norm.double() if dtype is np.float64 else norm
    norm.running_mean[...] = 50  # nothing of the past may be left
    batches = draw(rng, shape, dtype=dtype)
    fastbn.update_bn_stats(norm, batches)
    mean, var = over_all(batches)
    np.testing.assert_allclose(norm.running_mean, mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(norm.running_var, var, rtol=tolerance)
    assert norm.running_mean.dtype == dtype
    assert norm.num_batches_tracked == len(batches)


def test_a_large_offset_does_not_cancel(rng):
    norm = nn.BatchNorm1d(3).double()
    batches = [1e6 + batch for batch in draw(rng, (3,), [4, 9, 30], np.float64)]
    fastbn.update_bn_stats(norm, batches)
    mean, var = over_all(batches)
    np.testing.assert_allclose(norm.running_mean, mean, rtol=1e-12)
    np.testing.assert_allclose(norm.running_var, var, rtol=1e-9)


def test_the_order_of_the_batches_does_not_matter(rng):
    batches, norms = draw(rng, (3, 6)), [nn.BatchNorm1d(3), nn.BatchNorm1d(3)]
    fastbn.update_bn_stats(norms[0], batches)
    fastbn.update_bn_stats(norms[1], batches[::-1])
    np.testing.assert_allclose(norms[1].running_mean, norms[0].running_mean, rtol=1e-6)
    np.testing.assert_allclose(norms[1].running_var, norms[0].running_var, rtol=1e-6)


def test_a_deeper_layer_sees_inputs_normalised_batch_by_batch(rng):
    first, second = nn.BatchNorm1d(3), nn.BatchNorm1d(2)
    linear = nn.Linear(3, 2)
    batches = draw(rng, (3,), [5, 9, 20])
    fastbn.update_bn_stats(nn.Sequential(first, linear, second), batches)
    normalised = [(b - b.mean(axis=0)) / np.sqrt(b.var(axis=0) + 1e-5) for b in batches]
    mean, var = over_all([b @ linear.weight.data.T + linear.bias.data for b in normalised])
    np.testing.assert_allclose(second.running_mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second.running_var, var, rtol=1e-5)


def test_a_layer_that_is_used_twice_gathers_both(rng):
    norm = nn.BatchNorm1d(3)
    batches = draw(rng, (3,), [5, 9])
    fastbn.update_bn_stats(nn.Sequential(norm, norm), batches)
    normalised = [(b - b.mean(axis=0)) / np.sqrt(b.var(axis=0) + 1e-5) for b in batches]
    mean, var = over_all([*batches, *normalised])
    np.testing.assert_allclose(norm.running_mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.running_var, var, rtol=1e-5)


def test_eval_outputs_over_all_data_are_normalised(rng):
    norm = nn.BatchNorm1d(3)
    batches = draw(rng, (3, 6))
    fastbn.update_bn_stats(norm, batches)
    mean, var = over_all([norm.eval()(batch) for batch in batches])
    np.testing.assert_allclose(mean, np.zeros(3), atol=1e-6)
    np.testing.assert_allclose(var, np.ones(3), atol=1e-4)


def test_a_generator_is_read_once(rng):
    norm, batches = nn.BatchNorm1d(3), draw(rng, (3, 6))
    fastbn.update_bn_stats(norm, (batch for batch in batches))
    assert norm.num_batches_tracked == len(batches)


def test_an_empty_batch_among_others_has_no_share(rng):
    batches, norms = draw(rng, (3, 6)), [nn.BatchNorm1d(3), nn.BatchNorm1d(3)]
    fastbn.update_bn_stats(norms[0], batches)
    fastbn.update_bn_stats(norms[1], [batches[0], np.empty((0, 3, 6), np.float32), *batches[1:]])
    np.testing.assert_array_equal(norms[1].running_mean, norms[0].running_mean)
    np.testing.assert_array_equal(norms[1].running_var, norms[0].running_var)


# What stays


def network():
    return nn.Sequential(
        nn.Linear(3, 4),
        nn.BatchNorm1d(4),
        nn.Residual({"fc": nn.Linear(4, 4), "bn": nn.BatchNorm1d(4, frozen=True)}, activation=nn.ReLU()),
        nn.BatchNorm1d(4, track_running_stats=False),
        nn.Linear(4, 4),
        nn.BatchNorm1d(4, affine=False),
    )


def test_frozen_layers_parameters_and_gradients_are_left(rng):
    model = network()
    frozen = model[2].bn
    frozen.running_mean[...] = -3
    batches = draw(rng, (3,), [4, 6])
    model.backward(np.ones_like(model(batches[0])))
    gradients = [parameter.grad for parameter in model.parameters()]
    before = state(model)
    moved = [f"{layer}.{name}" for layer in (1, 5) for name in ("running_mean", "running_var", "num_batches_tracked")]
    fastbn.update_bn_stats(model, batches)
    assert_state(model, {name: array for name, array in before.items() if name not in moved})
    for name in moved:
        assert not np.array_equal(model.state_dict()[name], before[name]), name
    assert frozen.frozen
    assert all(parameter.grad is gradient for parameter, gradient in zip(model.parameters(), gradients, strict=True))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_modes_are_restored_one_by_one(mode, rng):
    model = getattr(network(), mode)()
    model[2].training = not model[2].training
    want = [module.training for module in model.modules()]
    fastbn.update_bn_stats(model, draw(rng, (3,), [4, 6]))
    assert [module.training for module in model.modules()] == want
    assert all(module._saved is None for module in model.modules())


def test_a_model_without_batch_norms_is_left(rng):
    model = nn.Sequential(nn.Linear(3, 4))
    before = state(model)
    fastbn.update_bn_stats(model, draw(rng, (3,), [4]))
    assert_state(model, before)


# Refusals


@pytest.mark.parametrize("batches", [[], iter(())])
def test_no_batches(batches):
    model = network().eval()
    before = state(model)
    with pytest.raises(ArgumentError, match="update_bn_stats: batches must hold at least one batch, got none"):
        fastbn.update_bn_stats(model, batches)
    assert_state(model, before)
    assert not any(module.training for module in model.modules())


def test_only_empty_batches_are_refused_too():
    model = nn.BatchNorm1d(3)
    before = state(model)
    with pytest.raises(ArgumentError, match="update_bn_stats: batches must"):
        fastbn.update_bn_stats(model, [np.empty((0, 3), np.float32)])
    assert_state(model, before)


@pytest.mark.parametrize("bad", [np.ones((1, 3), np.float32), np.ones((4, 2), np.float32)])
def test_a_batch_that_the_model_refuses_changes_nothing(bad, rng):
    model = network().eval()
    before = state(model)
    with pytest.raises(ShapeError):
        fastbn.update_bn_stats(model, [*draw(rng, (3,), [4]), bad])
    assert_state(model, before)
    assert not any(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
