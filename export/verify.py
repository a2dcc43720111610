"""Two models are the same network if they give the same outputs: onnxruntime, without its optimiser, is the judge."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from export.runtime import model_inputs, run_model
from fastbn._checks import check_number
from fastbn.errors import ModelError
from fastbn.nn.module import Module

Model = str | Path | onnx.ModelProto | Module
Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Comparison:
    """One output over all inputs: largest absolute difference, and that relative to the largest value.

    ok: the relative difference is within the tolerance, and both have the same NaNs and infinities.
    """

    output: str
    max_abs: float
    max_rel: float
    ok: bool


@dataclass(frozen=True)
class VerifyReport:
    """The comparison of every output; ``inputs``: how many sets of inputs were run."""

    outputs: tuple[Comparison, ...]
    inputs: int
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether every output agrees."""
        return all(output.ok for output in self.outputs)

    @property
    def max_abs(self) -> float:
        """The largest absolute difference of any output."""
        return max((output.max_abs for output in self.outputs), default=0.0)

    @property
    def max_rel(self) -> float:
        """The largest relative difference of any output."""
        return max((output.max_rel for output in self.outputs), default=0.0)


def verify(
    reference: Model, candidate: Model, inputs: Sequence[Inputs] | None = None, *, tolerance: float = 1e-4
) -> VerifyReport:
    """Run both models on the same inputs and compare every output.

    reference, candidate: ONNX files or protos, run by onnxruntime with optimisations off in a child process, or a
    fastbn model with one input. inputs: sets of arrays by input name; random ones (three seeds) shaped from the
    candidate's inputs, or the reference's, unless given. tolerance: largest difference allowed, relative to the
    largest finite value of the reference's output.
    Raises ModelError where a model cannot be run or the outputs do not correspond.
    """
    check_number("verify", "tolerance", tolerance, 0.0)
    if inputs is None:
        shaped = candidate if not isinstance(candidate, Module) else reference
        if isinstance(shaped, Module):
            raise ModelError("verify: inputs must be given for two fastbn models, got None")
        inputs = random_inputs(shaped)
    if not inputs:
        raise ModelError("verify: inputs must hold at least one set, got none")
    wanted, got = run_any(reference, inputs), run_any(candidate, inputs)
    names, others = list(wanted[0]), list(got[0])
    by_name = not isinstance(reference, Module) and not isinstance(candidate, Module)
    if (sorted(names) != sorted(others)) if by_name else (len(names) != len(others)):
        raise ModelError(f"verify: the candidate must have the outputs {names}, got {others}")
    if isinstance(reference, Module):
        names = others
    comparisons = []
    for position, name in enumerate(names):
        pairs = [
            (list(a.values())[position], b[name] if by_name else list(b.values())[position])
            for a, b in zip(wanted, got, strict=True)
        ]
        comparisons.append(_compare(name, pairs, tolerance))
    return VerifyReport(tuple(comparisons), len(inputs), tolerance)


FREE = 32  # the length given to an axis of unknown length that is not the batch


def random_inputs(
    model: str | Path | onnx.ModelProto, seeds: Sequence[int] = (0, 1, 2), batch: int | None = None
) -> list[Inputs]:
    """Standard normal inputs for every seed, integers 0 or 1.

    batch: the length of a first axis of unknown length; 2, 1, 3 in turn unless given. Other such axes get 32.
    """
    sets = []
    for seed, turn in zip(seeds, (2, 1, 3) * len(seeds), strict=False):
        rng = np.random.default_rng(seed)
        arrays = {}
        for name, dtype, shape in model_inputs(model):
            free = (batch or turn, *(FREE,) * len(shape))
            sizes = [free[axis] if size is None else size for axis, size in enumerate(shape)]
            values = rng.standard_normal(sizes) if dtype.kind == "f" else rng.integers(0, 2, sizes)
            arrays[name] = values.astype(dtype)
        sets.append(arrays)
    return sets


def run_any(model: Model, inputs: Sequence[Inputs]) -> list[dict[str, np.ndarray]]:
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


def _compare(name: str, pairs: list[tuple[np.ndarray, np.ndarray]], tolerance: float) -> Comparison:
    largest = worst = 0.0
    ok = True
    for wanted, got in pairs:
        if wanted.shape != got.shape:
            raise ModelError(f"verify: output {name} must have shape {wanted.shape}, got {got.shape}")
        if wanted.dtype.kind not in "biuf" or got.dtype.kind not in "biuf":
            raise ModelError(f"verify: output {name} must be numbers, got {wanted.dtype} and {got.dtype}")
        if wanted.dtype.kind != "f":
            ok &= bool(np.array_equal(wanted, got))
        a, b = wanted.astype(np.float64), got.astype(np.float64)
        finite = np.isfinite(a) & np.isfinite(b)
        # What is not finite must be the same NaN or infinity on both sides.
        ok &= bool(np.array_equal(a[~finite], b[~finite], equal_nan=True))
        if finite.any():
            with np.errstate(over="ignore"):
                largest = max(largest, float(np.abs(a[finite]).max()))
                worst = max(worst, float(np.abs(a[finite] - b[finite]).max()))
    relative = worst / largest if largest else worst
    return Comparison(name, worst, relative, ok and relative <= tolerance)
