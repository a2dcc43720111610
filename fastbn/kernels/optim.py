"""One optimiser step over the flat arrays of one parameter; weights and moments are changed in place."""

import math

from numba import int64, prange

from fastbn.kernels._jit import body, driver

BLOCK = 16384


@body
def _sgd_task(block, param, grad, velocity, first, lr, momentum, dampening, weight_decay, nesterov):
    for i in range(block * BLOCK, min(param.size, (block + 1) * BLOCK)):
        g = grad[i] + weight_decay * param[i]
        if velocity.size:
            v = g if first else momentum * velocity[i] + (1 - dampening) * g
            velocity[i] = v
            g = g + momentum * v if nesterov else v
        param[i] -= lr * g


@driver
def sgd(param, grad, velocity, first, lr, momentum, dampening, weight_decay, nesterov, parallel):
    """PyTorch's SGD: v = momentum v + (1 - dampening) g, v = g at first; param -= lr (g + momentum v, or v).

    velocity: as param, or empty without momentum.
    """
    blocks = -(-param.size // BLOCK)
    if parallel:
        for block in prange(blocks):
            _sgd_task(int64(block), param, grad, velocity, first, lr, momentum, dampening, weight_decay, nesterov)
    else:
        for block in range(blocks):
            _sgd_task(block, param, grad, velocity, first, lr, momentum, dampening, weight_decay, nesterov)


@body
def _adam_task(block, param, grad, mean, square, lr, beta1, beta2, correction1, correction2, eps, l2, decay):
    for i in range(block * BLOCK, min(param.size, (block + 1) * BLOCK)):
        p = param[i] * (1 - lr * decay)
        g = grad[i] + l2 * p
        m = beta1 * mean[i] + (1 - beta1) * g
        v = beta2 * square[i] + (1 - beta2) * g * g
        mean[i] = m
        square[i] = v
        param[i] = p - lr / correction1 * m / (math.sqrt(v / correction2) + eps)


@driver
def adam(param, grad, mean, square, lr, beta1, beta2, correction1, correction2, eps, l2, decay, parallel):
    """Adam (Kingma and Ba 2014, algorithm 1) with l2 added to the gradient, or decoupled ``decay`` as in AdamW.

    correction1, correction2: 1 - beta ** step.
    """
    blocks = -(-param.size // BLOCK)
    if parallel:
        for block in prange(blocks):
            _adam_task(
                int64(block), param, grad, mean, square, lr, beta1, beta2, correction1, correction2, eps, l2, decay
            )
    else:
        for block in range(blocks):
            _adam_task(block, param, grad, mean, square, lr, beta1, beta2, correction1, correction2, eps, l2, decay)
