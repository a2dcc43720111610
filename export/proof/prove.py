"""The proof that two ONNX files are the same network, step by step; ``verify`` is its door."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from export.proof.compare import Comparison, compare
from export.proof.findings import Optimised, VerifyReport
from export.proof.inputs import proof_inputs
from export.proof.referee import Referee, UnjudgedError
from export.proof.runtime import Job, run_jobs
from export.proof.sites import Site, SiteError, exposing, layers, site_errors
from export.proof.truth import Truth
from fastbn.errors import ModelError

Answers = dict[str, np.ndarray]

PRECISION = {TensorProto.DOUBLE: 2.0**-52, TensorProto.FLOAT: 2.0**-23, TensorProto.FLOAT16: 2.0**-10}
PRECISION |= {TensorProto.BFLOAT16: 2.0**-7}

EIGHT_BITS = 2.0**-7


def prove(
    reference: Path, candidate: Path, inputs: Sequence[Answers] | None, tolerance: float, sites: Sequence[Site]
) -> VerifyReport:
    """``verify`` for two files."""
    paths = (reference, candidate)
    inputs, wanted, notes = _run_reference(reference, inputs or proof_inputs(reference), inputs is not None)
    alone = bool(notes)
    jobs = [Job(candidate, inputs), *(Job(path, inputs[:1], optimise=True) for path in paths)]
    answers, *optimised = run_jobs(jobs[:1] if alone else jobs)
    got = _answers_of(candidate, inputs, answers, alone)
    _check_names(wanted[0], got[0])
    tolerance *= (max(map(_precision, paths)) / PRECISION[TensorProto.FLOAT]) ** 0.5
    at = layers(*paths, sites) if any(site.values for site in sites) else {}
    truth = Truth(reference, inputs, wanted, tolerance)
    known = _truths(truth, wanted, got, tolerance, list(at))
    outputs = tuple(_compare(name, wanted, got, known, tolerance) for name in wanted[0])
    errors = _site_errors(paths, inputs[0], at, known[0], tolerance, alone)
    report = VerifyReport(
        outputs,
        len(inputs),
        tolerance,
        judged=sum(exact is not None for exact in known),
        sites=errors,
        optimised=_optimised([sets[0] for sets in optimised], wanted[0], known[0], tolerance),
        notes=(*notes, *truth.notes, *_unseen(sites, errors)),
    )
    if report.ok:
        return report
    if all(site.ok for site in errors):  # of all values, if no batch norm says where
        at = layers(*paths)
        errors = _site_errors(paths, inputs[0], at, None, tolerance, alone)
    first = next((site.layer for site in errors if not site.ok), None)
    return replace(report, first_difference=first)


def _unseen(sites: Sequence[Site], errors: Sequence[SiteError]) -> list[str]:
    """Which sites could not be looked at: those in a subgraph, or in a model that does not run with more outputs."""
    seen = {error.layer for error in errors}
    unseen = [site.batch_norm for site in sites if site.values and site.batch_norm not in seen]
    if not unseen:
        return []
    named = ", ".join(unseen[:3]) + (", ..." if len(unseen) > 3 else "")
    return [f"not compared inside the models, by their outputs alone: {len(unseen)} batch norms ({named})"]


def _site_errors(
    paths: tuple[Path, Path], inputs: Answers, at: dict[str, str], exact: Answers | None, tolerance: float, alone: bool
) -> tuple[SiteError, ...]:
    inside = _inside(paths, inputs, list(at), alone) if at else []
    return site_errors(at, inside[0], inside[1], exact, tolerance) if inside else ()


def _run_reference(
    path: Path, inputs: Sequence[Answers], given: bool
) -> tuple[Sequence[Answers], list[Answers], list[str]]:
    """The sets that the reference takes, its answers, and a note where onnxruntime could not give them.

    A set of the user's must run; one made here that the model does not take is left out.
    """
    [answers] = run_jobs([Job(path, inputs)])
    kept = [(arrays, got) for arrays, got in zip(inputs, answers, strict=True) if not isinstance(got, ModelError)]
    failure = next((answer for answer in answers if isinstance(answer, ModelError)), None)
    if failure is None or (kept and not given):
        return [arrays for arrays, _ in kept], [got for _, got in kept], []
    if kept:
        raise failure
    try:
        found = _run_alone(path, inputs)
    except UnjudgedError:
        raise failure from None
    what = str(failure).partition(", got ")[2]
    return list(inputs), found, [f"onnxruntime cannot run the source ({what}): both were run by onnx's evaluator"]


def _run_alone(path: Path, inputs: Sequence[Answers], values: Sequence[str] = ()) -> list[Answers]:
    """Answers by onnx's evaluator in the model's own types, where onnxruntime has none."""
    referee = Referee(path, exact=False)
    return [referee.run(arrays, values) for arrays in inputs]


def _answers_of(
    candidate: Path, inputs: Sequence[Answers], answers: Sequence[Answers | ModelError], alone: bool
) -> list[Answers]:
    failure = next((answer for answer in answers if isinstance(answer, ModelError)), None)
    if failure is None:
        return [answer for answer in answers if not isinstance(answer, ModelError)]
    if not alone:
        raise failure
    try:
        return _run_alone(candidate, inputs)
    except UnjudgedError as error:
        raise ModelError(f"verify: the candidate must run as the reference does, got {error}") from error


def _check_names(wanted: Answers, got: Answers) -> None:
    if sorted(wanted) != sorted(got):
        raise ModelError(f"verify: the candidate must have the outputs {list(wanted)}, got {list(got)}")


def _truths(
    truth: Truth, wanted: Sequence[Answers], got: Sequence[Answers], tolerance: float, values: Sequence[str]
) -> list[Answers | None]:
    """Float64's answers: for the first set with ``values``, for those that differ, and as many more as time allows."""
    indices = range(len(wanted))
    differ = [
        not all(compare(name, [wanted[i][name]], [got[i][name]], [None], tolerance).ok for name in wanted[i])
        for i in indices
    ]
    known = {i: truth.of(i, needed=True, values=() if i else values) for i in indices if i == 0 or differ[i]}
    known |= {i: truth.of(i, needed=False) for i in indices if i not in known}
    return [known[i] if truth.trusted else None for i in indices]


def _compare(
    name: str, wanted: Sequence[Answers], got: Sequence[Answers], known: Sequence[Answers | None], tolerance: float
) -> Comparison:
    exact = [None if answers is None else answers[name] for answers in known]
    fits = [a is not None and a.shape == w[name].shape for a, w in zip(exact, wanted, strict=True)]
    exact = [array if fit else None for array, fit in zip(exact, fits, strict=True)]
    return compare(name, [w[name] for w in wanted], [g[name] for g in got], exact, tolerance)


def _inside(paths: tuple[Path, Path], inputs: Answers, values: Sequence[str], alone: bool) -> list[Answers]:
    """Both models' values inside for one set; none where a model with more outputs cannot be run."""
    try:
        if alone:
            return [_run_alone(path, [inputs], values)[0] for path in paths]
    except UnjudgedError:
        return []
    with exposing(paths[0], values, [inputs]) as first, exposing(paths[1], values, [inputs]) as second:
        answers = [sets[0] for sets in run_jobs([first, second])]
    found = [answer for answer in answers if not isinstance(answer, ModelError)]
    return found if len(found) == 2 else []


def _optimised(
    optimised: Sequence[Answers | ModelError], wanted: Answers, exact: Answers | None, tolerance: float
) -> tuple[Optimised, ...]:
    """Both models as onnxruntime comes, judged like a candidate."""
    found = []
    for name, answers in zip(("reference", "candidate"), optimised, strict=False):
        try:
            if isinstance(answers, ModelError):
                raise answers
            outputs = [_compare(output, [wanted], [answers], [exact], tolerance) for output in wanted]
        except ModelError:  # a model that it cannot run, or outputs of another shape
            found.append(Optimised(name, None, False))
            continue
        worst = max((o.max_rel if o.candidate_error is None else o.candidate_error for o in outputs), default=0.0)
        found.append(Optimised(name, worst, all(output.ok for output in outputs)))
    return tuple(found)


def _precision(path: Path) -> float:
    """Of the coarsest floating-point type among a model's inputs and weights; float32's where it has none.

    Eight bits where values are quantised on the way: rounding before that may turn one over.
    """
    graph = onnx.load(path, load_external_data=False).graph
    if any("QuantizeLinear" in node.op_type and node.op_type != "DequantizeLinear" for node in graph.node):
        return EIGHT_BITS
    constants = [a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.HasField("t")]
    types = [tensor.data_type for tensor in (*graph.initializer, *constants)]
    types += [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
    return max((PRECISION[kind] for kind in types if kind in PRECISION), default=PRECISION[TensorProto.FLOAT])
