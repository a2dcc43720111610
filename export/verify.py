"""Two models are the same network if the second is as near to float64 as the first, on every input that is tried.

onnxruntime without its optimiser runs both; ``referee`` says what they should have answered. Two float32 models may
differ and both be right: with mean = bias = 1000 and var = 1e-5 a batch norm loses 2e-2 that folding does not lose.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from export.proof.compare import Comparison, compare
from export.proof.findings import Optimised, VerifyReport
from export.proof.inputs import check_inputs, random_inputs
from export.proof.prove import prove
from export.proof.runtime import as_file, run_model
from export.proof.sites import Site, SiteError
from fastbn._checks import check_number
from fastbn.errors import ModelError
from fastbn.nn.module import Module

__all__ = ["Comparison", "Optimised", "SiteError", "VerifyReport", "random_inputs", "run_any", "verify"]

Model = str | Path | onnx.ModelProto | Module
Inputs = dict[str, np.ndarray]
Answers = dict[str, np.ndarray]


def verify(
    reference: Model,
    candidate: Model,
    inputs: Sequence[Inputs] | None = None,
    *,
    tolerance: float = 1e-4,
    sites: Sequence[Site] = (),
) -> VerifyReport:
    """Run both models on the same inputs and judge every output of the candidate.

    reference, candidate: ONNX files or protos, run by onnxruntime with optimisations off in a child process, or a
    fastbn model with one input. inputs: sets of arrays by input name; unless given, random ones (three seeds), zeros,
    ones and large ones shaped from the reference. tolerance: largest relative difference allowed where the reference is
    not itself further from float64, see ``compare``; it holds for float32, and grows or shrinks for other types, eight
    bits of quantised models among them, with the square root of their precision. sites: batch norms with the values
    behind them, which are compared as well.
    Raises ModelError where a model cannot be run or the outputs do not correspond.
    """
    check_number("verify", "tolerance", tolerance, 0.0)
    if inputs is not None and not inputs:
        raise ModelError("verify: inputs must hold at least one set, got none")
    if isinstance(reference, Module) or isinstance(candidate, Module):
        return _verify_module(reference, candidate, inputs, tolerance)
    with as_file(reference) as first, as_file(candidate) as second:
        if inputs is not None:
            check_inputs(first, inputs)
        return prove(first, second, inputs, tolerance, sites)


def run_any(model: Model, inputs: Sequence[Inputs]) -> list[Answers]:
    """Outputs by name for every set of inputs; a fastbn model's is called "output"."""
    if not isinstance(model, Module):
        return run_model(model, inputs)
    for arrays in inputs:
        if len(arrays) != 1:
            raise ModelError(f"verify: inputs of a fastbn model must be one array, got {list(arrays)}")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        return [{"output": model(next(iter(arrays.values())))} for arrays in inputs]
    finally:
        for module, mode in modes:
            module.training = mode


def _verify_module(
    reference: Model, candidate: Model, inputs: Sequence[Inputs] | None, tolerance: float
) -> VerifyReport:
    """Outputs by position, without a referee: a fastbn model has no names."""
    if inputs is None:
        shaped = candidate if not isinstance(candidate, Module) else reference
        if isinstance(shaped, Module):
            raise ModelError("verify: inputs must be given for two fastbn models, got None")
        inputs = random_inputs(shaped)
    wanted, got = run_any(reference, inputs), run_any(candidate, inputs)
    if len(wanted[0]) != len(got[0]):
        raise ModelError(f"verify: the candidate must have the outputs {list(wanted[0])}, got {list(got[0])}")
    names = list(got[0] if isinstance(reference, Module) else wanted[0])
    first, second = ([list(answers.values()) for answers in side] for side in (wanted, got))
    outputs = [
        compare(name, [a[index] for a in first], [b[index] for b in second], [None] * len(inputs), tolerance)
        for index, name in enumerate(names)
    ]
    return VerifyReport(tuple(outputs), len(inputs), tolerance)
