"""``import fastbn`` is quick and loads nothing that only some users have."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import fastbn

ROOT = Path(__file__).parents[1]
HEAVY = ["onnx", "onnx_ir", "onnxruntime", "matplotlib", "torch", "sklearn", "dask", "mpi4py", "export"]
EVERYTHING = "[getattr(fastbn, name) for name in fastbn.__all__]"


def run(script, **variables):
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_heavy_is_imported():
    script = f"import sys, fastbn; {EVERYTHING}; print([name for name in {HEAVY} if name in sys.modules])"
    assert run(script).strip() == "[]"


def test_import_takes_less_than_half_a_second():
    script = "import time; start = time.process_time(); import fastbn; print(time.process_time() - start)"
    assert min(float(run(script)) for _ in range(5)) < 0.5


def test_all_of_it_takes_less_than_half_of_numba(tmp_path):
    """As every process but the first finds it: with the modules' bytecode on the disk.

    What Numba needs for its first kernel counts on neither side.
    """
    script = f"""
import time
times = [time.process_time()]
import numba
times.append(time.process_time())
import numba.np.arraymath
times.append(time.process_time())
import fastbn
{EVERYTHING}
print(times[1] - times[0], time.process_time() - times[2])
"""
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    numba, own = zip(*(map(float, run(script, **bytecode).split()) for _ in range(6)), strict=True)
    assert min(own) < 0.5 * min(numba)


def test_every_name_is_where_the_type_checker_sees_it():
    """The names are loaded from where the imports that only type checkers read say."""
    tree = ast.parse(Path(fastbn.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: line.module for line in block.body for alias in line.names}
    assert sorted(seen) == fastbn.__all__
    assert set(fastbn.__all__) <= set(dir(fastbn))
    for name, module in seen.items():
        script = f"import sys, fastbn; assert '{module}.{name}' not in sys.modules; print(fastbn.{name}.__name__)"
        found = getattr(fastbn, name)
        if hasattr(found, "__module__"):
            assert found.__module__.startswith(module), name
        else:
            assert run(script).strip() == f"{module}.{name}"


def test_a_name_that_is_not_there():
    assert run("import fastbn; print(hasattr(fastbn, 'batchnorm'))").strip() == "False"
