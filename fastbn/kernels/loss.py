"""Softmax cross-entropy over the rows of (M, C) logits."""

import math

from numba import float64, int64, prange

from fastbn.kernels._exp import exp_nonpositive
from fastbn.kernels._jit import body, driver, inlined

ROWS = 64


@body
def _cross_entropy_task(block, logits, targets, losses, tops, log_totals):
    for m in range(block * ROWS, min(logits.shape[0], (block + 1) * ROWS)):
        top = float64(logits[m, 0])
        for c in range(1, logits.shape[1]):
            top = max(top, float64(logits[m, c]))
        total = 0.0
        for c in range(logits.shape[1]):
            total += exp_nonpositive(logits[m, c] - top)
        tops[m] = top
        log_totals[m] = math.log(total)
        losses[m] = log_totals[m] - (logits[m, targets[m]] - tops[m])


@inlined
def _first_outside(targets, classes):
    """The first row whose target is no class, or -1: with it, a kernel returns it and writes nothing."""
    for m in range(targets.size):
        if not 0 <= targets[m] < classes:
            return m
    return -1


@driver
def cross_entropy(logits, targets, losses, tops, log_totals, parallel):
    """losses[m] = -log softmax(logits[m])[targets[m]], float64.

    tops[m] = max(logits[m]) and log_totals[m] = log sum exp(logits[m] - tops[m]), apart so that huge logits keep both.
    Returns as ``_first_outside``.
    """
    outside = _first_outside(targets, logits.shape[1])
    if outside >= 0:
        return outside
    blocks = -(-logits.shape[0] // ROWS)
    if parallel:
        for block in prange(blocks):
            _cross_entropy_task(int64(block), logits, targets, losses, tops, log_totals)
    else:
        for block in range(blocks):
            _cross_entropy_task(block, logits, targets, losses, tops, log_totals)
    return outside


@body
def _cross_entropy_backward_task(block, scale, logits, targets, tops, log_totals, dlogits):
    for m in range(block * ROWS, min(logits.shape[0], (block + 1) * ROWS)):
        for c in range(logits.shape[1]):
            dlogits[m, c] = exp_nonpositive((logits[m, c] - tops[m]) - log_totals[m]) * scale
        dlogits[m, targets[m]] -= scale


@driver
def cross_entropy_backward(scale, logits, targets, tops, log_totals, dlogits, parallel):
    """dlogits = (softmax(logits) - one-hot(targets)) * scale. Returns as ``_first_outside``."""
    outside = _first_outside(targets, logits.shape[1])
    if outside >= 0:
        return outside
    blocks = -(-logits.shape[0] // ROWS)
    if parallel:
        for block in prange(blocks):
            _cross_entropy_backward_task(int64(block), scale, logits, targets, tops, log_totals, dlogits)
    else:
        for block in range(blocks):
            _cross_entropy_backward_task(block, scale, logits, targets, tops, log_totals, dlogits)
    return outside
