"""Running statistics estimated anew."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from fastbn.errors import ArgumentError
from fastbn.functional.norm import merge_moments
from fastbn.nn.batchnorm import BatchNorm
from fastbn.nn.batchrenorm import BatchRenorm
from fastbn.nn.module import Module

Part = tuple[int, np.ndarray, np.ndarray]  # values in a channel, mean and biased variance of one batch


def update_bn_stats(model: Module, batches: Iterable[np.ndarray]) -> None:
    """Set every batch norm's running statistics to those of all ``batches`` together, in one pass; in place.

    Each batch is normalised by its own statistics, as in training; its moments are merged by their counts, exactly
    (Chan, Golub and LeVeque 1979), not averaged. running_var gets the unbiased variance. num_batches_tracked counts
    these batches, too, and these alone where momentum is None, which weighs them by it. Frozen layers and layers
    without running statistics are left alone, and so is the mode of the model. A batch renorm is batch norm meanwhile,
    and its schedule goes on where it was; a ghost batch norm's statistics are those of whole batches.
    batches: inputs of the model. Raises ArgumentError without any, and what the model raises for a batch.
    """
    norms = moving_norms(model)
    modes = [(module, module.training) for module in model.modules()]
    renorms = [(norm, norm.r_max, norm.d_max) for norm in norms if isinstance(norm, BatchRenorm)]
    before = {name: array.copy() for name, array in model.named_buffers()}
    seen = 0
    try:
        with recorded(norms) as moments:
            model.train()
            for renorm, _, _ in renorms:
                renorm.r_max, renorm.d_max = 1.0, 0.0
            for batch in batches:
                model(batch)
                seen += len(batch)
    finally:
        for module, mode in modes:
            module.training = mode
            module._saved = None
        for renorm, r_max, d_max in renorms:
            renorm.r_max, renorm.d_max = r_max, d_max
        for name, array in model.named_buffers():
            array[...] = before[name]
    if not seen:
        raise ArgumentError("update_bn_stats: batches must hold at least one batch, got none")
    for norm in norms:
        parts = moments[id(norm)]
        if not parts:
            continue
        count, mean, var = merged(parts)
        earlier = 0 if norm.momentum is None else int(norm.num_batches_tracked)
        norm.set_running_stats(mean, var * (count / (count - 1)), earlier + len(parts))


def moving_norms(model: Module) -> list[BatchNorm]:
    """The batch norms of ``model`` whose running statistics move in training."""
    return [
        module
        for module in model.modules()
        if isinstance(module, BatchNorm) and module.track_running_stats and not module.frozen
    ]


@contextmanager
def recorded(norms: Sequence[BatchNorm]) -> Iterator[dict[int, list[Part]]]:
    """Meanwhile, the moments of every batch that one of ``norms`` sees in training mode are kept, under its id."""
    moments: dict[int, list[Part]] = {id(norm): [] for norm in norms}

    def record(module: Module, x: np.ndarray, y: np.ndarray) -> None:
        assert isinstance(module, BatchNorm)
        saved = module.saved
        if saved is not None and saved.count:
            moments[id(module)].append((saved.count, saved.mean, saved.var))

    removers = [norm.register_forward_hook(record) for norm in norms]
    try:
        yield moments
    finally:
        for remove in removers:
            remove()


def merged(parts: Sequence[Part]) -> Part:
    """The moments of all batches together."""
    counts = np.array([count for count, _, _ in parts])
    squares = np.stack([count * var for count, _, var in parts])
    mean, var = merge_moments(counts, np.stack([mean for _, mean, _ in parts]), squares)
    return int(counts.sum()), mean, var
