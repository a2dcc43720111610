"""SGD, Adam and AdamW against the reference, parameter groups, state, schedules and refusals."""

import copy
import math

import numpy as np
import pytest
import reference
from helpers import assert_close

from fastbn import nn, optim, set_num_threads
from fastbn.errors import ArgumentError, DtypeError, FastbnError, ModelError

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
MAKERS = {
    **{f"sgd {name}": (lambda p, o=o: optim.SGD(p, lr=0.1, **o)) for name, o in SGDS.items()},
    **{name: (lambda p, cls=cls, o=o: cls(p, lr=0.1, **o)) for name, (cls, o) in ADAMS.items()},
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
    (lambda: optim.StepLR(optim.SGD(ONE), 0), ArgumentError, "StepLR: step_size must be at least 1, got 0"),
    (lambda: optim.StepLR(optim.SGD(ONE), 1, -1), ArgumentError, "StepLR: gamma must be at least 0, got -1"),
    (lambda: optim.CosineAnnealingLR(optim.SGD(ONE), 0), ArgumentError, "T_max must be at least 1, got 0"),
    (lambda: optim.CosineAnnealingLR(optim.SGD(ONE), 1, -1), ArgumentError, "eta_min must be at least 0, got -1"),
]


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
