"""The one-cycle policy (Smith and Topin 2017, arXiv 1708.07120)."""

import math
from bisect import bisect_left
from collections.abc import Sequence

from fastbn._checks import check_int, check_number
from fastbn.errors import ArgumentError, StateError
from fastbn.optim.lr_scheduler import LRScheduler
from fastbn.optim.optimizer import Optimizer

PerGroup = float | Sequence[float]


class OneCycleLR(LRScheduler):
    """From max_lr / div_factor up to max_lr, down to 1 / final_div_factor of the first; as PyTorch, batch by batch.

    total_steps: batches in all, or epochs times steps_per_epoch. pct_start: the share of them that goes up.
    anneal_strategy: "cos" or "linear". cycle_momentum: momentum (Adam's first beta) goes from max_momentum down to
    base_momentum and back. three_phase: down as long as up, and only then to the last rate. max_lr, base_momentum,
    max_momentum: numbers, or one for each group.
    Raises ArgumentError, DtypeError; StateError for a step beyond the last.
    """

    interval = "batch"

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: PerGroup,
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: PerGroup = 0.85,
        max_momentum: PerGroup = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
    ) -> None:
        self.total_steps = _total(total_steps, epochs, steps_per_epoch)
        check_number("OneCycleLR", "pct_start", pct_start, 0.0, 1.0)
        if anneal_strategy not in ("cos", "linear"):
            raise ArgumentError(f"OneCycleLR: anneal_strategy must be cos or linear, got {anneal_strategy!r}")
        for name, value in (("div_factor", div_factor), ("final_div_factor", final_div_factor)):
            check_number("OneCycleLR", name, value, 0.0)
            if value == 0:
                raise ArgumentError(f"OneCycleLR: {name} must be above 0, got 0")
        if cycle_momentum and not {"momentum", "betas"} & optimizer.defaults.keys():
            raise ArgumentError("OneCycleLR: cycle_momentum must be False without momentum or betas, got True")
        groups = len(optimizer.param_groups)
        self.linear = anneal_strategy == "linear"
        self.cycle_momentum = cycle_momentum
        self.max_lrs = _per_group("max_lr", max_lr, groups)
        self.momenta = list(
            zip(
                _per_group("max_momentum", max_momentum, groups),
                _per_group("base_momentum", base_momentum, groups),
                strict=True,
            )
        )
        self.div_factor, self.final_div_factor = div_factor, final_div_factor
        # Each phase: its last step, and where between first rate, largest and last it begins and ends.
        up, last = pct_start * self.total_steps - 1.0, self.total_steps - 1.0
        down = [(2.0 * pct_start * self.total_steps - 2.0, 1, 0), (last, 0, 2)] if three_phase else [(last, 1, 2)]
        self.phases = [(up, 0, 1), *down]
        super().__init__(optimizer)

    def set_epoch(self, epoch: int) -> None:
        """Set the rates, and the momenta, of step ``epoch``."""
        if epoch > self.total_steps:
            raise StateError(f"OneCycleLR: a step must be one of {self.total_steps}, got step {epoch + 1}")
        self.last_epoch = epoch
        for group, top, (slow, fast) in zip(self.optimizer.param_groups, self.max_lrs, self.momenta, strict=True):
            first = top / self.div_factor
            group["lr"] = self._between((first, top, first / self.final_div_factor))
            if self.cycle_momentum:
                momentum = self._between((slow, fast, slow))
                if "betas" in group:
                    group["betas"] = (momentum, *group["betas"][1:])
                else:
                    group["momentum"] = momentum

    def _between(self, marks: tuple[float, float, float]) -> float:
        number = min(bisect_left([end for end, _, _ in self.phases], self.last_epoch), len(self.phases) - 1)
        begin = self.phases[number - 1][0] if number else 0.0
        end, start, stop = self.phases[number]
        passed = min((self.last_epoch - begin) / (end - begin), 1.0) if end > begin else 1.0
        if not self.linear:
            passed = 0.5 * (1.0 - math.cos(math.pi * passed))
        return marks[start] + (marks[stop] - marks[start]) * passed


def _total(total_steps: int | None, epochs: int | None, steps_per_epoch: int | None) -> int:
    if total_steps is not None:
        check_int("OneCycleLR", "total_steps", total_steps, 1)
        return total_steps
    if epochs is None or steps_per_epoch is None:
        raise ArgumentError("OneCycleLR: total_steps, or epochs and steps_per_epoch, must be given, got neither")
    check_int("OneCycleLR", "epochs", epochs, 1)
    check_int("OneCycleLR", "steps_per_epoch", steps_per_epoch, 1)
    return epochs * steps_per_epoch


def _per_group(name: str, value: PerGroup, groups: int) -> list[float]:
    found = list(value) if isinstance(value, Sequence) else [value] * groups
    if len(found) != groups:
        raise ArgumentError(
            f"OneCycleLR: {name} must be one number or one for each of {groups} groups, got {len(found)}"
        )
    for number in found:
        check_number("OneCycleLR", name, number, 0.0)
    return found
