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


def test_import_takes_no_longer_than_that_of_numba():
    """About 0.35 s with Numba on a free machine; the share, as machines differ and have other work to do."""
    script = """
import time
start = time.process_time()
import numba
middle = time.process_time()
import fastbn
print((time.process_time() - middle) / (middle - start))
"""
    assert min(float(run(script)) for _ in range(3)) < 1
