"""Batch renorm: the paper's algorithm in every layout, its limits at their ends, its schedule, its gradients."""

import numpy as np
import pytest
import reference
from helpers import ORDERS, assert_close

import fastbn
import fastbn.functional as F
from fastbn import nn
from fastbn.errors import ArgumentError, DtypeError

# Long rows of whole channels, of too few channels, short rows, and a matrix: a kernel each.
SHAPES = [(3, 5, 12, 12), (1, 9, 4000), (9, 4, 3, 2), (11, 6)]
LIMITS = [(1.0, 0.0), (1.2, 0.3), (3.0, 5.0), (np.inf, np.inf)]


def draw(rng, shape, dtype=np.float32):
    """x, dy, and by name: weight, bias, running_mean, running_var; statistics that the batch does not have."""
    x, dy = (2 * rng.standard_normal((2, *shape)) + 1).astype(dtype)
    weight, bias, mean = rng.standard_normal((3, shape[1])).astype(dtype)
    named = {"weight": weight, "bias": bias, "running_mean": mean}
    return x, dy, {**named, "running_var": rng.uniform(0.5, 9, shape[1]).astype(dtype)}


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(rng, shape, order, limits):
    x, dy, named = draw(rng, shape)
    want, r, d = reference.batch_renorm(x, **named, eps=1e-3, r_max=limits[0], d_max=limits[1])
    before = named["running_mean"].copy(), named["running_var"].copy()
    y, saved = F.batch_renorm_forward(ORDERS[order](x), **named, r_max=limits[0], d_max=limits[1], momentum=0.3)
    assert_close(y, want, np.float32)
    assert_close(saved.r, r, np.float32)
    assert_close(saved.d, d, np.float32)
    _, mean, var = reference.batch_norm(x, *before, training=True, momentum=0.3)
    assert_close(named["running_mean"], mean, np.float32)
    assert_close(named["running_var"], var, np.float32)
    plain = reference.batch_norm_backward(dy, x, named["weight"], named["bias"], eps=1e-3)
    dx, dweight, dbias, _ = F.batch_norm_backward(ORDERS[order](dy), saved)
    assert_close(dx, plain[0] * r.reshape(1, -1, *(1,) * (len(shape) - 2)), np.float32)
    assert_close(dweight, plain[1] * r + plain[2] * d, np.float32, scale=30)
    assert_close(dbias, plain[2], np.float32, scale=10)


def test_finite_differences_with_r_and_d_as_constants(rng):
    x, dy, named = draw(rng, (6, 3, 4), np.float64)
    statistics = named["running_mean"].copy(), named["running_var"].copy()
    y, saved = F.batch_renorm_forward(x, **named, r_max=1.3, d_max=0.4, relu=True)
    r, d = saved.r.copy(), saved.d.copy()

    def forward(x=x, weight=named["weight"], bias=named["bias"]):
        return F.batch_norm(x, weight=weight * r, bias=weight * d + bias, training=True, eps=1e-3, relu=True)

    np.testing.assert_allclose(y, forward(), rtol=1e-12, atol=1e-13)
    assert np.abs(statistics[0] - named["running_mean"]).max() > 0
    gradients = F.batch_norm_backward(dy, saved)
    for name, point, gradient in zip(
        ("x", "weight", "bias"), (x, named["weight"], named["bias"]), gradients[:3], strict=True
    ):
        numerical = reference.numerical_gradient(lambda value, name=name: forward(**{name: value}), point, dy)
        np.testing.assert_allclose(gradient, numerical, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_without_room_it_is_batch_norm_bit_for_bit(rng, shape):
    x, dy, named = draw(rng, shape)
    y, saved = F.batch_renorm_forward(x, **{k: v.copy() for k, v in named.items()}, r_max=1.0, d_max=0.0)
    want, plain = F.batch_norm_forward(x, **named, momentum=0.01, eps=1e-3)
    np.testing.assert_array_equal(y, want)
    for a, b in zip(F.batch_norm_backward(dy, saved)[:3], F.batch_norm_backward(dy, plain)[:3], strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_limits_a_sample_is_normalised_as_in_inference(rng):
    x, _, named = draw(rng, (5, 3, 8))
    want = F.batch_norm(x, **named, eps=1e-3)
    assert_close(F.batch_renorm(x, **named, training=True, r_max=np.inf, d_max=np.inf), want, np.float32)
    assert_close(F.batch_renorm(x, **named), F.batch_norm(x, **named, eps=1e-3), np.float32)


def test_channels_without_spread_and_nan(rng):
    x, _, named = draw(rng, (5, 3, 8))
    x[:, 0], x[1, 1, 2] = 7, np.nan
    named["running_var"][2] = 0
    y = F.batch_renorm(x, **named, training=True, eps=0.0, d_max=0.5)
    assert_close(y[:, 0], 0.5 * named["weight"][0] + named["bias"][0], np.float32)  # d alone
    assert np.isnan(y[:, 1]).all()
    want = reference.batch_norm(x[:, 2:], weight=named["weight"][2:], bias=named["bias"][2:], training=True, eps=0)[0]
    assert_close(y[:, 2:], want, np.float32)
    named["running_mean"][2] = np.nan
    named["running_var"][2] = 1
    assert np.isnan(F.batch_renorm(x, **named, training=True)[:, 2]).all()


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"r_max": 0.9}, ArgumentError, "batch_renorm: r_max must be at least 1, got 0.9"),
        ({"d_max": -1.0}, ArgumentError, "batch_renorm: d_max must be at least 0, got -1.0"),
        ({"d_max": "5"}, DtypeError, "batch_renorm: d_max must be a number, got str"),
        ({"running_mean": None}, ArgumentError, "batch_renorm: running_mean must be given, got None"),
    ],
)
def test_refusals(rng, options, error, sentence):
    x, _, named = draw(rng, (4, 3))
    with pytest.raises(error) as caught:
        F.batch_renorm(x, **named | options, training=True)
    assert str(caught.value) == sentence


# The layer


def test_the_papers_schedule():
    norm = nn.BatchRenorm1d(3)
    found = []
    for seen in (0, 5_000, 15_000, 22_500, 25_000, 40_000, 10**6):
        norm.num_batches_tracked[...] = seen
        found.append(norm.limits)
    want = [(1, 0), (1, 0), (1 + 20 / 35, 2.5), (2, 4.375), (1 + 40 / 35, 5), (3, 5), (3, 5)]
    np.testing.assert_allclose(found, want)
    assert (norm.eps, norm.momentum) == (1e-3, 0.01)


@pytest.mark.parametrize(("cls", "shape"), [(nn.BatchRenorm1d, (8, 3)), (nn.BatchRenorm2d, (4, 3, 5, 2)),
                                            (nn.BatchRenorm3d, (2, 3, 2, 3, 2))])  # fmt: skip
def test_layer(rng, cls, shape):
    x, dy, named = draw(rng, shape)
    norm = cls(3, warmup=1, r_steps=3, d_steps=2)
    norm.load_state_dict({**named, "num_batches_tracked": 2})
    y = norm(x)
    want, r, d = reference.batch_renorm(x, **named, eps=1e-3, r_max=2.0, d_max=5.0)
    assert_close(y, want, np.float32)
    norm.backward(dy)
    plain = reference.batch_norm_backward(dy, x, named["weight"], named["bias"], eps=1e-3)
    assert_close(norm.weight.grad, plain[1] * r + plain[2] * d, np.float32, scale=30)
    assert norm.num_batches_tracked == 3
    statistics = {name: array.copy() for name, array in norm.state_dict().items() if name.startswith("running")}
    for frozen in (norm.eval(), norm.train().freeze()):
        want = reference.batch_norm(x, **statistics, weight=named["weight"], bias=named["bias"], eps=1e-3)[0]
        assert_close(frozen(x), want, np.float32)
    assert norm.num_batches_tracked == 3
    assert list(norm.state_dict()) == list(nn.BatchNorm1d(3).state_dict())


def test_a_batch_of_nothing_and_bad_options():
    norm = nn.BatchRenorm1d(3)
    norm(np.empty((0, 3), np.float32))
    assert norm.num_batches_tracked == 0
    with pytest.raises(ArgumentError, match="BatchRenorm1d: d_steps must be at least warmup, 5000, got 10"):
        nn.BatchRenorm1d(3, d_steps=10)
    with pytest.raises(ArgumentError, match="BatchRenorm1d: r_max must be at least 1, got 0"):
        nn.BatchRenorm1d(3, r_max=0)


def test_statistics_estimated_anew_are_batch_norms_and_leave_the_schedule(rng):
    norm, plain = nn.BatchRenorm2d(3, warmup=0, r_steps=0, d_steps=0), nn.BatchNorm2d(3, eps=1e-3)
    renorm, want = nn.Sequential(norm, nn.BatchRenorm2d(3)), nn.Sequential(plain, nn.BatchNorm2d(3, eps=1e-3))
    norm.num_batches_tracked[...] = 7
    batches = [(i * rng.standard_normal((4, 3, 5, 5)) + i).astype(np.float32) for i in range(1, 4)]
    for model in (renorm, want):
        fastbn.update_bn_stats(model, batches)
    for ours, theirs in zip(renorm, want, strict=True):
        np.testing.assert_array_equal(ours.running_mean, theirs.running_mean)
        np.testing.assert_array_equal(ours.running_var, theirs.running_var)
    assert (norm.num_batches_tracked, norm.limits) == (7, (3.0, 5.0))
