"""Softmax cross-entropy over the rows of (M, C) logits."""

import math

from numba import int64, prange

from fastbn.kernels._exp import exp_nonpositive
from fastbn.kernels._jit import body, driver

ROWS = 64


@body
def _cross_entropy_task(block, logits, targets, losses, log_sums):
    for m in range(block * ROWS, min(logits.shape[0], (block + 1) * ROWS)):
        top = logits[m, 0]
        for c in range(1, logits.shape[1]):
            top = max(top, logits[m, c])
        total = 0.0
        for c in range(logits.shape[1]):
            total += exp_nonpositive(logits[m, c] - top)
        log_sums[m] = top + math.log(total)
        losses[m] = log_sums[m] - logits[m, targets[m]]


@driver
def cross_entropy(logits, targets, losses, log_sums, parallel):
    """losses[m] = -log softmax(logits[m])[targets[m]]; log_sums[m] = log sum exp(logits[m]); both float64."""
    blocks = -(-logits.shape[0] // ROWS)
    if parallel:
        for block in prange(blocks):
            _cross_entropy_task(int64(block), logits, targets, losses, log_sums)
    else:
        for block in range(blocks):
            _cross_entropy_task(block, logits, targets, losses, log_sums)


@body
def _cross_entropy_backward_task(block, scale, logits, targets, log_sums, dlogits):
    for m in range(block * ROWS, min(logits.shape[0], (block + 1) * ROWS)):
        for c in range(logits.shape[1]):
            dlogits[m, c] = exp_nonpositive(logits[m, c] - log_sums[m]) * scale
        dlogits[m, targets[m]] -= scale


@driver
def cross_entropy_backward(scale, logits, targets, log_sums, dlogits, parallel):
    """dlogits = (softmax(logits) - one-hot(targets)) * scale."""
    blocks = -(-logits.shape[0] // ROWS)
    if parallel:
        for block in prange(blocks):
            _cross_entropy_backward_task(int64(block), scale, logits, targets, log_sums, dlogits)
    else:
        for block in range(blocks):
            _cross_entropy_backward_task(block, scale, logits, targets, log_sums, dlogits)
