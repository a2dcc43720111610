"""``python -m bench.linear``: products x W^T beside NumPy's and PyTorch's, GFLOP/s of float32 at the median time.

Each library in a process of its own, in turns: threads of one that wait for work would slow down the others.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np

# rows, outputs, inputs
SIZES = (
    (256, 256, 256),
    (512, 512, 512),
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (12544, 128, 512),
    (256, 1000, 1280),
    (128, 4096, 1024),
    (16, 1000, 1280),
)
LIBRARIES = ("fastbn", "NumPy", "PyTorch")
SECONDS = 0.5  # of a size
TURNS = 3


def product(library: str, x: np.ndarray, weight: np.ndarray) -> Callable[[], None]:
    """What multiplies them, into the same memory every time."""
    out = np.zeros((len(x), len(weight)), np.float32)
    if library == "NumPy":
        return lambda: np.matmul(x, weight.T, out=out)
    if library == "PyTorch":
        import torch

        tx, tw, target = map(torch.from_numpy, (x, weight, out))
        return lambda: torch.mm(tx, tw.T, out=target)
    import fastbn.functional as F

    return lambda: F.linear(x, weight, out=out)


def speeds(library: str) -> list[float]:
    """GFLOP/s of all sizes."""
    rng, found = np.random.default_rng(0), []
    for rows, outputs, inputs in SIZES:
        x, weight = (rng.standard_normal((count, inputs), np.float32) for count in (rows, outputs))
        call = product(library, x, weight)
        for _ in range(3):
            call()
        spent, end = list[float](), time.perf_counter() + SECONDS
        while time.perf_counter() < end or len(spent) < 8:
            begun = time.perf_counter()
            call()
            spent.append(time.perf_counter() - begun)
        found.append(2 * rows * outputs * inputs / median(spent) / 1e9)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.linear", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--library", choices=LIBRARIES, help="one alone, its figures on one line")
    library = parser.parse_args().library
    if library is not None:
        print(*speeds(library))
        return
    runs: dict[str, list[list[float]]] = {name: [] for name in LIBRARIES}
    for _ in range(TURNS):
        for name in LIBRARIES:
            command = [sys.executable, "-m", "bench.linear", "--library", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs[name].append([float(text) for text in done.stdout.split()])
    print(f"{'rows, outputs, inputs':24}" + "".join(f"{name:>10}" for name in LIBRARIES) + "  against the best")
    for number, size in enumerate(SIZES):
        speed = [median(run[number] for run in runs[name]) for name in LIBRARIES]
        cells = "".join(f"{value:10.0f}" for value in speed)
        print(f"{' x '.join(map(str, size)):24}{cells}  {speed[0] / max(speed[1:]):.2f}")


if __name__ == "__main__":
    main()
