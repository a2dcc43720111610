"""Recorded passes are the passes that would be computed, bit for bit, and nothing but these are repeated."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastbn
import fastbn.nn as nn
from fastbn import data, models
from fastbn._tape import call, current, recorded
from fastbn.errors import ArgumentError
from fastbn.kernels._simd import VECTOR_BYTES
from fastbn.nn.replay import ALIKE

RECORDED = ALIKE + 1  # passes, the last of which is recorded
PROVED = RECORDED + 1


def norm(channels):
    return nn.BatchNorm2d(channels), nn.ReLU()


def conv(inputs, outputs, kernel, **options):
    options = {"padding": kernel // 2, "bias": False, **options}
    return nn.Conv2d(inputs, outputs, kernel, **options), *norm(outputs)


def depthwise(channels, **options):
    plain, bn, _ = conv(channels, channels, 3, groups=channels, **options)
    return plain, bn, nn.ReLU6()


def residual(channels, outputs, stride=1):
    first, last = conv(channels, 32, 1), conv(32, outputs, 3, stride=stride)[:2]
    down = None
    if stride != 1 or channels != outputs:
        down = nn.Sequential(*conv(channels, outputs, 1, stride=stride)[:2])
    return nn.Residual(*first, *last, downsample=down, activation=nn.ReLU())


def frozen(*layers):
    layers[1].freeze()
    return layers


class Double(nn.Module):
    """What a tape does not see."""

    def forward(self, x):
        return 2 * x

    def backward(self, dy, *, need_dx=True):
        return 2 * dy


NETS = {
    "point": lambda: [*conv(16, 32, 1), *conv(32, 16, 1)],
    "point with a stride": lambda: [*conv(16, 32, 1, stride=2), *conv(32, 16, 1)],
    "gram": lambda: [*conv(16, 16, 1), *conv(16, 64, 1), *conv(64, 16, 1)],
    "winograd": lambda: [*conv(16, 16, 3), *conv(16, 32, 3)],
    "blocks": lambda: [*conv(16, 32, 3, stride=2), *conv(32, 16, 3, dilation=2), *conv(16, 32, 5)],
    "groups": lambda: [*conv(16, 64, 1), *conv(64, 64, 3, groups=2), *conv(64, 16, 1)],
    "depthwise": lambda: [*conv(16, 48, 1), *depthwise(48), *depthwise(48, stride=2), *conv(48, 16, 1)[:2]],
    "biases": lambda: [*conv(16, 32, 1, bias=True), *conv(32, 16, 3, bias=True), *depthwise(16, bias=True)],
    "constants": lambda: [*frozen(*conv(16, 32, 1, bias=True)), *frozen(*depthwise(32, bias=True))],
    "residual": lambda: [*conv(16, 64, 1), residual(64, 64), residual(64, 48, stride=2)],
    "pooling": lambda: [*conv(16, 32, 3), nn.MaxPool2d(3, 2, 1), *conv(32, 32, 1), nn.AvgPool2d(2)],
}


def pair(build, fuse=True):
    """A network computed as ever and its twin that replays, with optimisers."""
    made = []
    for replay in (False, True):
        fastbn.manual_seed(1)
        net = build()
        net = fastbn.fuse(net if isinstance(net, nn.Module) else nn.Sequential(*net), fuse, replay=replay)
        made.append((net, fastbn.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)))
    return made


def images(rng, shape=(6, 16, 12, 12), dtype=np.float32, channels_last=True):
    n, c, h, w = shape
    x = rng.standard_normal((n, h, w, c)).astype(dtype)
    return x.transpose(0, 3, 1, 2) if channels_last else np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def train(nets, x, rng, need_dx=False, zero=True):
    """A step of each, and what came of it."""
    results, dy = [], None
    for net, optimizer in nets:
        if zero:
            net.zero_grad()
        y = net(x)
        dy = rng.standard_normal(y.shape).astype(y.dtype) if dy is None else dy
        dx = net.backward(dy, need_dx=need_dx)
        results.append((y, dx, [p.grad for p in net.parameters()]))
        optimizer.step()
    return results


def assert_same(nets, results):
    (y, dx, grads), (other_y, other_dx, other_grads) = results
    np.testing.assert_array_equal(y, other_y)
    assert (dx is None) == (other_dx is None)
    if dx is not None:
        np.testing.assert_array_equal(dx, other_dx)
    for grad, other in zip(grads, other_grads, strict=True):
        np.testing.assert_array_equal(grad, other)
    states = [net.state_dict() for net, _ in nets]
    for name, array in states[0].items():
        np.testing.assert_array_equal(array, states[1][name], err_msg=name)


def recording(nets):
    replay = nets[1][0]._replay
    return None if replay is None else replay.recording


@pytest.mark.parametrize("need_dx", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_a_repeated_pass_is_the_same_bit_for_bit(rng, name, need_dx):
    nets = pair(NETS[name])
    for _ in range(PROVED + 2):
        assert_same(nets, train(nets, images(rng), rng, need_dx))
    assert recording(nets).proved


def test_float64_is_computed_as_ever(rng):
    nets = [(net.double(), optimizer) for net, optimizer in pair(NETS["residual"])]
    for _ in range(PROVED + 1):
        assert_same(nets, train(nets, images(rng, dtype=np.float64), rng))
    assert recording(nets) is None


@pytest.mark.parametrize("build", [models.resnet18, models.resnet50, models.mobilenet_v2], ids=lambda f: f.__name__)
def test_networks(rng, build):
    def without_dropout():
        net = build(num_classes=10)
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return net

    nets = pair(without_dropout)
    for _ in range(PROVED + 1):
        assert_same(nets, train(nets, images(rng, (4, 3, 64, 64)), rng))
    assert recording(nets).proved


@pytest.mark.parametrize("batch", [32, 64])
def test_lenet_in_its_order(rng, batch):
    nets = pair(lambda: models.lenet())
    for _ in range(PROVED + 1):
        assert_same(nets, train(nets, images(rng, (batch, 1, 28, 28), channels_last=False), rng))
    few = VECTOR_BYTES < 32  # lanes: then the second convolution is none of few channels
    assert few or recording(nets).proved


def test_what_a_tape_does_not_see_is_computed_between(rng):
    build = lambda: [Double(), *conv(16, 32, 1), *conv(32, 32, 3), Double(), *conv(32, 16, 1)]  # noqa: E731
    nets = pair(build)
    for _ in range(PROVED + 1):
        assert_same(nets, train(nets, images(rng), rng, need_dx=True))
    found = recording(nets)
    assert found.proved
    assert [len(part) for part in (found.head, found.body, found.tail)] == [1, 2, 2]


def test_a_module_in_a_residual_is_seen(rng):
    """It doubles what it gets, so that the Residual around it cannot be repeated."""
    nets = pair(lambda: [nn.Residual(*conv(16, 16, 3), Double())])
    for _ in range(PROVED + 1):
        assert_same(nets, train(nets, images(rng), rng))
    assert recording(nets) is None


def test_a_proof_that_fails_is_the_end_of_it(rng, monkeypatch):
    """A kernel that nobody records: the repeated pass would keep its first answer."""
    from fastbn.functional import norm_parts

    monkeypatch.setattr(norm_parts, "call", lambda function, *operands: function(*operands))
    nets = pair(NETS["point"])
    for _ in range(PROVED + 2):
        assert_same(nets, train(nets, images(rng), rng))
    assert recording(nets) is None
    assert nets[1][0]._replay.useless_since is not None


def proved(rng, name="residual", **options):
    nets = pair(NETS[name])
    for _ in range(PROVED + 1):
        train(nets, images(rng), rng, **options)
    assert recording(nets).proved
    return nets


def test_gradients_add_up_and_what_was_returned_stays(rng):
    nets = proved(rng, need_dx=True)
    kept, copies = [], []
    for _ in range(3):
        results = train(nets, images(rng), rng, need_dx=True, zero=False)
        assert_same(nets, results)
        y, dx, grads = results[1]
        kept += [y, dx, *grads]
        copies += [array.copy() for array in (y, dx, *grads)]
    for array, copied in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(array, copied)


def test_the_last_of_two_forward_passes_counts(rng):
    nets = proved(rng)
    for net, _ in nets:
        net(images(np.random.default_rng(5)))
    assert_same(nets, train(nets, images(rng), rng))
    assert recording(nets).proved


def test_a_smaller_batch_between(rng):
    nets = proved(rng)
    found = recording(nets)
    for size in (6, 5, 6, 6, 3, 6):
        assert_same(nets, train(nets, images(rng, (size, 16, 12, 12)), rng))
    assert recording(nets) is found


def test_another_shape_takes_over(rng):
    nets = proved(rng)
    for _ in range(PROVED + 1):
        assert_same(nets, train(nets, images(rng, (3, 16, 20, 20)), rng))
    assert recording(nets).proved
    assert recording(nets).x.shape == (3, 16, 20, 20)


@pytest.mark.parametrize("order", [[True, False], [False, True]])
def test_a_gradient_to_x_that_was_not_recorded(rng, order):
    nets = proved(rng, need_dx=order[0])
    assert_same(nets, train(nets, images(rng), rng, need_dx=order[1]))
    assert_same(nets, train(nets, images(rng), rng, need_dx=order[0]))


CHANGES = {
    "eval and train": lambda net: net.eval().train(),
    "momentum": lambda net: setattr(net["bn"] if "bn" in dir(net) else net[1], "momentum", 0.5),
    "frozen": lambda net: net[1].freeze(),
    "stride": lambda net: setattr(net[0], "stride", 2),
    "new parameter": lambda net: setattr(net[0], "weight", nn.Parameter(net[0].weight.data * 2)),
    "new data": lambda net: setattr(net[0].weight, "data", net[0].weight.data * 2),
    "new statistics": lambda net: setattr(net[1], "running_mean", np.ones(32, np.float32)),
    "data in place": lambda net: net[0].weight.data.__imul__(2),
    "loaded state": lambda net: net.load_state_dict({k: v * 2 for k, v in net.state_dict().items()}),
    "no gradient": lambda net: net[0].weight.__setattr__("requires_grad", False),
    "unfused": lambda net: fastbn.fuse(net, False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_counts_from_the_next_pass_on(rng, change):
    nets = proved(rng, "point")
    for net, _ in nets:
        CHANGES[change](net)
    for _ in range(PROVED + 1):
        assert_same(nets, train(nets, images(rng), rng))


def test_another_number_of_threads(rng):
    nets, threads = proved(rng), fastbn.get_num_threads()
    try:
        fastbn.set_num_threads(1)
        for _ in range(PROVED + 1):
            assert_same(nets, train(nets, images(rng), rng))
    finally:
        fastbn.set_num_threads(threads)
    assert_same(nets, train(nets, images(rng), rng))


def test_a_hook_is_called(rng):
    nets, seen = proved(rng), []
    for net, _ in nets:
        net[0].register_forward_hook(lambda module, x, y: seen.append(y.sum()))
    for _ in range(PROVED):
        assert_same(nets, train(nets, images(rng), rng))
    assert len(seen) == 2 * PROVED


def test_a_negative_variance_is_found(rng):
    nets = proved(rng)
    for net, _ in nets:
        net[1].running_var[3] = -1
        with pytest.raises(ArgumentError, match="running_var"):
            net(images(rng))
        net[1].running_var[3] = 1
    assert_same(nets, train(nets, images(rng), rng))


def test_statistics_that_cannot_be_trusted(rng):
    """A variance far below what it is a sum of: the Gram algebra is left, for this pass and the next ones."""
    nets = proved(rng, "gram")
    for net, _ in nets:
        net[3].weight.data[5] = 0
    for _ in range(2):
        assert_same(nets, train(nets, images(rng), rng))
    assert recording(nets) is None or not recording(nets).proved


def test_an_average_by_the_number_of_batches_is_computed(rng):
    def build():
        layers = NETS["point"]()
        layers[1].momentum = layers[4].momentum = None
        return layers

    nets = pair(build)
    for _ in range(PROVED + 1):
        assert_same(nets, train(nets, images(rng), rng))
    assert recording(nets) is None


def test_copies_record_for_themselves(rng):
    nets = proved(rng)
    for twin in (copy.deepcopy(nets[1][0]), pickle.loads(pickle.dumps(nets[1][0]))):
        assert twin._replay.recording is None
        assert twin.replay
        x, dy = images(rng), None
        outputs = [net(x) for net in (nets[1][0], twin)]
        np.testing.assert_array_equal(*outputs)
        dy = rng.standard_normal(outputs[0].shape).astype(np.float32)
        for net in (nets[1][0], twin):
            net.zero_grad()
            net.backward(dy)
        np.testing.assert_array_equal(nets[1][0][0].weight.grad, twin[0].weight.grad)


def test_eval_mode_gives_the_memory_back(rng):
    nets = proved(rng)
    nets[1][0].eval()
    assert nets[1][0]._replay is None
    assert nets[1][0].train()._replay is None


def test_what_is_kept_is_what_a_pass_needs(rng):
    """Arrays that are freed in a pass are used again in it: not all of them are kept."""
    build = lambda: [*conv(16, 64, 1), *(residual(64, 64) for _ in range(8))]  # noqa: E731
    nets = pair(build)
    x = images(rng, (8, 16, 48, 48))
    for _ in range(PROVED):
        train(nets, x, rng)
    found = recording(nets)
    addresses, launched = set(), 0
    for launch, _ in (*found.forwards.launches, *found.backwards.launches):
        for operand in launch.operands:
            if isinstance(operand, np.ndarray) and operand.nbytes > 1 << 20:
                addresses.add(operand.__array_interface__["data"][0])
                launched += 1
    assert 0 < len(addresses) < launched / 3


def test_fuse_sets_it_for_the_outermost_containers_alone():
    net = fastbn.fuse(models.mobilenet_v2(), replay=True)
    assert net.replay
    assert not any(module.replay for module in net.modules() if isinstance(module, nn.Sequential) and module is not net)
    assert not fastbn.fuse(net).replay


def test_a_part_that_replays_is_part_of_a_model_that_does(rng):
    def build():
        part = fastbn.fuse(nn.Sequential(*conv(16, 16, 1)), replay=True)
        return [nn.Residual(*conv(16, 16, 3)[:2], downsample=part, activation=nn.ReLU())]

    nets = pair(build)
    assert not nets[1][0][0]._modules["downsample"].replay
    for _ in range(PROVED + 1):
        assert_same(nets, train(nets, images(rng), rng))
    assert recording(nets).proved


def test_train_is_no_change_in_training_mode(rng):
    nets = proved(rng)
    found = recording(nets)
    for _ in range(2):
        for net, _ in nets:
            net.train()
        assert_same(nets, train(nets, images(rng), rng))
    assert recording(nets) is found


def test_another_thread_computes(rng):
    """The workspaces of a recorded pass belong to the thread that recorded it."""
    nets = proved(rng)
    x = images(rng)
    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(train, nets, x, rng).result()
    assert_same(nets, results)
    assert recording(nets) is None


def test_a_tape_around_a_tape_is_not_complete():
    total = np.zeros(3)
    with recorded() as outer:
        call(np.add, total, 1, total)
        with recorded() as inner:
            call(np.add, total, 1, total)
        call(np.add, total, 1, total)
    assert current() is None
    assert (len(outer), len(inner)) == (2, 1)
    assert (outer.repeatable, inner.repeatable) == (False, True)
    np.testing.assert_array_equal(total, 3)


def test_fit_trains_the_same_network():
    """Epochs with a smaller last batch, and evaluation between them."""
    weights = []
    digits = data.digits()
    for replay in (False, True):
        fastbn.manual_seed(2)
        net = fastbn.fuse(models.lenet(), replay=replay)
        fastbn.fit(net, digits.train, digits.test, epochs=2, optimizer=fastbn.optim.SGD(net.parameters(), lr=0.05))
        weights.append(net.state_dict())
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name], err_msg=name)
