"""BatchNorm1d, 2d and 3d: statistics, modes, freezing, errors, and step by step against PyTorch."""

import numpy as np
import pytest
import reference
from helpers import assert_close

from fastbn import nn, optim
from fastbn.errors import ArgumentError, DtypeError, ShapeError

KINDS = {
    "1d matrix": (nn.BatchNorm1d, (8, 3)),
    "1d": (nn.BatchNorm1d, (4, 3, 5)),
    "2d": (nn.BatchNorm2d, (4, 3, 5, 2)),
    "3d": (nn.BatchNorm3d, (2, 3, 2, 3, 2)),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def make(cls, rng, **options):
    """A layer of three features with values that hide nothing."""
    norm = cls(3, **options)
    if norm.affine:
        norm.weight.data[...] = rng.normal(size=3)
        norm.bias.data[...] = rng.normal(size=3)
    if norm.track_running_stats:
        norm.running_mean[...] = rng.normal(size=3)
        norm.running_var[...] = rng.uniform(0.5, 2, size=3)
    return norm


def draw(rng, shape):
    return (2 * rng.normal(size=shape) + 1).astype(np.float32)


def operands(norm):
    affine = {} if norm.weight is None else {"weight": norm.weight.data, "bias": norm.bias.data}
    return {**affine, "eps": norm.eps}


def running(norm):
    return {"running_mean": norm.running_mean.copy(), "running_var": norm.running_var.copy()}


@pytest.mark.parametrize("affine", [True, False])
def test_training_is_the_reference(kind, affine, rng):
    cls, shape = kind
    norm = make(cls, rng, affine=affine, momentum=0.3, eps=1e-3)
    x, dy = draw(rng, shape), draw(rng, shape)
    before = running(norm)
    want, mean, var = reference.batch_norm(x, **before, **operands(norm), training=True, momentum=0.3)
    assert_close(norm(x), want, np.float32)
    assert_close(norm.running_mean, mean, np.float32)
    assert_close(norm.running_var, var, np.float32)
    assert norm.num_batches_tracked == 1
    dx, dweight, dbias, _ = reference.batch_norm_backward(dy, x, **operands(norm))
    assert_close(norm.backward(dy), dx, np.float32)
    if affine:
        assert_close(norm.weight.grad, dweight, np.float32, scale=10)
        assert_close(norm.bias.grad, dbias, np.float32, scale=10)
    else:
        assert list(norm.parameters()) == []


@pytest.mark.parametrize("affine", [True, False])
def test_eval_uses_the_running_statistics_and_leaves_them(kind, affine, rng):
    cls, shape = kind
    norm = make(cls, rng, affine=affine).eval()
    before, x = running(norm), draw(rng, shape)
    assert_close(norm(x), reference.batch_norm(x, **before, **operands(norm))[0], np.float32)
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(norm, name), array)
    assert norm.num_batches_tracked == 0


def test_eval_takes_a_single_value_and_an_empty_batch():
    norm = nn.BatchNorm1d(3).eval()
    np.testing.assert_allclose(norm(np.ones((1, 3), np.float32)), np.ones((1, 3)), rtol=1e-5)
    assert norm(np.empty((0, 3), np.float32)).shape == (0, 3)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_without_running_statistics_the_batch_serves_in_both_modes(kind, mode, rng):
    cls, shape = kind
    norm = make(cls, rng, track_running_stats=False)
    getattr(norm, mode)()
    x = draw(rng, shape)
    assert_close(norm(x), reference.batch_norm(x, **operands(norm))[0], np.float32)
    assert norm.running_mean is None
    assert norm.running_var is None
    assert norm.num_batches_tracked is None
    norm.reset_running_stats()
    assert norm.running_mean is None


# Momentum


def test_momentum_none_is_the_mean_of_the_batches(kind, rng):
    cls, shape = kind
    norm = cls(3, momentum=None)
    batches = [draw(rng, shape) for _ in range(5)]
    axes = tuple(axis for axis in range(len(shape)) if axis != 1)
    for number, x in enumerate(batches, start=1):
        norm(x)
        assert norm.num_batches_tracked == number
        seen = np.array(batches[:number], np.float64)
        over = tuple(axis + 1 for axis in axes)
        assert_close(norm.running_mean, seen.mean(axis=over).mean(axis=0), np.float32)
        assert_close(norm.running_var, seen.var(axis=over, ddof=1).mean(axis=0), np.float32)


def test_an_empty_batch_has_no_share_in_the_mean_of_the_batches(rng):
    norm, without = nn.BatchNorm1d(3, momentum=None), nn.BatchNorm1d(3, momentum=None)
    batches = [draw(rng, (4, 3)) for _ in range(2)]
    for x in (batches[0], np.empty((0, 3), np.float32), batches[1]):
        norm(x)
    for x in batches:
        without(x)
    np.testing.assert_array_equal(norm.running_mean, without.running_mean)
    np.testing.assert_array_equal(norm.running_var, without.running_var)


@pytest.mark.parametrize("momentum", [0.0, 0, 1.0, 1])
def test_momentum_at_its_ends(momentum, rng):
    norm = nn.BatchNorm1d(3, momentum=momentum)
    x = draw(rng, (6, 3))
    norm(x)
    assert_close(norm.running_mean, momentum * x.mean(axis=0), np.float32)
    assert_close(norm.running_var, 1 - momentum + momentum * x.var(axis=0, ddof=1), np.float32)


def test_reset_running_stats(rng):
    norm = make(nn.BatchNorm1d, rng)
    arrays = norm.state_dict()
    norm(draw(rng, (6, 3)))
    norm.reset_running_stats()
    np.testing.assert_array_equal(norm.running_mean, np.zeros(3))
    np.testing.assert_array_equal(norm.running_var, np.ones(3))
    assert norm.num_batches_tracked == 0
    assert all(norm.state_dict()[name] is array for name, array in arrays.items())


def test_counting_keeps_the_counters_array_and_dtype(rng):
    norm = nn.BatchNorm1d(3)
    counter = norm.state_dict()["num_batches_tracked"]
    norm(draw(rng, (6, 3)))
    assert norm.state_dict()["num_batches_tracked"] is counter
    assert (counter.shape, counter.dtype, int(counter)) == ((), np.int64, 1)


# Freezing


def test_frozen_is_eval_in_training_mode_with_its_own_gradient(kind, rng):
    cls, shape = kind
    norm = make(cls, rng).freeze().train()
    before, x, dy = running(norm), draw(rng, shape), draw(rng, shape)
    assert_close(norm(x), reference.batch_norm(x, **before, **operands(norm))[0], np.float32)
    dx, dweight, dbias, _ = reference.batch_norm_backward(dy, x, **operands(norm), **before)
    assert_close(norm.backward(dy), dx, np.float32)
    assert_close(norm.weight.grad, dweight, np.float32, scale=10)
    assert_close(norm.bias.grad, dbias, np.float32, scale=10)
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(norm, name), array)
    assert norm.num_batches_tracked == 0


def test_freezing_outlives_the_modes_and_unfreeze_ends_it(rng):
    norm = nn.BatchNorm1d(3)
    model = nn.Sequential(norm)
    x = draw(rng, (6, 3))
    assert norm.freeze() is norm
    for _ in range(2):
        model.train()(x)
        model.eval()(x)
    model.train()
    assert norm.frozen
    assert norm.num_batches_tracked == 0
    assert norm.unfreeze() is norm
    model(x)
    assert norm.num_batches_tracked == 1


def test_a_frozen_layer_takes_one_sample_in_training_mode():
    norm = nn.BatchNorm1d(3, frozen=True)
    x = np.ones((1, 3), np.float32)
    norm(x)
    np.testing.assert_allclose(norm.backward(x), x / np.sqrt(1 + 1e-5), rtol=1e-6)


def test_repr_and_options_say_frozen_only_where_it_is_so():
    assert "frozen" not in repr(nn.BatchNorm1d(3))
    assert "frozen=True" in repr(nn.BatchNorm1d(3).freeze())
    assert nn.BatchNorm1d(**nn.BatchNorm1d(3, frozen=True).config()).frozen


def test_saved_shows_the_batchs_moments(rng):
    norm, x = nn.BatchNorm1d(3), draw(rng, (6, 3))
    assert norm.saved is None
    norm(x)
    assert norm.saved.count == 6
    np.testing.assert_allclose(norm.saved.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(norm.saved.var, x.var(axis=0, dtype=np.float64), rtol=1e-6)
    norm.eval()
    assert norm.saved is None


# Refusals


@pytest.mark.parametrize(
    ("cls", "ranks", "axes"),
    [
        (nn.BatchNorm1d, (2, 3), r"2 or 3 axes \(N, C\) or \(N, C, L\)"),
        (nn.BatchNorm2d, (4,), r"4 axes \(N, C, H, W\)"),
        (nn.BatchNorm3d, (5,), r"5 axes \(N, C, D, H, W\)"),
    ],
)
@pytest.mark.parametrize("rank", range(7))
def test_ranks(cls, ranks, axes, rank):
    x = np.ones((3,) * rank, np.float32)
    if rank in ranks:
        assert cls(3)(x).shape == x.shape
    else:
        with pytest.raises(ShapeError, match=f"{cls.__name__}: x must have {axes}, got shape"):
            cls(3)(x)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_channels(mode):
    norm = getattr(nn.BatchNorm2d(3), mode)()
    with pytest.raises(ShapeError, match=r"BatchNorm2d: x must have 3 channels on axis 1, got shape \(2, 4, 3, 3\)"):
        norm(np.ones((2, 4, 3, 3), np.float32))


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1)])
def test_one_value_per_channel_is_refused_in_training_and_changes_nothing(shape):
    norm = nn.BatchNorm1d(3)
    with pytest.raises(ShapeError, match="x must have more than 1 value per channel when training"):
        norm(np.ones(shape, np.float32))
    np.testing.assert_array_equal(norm.running_mean, np.zeros(3))
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize("x", [[[1.0, 2.0, 3.0]], np.ones((2, 3), int), np.ones((2, 3), complex)])
def test_what_is_no_float_array_is_refused(x):
    with pytest.raises(DtypeError, match="x must be"):
        nn.BatchNorm1d(3)(x)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"num_features": 0}, ArgumentError, "BatchNorm2d: num_features must be at least 1, got 0"),
        ({"num_features": 3.0}, DtypeError, "BatchNorm2d: num_features must be an integer, got float"),
        ({"eps": -1e-5}, ArgumentError, "BatchNorm2d: eps must be at least 0, got -1e-05"),
        ({"eps": float("nan")}, ArgumentError, "eps must be at least 0, got nan"),
        ({"momentum": 1.5}, ArgumentError, "BatchNorm2d: momentum must be from 0 to 1, got 1.5"),
        ({"momentum": "0.1"}, DtypeError, "BatchNorm2d: momentum must be a number, got str"),
    ],
)
def test_bad_options(options, error, sentence):
    with pytest.raises(error) as caught:
        nn.BatchNorm2d(**{"num_features": 3, **options})
    assert sentence in str(caught.value)


def test_a_negative_running_variance_is_refused():
    norm = nn.BatchNorm1d(3).eval()
    norm.running_var[1] = -1
    with pytest.raises(ArgumentError, match=r"running_var must not be negative, got -1\.0 in channel 1"):
        norm(np.ones((2, 3), np.float32))


# PyTorch

OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.4, "eps": 1e-2},
    "cumulative": {"momentum": None},
    "not affine": {"affine": False},
    "no statistics": {"track_running_stats": False},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_training_and_evaluation_are_pytorchs_step_by_step(kind, options, rng):
    torch = pytest.importorskip("torch")
    cls, shape = kind
    ours = cls(3, **OPTIONS[options])
    theirs = getattr(torch.nn, cls.__name__)(3, **OPTIONS[options])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    affine = ours.affine
    if affine:
        optimizers = optim.SGD(ours.parameters(), lr=0.1), torch.optim.SGD(theirs.parameters(), lr=0.1)
    for _ in range(4):
        x, dy = draw(rng, shape), draw(rng, shape)
        x_torch = torch.tensor(x, requires_grad=True)
        y_torch = theirs.train()(x_torch)
        y_torch.backward(torch.tensor(dy))
        assert_close(ours.train()(x), y_torch.detach().numpy(), np.float32)
        assert_close(ours.backward(dy), x_torch.grad.numpy(), np.float32)
        if affine:
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        for name, tensor in theirs.state_dict().items():
            assert_close(ours.state_dict()[name], tensor.numpy(), np.float32, scale=3)
        assert_close(ours.eval()(x), theirs.eval()(torch.tensor(x)).detach().numpy(), np.float32, scale=3)
