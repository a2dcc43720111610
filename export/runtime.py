"""onnxruntime, in a child process: some models crash it, and a crash must not take the caller along."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export.files import as_model, save
from fastbn.errors import ModelError

CHILD = Path(__file__).with_name("child.py")


def model_inputs(model: str | Path | onnx.ModelProto) -> list[tuple[str, np.dtype, list[int | None]]]:
    """Name, dtype and shape of every input that has no default; None for an axis of unknown length."""
    graph = as_model(model).graph
    entries = []
    for value in graph.inputs:
        if value.is_initializer():
            continue
        if value.dtype is None or value.shape is None or value.name is None:
            raise ModelError(f"verify: input {value.name} must have a type and a shape, got neither; give inputs")
        shape = [size if isinstance(size, int) else None for size in value.shape]
        entries.append((value.name, value.dtype.numpy(), shape))
    return entries


def run_model(
    model: str | Path | onnx.ModelProto, inputs: Sequence[dict[str, np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """Outputs by name for every set of inputs, with all graph optimisations off. Raises ModelError."""
    with _as_file(model) as path, tempfile.TemporaryDirectory() as folder:
        for index, arrays in enumerate(inputs):
            _store(Path(folder, f"in{index}"), arrays)
        _call({"task": "run", "model": str(path), "folder": folder, "sets": len(inputs)})
        return [_restore(Path(folder, f"out{index}")) for index in range(len(inputs))]


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
        what = f"a crash (signal {-process.returncode})" if process.returncode < 0 else last[0][:300]
        raise ModelError(f"verify: onnxruntime must be able to run the model, got {what}")
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
def _as_file(model: str | Path | onnx.ModelProto) -> Iterator[Path]:
    if not isinstance(model, onnx.ModelProto):
        yield Path(model)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        save(as_model(model), path)
        yield path
