"""SGD, Adam and AdamW against the reference, parameter groups, state, schedules and refusals."""

import copy
import itertools
import math

import numpy as np
import pytest
import reference
from helpers import assert_close

from fastbn import nn, optim, set_num_threads
from fastbn.errors import ArgumentError, DtypeError, FastbnError, ModelError, ShapeError, StateError
from fastbn.kernels import tensors as kernel
from fastbn.optim import tensors

SHAPES = [(3, 2), (5,), (2, 1, 3, 3), (0,), (200, 90)]  # the last one is worth two threads
STEPS = 4

SGDS = {
    "plain": {},
    "weight decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
}
ADAMS = {
    "adam": (optim.Adam, {}),
    "adam l2": (optim.Adam, {"weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-4}),
    "adamw": (optim.AdamW, {}),
    "adamw decay": (optim.AdamW, {"weight_decay": 0.3, "betas": (0.0, 0.0), "eps": 1e-2}),
}
RMSPROPS = {
    "plain": {},
    "decay": {"weight_decay": 0.1, "alpha": 0.9, "eps": 1e-3},
    "momentum": {"momentum": 0.9},
    "centered": {"centered": True, "eps": 1e-2},
    "centered momentum": {"centered": True, "eps": 1e-2, "momentum": 0.5},
}
MAKERS = {
    **{f"sgd {name}": (lambda p, o=o: optim.SGD(p, lr=0.1, **o)) for name, o in SGDS.items()},
    **{f"rmsprop {name}": (lambda p, o=o: optim.RMSprop(p, lr=0.1, **o)) for name, o in RMSPROPS.items()},
    **{name: (lambda p, cls=cls, o=o: cls(p, lr=0.1, **o)) for name, (cls, o) in ADAMS.items()},
    "amsgrad": lambda p: optim.Adam(p, lr=0.1, amsgrad=True),
}


def draw(rng, dtype=np.float32):
    return [nn.Parameter(rng.normal(size=shape).astype(dtype)) for shape in SHAPES]


def set_gradients(parameters, rng):
    for parameter in parameters:
        parameter.grad = rng.normal(size=parameter.shape).astype(parameter.dtype)


def values(parameters):
    return [parameter.data.copy() for parameter in parameters]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SGDS)
def test_sgd_is_the_reference(name, dtype, rng):
    parameters = draw(rng, dtype)
    arrays, want, velocities = [p.data for p in parameters], values(parameters), [None] * len(parameters)
    optimizer = optim.SGD(parameters, lr=0.1, **SGDS[name])
    for _ in range(STEPS):
        set_gradients(parameters, rng)
        gradients = [p.grad for p in parameters]
        want, velocities = reference.sgd(want, gradients, velocities, 0.1, **SGDS[name])
        optimizer.step()
    for parameter, array, w in zip(parameters, arrays, want, strict=True):
        assert parameter.data is array
        assert_close(array, w, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ADAMS)
def test_adam_is_the_reference(name, dtype, rng):
    cls, options = ADAMS[name]
    parameters = draw(rng, dtype)
    arrays = [p.data for p in parameters]
    optimizer = cls(parameters, lr=0.05, **options)
    decay = {"weight_decay": optimizer.param_groups[0]["weight_decay"], "decoupled": cls is optim.AdamW}
    rest = {key: optimizer.param_groups[0][key] for key in ("lr", "betas", "eps")}
    want = [(a, np.zeros_like(a), np.zeros_like(a)) for a in values(parameters)]
    for step in range(1, STEPS + 1):
        set_gradients(parameters, rng)
        want = [
            reference.adam(p, q.grad, m, v, step, **rest, **decay)
            for q, (p, m, v) in zip(parameters, want, strict=True)
        ]
        optimizer.step()
    for parameter, array, (w, _, _) in zip(parameters, arrays, want, strict=True):
        assert parameter.data is array
        assert_close(array, w, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", RMSPROPS)
def test_rmsprop_is_the_reference(name, dtype, rng):
    parameters = draw(rng, dtype)
    optimizer = optim.RMSprop(parameters, lr=0.05, **RMSPROPS[name])
    want = [(a, *(np.zeros_like(a) for _ in range(3))) for a in values(parameters)]
    for _ in range(STEPS):
        set_gradients(parameters, rng)
        want = [
            reference.rmsprop(w[0], q.grad, *w[1:], 0.05, **RMSPROPS[name])
            for q, w in zip(parameters, want, strict=True)
        ]
        optimizer.step()
    for parameter, (w, *_) in zip(parameters, want, strict=True):
        assert_close(parameter.data, w, dtype, scale=5)


def test_a_constant_gradient_has_no_variance_and_makes_no_nan():
    """s - m^2 is 0 but for rounding, which may make it negative."""
    parameter = nn.Parameter(np.zeros(64, np.float32))
    optimizer = optim.RMSprop([parameter], alpha=0.0, centered=True, eps=1.0)
    parameter.grad = np.linspace(0.1, 9.0, 64, dtype=np.float32)
    optimizer.step()
    np.testing.assert_allclose(parameter.data, -0.01 * parameter.grad, rtol=0.01)


@pytest.mark.parametrize("name", MAKERS)
def test_uphill_is_downhill_on_the_other_side(name, rng):
    """maximize turns the gradient's sign before anything else."""
    up, down = draw(rng), draw(np.random.default_rng(0))
    optimizers = MAKERS[name](up), MAKERS[name](down)
    optimizers[0].param_groups[0]["maximize"] = True
    for _ in range(2):
        set_gradients(up, rng)
        for first, second in zip(up, down, strict=True):
            second.grad = -first.grad
        for optimizer in optimizers:
            optimizer.step()
    for first, second in zip(up, down, strict=True):
        np.testing.assert_array_equal(first.data, second.data)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_reaches_its_weight_and_no_other(name, value):
    parameter = nn.Parameter(np.ones(37, np.float32))
    parameter.grad = np.ones(37, np.float32)
    parameter.grad[[5, 35]] = value
    MAKERS[name]([parameter]).step()
    assert np.flatnonzero(~np.isfinite(parameter.data)).tolist() == [5, 35]


def test_an_infinite_weight_stays_infinite_without_decay():
    for make in (optim.SGD, optim.RMSprop, optim.Adam):
        parameter = nn.Parameter(np.full(3, np.inf, np.float32))
        parameter.grad = np.ones(3, np.float32)
        make([parameter]).step()
        np.testing.assert_array_equal(parameter.data, np.full(3, np.inf))


def test_adamws_decay_is_a_hundredth_unless_given():
    parameters = [nn.Parameter(np.ones(1, np.float32))]
    assert optim.AdamW(parameters).param_groups[0]["weight_decay"] == 0.01
    assert optim.Adam(parameters).param_groups[0]["weight_decay"] == 0


@pytest.mark.parametrize("name", MAKERS)
def test_steps_do_not_depend_on_the_threads(name, rng):
    outcomes = []
    for threads in (1, 2, 7):
        set_num_threads(threads)
        generator = np.random.default_rng(0)
        parameters = draw(generator)
        optimizer = MAKERS[name](parameters)
        for _ in range(2):
            set_gradients(parameters, generator)
            optimizer.step()
        outcomes.append(values(parameters))
    for outcome in outcomes[1:]:
        for got, want in zip(outcome, outcomes[0], strict=True):
            np.testing.assert_array_equal(got, want)


# One pass over all


@pytest.mark.parametrize("name", MAKERS)
def test_one_launch_for_all_parameters_of_a_group_and_dtype(name, rng, monkeypatch):
    launched = []
    monkeypatch.setattr(tensors, "launch", lambda kernel, *arguments, work: launched.append(work))
    parameters = [*draw(rng), nn.Parameter(np.zeros((7, 3)))]
    optimizer = MAKERS[name]([{"params": parameters[:2]}, {"params": parameters[2:]}])
    set_gradients(parameters, rng)
    optimizer.step()
    assert sorted(launched) == [11, 21, 18 + 200 * 90]


def test_tasks_share_the_elements_and_hold_each_once():
    sizes = (5, 0, kernel.BLOCK - 5, kernel.BLOCK, 2 * kernel.BLOCK + 3, 1, 1)
    pieces, tasks, work = kernel.cut(sizes)
    assert work == sum(sizes) == sum(stop - first for _, first, stop in pieces)
    for tensor, size in enumerate(sizes):
        own = [(first, stop) for t, first, stop in pieces.tolist() if t == tensor]
        assert [first for first, _ in own] == [0, *(stop for _, stop in own)][: len(own)]
        assert (own[-1][1] if own else 0) == size
    loads = [sum(stop - first for _, first, stop in pieces[a:b]) for a, b in itertools.pairwise(tasks)]
    assert tasks[-1] == len(pieces)
    assert all(kernel.BLOCK <= load < 2 * kernel.BLOCK for load in loads[:-1])
    assert kernel.cut(())[0].shape == (0, 3)


def replaced_data(optimizer, parameter):
    parameter.data = parameter.data + 1


def restored_state(optimizer, parameter):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def emptied_state(optimizer, parameter):
    optimizer.state.clear()


def replaced_moments(optimizer, parameter):
    for state in optimizer.state.values():
        state.update({name: 0 * value for name, value in state.items() if name != "step"})


def another_dtype(optimizer, parameter):
    parameter.data = parameter.data.astype(np.float64)


def frozen(optimizer, parameter):
    parameter.requires_grad = False


@pytest.mark.parametrize(
    "change", [replaced_data, restored_state, emptied_state, replaced_moments, another_dtype, frozen]
)
@pytest.mark.parametrize("name", ["sgd momentum", "rmsprop centered", "adam"])
def test_what_changes_between_steps_is_seen(name, change, rng):
    """The same steps with and without an optimiser that remembers the arrays of the last one."""
    outcomes = []
    for forgetful in (False, True):
        generator = np.random.default_rng(1)
        parameters = draw(generator)
        optimizer = MAKERS[name](parameters)
        for step in range(4):
            if step == 2:
                change(optimizer, parameters[2])
            if forgetful:
                optimizer._batches = {}
            set_gradients(parameters, generator)
            optimizer.step()
        outcomes.append(values(parameters))
    for got, want in zip(*outcomes, strict=True):
        np.testing.assert_array_equal(got, want, strict=True)


@pytest.mark.parametrize("name", ["sgd momentum", "adam"])
def test_a_copy_of_an_optimizer_steps_its_own_parameters(name, rng):
    parameters = draw(rng)
    optimizer = MAKERS[name](parameters)
    set_gradients(parameters, rng)
    optimizer.step()
    twin, kept = copy.deepcopy(optimizer), values(parameters)
    twin.step()
    for parameter, array in zip(parameters, kept, strict=True):
        np.testing.assert_array_equal(parameter.data, array)
    optimizer.step()
    for parameter, other in zip(parameters, twin.param_groups[0]["params"], strict=True):
        np.testing.assert_array_equal(other.data, parameter.data)


# What is changed and what is not


@pytest.mark.parametrize("name", MAKERS)
def test_no_gradient_or_none_required_is_no_change(name, rng):
    parameters = draw(rng)
    optimizer = MAKERS[name](parameters)
    set_gradients(parameters, rng)
    parameters[0].grad = None
    parameters[1].requires_grad = False
    before = values(parameters)
    optimizer.step()
    np.testing.assert_array_equal(parameters[0].data, before[0])
    np.testing.assert_array_equal(parameters[1].data, before[1])
    assert not np.array_equal(parameters[2].data, before[2])
    assert not {0, 1} & set(optimizer.state_dict()["state"])


def test_zero_grad_forgets_every_gradient(rng):
    parameters = draw(rng)
    set_gradients(parameters, rng)
    optim.SGD([{"params": parameters[:2]}, {"params": parameters[2:]}]).zero_grad()
    assert all(parameter.grad is None for parameter in parameters)


def test_gradients_are_left_as_they_are(rng):
    for make in MAKERS.values():
        parameters = draw(rng)
        set_gradients(parameters, rng)
        before = [p.grad.copy() for p in parameters]
        make(parameters).step()
        for parameter, gradient in zip(parameters, before, strict=True):
            np.testing.assert_array_equal(parameter.grad, gradient)


@pytest.mark.parametrize("name", MAKERS)
def test_strided_parameters_and_gradients(name, rng):
    data, gradient = rng.normal(size=(2, 4, 3)).astype(np.float32)
    plain, strided = nn.Parameter(data.copy()), nn.Parameter(np.asfortranarray(data))
    plain.grad, strided.grad = gradient, np.asfortranarray(gradient)
    for parameter in (plain, strided):
        MAKERS[name]([parameter]).step()
    np.testing.assert_array_equal(strided.data, plain.data)


@pytest.mark.parametrize("name", ["sgd momentum", "adam"])
def test_parameters_and_gradients_in_the_other_byte_order(name, rng):
    data, gradient = rng.normal(size=(2, 4, 3)).astype(np.float32)
    swapped = data.dtype.newbyteorder()
    plain, other = nn.Parameter(data.copy()), nn.Parameter(data.astype(swapped))
    plain.grad, other.grad = gradient, gradient.astype(swapped)
    for parameter in (plain, other):
        MAKERS[name]([parameter]).step()
    np.testing.assert_array_equal(other.data, plain.data)


# Groups


def test_groups_override_the_defaults(rng):
    parameters = draw(rng)[:2]
    groups = [{"params": [parameters[0]], "lr": 0.5}, {"params": iter([parameters[1]]), "weight_decay": 0.1}]
    optimizer = optim.SGD(groups, lr=0.1)
    set_gradients(parameters, rng)
    gradients = [p.grad for p in parameters]
    first, second = values(parameters)
    optimizer.step()
    assert_close(parameters[0].data, reference.sgd([first], gradients[:1], [None], 0.5)[0][0], np.float32)
    want = reference.sgd([second], gradients[1:], [None], 0.1, weight_decay=0.1)[0][0]
    assert_close(parameters[1].data, want, np.float32)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]


def test_a_changed_rate_is_used_at_the_next_step():
    parameter = nn.Parameter(np.zeros(1, np.float32))
    optimizer = optim.SGD([parameter], lr=1.0)
    optimizer.param_groups[0]["lr"] = 0.25
    parameter.grad = np.ones(1, np.float32)
    optimizer.step()
    np.testing.assert_array_equal(parameter.data, np.array([-0.25], np.float32))


def test_parameters_can_be_added(rng):
    first, second = draw(rng)[:2]
    optimizer = optim.SGD([first], lr=0.1, momentum=0.5)
    optimizer.add_param_group({"params": [second], "lr": 0.5})
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]
    assert optimizer.param_groups[1]["momentum"] == 0.5
    with pytest.raises(ArgumentError, match="params must name each parameter once"):
        optimizer.add_param_group({"params": [first]})
    assert len(optimizer.param_groups) == 2


def names_of(model, groups):
    name = {id(parameter): name for name, parameter in model.named_parameters()}
    return [({name[id(p)] for p in group["params"]}, group.get("weight_decay", "own")) for group in groups]


def small():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


WEIGHTS, NORMS, BIASES = {"0.weight", "3.weight"}, {"1.weight", "1.bias"}, {"0.bias", "3.bias"}


def test_norms_and_biases_of_a_model_do_not_decay_unless_told():
    model = small()
    groups = optim.param_groups(model)
    assert names_of(model, groups) == [(WEIGHTS, "own"), (NORMS | BIASES, 0.0)]
    groups = optim.param_groups(model, norm_weight_decay=None, bias_weight_decay=0.25)
    assert names_of(model, groups) == [(WEIGHTS | NORMS, "own"), (BIASES, 0.25)]
    groups = optim.param_groups(model, norm_weight_decay=None, bias_weight_decay=None)
    assert names_of(model, groups) == [(WEIGHTS | NORMS | BIASES, "own")]
    assert names_of(model[1], optim.param_groups(model[1])) == [({"weight", "bias"}, 0.0)]


def test_a_weight_with_a_spectral_norm_decays():
    layer = nn.utils.spectral_norm(nn.Linear(3, 2))
    own, without = optim.param_groups(layer)
    assert names_of(layer, [own, without]) == [({"parametrizations.weight.original"}, "own"), ({"bias"}, 0.0)]


def test_an_optimizer_of_a_model_decays_its_weights_alone(rng):
    model = small()
    before = {name: parameter.data.copy() for name, parameter in model.named_parameters()}
    optimizer = optim.SGD(model, lr=0.5, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = np.zeros_like(parameter.data)
    optimizer.step()
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.data, before[name] * (0.75 if name in WEIGHTS else 1))
    assert {group["weight_decay"] for group in optim.SGD(model.parameters(), weight_decay=0.5).param_groups} == {0.5}


# Clipping


def test_a_norm_below_the_largest_leaves_the_bits(rng):
    parameters = draw(rng)
    set_gradients(parameters, rng)
    kept = [(p.grad, p.grad.copy()) for p in parameters]
    norm = optim.clip_grad_norm_(parameters, 1e6)
    np.testing.assert_allclose(norm, np.sqrt(sum(np.sum(np.float64(copy) ** 2) for _, copy in kept)), rtol=1e-12)
    for parameter, (array, copied) in zip(parameters, kept, strict=True):
        assert parameter.grad is array
        np.testing.assert_array_equal(array, copied)


def test_clipping_is_in_place_and_does_not_depend_on_the_threads(rng):
    outcomes = []
    for threads in (1, 2, 7):
        set_num_threads(threads)
        generator = np.random.default_rng(0)
        parameters = [nn.Parameter(np.zeros(shape, np.float32)) for shape in [(3, 2), (300, 300), (70, 700)]]
        set_gradients(parameters, generator)
        kept = [parameter.grad for parameter in parameters]
        norm = optim.clip_grad_norm_(iter(parameters), 1.0)
        assert all(parameter.grad is array for parameter, array in zip(parameters, kept, strict=True))
        outcomes.append([np.float64(norm).tobytes(), *(array.tobytes() for array in kept)])
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_gradients_that_cannot_be_changed_in_place_are_replaced():
    array = np.full((4, 6), 3.0, np.float32)
    first, second, strided, swapped, locked = (nn.Parameter(np.zeros((4, 6), np.float32)) for _ in range(5))
    first.grad = second.grad = array
    strided.grad, swapped.grad = np.asfortranarray(array), array.astype(">f4")
    locked.grad = np.broadcast_to(np.float32(3), (4, 6))
    parameters = [first, second, first, strided, swapped, locked]
    assert optim.clip_grad_norm_(parameters, 1.0) == pytest.approx(3 * np.sqrt(120))
    for parameter in parameters:
        np.testing.assert_allclose(parameter.grad, 1 / np.sqrt(120), rtol=1e-5)


def test_nothing_to_clip():
    parameter = nn.Parameter(np.zeros(3, np.float32))
    assert optim.clip_grad_norm_([parameter], 1.0) == optim.clip_grad_norm_([], 1.0, np.inf) == 0
    parameter.grad = np.zeros(3, np.float32)
    assert optim.clip_grad_norm_(parameter, 1.0) == 0
    np.testing.assert_array_equal(parameter.grad, np.zeros(3))


@pytest.mark.parametrize("order", [2, 1, np.inf])
def test_a_nan_makes_all_nan_unless_it_is_an_error(order):
    parameters = [nn.Parameter(np.zeros(3, np.float32)) for _ in range(2)]
    parameters[0].grad, parameters[1].grad = np.array([1, np.nan, 1], np.float32), np.ones(3, np.float32)
    with pytest.raises(StateError, match="the norm of the gradients must be finite, got nan"):
        optim.clip_grad_norm_(parameters, 1.0, order, error_if_nonfinite=True)
    np.testing.assert_array_equal(parameters[1].grad, np.ones(3))
    assert np.isnan(optim.clip_grad_norm_(parameters, 1.0, order))
    assert np.isnan(parameters[1].grad).all()


# State


@pytest.mark.parametrize("name", MAKERS)
def test_a_restored_optimizer_goes_on_with_the_same_bits(name, rng):
    parameters = draw(rng)
    optimizer = MAKERS[name](parameters)
    set_gradients(parameters, rng)
    optimizer.step()
    twins = [nn.Parameter(array) for array in values(parameters)]
    twin = MAKERS[name](twins)
    twin.param_groups[0]["lr"] = 7.0
    twin.load_state_dict(optimizer.state_dict())
    for _ in range(2):
        set_gradients(parameters, rng)
        for parameter, other in zip(parameters, twins, strict=True):
            other.grad = parameter.grad
        optimizer.step()
        twin.step()
    for parameter, other in zip(parameters, twins, strict=True):
        np.testing.assert_array_equal(other.data, parameter.data)


def test_state_dict_has_pytorchs_form(rng):
    parameters = draw(rng)[:3]
    optimizer = optim.Adam([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.5}], lr=0.1)
    set_gradients(parameters, rng)
    parameters[1].grad = None
    optimizer.step()
    state = optimizer.state_dict()
    assert [group["params"] for group in state["param_groups"]] == [[0], [1, 2]]
    assert [group["lr"] for group in state["param_groups"]] == [0.1, 0.5]
    assert {index: set(entries) for index, entries in state["state"].items()} == {
        0: {"step", "exp_avg", "exp_avg_sq"},
        2: {"step", "exp_avg", "exp_avg_sq"},
    }


def test_loaded_state_is_a_copy(rng):
    parameters = draw(rng)
    optimizer = optim.SGD(parameters, momentum=0.9)
    set_gradients(parameters, rng)
    optimizer.step()
    twin = optim.SGD(draw(rng), momentum=0.9)
    twin.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert not np.array_equal(
        twin.state_dict()["state"][0]["momentum_buffer"], optimizer.state_dict()["state"][0]["momentum_buffer"]
    )


def test_a_state_from_before_maximize_and_amsgrad_is_taken(rng):
    optimizer = optim.Adam(draw(rng), lr=0.1, amsgrad=True)
    state = optimizer.state_dict()
    for name in ("maximize", "amsgrad"):
        del state["param_groups"][0][name]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["amsgrad"] is False


def wrong_count(state):
    state["param_groups"][0]["params"].append(5)


def wrong_shape(state):
    state["state"][0]["momentum_buffer"] = np.zeros(7, np.float32)


def unknown_parameter(state):
    state["state"][9] = {"momentum_buffer": np.zeros(7, np.float32)}


@pytest.mark.parametrize("spoil", [wrong_count, wrong_shape, unknown_parameter])
def test_state_of_other_parameters_is_refused_and_changes_nothing(spoil, rng):
    parameters = draw(rng)
    optimizer = optim.SGD(parameters, lr=0.1, momentum=0.9)
    set_gradients(parameters, rng)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["lr"] = 9.0
    spoil(state)
    kept = optimizer.state[0]["momentum_buffer"].copy()
    with pytest.raises(ModelError, match=r"load_state_dict: .* must .* got"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.1
    np.testing.assert_array_equal(optimizer.state[0]["momentum_buffer"], kept)


@pytest.mark.parametrize(("first", "second"), [("sgd momentum", "adam"), ("adam", "sgd momentum")])
def test_the_state_of_another_optimizer_is_refused_and_changes_nothing(first, second, rng):
    parameters = draw(rng)
    other, optimizer = MAKERS[first](parameters), MAKERS[second](parameters)
    set_gradients(parameters, rng)
    other.step()
    options = dict(optimizer.param_groups[0])
    with pytest.raises(ModelError, match=r"load_state_dict: .* must .* got"):
        optimizer.load_state_dict(other.state_dict())
    assert optimizer.param_groups[0] == options
    assert optimizer.state == {}


# Refusals

ONE = [nn.Parameter(np.ones(2, np.float32))]
BAD = [
    (lambda: optim.SGD([]), ArgumentError, "SGD: params must hold at least one parameter, got none"),
    (lambda: optim.SGD(ONE * 2), ArgumentError, "SGD: params must name each parameter once, got one twice"),
    (lambda: optim.Adam([{"params": ONE}, {"params": ONE}]), ArgumentError, "Adam: params must name each parameter on"),
    (lambda: optim.SGD([np.ones(2)]), DtypeError, "SGD: params must be Parameters, got ndarray"),
    (lambda: optim.AdamW([{"params": ["weight"]}]), DtypeError, "AdamW: params must be Parameters, got str"),
    (lambda: optim.SGD(ONE, lr=-1), ArgumentError, "SGD: lr must be at least 0, got -1"),
    (lambda: optim.SGD(ONE, lr=float("nan")), ArgumentError, "SGD: lr must be at least 0, got nan"),
    (lambda: optim.SGD(ONE, lr="0.1"), DtypeError, "SGD: lr must be a number, got str"),
    (lambda: optim.SGD(ONE, momentum=-0.1), ArgumentError, "SGD: momentum must be at least 0, got -0.1"),
    (lambda: optim.SGD(ONE, dampening="0"), DtypeError, "SGD: dampening must be a number, got str"),
    (lambda: optim.SGD(ONE, weight_decay=-1), ArgumentError, "SGD: weight_decay must be at least 0, got -1"),
    (lambda: optim.SGD(ONE, nesterov=True), ArgumentError, "nesterov must come with momentum and no dampening"),
    (
        lambda: optim.SGD(ONE, momentum=0.9, dampening=0.1, nesterov=True),
        ArgumentError,
        "got momentum 0.9, dampening 0",
    ),
    (lambda: optim.Adam(ONE, lr=-1), ArgumentError, "Adam: lr must be at least 0, got -1"),
    (lambda: optim.Adam(ONE, betas=(1.0, 0.9)), ArgumentError, "Adam: betas[0] must be from 0 to 1, got 1.0"),
    (lambda: optim.AdamW(ONE, betas=(0.9, -0.1)), ArgumentError, "AdamW: betas[1] must be from 0 to 1, got -0.1"),
    (lambda: optim.Adam(ONE, eps=-1), ArgumentError, "Adam: eps must be at least 0, got -1"),
    (lambda: optim.AdamW(ONE, weight_decay="x"), DtypeError, "AdamW: weight_decay must be a number, got str"),
    (lambda: optim.RMSprop(ONE, alpha=1.0), ArgumentError, "RMSprop: alpha must be from 0 to 1, got 1.0"),
    (lambda: optim.RMSprop(ONE, momentum=-1), ArgumentError, "RMSprop: momentum must be at least 0, got -1"),
    (lambda: optim.param_groups(small(), norm_weight_decay=-1), ArgumentError, "norm_weight_decay must be at least 0"),
    (lambda: optim.clip_grad_norm_(ONE, -1), ArgumentError, "clip_grad_norm_: max_norm must be at least 0, got -1"),
    (lambda: optim.clip_grad_norm_(ONE, 1, 0), ArgumentError, "clip_grad_norm_: norm_type must be above 0, got 0"),
    (lambda: optim.clip_grad_norm_([np.ones(2)], 1), DtypeError, "parameters must be Parameters, got ndarray"),
    (lambda: optim.clip_grad_value_(ONE, -1), ArgumentError, "clip_grad_value_: clip_value must be at least 0, got -1"),
    (lambda: optim.StepLR(optim.SGD(ONE), 0), ArgumentError, "StepLR: step_size must be at least 1, got 0"),
    (lambda: optim.StepLR(optim.SGD(ONE), 1, -1), ArgumentError, "StepLR: gamma must be at least 0, got -1"),
    (lambda: optim.CosineAnnealingLR(optim.SGD(ONE), 0), ArgumentError, "T_max must be at least 1, got 0"),
    (lambda: optim.CosineAnnealingLR(optim.SGD(ONE), 1, -1), ArgumentError, "eta_min must be at least 0, got -1"),
    (lambda: optim.MultiStepLR(optim.SGD(ONE), [2, 1]), ArgumentError, "milestones must increase, got [2, 1]"),
    (lambda: optim.MultiStepLR(optim.SGD(ONE), [1.5]), DtypeError, "a milestone must be an integer, got float"),
    (lambda: optim.ExponentialLR(optim.SGD(ONE), -1), ArgumentError, "ExponentialLR: gamma must be at least 0, got -1"),
    (lambda: optim.LinearLR(optim.SGD(ONE), 2.0), ArgumentError, "LinearLR: start_factor must be from 0 to 1, got 2.0"),
    (lambda: optim.LinearLR(optim.SGD(ONE), total_iters=0), ArgumentError, "total_iters must be at least 1, got 0"),
    (lambda: optim.ConstantLR(optim.SGD(ONE), -1), ArgumentError, "ConstantLR: factor must be from 0 to 1, got -1"),
    (lambda: sequential([2, 3]), ArgumentError, "schedulers must be one more than milestones, got 2 and 2"),
    (lambda: sequential([2], other=True), ArgumentError, "schedulers must be of its optimizer, got one of another"),
    (lambda: sequential([2], interval="batch"), ArgumentError, "must share one interval, got batch and epoch"),
    (lambda: cycle(), ArgumentError, "total_steps, or epochs and steps_per_epoch, must be given, got neither"),
    (lambda: cycle(epochs=1, steps_per_epoch=0), ArgumentError, "steps_per_epoch must be at least 1, got 0"),
    (lambda: cycle(total_steps=0), ArgumentError, "OneCycleLR: total_steps must be at least 1, got 0"),
    (lambda: cycle(total_steps=1, pct_start=2), ArgumentError, "OneCycleLR: pct_start must be from 0 to 1, got 2"),
    (lambda: cycle(total_steps=1, div_factor=0), ArgumentError, "OneCycleLR: div_factor must be above 0, got 0"),
    (
        lambda: cycle(total_steps=1, anneal_strategy="x"),
        ArgumentError,
        "must be cos or linear, got 'x'",
    ),
    (
        lambda: cycle(max_lr=[1, 2], total_steps=1),
        ArgumentError,
        "max_lr must be one number or one for each of 1",
    ),
    (lambda: cycle(max_lr="a", total_steps=1), DtypeError, "OneCycleLR: max_lr must be a number, got str"),
    (lambda: cycle(total_steps=2).set_epoch(3), StateError, "OneCycleLR: a step must be one of 2, got step 4"),
    (
        lambda: cycle(Still(ONE, {"lr": 1.0}), total_steps=2),
        ArgumentError,
        "cycle_momentum must be False without",
    ),
]


class Still(optim.Optimizer):
    """No momentum, and no step."""


def cycle(optimizer=None, **options):
    return optim.OneCycleLR(optim.SGD(ONE) if optimizer is None else optimizer, **{"max_lr": 1.0} | options)


def sequential(milestones, other=False, interval="epoch"):
    optimizer = optim.SGD(ONE)
    schedulers = [optim.LinearLR(optimizer), optim.StepLR(optim.SGD(ONE) if other else optimizer, 3)]
    schedulers[1].interval = interval
    return optim.SequentialLR(optimizer, schedulers, milestones)


def test_an_optimizer_of_ones_own_writes_its_numbers():
    optimizer = Still([nn.Parameter(np.ones(2, np.float32))], {"lr": 1.0})
    optimizer.param_groups[0]["params"][0].grad = np.ones(2, np.float32)
    with pytest.raises(TypeError, match="Still: _numbers must be written by the subclass, got none"):
        optimizer.step()


def test_one_array_in_two_parameters_is_refused():
    array = np.ones(3, np.float32)
    parameters = [nn.Parameter(array), nn.Parameter(array)]
    for parameter in parameters:
        parameter.grad = np.ones(3, np.float32)
    with pytest.raises(ArgumentError, match="data of the parameters must be apart, got one array in two of them"):
        optim.SGD(parameters).step()


@pytest.mark.parametrize("dtype", [np.int64, np.float16])
def test_parameters_of_other_dtypes_are_refused(dtype):
    parameter = nn.Parameter(np.ones(3, dtype))
    parameter.grad = np.ones(3, dtype)
    with pytest.raises(DtypeError, match="data of a parameter must be float32 or float64, got"):
        optim.SGD([parameter]).step()


def test_a_moment_of_another_shape_is_refused(rng):
    parameter = nn.Parameter(np.ones(3, np.float32))
    optimizer = optim.SGD([parameter], momentum=0.9)
    for size in (3, 4):
        parameter.data = parameter.grad = np.ones(size, np.float32)
        if size == 3:
            optimizer.step()
    with pytest.raises(ShapeError, match=r"momentum_buffer must have shape \(4,\), as its parameter, got \(3,\)"):
        optimizer.step()


@pytest.mark.parametrize(("make", "error", "sentence"), BAD, ids=[sentence for *_, sentence in BAD])
def test_bad_arguments(make, error, sentence):
    with pytest.raises(error) as caught:
        make()
    assert sentence in str(caught.value)


@pytest.mark.parametrize("group", [{"lr": -1}, {"momentum": "x"}, {"nesterov": True}])
def test_a_groups_options_are_checked_as_the_defaults_are(group):
    with pytest.raises(FastbnError, match=r"SGD: .* must"):
        optim.SGD([{"params": ONE, **group}])


@pytest.mark.parametrize("name", ["sgd plain", "adam"])
def test_a_gradient_of_another_shape_is_refused(name):
    parameter = nn.Parameter(np.ones((3, 2), np.float32))
    parameter.grad = np.ones(1, np.float32)
    with pytest.raises(FastbnError, match=r"grad must have shape \(3, 2\).* got \(1,\)"):
        MAKERS[name]([parameter]).step()


@pytest.mark.parametrize("name", ["sgd plain", "adam"])
def test_a_read_only_parameter_is_refused_and_left(name):
    array = np.ones(3, np.float32)
    array.flags.writeable = False
    parameter = nn.Parameter(array)
    parameter.grad = np.ones(3, np.float32)
    with pytest.raises(FastbnError, match="must be writable"):
        MAKERS[name]([parameter]).step()
    np.testing.assert_array_equal(array, np.ones(3))


# Schedules

RATES = {
    "step": (lambda o: optim.StepLR(o, 3, 0.5), lambda base, e: base * 0.5 ** (e // 3)),
    "step of one": (lambda o: optim.StepLR(o, 1), lambda base, e: base * 0.1**e),
    "lambda": (lambda o: optim.LambdaLR(o, lambda e: 1 / (1 + e)), lambda base, e: base / (1 + e)),
    "cosine": (
        lambda o: optim.CosineAnnealingLR(o, 10),
        lambda base, e: base * (1 + math.cos(math.pi * e / 10)) / 2,
    ),
    "cosine to a floor": (
        lambda o: optim.CosineAnnealingLR(o, 10, 0.02),
        lambda base, e: 0.02 + (base - 0.02) * (1 + math.cos(math.pi * e / 10)) / 2,
    ),
}


def two_groups():
    first, second = (nn.Parameter(np.ones(1, np.float32)) for _ in range(2))
    return optim.SGD([{"params": [first]}, {"params": [second], "lr": 0.5}], lr=0.1)


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("name", RATES)
def test_rates_are_the_formula(name):
    make, formula = RATES[name]
    optimizer = two_groups()
    scheduler = make(optimizer)
    for epoch in range(13):
        assert scheduler.last_epoch == epoch
        np.testing.assert_allclose(rates(optimizer), [formula(base, epoch) for base in (0.1, 0.5)], rtol=1e-12)
        scheduler.step()


def test_a_run_that_jumps_is_where_one_that_steps_is():
    """Of schedules that PyTorch is asked about in test_optim_torch.py."""
    makers = {
        "several": lambda o: optim.MultiStepLR(o, [2, 5]),
        "cycle": lambda o: optim.OneCycleLR(o, [0.3, 0.4], 20),
        "sequence": lambda o: optim.SequentialLR(o, [optim.LinearLR(o, 0.1), optim.CosineAnnealingLR(o, 9)], [5]),
    }
    for make in makers.values():
        stepped, jumped = two_groups(), two_groups()
        scheduler = make(stepped)
        for _ in range(8):
            scheduler.step()
        make(jumped).set_epoch(8)
        assert [{**group, "params": None} for group in stepped.param_groups] == [
            {**group, "params": None} for group in jumped.param_groups
        ]


@pytest.mark.parametrize("name", RATES)
def test_set_epoch_is_as_many_steps(name):
    make, _ = RATES[name]
    stepped, jumped = two_groups(), two_groups()
    scheduler = make(stepped)
    for _ in range(7):
        scheduler.step()
    make(jumped).set_epoch(7)
    assert rates(stepped) == rates(jumped)


TORCH = {
    "step": lambda s, o: s.StepLR(o, 3, 0.5),
    "step of one": lambda s, o: s.StepLR(o, 1),
    "lambda": lambda s, o: s.LambdaLR(o, lambda e: 1 / (1 + e)),
    "cosine": lambda s, o: s.CosineAnnealingLR(o, 10),
    "cosine to a floor": lambda s, o: s.CosineAnnealingLR(o, 10, 0.02),
}


@pytest.mark.parametrize("name", RATES)
def test_rates_are_pytorchs(name):
    torch = pytest.importorskip("torch")
    first, second = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    theirs = torch.optim.SGD([{"params": [first]}, {"params": [second], "lr": 0.5}], lr=0.1)
    ours = two_groups()
    schedulers = RATES[name][0](ours), TORCH[name](torch.optim.lr_scheduler, theirs)
    for _ in range(11):
        np.testing.assert_allclose(rates(ours), rates(theirs), rtol=1e-9, atol=1e-15)
        theirs.step()
        for scheduler in schedulers:
            scheduler.step()


def test_a_schedule_of_ones_own_writes_factor():
    with pytest.raises(TypeError, match="factor must be written by the subclass, got none"):
        optim.LRScheduler(two_groups())
