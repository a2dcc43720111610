"""What every module shares: names, state, modes, hooks, casts and the order of forward and backward."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fastbn import manual_seed, nn
from fastbn.errors import ModelError, ShapeError, StateError

SMALL_NAMES = [
    "0.weight",
    "0.bias",
    "1.weight",
    "1.bias",
    "1.running_mean",
    "1.running_var",
    "1.num_batches_tracked",
    "3.weight",
    "3.bias",
]


@pytest.fixture(autouse=True)
def _seed():
    manual_seed(0)


def small(seed=0):
    manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def snapshot(model):
    return {name: array.copy() for name, array in model.state_dict().items()}


def assert_same_state(got, want):
    assert list(got) == list(want)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name, strict=True)


@pytest.fixture
def batch(rng):
    return rng.normal(size=(6, 4)).astype(np.float32)


# Names


def test_attributes_become_parameters_buffers_and_children():
    module = nn.Module()
    module.weight = nn.Parameter(np.ones(2, np.float32))
    module.register_parameter("bias", None)
    module.register_buffer("count", np.zeros(3, np.float32))
    module.register_buffer("absent", None)
    module.child = nn.Linear(2, 1, bias=False)
    module.plain = 5
    assert [name for name, _ in module.named_parameters()] == ["weight", "child.weight"]
    assert [name for name, _ in module.named_buffers()] == ["count"]
    assert [name for name, _ in module.named_children()] == ["child"]
    assert list(module.state_dict()) == ["weight", "count", "child.weight"]
    assert module.bias is None
    assert module.absent is None
    assert module.plain == 5


def test_state_dict_has_pytorchs_names_in_order_and_holds_the_arrays_themselves():
    model = small()
    state = model.state_dict()
    assert list(state) == SMALL_NAMES
    assert state["0.weight"] is model[0].weight.data
    assert state["1.running_var"] is model[1].running_var


def test_an_absent_parameter_is_named_nowhere():
    assert list(nn.Linear(2, 3, bias=False).state_dict()) == ["weight"]
    assert list(nn.BatchNorm1d(2, affine=False, track_running_stats=False).state_dict()) == []


def test_a_registered_parameter_can_be_set_later_and_taken_away():
    layer = nn.Linear(2, 3, bias=False)
    layer.bias = nn.Parameter(np.ones(3, np.float32))
    assert list(layer.state_dict()) == ["weight", "bias"]
    layer.bias = None
    assert list(layer.state_dict()) == ["weight"]


def test_a_child_that_is_set_to_none_is_gone(batch):
    block = nn.Residual(nn.Linear(4, 4), downsample=nn.Linear(4, 4))
    block.downsample = None
    assert list(block.state_dict()) == ["0.weight", "0.bias"]
    np.testing.assert_array_equal(block(batch), block.chain()[0][1](batch) + batch)


def test_a_plain_attribute_gives_way_to_a_parameter():
    module = nn.Module()
    module.scale = 3
    module.scale = nn.Parameter(np.ones(1, np.float32))
    assert module.scale is module._parameters["scale"]


@pytest.mark.parametrize(("name", "value"), [("weight", np.ones((3, 2), np.float32)), ("weight", 5), ("child", 5)])
def test_what_is_no_parameter_or_module_cannot_take_the_place_of_one(name, value):
    layer = nn.Linear(2, 3)
    layer.child = nn.ReLU()
    before = snapshot(layer)
    with pytest.raises(TypeError, match=rf"{name} must be"):
        setattr(layer, name, value)
    assert_same_state(layer.state_dict(), before)
    assert isinstance(layer.child, nn.ReLU)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="Linear has no attribute 'wieght'"):
        _ = nn.Linear(1, 1).wieght


def test_named_modules_are_dotted_and_start_with_the_model():
    inner = nn.Sequential(nn.ReLU())
    model = nn.Sequential({"first": nn.Identity(), "block": inner})
    assert [name for name, _ in model.named_modules()] == ["", "first", "block", "block.0"]
    assert [name for name, _ in model.named_modules("net")] == ["net", "net.first", "net.block", "net.block.0"]
    assert list(model.children()) == [model[0], inner]


# Sharing


def test_a_shared_module_is_walked_once_and_named_twice_in_the_state():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert len(list(model.modules())) == 3
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_shared_parameter_is_counted_and_cast_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    assert sum(parameter.size for parameter in model.parameters()) == 4 + 2 + 2
    model.double()
    assert model[1].weight is model[0].weight
    assert model[0].weight.dtype == np.float64


def test_shared_parameters_add_up_their_gradients(batch):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    apart = copy.deepcopy(model)
    apart[1].weight = nn.Parameter(apart[0].weight.data.copy())
    for net in (model, apart):
        net.backward(np.ones_like(net(batch)))
    np.testing.assert_array_equal(model[0].weight.grad, apart[1].weight.grad + apart[0].weight.grad)


# Loading


def test_load_state_dict_copies_into_the_same_arrays_and_casts():
    source, target = small(0).double(), small(1)
    arrays = target.state_dict()
    target.load_state_dict(source.state_dict())
    for name, array in target.state_dict().items():
        assert array is arrays[name]
        np.testing.assert_array_equal(array, source.state_dict()[name].astype(array.dtype), strict=True)


def test_load_state_dict_takes_lists_and_scalars():
    norm = nn.BatchNorm1d(2)
    norm.load_state_dict({**norm.state_dict(), "weight": [2, 3], "num_batches_tracked": 7})
    np.testing.assert_array_equal(norm.weight.data, np.array([2, 3], np.float32), strict=True)
    np.testing.assert_array_equal(norm.num_batches_tracked, np.array(7, np.int64), strict=True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"drop": "3.bias"}, "3.bias missing and none unexpected"),
        ({"add": "4.bias"}, "none missing and 4.bias unexpected"),
        ({"drop": "0.weight", "add": "0.wieght"}, "0.weight missing and 0.wieght unexpected"),
    ],
)
def test_wrong_names_change_nothing(change, sentence):
    model, state = small(0), snapshot(small(1))
    state.pop(change.get("drop"), None)
    if "add" in change:
        state[change["add"]] = np.zeros(3, np.float32)
    before = snapshot(model)
    with pytest.raises(ModelError, match="must have the names of the model") as caught:
        model.load_state_dict(state)
    assert sentence in str(caught.value)
    assert_same_state(model.state_dict(), before)


def test_many_wrong_names_are_cut_short():
    with pytest.raises(ModelError, match=r"0\.bias, 0\.weight, 1\.bias and 6 more missing"):
        small().load_state_dict({})


def test_without_strict_only_the_common_names_are_loaded():
    model, before = small(0), snapshot(small(0))
    model.load_state_dict({"0.weight": np.zeros((5, 4)), "extra": np.zeros(1)}, strict=False)
    want = {**before, "0.weight": np.zeros((5, 4), np.float32)}
    assert_same_state(model.state_dict(), want)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", SMALL_NAMES)
def test_a_wrong_shape_changes_nothing(name, strict):
    model, state = small(0), snapshot(small(1))
    state[name] = np.zeros((7, 7), np.float32)
    before = snapshot(model)
    with pytest.raises(ShapeError, match=rf"{name} must have shape .* got \(7, 7\)"):
        model.load_state_dict(state, strict=strict)
    assert_same_state(model.state_dict(), before)


def test_values_that_are_no_numbers_change_nothing():
    model = small(0)
    before = snapshot(model)
    for name in SMALL_NAMES:
        state = snapshot(small(1))
        state[name] = np.full(state[name].shape, "x")
        with pytest.raises((ModelError, TypeError, ValueError)):
            model.load_state_dict(state)
        assert_same_state(model.state_dict(), before)


# Modes


def test_train_and_eval_reach_every_module():
    model = nn.Sequential(nn.Residual(nn.Linear(2, 2), activation=nn.ReLU()))
    assert all(module.training for module in model.modules())
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    assert model.train() is model
    assert all(module.training for module in model.modules())


def every_layer():
    image = np.linspace(-1, 1, 2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)
    matrix = image.reshape(6, 16)
    return [
        (nn.Conv2d(3, 2, 3), image),
        (nn.Linear(16, 2), matrix),
        (nn.BatchNorm1d(16), matrix),
        (nn.BatchNorm2d(3), image),
        (nn.BatchNorm3d(3), image[:, :, None]),
        (nn.BatchNorm2d(3, track_running_stats=False), image),
        (nn.ReLU(), image),
        (nn.ReLU6(), image),
        (nn.Sigmoid(), image),
        (nn.Dropout(), image),
        (nn.MaxPool2d(2), image),
        (nn.AvgPool2d(2), image),
        (nn.AdaptiveAvgPool2d(1), image),
        (nn.Flatten(), image),
    ]


LAYERS = [
    pytest.param(layer, x, id=f"{position}-{type(layer).__name__}") for position, (layer, x) in enumerate(every_layer())
]


@pytest.mark.parametrize(("layer", "x"), LAYERS)
def test_eval_keeps_nothing_and_training_does(layer, x):
    layer = copy.deepcopy(layer)
    layer.eval()(x)
    assert layer._saved is None
    layer.train()(x)
    assert layer._saved is not None
    layer.eval()
    assert layer._saved is None


@pytest.mark.parametrize(("layer", "x"), LAYERS)
def test_backward_without_a_training_forward_names_the_way_out(layer, x):
    layer = copy.deepcopy(layer)
    dy = np.ones_like(layer.eval()(x))
    sentence = rf"{type(layer).__name__}\.backward: .* must come first, got none; call train\(\) and forward\(x\)"
    with pytest.raises(StateError, match=sentence):
        layer.backward(dy)


@pytest.mark.parametrize(("layer", "x"), LAYERS)
def test_one_forward_serves_one_backward(layer, x):
    layer = copy.deepcopy(layer).train()
    dy = np.ones_like(layer(x))
    assert layer.backward(dy).shape == x.shape
    with pytest.raises(StateError, match="got none"):
        layer.backward(dy)


def test_eval_forward_is_the_same_from_many_threads():
    manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )
    model.eval()
    inputs = [np.random.default_rng(seed).normal(size=(3, 2, 8, 8)).astype(np.float32) for seed in range(8)]
    want = [model(x) for x in inputs]
    before = snapshot(model)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(model, inputs * 8))
    for position, y in enumerate(got):
        np.testing.assert_array_equal(y, want[position % 8])
    assert all(module._saved is None for module in model.modules())
    assert_same_state(model.state_dict(), before)


# Gradients


def test_gradients_add_up_over_two_passes(batch):
    model = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid())
    once, twice = model, copy.deepcopy(model)
    once.backward(np.ones_like(once(batch)))
    for scale in (1, 2):
        twice.backward(np.full_like(twice(batch), scale))
    for a, b in zip(once.parameters(), twice.parameters(), strict=True):
        np.testing.assert_allclose(b.grad, 3 * a.grad, rtol=1e-5, atol=1e-6)


def test_the_first_gradient_does_not_change_when_the_second_is_added(batch):
    layer = nn.Linear(4, 3)
    layer.backward(np.ones_like(layer(batch)))
    first = layer.weight.grad
    kept = first.copy()
    layer.backward(np.ones_like(layer(batch)))
    np.testing.assert_array_equal(first, kept)


def test_zero_grad_forgets(batch):
    model = small()
    model.backward(np.ones_like(model(batch)))
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_gradient_is_gathered_where_none_is_required(batch):
    model = small()
    model[0].requires_grad_(False)
    model.backward(np.ones_like(model(batch)))
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == ["0.weight", "0.bias"]
    assert model.requires_grad_(True) is model
    assert all(parameter.requires_grad for parameter in model.parameters())


# Hooks


def test_a_hook_sees_the_module_its_input_and_output_until_it_is_removed(batch):
    model, calls = small().eval(), []
    remove = model[1].register_forward_hook(lambda module, x, y: calls.append((module, x, y)))
    model(batch)
    remove()
    model(batch)
    [(module, x, y)] = calls
    assert module is model[1]
    np.testing.assert_array_equal(x, model[0](batch))
    np.testing.assert_array_equal(y, model[1](x))
    remove()  # twice does no harm


def test_a_hook_may_remove_itself(batch):
    layer, calls = nn.ReLU(), []

    def once(module, x, y):
        calls.append(1)
        remove()

    remove = layer.register_forward_hook(once)
    layer(batch)
    layer(batch)
    assert calls == [1]


def test_removing_a_hook_that_stands_twice_leaves_the_other(batch):
    layer, calls = nn.ReLU(), []

    def hook(module, x, y):
        calls.append(1)

    remove = layer.register_forward_hook(hook)
    layer.register_forward_hook(hook)
    remove()
    layer(batch)
    assert calls == [1]


# Casts, copies and words


def test_double_and_float_cast_everything_but_the_counter(batch):
    model = small()
    model.backward(np.ones_like(model(batch)))
    want = snapshot(model)
    assert model.double() is model
    assert {str(array.dtype) for name, array in model.state_dict().items() if "tracked" not in name} == {"float64"}
    assert model[1].num_batches_tracked.dtype == np.int64
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model(batch.astype(np.float64)).dtype == np.float64
    model.load_state_dict(want)
    assert_same_state(model.float().state_dict(), want)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_equal_and_apart(copied, batch):
    model = small()
    model(batch)
    twin = copied(model)
    before = snapshot(model)
    assert_same_state(twin.state_dict(), before)
    for array in twin.state_dict().values():
        array[...] = 9
    assert_same_state(model.state_dict(), before)


def test_repr_shows_options_and_nests():
    assert repr(nn.Linear(2, 3)) == "Linear(in_features=2, out_features=3, bias=True)"
    model = nn.Sequential(nn.Residual({"fc": nn.Linear(2, 2, bias=False)}, activation=nn.ReLU()))
    assert repr(model) == (
        "Sequential(\n"
        "  (0): Residual(\n"
        "    (fc): Linear(in_features=2, out_features=2, bias=False)\n"
        "    (activation): ReLU()\n"
        "  )\n"
        ")"
    )
    assert repr(nn.Parameter(np.zeros(1, np.float32))) == "Parameter(array([0.], dtype=float32))"


@pytest.mark.parametrize("method", ["forward", "backward"])
def test_a_subclass_must_write_both_passes(method):
    with pytest.raises(TypeError, match=f"Module: {method} must be written by the subclass, got none"):
        getattr(nn.Module(), method)(np.zeros(1))


def test_a_parameter_is_an_array_to_numpy():
    parameter = nn.Parameter(np.arange(4, dtype=np.float32).reshape(2, 2))
    assert (parameter.shape, parameter.size, parameter.dtype) == ((2, 2), 4, np.float32)
    np.testing.assert_array_equal(np.asarray(parameter), parameter.data)
