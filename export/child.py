"""The child process of ``runtime``: a request as JSON on stdin, arrays as .npy files in a folder, JSON on stdout.

It is run by its path and imports nothing of this package.
"""

import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


def _session(path: str, optimise: bool, weights: str | None = None) -> onnxruntime.InferenceSession:
    """``weights``: the folder of a model's external data where that is not the model's own."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model: str | bytes = path
    if weights is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", weights)
        model = Path(path).read_bytes()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _restore(folder: Path) -> dict[str, np.ndarray]:
    names = json.loads((folder / "names.json").read_text())
    return {name: np.load(folder / f"{index}.npy") for index, name in enumerate(names)}


def _run(request: dict[str, Any]) -> dict[str, Any]:
    """Every job: its error, or one error or None for each of its sets of inputs."""
    return {"errors": [_attempt(_job, job) for job in request["jobs"]]}


def _job(job: dict[str, Any]) -> list[str | None]:
    session = _session(job["model"], job["optimise"], job["weights"])
    names = [output.name for output in session.get_outputs()]
    return [_attempt(_set, session, names, Path(given), Path(made)) for given, made in job["sets"]]


def _set(session: onnxruntime.InferenceSession, names: list[str], given: Path, made: Path) -> None:
    outputs = session.run(names, _restore(given))
    for position, array in enumerate(outputs):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            raise TypeError(f"output {names[position]} that is no array of numbers")
    made.mkdir(parents=True)
    for position, array in enumerate(outputs):
        np.save(made / f"{position}.npy", array)
    (made / "names.json").write_text(json.dumps(names))


def _attempt(action: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return action(*arguments)
    except Exception as error:
        return _sentence(error)


def _sentence(error: Exception) -> str:
    """Without onnxruntime's codes, its source paths and C++ signatures, and the path of a temporary file."""
    noise = r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:|/onnxruntime_src/.*?\) (?=[A-Z])"
    return re.sub(noise, "", " ".join(str(error).split())) or type(error).__name__


def _time(request: dict[str, Any]) -> dict[str, Any]:
    sessions = [_session(path, optimise=True) for path in request["models"]]
    inputs = _restore(Path(request["folder"], "in0"))
    times: list[list[float]] = [[] for _ in sessions]
    for session in sessions:
        session.run(None, inputs)
    end = time.perf_counter() + request["seconds"]
    while time.perf_counter() < end or len(times[0]) < 5:
        for session, own in zip(sessions, times, strict=True):
            begun = time.perf_counter()
            session.run(None, inputs)
            own.append(time.perf_counter() - begun)
    return {"milliseconds": [1e3 * statistics.median(own) for own in times]}


if __name__ == "__main__":
    task = json.loads(sys.stdin.read())
    try:
        print(json.dumps({"run": _run, "time": _time}[task["task"]](task)))
    except Exception as error:
        print(_sentence(error), file=sys.stderr)
        sys.exit(1)
