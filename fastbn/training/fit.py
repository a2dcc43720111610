"""The training loop."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastbn._checks import check_float, check_int, check_number
from fastbn.errors import DtypeError, ModelError, ShapeError, StateError
from fastbn.functional.samples import samples
from fastbn.nn.dropout import Dropout
from fastbn.nn.loss import CrossEntropyLoss
from fastbn.nn.module import Module
from fastbn.optim.clip import clip_grad_norm_
from fastbn.optim.lr_scheduler import LRScheduler
from fastbn.optim.optimizer import Optimizer
from fastbn.training.checkpoint import read, write
from fastbn.training.history import Epoch, History
from fastbn.training.progress import Progress

Data = tuple[np.ndarray, np.ndarray]


class Loss(Protocol):
    """What ``fit`` asks of a loss."""

    def __call__(self, output: np.ndarray, target: np.ndarray, /) -> float:
        """The mean loss of a batch."""

    def backward(self) -> np.ndarray:
        """Its gradient to ``output``."""


def fit(
    model: Module,
    train: Data,
    validation: Data | None = None,
    *,
    epochs: int,
    optimizer: Optimizer,
    batch_size: int = 64,
    loss: Loss | None = None,
    scheduler: LRScheduler | None = None,
    max_grad_norm: float | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    on_epoch: Callable[[int, Epoch], None] | None = None,
) -> History:
    """Train ``model`` in place for ``epochs`` epochs in all, and say how it went.

    train, validation: (inputs (N, ...), labels (N,)); every epoch draws a new order of ``train`` from ``seed`` and its
    own number, so the same seed gives the same bits. A last batch of one sample is left out: it has no batch
    statistics. loss: cross-entropy unless given. scheduler: stepped after every epoch, or after every batch if that is
    its interval. max_grad_norm: gradients are clipped to this norm, see ``optim.clip_grad_norm_``.
    checkpoint: written after every epoch: model, optimiser, history and the generators of dropout. resume: go on from
    it if it is there; the run ends with the same bits as one that was never interrupted. progress: a bar on stderr
    when that is a terminal. on_epoch: called with the epoch's number from 0 and its figures.
    Returns the history of all epochs. The model is left in eval mode.
    Raises StateError when a loss is not finite, ShapeError, DtypeError, ArgumentError, ModelError for the checkpoint.
    """
    inputs, labels = _check_data("fit", "train", train)
    check_int("fit", "epochs", epochs, 0)
    check_int("fit", "batch_size", batch_size, 1)
    check_int("fit", "seed", seed, 0)
    if validation is not None:
        _check_data("fit", "validation", validation)
    if max_grad_norm is not None:
        check_number("fit", "max_grad_norm", max_grad_norm, 0.0)
    criterion = CrossEntropyLoss() if loss is None else loss
    by_batch = scheduler is not None and scheduler.interval == "batch"
    starts = [i for i in range(0, len(labels), batch_size) if len(labels) - i > 1 or len(labels) == 1]
    history = History()
    if resume and checkpoint is not None and Path(checkpoint).exists():
        history = _restore(checkpoint, model, optimizer)
        if scheduler is not None:
            scheduler.set_epoch(len(history) * (len(starts) if by_batch else 1))
    with Progress(progress, epochs, len(starts), done=len(history)) as bar:
        for number in range(len(history), epochs):
            order = np.random.default_rng([seed, number]).permutation(len(labels))
            rate = float(optimizer.param_groups[0]["lr"])
            model.train()
            total, correct, count = 0.0, 0, 0
            begun = time.perf_counter()
            for step, start in enumerate(starts):
                batch = order[start : start + batch_size]
                x, target = samples(inputs, batch), labels[batch]
                optimizer.zero_grad()
                output = model(x)
                value = criterion(output, target)
                if not np.isfinite(value):
                    raise StateError(
                        f"fit: the loss must stay finite, got {value} in epoch {number + 1}, batch {step + 1} of "
                        f"{len(starts)}; lower the learning rate (now {rate:g}) or look at the inputs"
                    )
                model.backward(criterion.backward(), need_dx=False)
                if max_grad_norm is not None:
                    clip_grad_norm_(model.parameters(), max_grad_norm)
                optimizer.step()
                if scheduler is not None and by_batch:
                    scheduler.step()
                total += float(value) * len(batch)
                correct += _correct(output, target)
                count += len(batch)
                bar.finish_batch(total / count)
            epoch = Epoch(total / count, correct / count, time.perf_counter() - begun, rate)
            if validation is not None:
                epoch.val_loss, epoch.val_accuracy = evaluate(model, validation, batch_size=1000, loss=loss)
            history.epochs.append(epoch)
            optimizer.zero_grad()
            if scheduler is not None and not by_batch:
                scheduler.step()
            if checkpoint is not None:
                _store(checkpoint, model, optimizer, history, inputs.shape[1:])
            bar.finish_epoch(epoch)
            if on_epoch is not None:
                on_epoch(number, epoch)
    model.eval()
    return history


def evaluate(model: Module, data: Data, *, batch_size: int = 1000, loss: Loss | None = None) -> tuple[float, float]:
    """Mean loss and share of correct answers of ``model`` in eval mode on (inputs, labels); it is left in eval mode.

    Raises ShapeError, DtypeError, ArgumentError.
    """
    inputs, labels = _check_data("evaluate", "data", data)
    check_int("evaluate", "batch_size", batch_size, 1)
    criterion = CrossEntropyLoss() if loss is None else loss
    model.eval()
    total, correct = 0.0, 0
    for start in range(0, len(labels), batch_size):
        target = labels[start : start + batch_size]
        output = model(inputs[start : start + batch_size])
        total += float(criterion(output, target)) * len(target)
        correct += _correct(output, target)
    return total / len(labels), correct / len(labels)


def _correct(output: np.ndarray, target: np.ndarray) -> int:
    return int((output.argmax(axis=1) == target).sum())


def _check_data(who: str, name: str, data: Any) -> Data:
    if not isinstance(data, tuple) or len(data) != 2 or not all(isinstance(part, np.ndarray) for part in data):
        raise DtypeError(f"{who}: {name} must be a pair of arrays (inputs, labels), got {type(data).__name__}")
    inputs, labels = data
    check_float(who, f"{name} inputs", inputs)
    if inputs.ndim == 0 or labels.ndim == 0:
        raise ShapeError(f"{who}: {name} must have one label per input, got arrays without axes")
    if len(inputs) != len(labels) or len(labels) == 0:
        raise ShapeError(
            f"{who}: {name} must have one label per input and at least one, got {len(inputs)} inputs and "
            f"{len(labels)} labels"
        )
    return inputs, labels


def _generators(model: Module) -> dict[str, np.random.Generator]:
    return {name: module.generator for name, module in model.named_modules() if isinstance(module, Dropout)}


def _store(
    path: str | Path, model: Module, optimizer: Optimizer, history: History, input_shape: tuple[int, ...]
) -> None:
    saved = optimizer.state_dict()
    arrays: dict[str, np.ndarray] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in saved["state"].items():
        for name, value in entries.items():
            if isinstance(value, np.ndarray):
                arrays[f":optimizer.{index}.{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    extra = {
        "input_shape": list(input_shape),
        "history": history.to_json(),
        "generators": {name: generator.bit_generator.state for name, generator in _generators(model).items()},
        "optimizer": {"type": type(optimizer).__name__, "state": numbers, "param_groups": saved["param_groups"]},
    }
    write(path, model, arrays, extra)


def _restore(path: str | Path, model: Module, optimizer: Optimizer) -> History:
    saved_model, arrays, extra = read(path)
    kind = type(optimizer).__name__
    saved = extra.get("optimizer")
    if not isinstance(saved, dict) or saved.get("type") != kind:
        got = f"with {saved.get('type')}" if isinstance(saved, dict) else "without an optimiser"
        raise ModelError(f"fit: {path} must be a checkpoint of a run with {kind}, got one {got}")
    try:
        history = History.from_json(extra["history"])
        state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in saved["state"].items()}
        for name, array in arrays.items():
            _, index, entry = name.split(".")
            state.setdefault(int(index), {})[entry] = array
        model.load_state_dict(saved_model.state_dict())
        optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
        for name, generator in _generators(model).items():
            generator.bit_generator.state = extra["generators"][name]
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(f"fit: {path} must hold the state of a run as fit wrote it, got {error!r}") from error
    return history
