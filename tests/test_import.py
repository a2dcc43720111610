"""``import fastbn`` is quick and loads nothing that only some users have."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = ["onnx", "onnx_ir", "onnxruntime", "matplotlib", "torch", "sklearn", "dask", "mpi4py", "export"]


def run(script):
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_heavy_is_imported():
    assert run(f"import sys, fastbn; print([name for name in {HEAVY} if name in sys.modules])").strip() == "[]"


def test_import_takes_less_than_half_a_second():
    script = "import time; start = time.process_time(); import fastbn; print(time.process_time() - start)"
    assert min(float(run(script)) for _ in range(5)) < 0.5
