"""Which parameters of a model decay."""

from typing import Any

from fastbn._checks import check_number
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter
from fastbn.nn.parametrization import Parametrization


def param_groups(
    model: Module, *, norm_weight_decay: float | None = 0.0, bias_weight_decay: float | None = 0.0
) -> list[dict[str, Any]]:
    """Groups for an optimiser in which weights decay, and norms and biases do not.

    A norm's scale and shift are no weights: what follows a norm does not change when the weights before it shrink, and
    its own parameters have little to overfit with (Goyal et al. 2017, arXiv 1706.02677, section 5.3).
    norm_weight_decay, bias_weight_decay: weight decay of the parameters of norms (modules with an ``eps``), and of all
    others with one axis at most; None for that of the optimiser, as all the rest have it.
    Returns groups ``{"params": [...]}``, those that have a decay of their own with "weight_decay"; none is empty. A
    parameter that is shared occurs once. Raises ArgumentError, DtypeError.
    """
    decays = {"norm_weight_decay": norm_weight_decay, "bias_weight_decay": bias_weight_decay}
    for name, decay in decays.items():
        if decay is not None:
            check_number("param_groups", name, decay, 0.0)
    groups: dict[float | None, list[Parameter]] = {None: []}
    seen: set[int] = set()
    for module in model.modules():
        is_norm = hasattr(module, "eps") and not isinstance(module, Parametrization)
        for parameter in module._parameters.values():
            if parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            few = bias_weight_decay if parameter.data.ndim < 2 else None
            groups.setdefault(norm_weight_decay if is_norm else few, []).append(parameter)
    return [
        {"params": parameters} | ({} if decay is None else {"weight_decay": decay})
        for decay, parameters in groups.items()
        if parameters
    ]
