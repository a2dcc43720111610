"""The stages of a graph run by onnxruntime in one child process, which gives back channel moments."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx_ir as ir

from export.calibration.stages import Stage
from export.proof.runtime import CHILD
from fastbn.errors import ModelError

PROTOBUF_LIMIT = 2**31 - 1  # bytes in one protobuf message
Moments = tuple[int, list[float], list[float]]  # count, means, sums of squares about them


class StageRunner:
    """A child process that runs stage after stage over the same batches; a context manager.

    cache_bytes: how much it may keep of what later stages read; beyond that they run from an earlier one again.
    """

    def __init__(self, cache_bytes: int) -> None:
        self._temporary = tempfile.TemporaryDirectory()
        self._folder = Path(self._temporary.name)
        self._errors = self._folder / "stderr"
        self._cache_bytes = cache_bytes
        self._process: subprocess.Popen[str] | None = None
        self.batches = 0
        self.base = -1
        self.types: dict[str, tuple[str, int]] = {}

    def store(self, batch: dict[str, np.ndarray]) -> None:
        """Put one more batch on disk; all of them before the first ``run``."""
        folder = self._folder / f"in{self.batches}"
        folder.mkdir()
        for index, array in enumerate(batch.values()):
            np.save(folder / f"{index}.npy", array)
        (folder / "names.json").write_text(json.dumps(list(batch)))
        self.batches += 1

    def run(self, stage: Stage, number: int, norms: Iterable[str]) -> Iterator[list[Moments]]:
        """The moments of the values ``norms``, batch by batch; raises ModelError where the stage does not run.

        number: the stage's. Where what it keeps fits, ``base`` is that number afterwards, else it stays as it was.
        """
        path = None if stage.model is None else self._write(stage.model, number)
        request = {"norms": list(norms), "inputs": stage.inputs, "reads": stage.reads, "keeps": stage.keeps}
        self._send({"model": None if path is None else str(path / "stage.onnx"), **request})
        for _ in range(self.batches):
            yield self._receive()
        types = self._receive()["types"]
        if types is not None:
            self.base = number
            self.types = {
                name: (ir.DataType.from_numpy(np.dtype(dtype)).name, rank) for name, (dtype, rank) in types.items()
            }

    def _write(self, model: ir.Model, number: int) -> Path:
        folder = self._folder / f"stage{number}"
        folder.mkdir()
        tensors = [value.const_value for value in model.graph.initializers.values()]
        large = sum(tensor.nbytes for tensor in tensors if tensor is not None) > PROTOBUF_LIMIT // 2
        ir.save(model, folder / "stage.onnx", external_data="stage.data" if large else None)
        return folder

    def _send(self, request: dict[str, Any]) -> None:
        if self._process is None:
            with self._errors.open("w") as errors:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", str(CHILD)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
            folder = str(self._folder)
            self._say({"task": "stages", "folder": folder, "sets": self.batches, "budget": self._cache_bytes})
        self._say(request)

    def _say(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._failure() from None

    def _receive(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        return json.loads(line)

    def _failure(self) -> ModelError:
        assert self._process is not None
        code = self._process.wait()
        last = self._errors.read_text(errors="replace").strip().splitlines()[-1:] or [f"exit code {code}"]
        what = f"a crash (signal {-code})" if code < 0 else last[0][:300]
        return ModelError(f"calibrate: onnxruntime must be able to run the model, got {what}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._temporary.cleanup()
