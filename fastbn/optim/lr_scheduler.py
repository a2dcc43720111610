"""Learning rates in closed form: the rate depends on ``last_epoch`` alone, so a resumed run agrees."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

from fastbn._checks import check_int, check_number
from fastbn.errors import ArgumentError
from fastbn.optim.optimizer import Optimizer


class LRScheduler:
    """Sets every group's lr to its initial one times ``factor(last_epoch)``; ``step()`` after each epoch.

    interval: "epoch", or "batch" for a schedule that is stepped after each batch, with its epochs and milestones
    counted in batches; what ``fit`` goes by, and free to be set. base_lrs: the initial rates.
    """

    interval = "epoch"

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.set_epoch(0)

    def factor(self, epoch: int) -> float:
        """The multiple of the initial rate in ``epoch``, counted from 0."""
        raise TypeError(f"{type(self).__name__}: factor must be written by the subclass, got none")

    def step(self) -> None:
        """Go on to the next epoch."""
        self.set_epoch(self.last_epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Set the rates of ``epoch``."""
        self.last_epoch = epoch
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * self.factor(epoch)


class LambdaLR(LRScheduler):
    """lr = initial * lr_lambda(epoch)."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Callable[[int], float]) -> None:
        self.lr_lambda = lr_lambda
        super().__init__(optimizer)

    def factor(self, epoch: int) -> float:
        """``lr_lambda(epoch)``."""
        return float(self.lr_lambda(epoch))


class StepLR(LRScheduler):
    """lr = initial * gamma ** (epoch // step_size)."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        check_int("StepLR", "step_size", step_size, 1)
        check_number("StepLR", "gamma", gamma, 0.0)
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer)

    def factor(self, epoch: int) -> float:
        """Gamma to the number of whole steps."""
        return self.gamma ** (epoch // self.step_size)


class MultiStepLR(LRScheduler):
    """lr = initial * gamma ** (milestones passed)."""

    def __init__(self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1) -> None:
        self.milestones = _milestones("MultiStepLR", milestones)
        check_number("MultiStepLR", "gamma", gamma, 0.0)
        self.gamma = gamma
        super().__init__(optimizer)

    def factor(self, epoch: int) -> float:
        """Gamma to the number of milestones that are not after ``epoch``."""
        return self.gamma ** bisect_right(self.milestones, epoch)


class ExponentialLR(LRScheduler):
    """lr = initial * gamma ** epoch."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        check_number("ExponentialLR", "gamma", gamma, 0.0)
        self.gamma = gamma
        super().__init__(optimizer)

    def factor(self, epoch: int) -> float:
        """Gamma to the ``epoch``."""
        return self.gamma**epoch


class LinearLR(LRScheduler):
    """Warm-up: from start_factor to end_factor times the initial rate in equal steps over total_iters epochs."""

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1.0 / 3, end_factor: float = 1.0, total_iters: int = 5
    ) -> None:
        check_number("LinearLR", "start_factor", start_factor, 0.0, 1.0)
        check_number("LinearLR", "end_factor", end_factor, 0.0, 1.0)
        check_int("LinearLR", "total_iters", total_iters, 1)
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.total_iters = total_iters
        super().__init__(optimizer)

    def factor(self, epoch: int) -> float:
        """On the line between the two factors, then the second."""
        passed = min(epoch, self.total_iters) / self.total_iters
        return self.start_factor + (self.end_factor - self.start_factor) * passed


class ConstantLR(LRScheduler):
    """lr = initial * factor for total_iters epochs, then the initial rate."""

    def __init__(self, optimizer: Optimizer, factor: float = 1.0 / 3, total_iters: int = 5) -> None:
        check_number("ConstantLR", "factor", factor, 0.0, 1.0)
        check_int("ConstantLR", "total_iters", total_iters, 0)
        self.first_factor = factor
        self.total_iters = total_iters
        super().__init__(optimizer)

    def factor(self, epoch: int) -> float:
        """The factor at first, then 1."""
        return self.first_factor if epoch < self.total_iters else 1.0


class CosineAnnealingLR(LRScheduler):
    """Half a cosine from the initial rate to eta_min over T_max epochs (Loshchilov and Hutter 2016, eq. 5)."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        check_int("CosineAnnealingLR", "T_max", T_max, 1)
        check_number("CosineAnnealingLR", "eta_min", eta_min, 0.0)
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer)

    def factor(self, epoch: int) -> float:
        """The cosine alone; ``eta_min`` is added per group in ``set_epoch``."""
        return 0.5 * (1.0 + math.cos(math.pi * epoch / self.T_max))

    def set_epoch(self, epoch: int) -> None:
        """Set the rates of ``epoch``: ``eta_min + (initial - eta_min) factor``."""
        self.last_epoch = epoch
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = self.eta_min + (base - self.eta_min) * self.factor(epoch)


class SequentialLR(LRScheduler):
    """One schedule after the other, each from its own beginning: warm-up and a cosine, say.

    schedulers: all made for ``optimizer`` before this; they are multiples of the rates that the first one met.
    milestones: the epochs at which the second, the third ... take over.
    """

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], milestones: Iterable[int]) -> None:
        self.schedulers = list(schedulers)
        self.milestones = _milestones("SequentialLR", milestones)
        if len(self.schedulers) != len(self.milestones) + 1:
            raise ArgumentError(
                f"SequentialLR: schedulers must be one more than milestones, got {len(self.schedulers)} and "
                f"{len(self.milestones)}"
            )
        for scheduler in self.schedulers:
            if scheduler.optimizer is not optimizer:
                raise ArgumentError("SequentialLR: schedulers must be of its optimizer, got one of another")
        intervals = {scheduler.interval for scheduler in self.schedulers}
        if len(intervals) > 1:
            raise ArgumentError(
                f"SequentialLR: schedulers must share one interval, got {' and '.join(sorted(intervals))}"
            )
        self.interval = self.schedulers[0].interval
        super().__init__(optimizer)
        self.base_lrs = self.schedulers[0].base_lrs
        for scheduler in self.schedulers:
            scheduler.base_lrs = self.base_lrs
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Set the rates of ``epoch``: those of its schedule, counted from the milestone."""
        self.last_epoch = epoch
        number = bisect_right(self.milestones, epoch)
        self.schedulers[number].set_epoch(epoch - (self.milestones[number - 1] if number else 0))


def _milestones(who: str, milestones: Iterable[int]) -> list[int]:
    """Epochs in order. Raises ArgumentError, DtypeError."""
    found = list(milestones)
    for milestone in found:
        check_int(who, "a milestone", milestone, 0)
    if found != sorted(found):
        raise ArgumentError(f"{who}: milestones must increase, got {found}")
    return found
