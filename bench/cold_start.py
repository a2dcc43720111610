"""``python -m bench.cold_start``: seconds of the import and of first calls, with an empty kernel cache and a warm one.

Each figure is a process of its own. Numba imports SciPy where that is installed, though no kernel here needs it: the
last column hides it.
"""

import os
import subprocess
import sys
import tempfile
from statistics import median

INFERENCE, TRAINING = "F.batch_norm(x, v, v)", "F.batch_norm(x, training=True)"
CALLS = {
    "inference, 1 x 64 x 8 x 8": ("(1, 64, 8, 8)", INFERENCE),
    "training, 2 x 64 x 8 x 8": ("(2, 64, 8, 8)", TRAINING),
    "training, 32 x 64": ("(32, 64)", TRAINING),
    "inference, 32 x 64 x 56 x 56": ("(32, 64, 56, 56)", INFERENCE),
    "training, 32 x 64 x 56 x 56": ("(32, 64, 56, 56)", TRAINING),
    "training, the same channels-last": ("(32, 56, 56, 64)", TRAINING.replace("x,", "x.transpose(0, 3, 1, 2),")),
}
SCRIPT = """
import sys, time
if {hidden}:
    sys.modules["scipy"] = None
begun = time.perf_counter()
import numpy as np
import fastbn, fastbn.functional as F
imported = time.perf_counter()
x, v = np.ones({shape}, np.float32), np.ones(64, np.float32)
prepared = time.perf_counter()
{call}
print(imported - begun, time.perf_counter() - prepared)
"""


def run(shape: str, call: str, cache: str, hidden: bool = False) -> tuple[float, float]:
    """Seconds of the import and of the call; ``hidden``: without SciPy."""
    command = [sys.executable, "-c", SCRIPT.format(shape=shape, call=call, hidden=hidden)]
    done = subprocess.run(
        command, env={**os.environ, "NUMBA_CACHE_DIR": cache}, check=True, capture_output=True, text=True
    )
    imported, called = map(float, done.stdout.split())
    return imported, called


def main() -> None:
    print("| first call | empty cache, s | warm cache, s | import, s | ... without SciPy, s |\n|---|---|---|---|---|")
    for name, call in CALLS.items():
        with tempfile.TemporaryDirectory() as cache:
            _, cold = run(*call, cache)
            runs = [run(*call, cache) for _ in range(3)]
            bare = median(imported for imported, _ in (run(*call, cache, hidden=True) for _ in range(3)))
        imported, warm = map(median, zip(*runs, strict=True))
        print(f"| {name} | {cold:.2f} | {warm:.2f} | {imported:.2f} | {bare:.2f} |")


if __name__ == "__main__":
    main()
