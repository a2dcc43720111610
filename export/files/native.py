"""onnx's C++, in a child process: a wrong model can fail an assertion there, which ends the process."""

import subprocess
import sys
from pathlib import Path

import onnx.onnx_cpp2py_export

CHILD = Path(__file__).with_name("native_child.py")


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with the types that follow from its inputs' and constants'. Raises ValueError where it fails."""
    return onnx.ModelProto.FromString(_call("shape inference", model.SerializeToString()))


def check(path: Path) -> None:
    """Raise ValueError where onnx's full check of the file ``path`` and its external data fails."""
    _call("checker", b"", str(path))


def _call(what: str, given: bytes, *arguments: str) -> bytes:
    command = [sys.executable, "-I", "-S", str(CHILD), onnx.onnx_cpp2py_export.__file__, *arguments]
    process = subprocess.run(command, input=given, capture_output=True, check=False)
    if process.returncode not in (0, 1):
        raise ValueError(f"one that crashes onnx's {what}")
    if process.returncode:
        raise ValueError(process.stderr.decode(errors="replace"))
    return process.stdout
