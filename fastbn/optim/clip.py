"""Gradients made smaller where they are too large (Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063)."""

import math
from collections.abc import Iterable

import numpy as np

from fastbn._checks import check_float, check_number
from fastbn._views import dense_c
from fastbn.errors import ArgumentError, DtypeError, StateError
from fastbn.kernels import gradients as kernels
from fastbn.kernels.tensors import cut
from fastbn.nn.parameter import Parameter
from fastbn.optim.tensors import launch_over


def clip_grad_norm_(
    parameters: Parameter | Iterable[Parameter],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> float:
    """Scale all gradients by ``max_norm / (norm + 1e-6)`` where that is below 1, as PyTorch does; returns the norm.

    The norm is that of all gradients as one vector, norm_type the exponent, also infinity; squares are summed in
    float64. Gradients are changed in place, or replaced where they cannot be. A NaN among them makes all NaN, unless
    error_if_nonfinite raises StateError. Raises ArgumentError, DtypeError.
    """
    who = "clip_grad_norm_"
    check_number(who, "max_norm", max_norm, 0.0)
    check_number(who, "norm_type", norm_type, -math.inf)
    if norm_type <= 0:
        raise ArgumentError(f"{who}: norm_type must be above 0, got {norm_type}")
    batches = list(_writable(who, parameters).values())
    norm = _norm(batches, float(norm_type))
    if error_if_nonfinite and not math.isfinite(norm):
        raise StateError(f"{who}: the norm of the gradients must be finite, got {norm}")
    factor = max_norm / (norm + 1e-6)
    if not factor >= 1.0:
        for gradients in batches:
            launch_over(kernels.scale, gradients, np.array([factor], gradients[0].dtype))
    return norm


def clip_grad_value_(parameters: Parameter | Iterable[Parameter], clip_value: float) -> None:
    """Bring every element of every gradient into [-clip_value, clip_value], as PyTorch does; a NaN stays.

    Gradients are changed in place, or replaced where they cannot be. Raises ArgumentError, DtypeError.
    """
    check_number("clip_grad_value_", "clip_value", clip_value, 0.0)
    for gradients in _writable("clip_grad_value_", parameters).values():
        for grad in gradients:
            np.clip(grad, -clip_value, clip_value, out=grad)


def _norm(batches: list[list[np.ndarray]], order: float) -> float:
    if order == 2.0:
        return math.sqrt(sum(_sum_of_squares(gradients) for gradients in batches))
    flat = [np.abs(grad).ravel().astype(np.float64) for gradients in batches for grad in gradients if grad.size]
    if order == math.inf:
        return float(np.max([grad.max() for grad in flat], initial=0.0))
    return float(sum(np.sum(grad**order) for grad in flat) ** (1.0 / order))


def _sum_of_squares(gradients: list[np.ndarray]) -> float:
    _, tasks, _ = cut(tuple([grad.size for grad in gradients]))
    sums = np.empty(len(tasks) - 1)
    launch_over(kernels.square_sums, gradients, np.empty(0, gradients[0].dtype), sums)
    return float(sums.sum())


def _writable(who: str, parameters: Parameter | Iterable[Parameter]) -> dict[np.dtype, list[np.ndarray]]:
    """Gradients by dtype, each of them its parameter's own and fit to be changed in place."""
    found: dict[np.dtype, list[np.ndarray]] = {}
    seen: set[int] = set()
    given = [parameters] if isinstance(parameters, Parameter) else parameters
    for parameter in {id(parameter): parameter for parameter in given}.values():
        if not isinstance(parameter, Parameter):
            raise DtypeError(f"{who}: parameters must be Parameters, got {type(parameter).__name__}")
        if parameter.grad is None:
            continue
        check_float(who, "grad", parameter.grad)
        grad = dense_c(parameter.grad)
        if not grad.flags.writeable or id(grad) in seen:
            grad = grad.copy()
        parameter.grad = grad
        seen.add(id(grad))
        found.setdefault(grad.dtype, []).append(grad)
    return found
