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
    sessions = [_session(path, optimise=request["optimise"]) for path in request["models"]]
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


BLOCK = 2**18  # values widened to float64 at a time


def _moments(x: np.ndarray) -> tuple[int, list[float], list[float]]:
    """Count, mean and sum of squares about it for every channel, axis 1 of ``x``, in two passes over float64."""
    if not x.size:
        return 0, [], []
    x = x.reshape(len(x), x.shape[1] if x.ndim > 1 else 1, -1)
    count, rows = x.shape[0] * x.shape[2], max(1, BLOCK // x[0].size)
    blocks = [x[begin : begin + rows] for begin in range(0, len(x), rows)]
    mean = sum(block.sum(axis=(0, 2), dtype=np.float64) for block in blocks) / count
    squares = np.zeros_like(mean)
    for block in blocks:
        apart = block.astype(np.float64)
        apart -= mean[:, None]
        squares += np.einsum("ncs,ncs->c", apart, apart)
    return count, mean.tolist(), squares.tolist()


def _stages(request: dict[str, Any]) -> dict[str, Any]:
    """Stages of a graph as further lines on stdin, each over all sets of inputs; answered by a line for each set.

    What a stage keeps for later ones stays in memory, if it is no more than ``budget`` bytes for all sets together.
    """
    np.seterr(all="ignore")
    kept: list[dict[str, np.ndarray]] = [{} for _ in range(request["sets"])]
    for line in sys.stdin:
        stage = json.loads(line)
        session = None if stage["model"] is None else _session(stage["model"], optimise=False)
        fresh: list[dict[str, np.ndarray]] | None = []
        size = 0
        for index, values in enumerate(kept):
            found = _run_stage(session, stage, values, Path(request["folder"], f"in{index}"))
            print(json.dumps([_moments(found[name]) for name in stage["norms"]]), flush=True)
            later = {name: found[name] for name in stage["keeps"]}
            size += sum(getattr(value, "nbytes", request["budget"] + 1) for value in later.values())
            fresh = None if fresh is None or size > request["budget"] else [*fresh, later]
        if fresh is not None:
            kept = fresh
        types = None if fresh is None else {name: (str(v.dtype), v.ndim) for name, v in fresh[0].items()}
        print(json.dumps({"types": types}), flush=True)
    return {}


def _run_stage(
    session: onnxruntime.InferenceSession | None, stage: dict[str, Any], values: dict[str, np.ndarray], folder: Path
) -> dict[str, Any]:
    """Values by name: what the stage reads and what it computes."""
    names = json.loads((folder / "names.json").read_text())
    given = {name: np.load(folder / f"{names.index(name)}.npy") for name in stage["inputs"]}
    given.update({name: values[name] for name in stage["reads"]})
    if session is None:
        return given
    outputs = [output.name for output in session.get_outputs()]
    return given | dict(zip(outputs, session.run(outputs, given), strict=True))


if __name__ == "__main__":
    task = json.loads(sys.stdin.readline())
    try:
        print(json.dumps({"run": _run, "time": _time, "stages": _stages}[task["task"]](task)))
    except Exception as error:
        print(_sentence(error), file=sys.stderr)
        sys.exit(1)
