"""``fastbn.doctor``: every batch norm of a model examined, on data if there is any."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastbn.diagnosis.checks import complaints
from fastbn.diagnosis.finding import Complaint, Finding, is_healthy, located
from fastbn.diagnosis.gap import OutputGap, measure, norm_gap
from fastbn.diagnosis.vitals import Range, Vitals, finite_range
from fastbn.errors import DtypeError
from fastbn.nn.batchnorm import BatchNorm
from fastbn.nn.containers import Residual, Sequential, leaves
from fastbn.nn.fold import CHAINS, fits, uses_of
from fastbn.nn.layer_bn import LayerBn
from fastbn.nn.module import Module
from fastbn.training.statistics import Part

BROKEN = ("not-finite", "negative-variance")  # a model that is not run


@dataclass(frozen=True)
class Examined:
    """One batch norm: its options, and the smallest and largest finite value of its parameters and statistics.

    momentum: None for the mean of all batches. batches: num_batches_tracked, None without running statistics. scale:
    gamma / sqrt(variance + eps). gap: see ``fastbn.diagnosis.gap``, None where it was not measured.
    """

    layer: str
    kind: str
    channels: int
    eps: float
    momentum: float | None
    batches: int | None
    frozen: bool
    gamma: Range | None
    mean: Range | None
    variance: Range | None
    scale: Range | None
    gap: float | None


@dataclass(frozen=True)
class Diagnosis:
    """What ``doctor`` found; ``str`` gives it as text. output: None without data."""

    batch_norms: tuple[Examined, ...]
    findings: tuple[Finding, ...]
    output: OutputGap | None

    @property
    def ok(self) -> bool:
        """Whether there are notes at most."""
        return is_healthy(self.findings)

    def __str__(self) -> str:
        from fastbn.diagnosis.text import print_diagnosis

        stream = io.StringIO()
        print_diagnosis(self, stream)
        return stream.getvalue().rstrip("\n")


def doctor(model: Module, batches: Iterable[np.ndarray] | None = None) -> Diagnosis:
    """Say what is wrong with the batch norms of ``model``, those inside fused and folding units included.

    batches: inputs of the model, read once; with them, the gap between batch and running statistics is measured for
    every batch norm that training moves, and for the output. A model with parameters that are not finite, or with
    negative variances, is not run. Thresholds: ``fastbn.diagnosis.checks``. ``model`` is left as it is.
    Raises DtypeError; ArgumentError for batches without a sample, and what the model raises for a batch.
    """
    if not isinstance(model, Module):
        raise DtypeError(f"doctor: model must be a fastbn.nn.Module, got {type(model).__name__}")
    norms = {name: module for name, module in model.named_modules() if isinstance(module, BatchNorm)}
    before = _layers_before(model)
    moments: dict[str, Part] = {}
    output = None
    broken = any(c.kind in BROKEN for norm in norms.values() for c in complaints(_vitals(norm, None)))
    if batches is not None and not broken:
        moments, output = measure(model, batches)
    examined, findings = [], []
    for name, norm in norms.items():
        samples = 0 if output is None else output.samples
        vitals = _vitals(norm, before.get(id(norm)), moments.get(name), samples)
        examined.append(_examined(name, norm, vitals))
        findings += located(name or type(norm).__name__, [*_lacking(norm), *complaints(vitals)])
    return Diagnosis(tuple(examined), tuple(findings), output)


def _layers_before(model: Module) -> dict[int, Module]:
    """The convolution or linear layer right before a batch norm, by the id of the latter."""
    uses = uses_of(model)
    before: dict[int, Module] = {}
    for module in model.modules():
        if isinstance(module, LayerBn) and not module.folded:
            before[id(module.bn)] = module.layer
        elif isinstance(module, (Sequential, Residual)) and type(module).forward in CHAINS:
            for layer, norm in pairwise(leaves(module)):
                if isinstance(norm, BatchNorm) and fits(layer, norm, uses):
                    before[id(norm)] = layer
    return before


def _vitals(norm: BatchNorm, layer: Module | None, moments: Part | None = None, samples: int = 0) -> Vitals:
    gamma, beta = np.ones(norm.num_features), np.zeros(norm.num_features)
    if norm.affine:
        gamma, beta = norm.weight.data.astype(np.float64), norm.bias.data.astype(np.float64)
    if not norm.track_running_stats:
        return Vitals(gamma, beta, layer_bias=_bias_of(layer))
    mean, var = norm.running_mean.astype(np.float64), norm.running_var.astype(np.float64)
    return Vitals(
        gamma,
        beta,
        mean,
        var,
        norm.eps,
        norm.momentum,
        int(norm.num_batches_tracked),
        norm.frozen,
        layer_weight=None if layer is None else layer.weight.data.reshape(len(gamma), -1).astype(np.float64),
        layer_bias=_bias_of(layer),
        gap=None if moments is None else norm_gap(gamma, mean, var, norm.eps, *moments[1:]),
        samples=samples,
    )


def _bias_of(layer: Module | None) -> int:
    return 0 if layer is None or layer.bias is None else layer.bias.size


def _lacking(norm: BatchNorm) -> Iterator[Complaint]:
    if not norm.track_running_stats:
        what = "it has no running statistics: in eval mode, too, an output depends on the rest of its batch"
        yield Complaint("note", "no-statistics", what, 0.0)


def _examined(name: str, norm: BatchNorm, vitals: Vitals) -> Examined:
    return Examined(
        layer=name,
        kind=type(norm).__name__,
        channels=norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,
        batches=vitals.batches,
        frozen=norm.frozen,
        gamma=finite_range(vitals.gamma),
        mean=finite_range(vitals.mean),
        variance=finite_range(vitals.variance),
        scale=finite_range(vitals.scale),
        gap=vitals.gap,
    )
