"""Folded inference: convolutions are planned once, cut above and below by every engine, and cut up for any threads."""

import threading
import warnings

import numpy as np
import pytest
import reference
from helpers import ORDERS, assert_close, channels_last
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbn
from fastbn import nn
from fastbn._threads import repeat
from fastbn.functional import conv2d, conv_blocks, conv_plans, conv_winograd, packed_weights
from fastbn.functional.conv import convolve
from fastbn.functional.conv_cut import cut, parts
from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_plans import Plan, convolve_planned
from fastbn.functional.conv_portions import blocks_of, forward_portions
from fastbn.functional.winograd_portions import portions as winograd_portions
from fastbn.kernels.conv_panels import block_lanes, panel_columns

RNG = np.random.default_rng(0)
# (channels, outputs, kernel, stride, groups, images, size, whether the output follows the order of x)
ENGINES = {
    "blocks": (32, 33, 3, 2, 1, 2, 9, False),
    "blocks by pixel": (32, 64, 3, 1, 1, 1, 7, False),
    "blocks, nchw": (32, 40, 1, 1, 1, 2, 6, True),
    "groups": (64, 64, 3, 1, 2, 1, 5, False),
    "points": (32, 16, 1, 1, 1, 1, 257, False),
    "winograd": (64, 80, 3, 1, 1, 3, 10, False),
    "patches": (3, 40, 5, 2, 1, 2, 13, False),
    "depthwise": (40, 40, 3, 1, 40, 2, 7, False),
    "planes": (3, 8, 3, 1, 1, 1, 9, False),
    "lanes": (2, 4, 3, 1, 1, 32, 6, True),
}


def operands(engine, dtype=np.float32):
    channels, outputs, kernel, stride, groups, images, size, follows = ENGINES[engine]
    x = RNG.standard_normal((images, channels, size, size)).astype(dtype)
    weight = RNG.standard_normal((outputs, channels // groups, kernel, kernel)).astype(dtype)
    sizes = stride, kernel // 2, 1, groups
    return x if follows else channels_last(x), weight, RNG.standard_normal(outputs).astype(dtype), sizes, follows


def locked(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def plans_of(weight):
    return [kept for kept in packed_weights.kept_with(weight).values() if isinstance(kept, Plan)]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_cuts_above_and_below_and_lets_nan_pass(engine):
    x, weight, bias, sizes, follows = operands(engine)
    x[0, :, 2, 3] = np.nan
    x[-1, :, -1, -1] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        plain = convolve(x, weight, bias, *sizes, follows=follows)
        y = convolve(x, weight, bias, *sizes, relu=True, ceiling=1.5, follows=follows)
    assert np.isnan(y).any()
    assert not np.isnan(y).all()
    np.testing.assert_array_equal(y, np.clip(plain, 0, 1.5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("engine", ["blocks", "blocks by pixel", "winograd", "patches", "depthwise"])
def test_a_planned_convolution_is_the_reference(engine, dtype):
    x, weight, bias, sizes, _ = operands(engine, dtype)
    weight = locked(weight)
    first = convolve_planned(x, weight, bias, *sizes)
    residual = channels_last(RNG.standard_normal(first.shape).astype(dtype))
    for _ in range(2):
        other = channels_last(RNG.standard_normal(x.shape).astype(dtype))
        y = convolve_planned(other, weight, bias, *sizes, residual, True, 2.0)
        wide = (array.astype(np.float64) for array in (other, weight, bias))
        want = reference.conv2d(*wide, *sizes, residual=residual.astype(np.float64))
        assert_close(y, np.clip(want, 0, 2), dtype, 30)
    assert len(plans_of(weight)) == 2


@pytest.mark.parametrize("threads", [1, 3, 16])
@pytest.mark.parametrize("engine", ["blocks", "blocks by pixel", "groups", "winograd"])
def test_the_same_bits_however_it_is_cut(monkeypatch, engine, threads):
    x, weight, bias, sizes, _ = operands(engine)
    want = convolve(x, weight, bias, *sizes, relu=True, follows=False)
    for module in conv_blocks, conv_winograd:
        monkeypatch.setattr(module, "get_num_threads", lambda: threads)
    np.testing.assert_array_equal(convolve(x, weight, bias, *sizes, relu=True, follows=False), want)


@pytest.mark.parametrize("order", ORDERS)
def test_what_a_plan_follows_from_is_noticed(order):
    x, weight, bias, (stride, padding, dilation, groups), _ = operands("blocks")
    x, weight = ORDERS[order](x), locked(weight)

    def both(x, bias, **options):
        sizes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, **options}
        for _ in range(2):
            y = convolve_planned(x, weight, bias, *(sizes[name] for name in sizes))
            assert_close(y, conv2d(x, weight, bias, **sizes), np.float32, 10)

    both(x, bias)
    bias += 1
    both(x, bias)
    both(x, bias + 1)
    both(x, None)
    both(x, bias, stride=1)
    both(x[:1], bias)
    both(x[:, :, :, :-1], bias)
    both(np.asfortranarray(x), bias)
    both(locked(x), bias)


def test_a_residual_may_lie_otherwise_or_be_the_input_itself():
    x, weight, bias, sizes, _ = operands("blocks by pixel")
    weight = locked(weight[:, :32][:32])
    for residual in x, np.ascontiguousarray(x), x[:, ::-1], x:
        y = convolve_planned(x, weight, bias[:32], *sizes, residual)
        assert_close(y, conv2d(x, weight, bias[:32], *sizes, residual=residual), np.float32, 10)


def test_writeable_weights_have_no_plan_and_plans_are_few(monkeypatch):
    x, weight, bias, sizes, _ = operands("blocks")
    convolve_planned(x, weight, bias, *sizes)
    assert packed_weights.kept_with(weight) is None
    weight = locked(weight)
    monkeypatch.setattr(conv_plans, "PLANS", 3)
    for height in range(4, 9):
        part = channels_last(x[:, :, :height])
        assert_close(convolve_planned(part, weight, bias, *sizes), conv2d(part, weight, bias, *sizes), np.float32, 10)
    assert len(plans_of(weight)) <= 3


def network():
    fastbn.manual_seed(0)
    pieces = [(3, 32, 3, 1, nn.ReLU6), (32, 96, 1, 1, nn.ReLU6), (96, 96, 3, 96, nn.ReLU6), (96, 64, 1, 1, nn.ReLU)]
    layers = []
    for channels, outputs, kernel, groups, activation in pieces:
        conv = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), activation()]
    block = {"conv": nn.Conv2d(64, 64, 3, padding=1), "bn": nn.BatchNorm2d(64)}
    layers += [nn.Residual(block, activation=nn.ReLU6()), nn.AdaptiveAvgPool2d(), nn.Flatten(), nn.Linear(64, 40)]
    model = nn.Sequential(*layers)
    model(np.random.default_rng(1).standard_normal((8, 3, 12, 12)).astype(np.float32))
    return model.eval()


def test_a_folded_model_takes_one_launch_a_layer(monkeypatch):
    model = network()
    folded, x = fastbn.fold(model), RNG.standard_normal((2, 3, 12, 12)).astype(np.float32)
    before = folded(x)
    assert_close(before, model(x), np.float32, 10)
    launched = []
    monkeypatch.setattr(conv_plans, "convolve", lambda *_, **__: pytest.fail("a layer was planned again"))
    monkeypatch.setattr(conv_plans, "repeat", lambda launch: launched.append(1) or repeat(launch))
    np.testing.assert_array_equal(folded(x), before)
    assert len(launched) == 6


def test_many_python_threads_share_the_plans():
    folded = fastbn.fold(network())
    images = [RNG.standard_normal((1 + i % 2, 3, 12, 12)).astype(np.float32) for i in range(8)]
    want, got = [fastbn.fold(network())(x) for x in images], [None] * 8

    def call(i):
        for _ in range(5):
            got[i] = folded(images[i])

    threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_made_writeable_are_packed_anew():
    x, weight, _bias, sizes, _ = operands("blocks")
    weight = locked(weight)
    before = convolve_planned(x, weight, None, *sizes)
    weight.flags.writeable = True
    weight *= 2
    assert_close(convolve_planned(x, weight, None, *sizes), 2 * before, np.float32)
    weight.flags.writeable = False
    assert_close(convolve_planned(x, weight, None, *sizes), 2 * before, np.float32)


def test_a_turned_view_of_a_weight_is_another_weight():
    square = locked(RNG.standard_normal((32, 32)).astype(np.float32))
    x = RNG.standard_normal((3, 32)).astype(np.float32)
    for weight in square, square.T, square[::-1]:
        assert_close(conv_plans.multiply_planned(x, weight, None), x @ weight.T, np.float32, 10)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.integers(1, 2),
    st.integers(16, 600), st.integers(16, 600), st.integers(1, 16),
)  # fmt: skip
def test_tasks_have_whole_images_or_rows_of_one(count, height, width, kernel, stride, channels, outputs, threads):
    window = Window((kernel, kernel), (stride, stride), (kernel // 2, kernel // 2), (1, 1))
    panels = -(-outputs // panel_columns(4))
    task = cut(count, 1, (height, width), window, blocks_of(channels, 4), block_lanes(4), panels, threads)
    assert task.images == 1 or task.rows == height
    assert 1 <= task.images <= count
    assert 1 <= task.rows <= height
    assert 1 <= task.at_once <= panels
    assert not (task.by_pixel and task.at_once % 2)
    x_shape, weight_shape = (count, channels, height * stride, width * stride), (outputs, channels, kernel, kernel)
    portions = forward_portions(x_shape, weight_shape, (height, width), window, 1, 4, threads)
    place = portions.place
    assert (place.images, place.rows, portions.at_once, place.counts.size > 0) == task
    place = winograd_portions((count, outputs, height, width), channels, (-1, -1), 4, threads).place
    assert place.images == 1 or place.rows == height


@given(st.integers(1, 300))
def test_parts_are_about_the_same(count):
    assert parts(count)[0] == count
    assert parts(count)[-1] == 1
    assert all(-(-count // -(-count // part)) == part for part in parts(count))


class Halved(nn.Module):
    """Looks into its input by itself."""

    def forward(self, x):
        assert np.isfinite(x).all()
        return x * np.float32(0.5)


def chain(*between):
    fastbn.manual_seed(0)
    convolutions = [nn.Conv2d(32, 32, 3, padding=1) for _ in range(4)]
    return nn.Sequential(convolutions[0], nn.ReLU(), *between, nn.Residual(*convolutions[1:3]), convolutions[3])


CHAINS = {
    "plain": chain,
    "another module between": lambda: chain(Halved()),
    "another module inside": lambda: chain(nn.Sequential(nn.Conv2d(32, 32, 1), Halved())),
    "a sum and an activation by themselves": lambda: chain(
        nn.Residual(nn.Conv2d(32, 32, 1), nn.Sigmoid(), activation=nn.Sigmoid())
    ),
    "a convolution as shortcut": lambda: chain(nn.Residual(nn.Conv2d(32, 32, 1), downsample=nn.Conv2d(32, 32, 1))),
    "a chain as shortcut": lambda: chain(
        nn.Residual(nn.Conv2d(32, 32, 1), downsample=nn.Sequential(nn.Conv2d(32, 32, 1), Halved()))
    ),
    "single residual": lambda: nn.Residual(nn.Conv2d(32, 32, 1), downsample=nn.Conv2d(32, 32, 1)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_nobody_sees_what_is_still_waited_for(name):
    model = CHAINS[name]()
    folded, apart = fastbn.fold(model), fastbn.fuse(fastbn.fold(model), False)
    x = channels_last(RNG.standard_normal((2, 32, 6, 6)).astype(np.float32))
    for _ in range(3):
        assert_close(folded(x), apart(x), np.float32, 10)
    assert not conv_plans._waiting.launches


def test_hooks_see_finished_arrays():
    folded, x = fastbn.fold(chain()), channels_last(RNG.standard_normal((2, 32, 6, 6)).astype(np.float32))
    before = folded(x)
    for module in list(folded.modules()):
        seen = []
        remove = module.register_forward_hook(lambda module, x, y, seen=seen: seen.append((y, y.copy())))
        assert_close(folded(x), before, np.float32, 10)
        assert seen
        for y, copy in seen:
            np.testing.assert_array_equal(y, copy)
        remove()


def test_an_error_leaves_nothing_waiting():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError

    folded, x = fastbn.fold(chain()), channels_last(RNG.standard_normal((2, 32, 6, 6)).astype(np.float32))
    before = folded(x)
    broken = nn.Sequential(folded[0], nn.Sequential(folded[3], Broken()))
    fastbn.fuse(broken).eval()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            broken(x)
        assert not conv_plans._waiting.launches
    np.testing.assert_array_equal(folded(x), before)
