"""A look at a model in training mode that leaves it as it was: parameters, running statistics, gradients, modes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from fastbn.data import Split
from fastbn.nn.loss import CrossEntropyLoss
from fastbn.nn.module import Module


@contextmanager
def preserved(model: Module) -> Iterator[None]:
    """Whatever is done to ``model`` inside, afterwards every bit of its state is back."""
    state = {name: array.copy() for name, array in model.state_dict().items()}
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    modules = [(module, module.training, module._saved) for module in model.modules()]
    try:
        yield
    finally:
        for name, array in model.state_dict().items():
            array[...] = state[name]
        for parameter, grad in grads:
            parameter.grad = grad
        for module, training, saved in modules:
            module.training, module._saved = training, saved


def loss_of(model: Module, batch: Split) -> float:
    """The loss with the statistics of the batch; the model is left as it was."""
    with preserved(model):
        return float(CrossEntropyLoss()(model.train()(batch.images), batch.labels))


def loss_and_gradient(model: Module, batch: Split) -> tuple[float, np.ndarray]:
    """The loss with the statistics of the batch, and its gradient to all parameters as one vector of float64."""
    criterion = CrossEntropyLoss()
    with preserved(model):
        model.train().zero_grad()
        loss = float(criterion(model(batch.images), batch.labels))
        model.backward(criterion.backward(), need_dx=False)
        return loss, gradient(model)


def gradient(model: Module) -> np.ndarray:
    """All gradients as one vector of float64, 0 where there is none."""
    grads = [np.zeros(p.shape) if p.grad is None else p.grad for p in model.parameters()]
    return np.concatenate([grad.ravel() for grad in grads]).astype(np.float64)


def parameters(model: Module) -> np.ndarray:
    """All parameters as one vector of float64."""
    return np.concatenate([p.data.ravel() for p in model.parameters()]).astype(np.float64)


def set_parameters(model: Module, values: np.ndarray) -> None:
    """Set what ``parameters`` gave, rounded to the parameters' dtype."""
    start = 0
    for parameter in model.parameters():
        parameter.data[...] = values[start : start + parameter.size].reshape(parameter.shape)
        start += parameter.size


def inputs_of(model: Module, layers: Sequence[Module], images: np.ndarray) -> list[np.ndarray]:
    """What enters each of ``layers`` when ``images`` pass in training mode; the model is left as it was."""
    seen: dict[int, np.ndarray] = {}

    def record(module: Module, x: np.ndarray, y: np.ndarray) -> None:
        seen[id(module)] = x.copy()

    removers = [layer.register_forward_hook(record) for layer in layers]
    try:
        with preserved(model):
            model.train()(images)
    finally:
        for remove in removers:
            remove()
    return [seen[id(layer)] for layer in layers]
