"""Learning rates by epoch, in closed form: the rate depends on ``last_epoch`` alone, so a resumed run agrees."""

import math
from collections.abc import Callable

from fastbn._checks import check_int, check_number
from fastbn.optim.optimizer import Optimizer


class LRScheduler:
    """Sets every group's lr to its initial one times ``factor(last_epoch)``; ``step()`` after each epoch."""

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
