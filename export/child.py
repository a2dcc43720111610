"""The child process of ``runtime``: a request as JSON on stdin, arrays as .npy files in a folder, JSON on stdout.

It is run by its path and imports nothing of this package.
"""

import json
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


def _session(path: str, optimise: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _restore(folder: Path) -> dict[str, np.ndarray]:
    names = json.loads((folder / "names.json").read_text())
    return {name: np.load(folder / f"{index}.npy") for index, name in enumerate(names)}


def _run(request: dict[str, Any]) -> dict[str, Any]:
    session = _session(request["model"], optimise=False)
    names = [output.name for output in session.get_outputs()]
    for index in range(request["sets"]):
        outputs = session.run(names, _restore(Path(request["folder"], f"in{index}")))
        folder = Path(request["folder"], f"out{index}")
        folder.mkdir()
        for position, array in enumerate(outputs):
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
                raise TypeError(f"output {names[position]} that is no array of numbers")
            np.save(folder / f"{position}.npy", array)
        (folder / "names.json").write_text(json.dumps(names))
    return {}


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


if __name__ == "__main__":
    task = json.loads(sys.stdin.read())
    try:
        print(json.dumps({"run": _run, "time": _time}[task["task"]](task)))
    except Exception as error:
        # Without onnxruntime's codes, its source paths and C++ signatures, and the path of a temporary file.
        noise = r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:|/onnxruntime_src/.*?\) (?=[A-Z])"
        print(re.sub(noise, "", " ".join(str(error).split())), file=sys.stderr)
        sys.exit(1)
