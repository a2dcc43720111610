"""Optimisers, clipping and schedules beside PyTorch's, with every option; its state taken over."""

import numpy as np
import pytest

from fastbn import nn, optim

torch = pytest.importorskip("torch")

SHAPES = [(3, 2), (5,), (), (2, 1, 3, 3), (0,), (40, 500)]  # the last one is cut in two
STEPS = 5
TOL = {np.float32: {"rtol": 2e-5, "atol": 2e-6}, np.float64: {"rtol": 1e-12, "atol": 1e-13}}

CASES = {
    "sgd": ("SGD", {}),
    "sgd decay": ("SGD", {"weight_decay": 0.1}),
    "sgd uphill": ("SGD", {"weight_decay": 0.1, "maximize": True}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "momentum, all": ("SGD", {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1, "maximize": True}),
    "nesterov": ("SGD", {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop decay": ("RMSprop", {"weight_decay": 0.1, "alpha": 0.9, "eps": 1e-3}),
    "rmsprop momentum": ("RMSprop", {"momentum": 0.9, "maximize": True}),
    "rmsprop centered": ("RMSprop", {"centered": True, "eps": 1e-2}),
    "rmsprop, all": ("RMSprop", {"centered": True, "momentum": 0.5, "weight_decay": 0.1, "eps": 1e-2}),
    "adam": ("Adam", {}),
    "adam l2": ("Adam", {"weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-4, "maximize": True}),
    "amsgrad": ("Adam", {"amsgrad": True, "betas": (0.5, 0.6)}),
    "adamw": ("AdamW", {}),
    "adamw, all": ("AdamW", {"weight_decay": 0.3, "amsgrad": True, "maximize": True, "betas": (0.5, 0.6)}),
}


def pair(rng, dtype):
    """The same parameters, ours and theirs."""
    ours = [nn.Parameter(np.asarray(rng.normal(size=shape), dtype)) for shape in SHAPES]
    return ours, [torch.nn.Parameter(torch.tensor(parameter.data)) for parameter in ours]


def set_gradients(ours, theirs, rng, missing=()):
    for index, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        our.grad = None if index in missing else np.asarray(rng.normal(size=our.shape), our.dtype)
        their.grad = None if index in missing else torch.tensor(our.grad)


def assert_equal(ours, theirs, dtype):
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our.data, their.detach().numpy(), **TOL[dtype])


def as_numpy(state_dict):
    """PyTorch's state as a user would hand it over."""
    state = {
        index: {name: value.numpy() if torch.is_tensor(value) else value for name, value in entries.items()}
        for index, entries in state_dict["state"].items()
    }
    return {"state": state, "param_groups": state_dict["param_groups"]}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_steps_and_states_are_pytorchs(name, dtype, rng):
    kind, options = CASES[name]
    ours, theirs = pair(rng, dtype)
    optimizer, rival = (
        getattr(optim, kind)(ours, lr=0.05, **options),
        getattr(torch.optim, kind)(theirs, lr=0.05, **options),
    )
    for step in range(STEPS):
        # One parameter comes late, another misses a step: their numbers of steps differ.
        set_gradients(ours, theirs, rng, missing={0: (0,), 2: (5,)}.get(step, ()))
        optimizer.step()
        rival.step()
        assert_equal(ours, theirs, dtype)
    got, want = optimizer.state_dict(), as_numpy(rival.state_dict())
    assert got["state"].keys() == want["state"].keys()
    for index, entries in want["state"].items():
        kept = {key: value for key, value in entries.items() if value is not None}
        assert got["state"][index].keys() == kept.keys()
        for key, value in kept.items():
            np.testing.assert_allclose(got["state"][index][key], value, **TOL[dtype], err_msg=key)


@pytest.mark.parametrize("name", CASES)
def test_a_run_of_pytorchs_goes_on_here(name, rng):
    kind, options = CASES[name]
    ours, theirs = pair(rng, np.float64)
    rival = getattr(torch.optim, kind)(theirs, lr=0.05, **options)
    for _ in range(2):
        set_gradients(ours, theirs, rng)
        rival.step()
    for our, their in zip(ours, theirs, strict=True):
        our.data = their.detach().numpy().copy()
    optimizer = getattr(optim, kind)(ours)
    optimizer.load_state_dict(as_numpy(rival.state_dict()))
    for _ in range(2):
        set_gradients(ours, theirs, rng)
        optimizer.step()
        rival.step()
    assert_equal(ours, theirs, np.float64)


def test_a_state_of_ours_goes_on_in_pytorch(rng):
    ours, theirs = pair(rng, np.float64)
    optimizer = optim.SGD(ours, lr=0.1, momentum=0.9)
    set_gradients(ours, theirs, rng)
    optimizer.step()
    for our, their in zip(ours, theirs, strict=True):
        their.data = torch.tensor(our.data)
    rival = torch.optim.SGD(theirs, lr=0.1, momentum=0.9)
    state = optimizer.state_dict()
    tensors = {
        index: {name: torch.tensor(value) for name, value in entries.items()}
        for index, entries in state["state"].items()
    }
    groups = [{**rival.state_dict()["param_groups"][0], **state["param_groups"][0]}]
    rival.load_state_dict({"state": tensors, "param_groups": groups})
    set_gradients(ours, theirs, rng)
    optimizer.step()
    rival.step()
    assert_equal(ours, theirs, np.float64)


# Clipping


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", [2.0, 1.0, 3.5, 0.5, np.inf])
@pytest.mark.parametrize("largest", [0.5, 1e9])
def test_clipped_gradients_and_norms_are_pytorchs(order, largest, dtype, rng):
    ours, theirs = pair(rng, dtype)
    set_gradients(ours, theirs, rng, missing=(1, 4))
    norm = optim.clip_grad_norm_(ours, largest, order)
    want = torch.nn.utils.clip_grad_norm_(theirs, largest, float(order))
    np.testing.assert_allclose(norm, want.item(), rtol=2e-5 if dtype is np.float32 else 1e-12)
    for our, their in zip(ours, theirs, strict=True):
        if our.grad is None:
            assert their.grad is None
        else:
            np.testing.assert_allclose(our.grad, their.grad.numpy(), **TOL[dtype])


def test_clipped_values_are_pytorchs(rng):
    ours, theirs = pair(rng, np.float32)
    set_gradients(ours, theirs, rng, missing=(1,))
    optim.clip_grad_value_(ours, 0.3)
    torch.nn.utils.clip_grad_value_(theirs, 0.3)
    for our, their in zip(ours, theirs, strict=True):
        assert (our.grad is None) == (their.grad is None)
        if our.grad is not None:
            np.testing.assert_array_equal(our.grad, their.grad.numpy())


# Schedules; ``s`` is the module, ``o`` the optimiser

ONE_CYCLES = {
    "defaults": {"total_steps": 11},
    "by epochs": {"epochs": 3, "steps_per_epoch": 4, "anneal_strategy": "linear"},
    "three phases": {"total_steps": 12, "three_phase": True, "pct_start": 0.4},
    "a rate for each group": {"max_lr": [0.3, 0.7], "total_steps": 11, "div_factor": 10, "final_div_factor": 100},
    "constant momentum": {"total_steps": 11, "cycle_momentum": False},
    "all downhill": {"total_steps": 11, "pct_start": 0.0, "base_momentum": 0.5, "max_momentum": 0.9},
}
SCHEDULES = {
    "several steps": lambda s, o: s.MultiStepLR(o, [2, 5, 5, 9], 0.5),
    "exponential": lambda s, o: s.ExponentialLR(o, 0.9),
    "warm-up": lambda s, o: s.LinearLR(o),
    "cool-down": lambda s, o: s.LinearLR(o, 0.75, 0.25, 8),
    "constant": lambda s, o: s.ConstantLR(o),
    "a constant": lambda s, o: s.ConstantLR(o, 0.5, 3),
    "warm-up, cosine": lambda s, o: s.SequentialLR(
        o, [s.LinearLR(o, 0.1, total_iters=4), s.CosineAnnealingLR(o, 7, 0.01)], [4]
    ),
    "three in turn": lambda s, o: s.SequentialLR(
        o, [s.ConstantLR(o, 0.2, 2), s.StepLR(o, 2, 0.5), s.ExponentialLR(o, 0.8)], [2, 7]
    ),
    **{
        f"one cycle, {name}": lambda s, o, options=options: s.OneCycleLR(o, **{"max_lr": 0.4} | options)
        for name, options in ONE_CYCLES.items()
    },
}


def two_groups(kind):
    """An optimiser of ours and one of theirs; rates of two groups."""
    ours = [nn.Parameter(np.ones(1, np.float32)) for _ in range(2)]
    theirs = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    options = {"momentum": 0.9} if kind == "SGD" else {}
    return (
        getattr(module, kind)([{"params": [first]}, {"params": [second], "lr": 0.5}], lr=0.1, **options)
        for module, (first, second) in ((optim, ours), (torch.optim, theirs))
    )


def rates(optimizer):
    return [(group["lr"], group.get("momentum"), group.get("betas")) for group in optimizer.param_groups]


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, about its deprecated argument
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_and_momenta_are_pytorchs(name, kind):
    ours, theirs = two_groups(kind)
    schedulers = SCHEDULES[name](optim, ours), SCHEDULES[name](torch.optim.lr_scheduler, theirs)
    for _ in range(11):
        for got, want in zip(rates(ours), rates(theirs), strict=True):
            np.testing.assert_allclose(got[0], want[0], rtol=1e-9, atol=1e-15)
            for mine, right in zip(got[1:], want[1:], strict=True):
                assert (mine is None) == (right is None)
                if right is not None:
                    np.testing.assert_allclose(mine, right, rtol=1e-9)
        theirs.step()
        for scheduler in schedulers:
            scheduler.step()
