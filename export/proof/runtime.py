"""onnxruntime, in a child process: some models crash it, and a crash must not take the caller along."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export.files import as_model, save
from fastbn.errors import ModelError

CHILD = Path(__file__).with_name("child.py")


@dataclass(frozen=True)
class Job:
    """A model to run on sets of arrays by input name.

    optimise: onnxruntime as it comes, else with all graph optimisations off. weights: the folder of the model's
    external data where that is not its own.
    """

    model: Path
    inputs: Sequence[dict[str, np.ndarray]]
    optimise: bool = False
    weights: Path | None = None


Outputs = dict[str, np.ndarray]


def run_jobs(jobs: Sequence[Job]) -> list[list[Outputs | ModelError]]:
    """For every job and every set of its inputs the outputs by name, or why there are none.

    All jobs share one child process; where that crashes each gets its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        stored: dict[int, Path] = {}
        for number, arrays in enumerate(arrays for job in jobs for arrays in job.inputs):
            if id(arrays) not in stored:
                stored[id(arrays)] = Path(folder, f"in{number}")
                _store(stored[id(arrays)], arrays)
        requests = [_request(Path(folder, f"job{index}"), job, stored) for index, job in enumerate(jobs)]
        try:
            errors = _call({"task": "run", "jobs": requests})["errors"]
        except ModelError:
            errors = [_alone(request) for request in requests]
        return [_answers(request, error) for request, error in zip(requests, errors, strict=True)]


def _request(folder: Path, job: Job, stored: dict[int, Path]) -> dict[str, Any]:
    sets = [(str(stored[id(arrays)]), str(folder / str(index))) for index, arrays in enumerate(job.inputs)]
    weights = None if job.weights is None else str(job.weights)
    return {"model": str(job.model), "optimise": job.optimise, "weights": weights, "sets": sets}


def _alone(request: dict[str, Any]) -> Any:
    for _, made in request["sets"]:
        shutil.rmtree(made, ignore_errors=True)  # of the child that crashed
    try:
        return _call({"task": "run", "jobs": [request]})["errors"][0]
    except ModelError as error:
        return error


def _answers(request: dict[str, Any], errors: ModelError | str | list[str | None]) -> list[Outputs | ModelError]:
    if not isinstance(errors, list):
        error = errors if isinstance(errors, ModelError) else _unrunnable(errors)
        return [error] * len(request["sets"])
    made = [Path(made) for _, made in request["sets"]]
    return [
        _restore(folder) if error is None else _unrunnable(error) for folder, error in zip(made, errors, strict=True)
    ]


def _unrunnable(what: str) -> ModelError:
    return ModelError(f"verify: onnxruntime must be able to run the model, got {what[:300]}")


def run_model(model: str | Path | onnx.ModelProto, inputs: Sequence[dict[str, np.ndarray]]) -> list[Outputs]:
    """Outputs by name for every set of inputs, with all graph optimisations off. Raises ModelError."""
    with as_file(model) as path:
        [answers] = run_jobs([Job(path, inputs)])
    for answer in answers:
        if isinstance(answer, ModelError):
            raise answer
    return [answer for answer in answers if not isinstance(answer, ModelError)]


def latencies(
    models: Sequence[str | Path], inputs: dict[str, np.ndarray], seconds: float = 1.0, *, optimise: bool = True
) -> list[float]:
    """Median milliseconds of one run of each model; the models take turns for ``seconds``.

    optimise: onnxruntime as it comes, with its own graph optimisations; without any if False. Raises ModelError.
    """
    with tempfile.TemporaryDirectory() as folder:
        _store(Path(folder, "in0"), inputs)
        files = [str(model) for model in models]
        request = {"task": "time", "models": files, "folder": folder, "seconds": seconds, "optimise": optimise}
        return _call(request)["milliseconds"]


def _call(request: dict[str, Any]) -> dict[str, Any]:
    process = subprocess.run(
        [sys.executable, "-P", str(CHILD)], input=json.dumps(request), capture_output=True, text=True, check=False
    )
    if process.returncode:
        last = process.stderr.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        what = f"a crash (signal {-process.returncode})" if process.returncode < 0 else last[0]
        raise _unrunnable(what)
    answer: dict[str, Any] = json.loads(process.stdout)
    return answer


def _store(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    folder.mkdir()
    for index, array in enumerate(arrays.values()):
        np.save(folder / f"{index}.npy", array)
    (folder / "names.json").write_text(json.dumps(list(arrays)))


def _restore(folder: Path) -> dict[str, np.ndarray]:
    names = json.loads((folder / "names.json").read_text())
    return {name: np.load(folder / f"{index}.npy") for index, name in enumerate(names)}


@contextmanager
def as_file(model: str | Path | onnx.ModelProto) -> Iterator[Path]:
    """The model's own file, or one of a ModelProto that lasts as long as the context."""
    if not isinstance(model, onnx.ModelProto):
        yield Path(model)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        save(as_model(model), path)
        yield path
